"""The author domain: the domain in the From field, which DMARC protects (RFC 9989, 5.3.1).

    From = "From:" (mailbox-list / address-list)          RFC 5322, 3.6.2; RFC 6854

The field is read in one pass without recursion, as comments nest as deep as a sender likes.
"""

import re
from collections.abc import Iterator
from itertools import islice

from aliasmilter.forwarding.names import to_a_label
from aliasmilter.mail.address import Address, AddressError, parse_address
from aliasmilter.mail.message import HeaderField, Message

_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')

MAX_NAMED = 5
MAX_AUTHORS = 100  # whose addresses are looked up one by one
_AFTER_AT = re.compile(r"""@[ \t]*(?P<domain>[^\s@<>(),:;"'\\\[\]]+)[ \t]*(?P<angle>>)?""")
_SURROGATE = re.compile("[\udc80-\udcff]")

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
    text = _text(fields[0])
    common = _COMMON.fullmatch(text)
    if common:
        return _domain(common[1])
    domains = {_domain(address) for address in _addresses(text)}
    if not domains:
        raise NoAuthorError("no address in From")
    if len(domains) > 1:
        raise NoAuthorError("several domains in From")
    return domains.pop()


def named_domains(message: Message) -> tuple[str, ...]:
    """The domains, at most MAX_NAMED, that From fields without one author domain do name.

    Those of the mailboxes; of a field that cannot be read, whatever stands after an "@", first
    what ends with ">", as that is what readers are shown.
    """
    found = [name for field in message.fields("from") for name in _named(_text(field))]
    return tuple(dict.fromkeys(found))[:MAX_NAMED]


def _named(text: str) -> list[str]:
    try:
        return [_domain(address) for address in _addresses(text)]
    except NoAuthorError:
        matches = sorted(_AFTER_AT.finditer(text), key=lambda match: match["angle"] is None)
        names = (to_a_label(match["domain"]) for match in matches)
        return [name for name in names if name and "." in name]


def author_addresses(message: Message, most: int | None = MAX_AUTHORS) -> tuple[Address, ...]:
    """All addresses of all From fields, `most` of them at most; None: however many.

    Raises NoAuthorError: there are more, or one cannot be read.
    """
    found = (text.strip() for f in message.fields("from") for text in _addresses(_text(f)))
    texts = list(found if most is None else islice(found, most + 1))
    if most is not None and len(texts) > most:
        raise NoAuthorError("too many addresses in From")
    try:
        return tuple(parse_address(text, any_dots=True) for text in texts)
    except AddressError:
        raise NoAuthorError("malformed address in From") from None


def _text(field: HeaderField) -> str:
    """The field; octets that are not UTF-8, as old software writes names, become surrogates."""
    return field.unfolded.decode("utf-8", "surrogateescape")


def _domain(address: str) -> str:
    local, at, domain = _QUOTED.sub("x", address).partition("@")
    name = to_a_label(domain)
    if not at or not local.strip() or name is None:
        # A second "@" makes the domain malformed, too.
        raise NoAuthorError("malformed address in From")
    return name


def _addresses(text: str) -> Iterator[str]:
    """The address of each mailbox: what is in angle brackets, else all but the comments."""
    bare: list[str] = []
    angle: list[str] | None = None
    closed = False
    for letter in _tokens(text):
        if letter in {",", ";"} and (angle is None or closed):
            yield from _mailbox(bare, angle)
            bare, angle, closed = [], None, False
        elif letter == ":" and angle is None:
            bare = []  # the display name of a group
        elif angle is not None:
            angle.append(letter)
            # RFC 5322, 3.4: white space may follow, before the next mailbox
            closed = closed or letter == ">"
        elif letter == "<":
            angle = []
        else:
            bare.append(letter)
    yield from _mailbox(bare, angle)


def _mailbox(bare: list[str], angle: list[str] | None) -> Iterator[str]:
    if angle is not None:
        if ">" not in angle or "".join(angle[angle.index(">") + 1 :]).strip():
            raise NoAuthorError("malformed address in From")
        yield _written(angle[: angle.index(">")])
    elif "".join(bare).strip():
        yield _written(bare)


def _written(tokens: list[str]) -> str:
    """An address without the white space around its parts (RFC 5322, 3.4.1)."""
    if "@" in tokens:
        at = tokens.index("@")
        address = "".join(tokens[:at]).strip() + "@" + "".join(tokens[at + 1 :]).strip()
    else:
        address = "".join(tokens)
    # RFC 6532, 3.2: names and comments may say what they like, who wrote it has to be certain.
    if _SURROGATE.search(address):
        raise NoAuthorError("From is not UTF-8")
    return address


def _tokens(text: str) -> Iterator[str]:
    """Letters outside of comments; a quoted string is one token: what is in it is no address."""
    depth, escaped = 0, False
    quoted: list[str] = []
    for letter in text:
        if quoted:
            quoted.append(letter)
        if escaped or letter == "\\":
            escaped = not escaped
        elif letter == '"' and not depth:
            if len(quoted) > 1:
                yield "".join(quoted)
            quoted = [] if quoted else [letter]
        elif quoted:
            continue
        elif letter == "(" or (letter == ")" and depth):
            depth += 1 if letter == "(" else -1
        elif not depth:
            yield letter
    if depth or quoted:
        raise NoAuthorError("malformed address in From")
