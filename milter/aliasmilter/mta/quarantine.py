"""What a quarantined copy says about itself."""

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

from aliasmilter.mail.message import QUARANTINE_HEADER, HeaderField
from aliasmilter.routing.plan import Recipient

HEADER = QUARANTINE_HEADER

# Whatever of ASCII a dot-atom and its domain are not made of stands between addresses.
_BETWEEN = b" \t\r\n\v\f\0" + b'"(),:;<>[\\]'
_APART = bytes.maketrans(_BETWEEN, b" " * len(_BETWEEN))
_DOMAIN = re.compile(rb"[a-z0-9.-]*")


def notes(recipients: Sequence[Recipient], visible: Sequence[HeaderField]) -> list[str]:
    """The values of the header: original recipient, rule and reason of each hit.

    Who else gets the message must not learn of a Bcc from it, another quarantine's reader neither:
    then the recipient is only named in the log.

    Args:
        recipients: of the message.
        visible: the fields in which all of them can read addresses (To, Cc).
    """
    kept_away = [recipient for recipient in recipients if recipient.decision.quarantined]
    if not kept_away:
        return []
    seen = frozenset(_addresses(visible))
    shared = len(kept_away) < len(recipients)
    readers = {final.address.key for r in kept_away for final in r.decision.finals}
    found = []
    for recipient in kept_away:
        address = recipient.decision.address
        named = str(address).encode("utf-8", "surrogateescape").lower() in seen
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


def _addresses(fields: Sequence[HeaderField]) -> Iterator[bytes]:
    """The addresses in header fields, in lower case; quoted ones are not found.

    Read once for all recipients: a thousand of them, each looked for in a megabyte, are 10 s.
    """
    for field in fields:
        for word in field.unfolded.translate(_APART).lower().split():
            for local, rest in pairwise(word.split(b"@")):
                domain = _DOMAIN.match(rest)
                yield local + b"@" + (domain[0].rstrip(b".") if domain else b"")
