"""What a quarantined copy says about itself."""

from collections.abc import Iterable, Sequence

from aliasmilter.mail.address import Address
from aliasmilter.mail.message import QUARANTINE_HEADER, HeaderField
from aliasmilter.routing.plan import Recipient

HEADER = QUARANTINE_HEADER


def notes(recipients: Sequence[Recipient], visible: Sequence[HeaderField]) -> list[str]:
    """The values of the header: original recipient, rule and reason of each hit.

    Who else gets the message must not learn of a Bcc from it: then the recipient is only named
    in the log.

    Args:
        recipients: of the message.
        visible: the fields in which all of them can read addresses (To, Cc).
    """
    kept_away = [recipient for recipient in recipients if recipient.decision.quarantined]
    alone = len(kept_away) == len(recipients)
    found = []
    for recipient in kept_away:
        address = recipient.decision.address
        known = alone or _is_named(address, visible)
        for hit in recipient.decision.quarantined:
            who = ascii_only(str(address)) if known else "undisclosed"
            rule = ascii_only(hit.rule) if known else f"alias:{hit.address.domain}"
            found.append(f"recipient={who};\n\trule={rule}; reason={hit.reason}")
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
    wanted = str(address).lower().encode()
    return any(wanted in field.unfolded.lower() for field in visible)
