"""The author domain: the domain in the From field, which DMARC protects (RFC 9989, 5.3.1).

    From = "From:" (mailbox-list / address-list)          RFC 5322, 3.6.2; RFC 6854

The field is read in one pass without recursion, as comments nest as deep as a sender likes.
"""

import re
from collections.abc import Iterator

from aliasmilter.forwarding.names import to_a_label
from aliasmilter.mail.message import Message

# Nearly all From fields: a name, quoted or not, and an address in angle brackets. What the
# functions below would say, in one step.
_ATOMS = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]+"
_COMMON = re.compile(rf'(?:[ \t]*"[^"\\]*"[ \t]*|[^"(),:;<>@\\]*)<({_ATOMS}@[A-Za-z0-9.-]+)>[ \t]*')


class NoAuthorError(Exception):
    """The message has no author domain, or more than one; the text says which."""


def author_domain(message: Message) -> str:
    """The one domain of the From field, as A-labels. Raises NoAuthorError."""
    fields = message.fields("from")
    if len(fields) != 1:
        raise NoAuthorError("several From fields" if fields else "no From field")
    try:
        text = fields[0].unfolded.decode("utf-8")
    except UnicodeDecodeError:
        raise NoAuthorError("From is not UTF-8") from None
    common = _COMMON.fullmatch(text)
    if common:
        return _domain(common[1])
    domains = {_domain(address) for address in _addresses(text)}
    if not domains:
        raise NoAuthorError("no address in From")
    if len(domains) > 1:
        raise NoAuthorError("several domains in From")
    return domains.pop()


def _domain(address: str) -> str:
    local, at, domain = address.partition("@")
    name = to_a_label(domain)
    if not at or not local.strip() or name is None:
        # A second "@" makes the domain malformed, too.
        raise NoAuthorError("malformed address in From")
    return name


def _addresses(text: str) -> Iterator[str]:
    """The address of each mailbox: what is in angle brackets, else all but the comments.

    Quoted strings count as one letter "x": what is in them is no address.
    """
    bare: list[str] = []
    angle: list[str] | None = None
    for letter in _tokens(text):
        if letter in {",", ";"} and (angle is None or angle[-1:] == [">"]):
            yield from _mailbox(bare, angle)
            bare, angle = [], None
        elif letter == ":" and angle is None:
            bare = []  # the display name of a group
        elif angle is not None:
            angle.append(letter)
        elif letter == "<":
            angle = []
        else:
            bare.append(letter)
    yield from _mailbox(bare, angle)


def _mailbox(bare: list[str], angle: list[str] | None) -> Iterator[str]:
    if angle is not None:
        if ">" not in angle or "".join(angle[angle.index(">") + 1 :]).strip():
            raise NoAuthorError("malformed address in From")
        yield "".join(angle[: angle.index(">")])
    elif "".join(bare).strip():
        yield "".join(bare)


def _tokens(text: str) -> Iterator[str]:
    """Letters outside of comments; a quoted string is the one letter "x"."""
    depth, quoted, escaped = 0, False, False
    for letter in text:
        if escaped or letter == "\\":
            escaped = not escaped
        elif letter == '"' and not depth:
            quoted = not quoted
            if quoted:
                yield "x"
        elif quoted:
            continue
        elif letter == "(" or (letter == ")" and depth):
            depth += 1 if letter == "(" else -1
        elif not depth:
            yield letter
    if depth or quoted:
        raise NoAuthorError("malformed address in From")
