"""What a quarantined copy says about itself."""

from collections.abc import Iterable, Sequence

from aliasmilter.mail.address import Address, whole_address
from aliasmilter.mail.message import QUARANTINE_HEADER, HeaderField
from aliasmilter.routing.plan import Recipient

HEADER = QUARANTINE_HEADER


def notes(recipients: Sequence[Recipient], visible: Sequence[HeaderField]) -> list[str]:
    """The values of the header: original recipient, rule and reason of each hit.

    Who else gets the message must not learn of a Bcc from it, another quarantine's reader neither:
    then the recipient is only named in the log.

    Args:
        recipients: of the message.
        visible: the fields in which all of them can read addresses (To, Cc).
    """
    kept_away = [recipient for recipient in recipients if recipient.decision.quarantined]
    shared = len(kept_away) < len(recipients)
    readers = {final.address.key for r in kept_away for final in r.decision.finals}
    found = []
    for recipient in kept_away:
        address = recipient.decision.address
        named = _is_named(address, visible)
        for hit in recipient.decision.quarantined:
            if named or (not shared and len(readers) == 1):
                what = f"recipient={ascii_only(str(address))};\n\trule={ascii_only(hit.rule)}"
            elif shared:
                continue  # that there is a Bcc at all would be told
            else:
                what = "recipient=undisclosed"
            found.append(f"{what}; reason={hit.reason}")
    return list(dict.fromkeys(found))


def hold_reason(recipients: Iterable[Recipient]) -> str:
    """Why the MTA holds the message, for its queue listing."""
    for recipient in recipients:
        for hit in recipient.decision.quarantined:
            return f"{hit.reason}: {ascii_only(str(hit.address))}"
    return "quarantine"


def ascii_only(text: str) -> str:
    """The text with escapes for all that is not ASCII."""
    return text.encode("ascii", "backslashreplace").decode("ascii")


def _is_named(address: Address, visible: Sequence[HeaderField]) -> bool:
    wanted = whole_address(address)
    return any(wanted.search(field.unfolded) for field in visible)
