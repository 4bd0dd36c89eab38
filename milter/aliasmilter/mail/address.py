"""The address value and the grammar of the paths in MAIL and RCPT.

Grammar (RFC 5321 section 4.1.2, RFC 6531 section 3.3):

    Reverse-path = Path / "<>"
    Path         = "<" [ A-d-l ":" ] Mailbox ">"
    Mailbox      = Local-part "@" ( Domain / address-literal )
    Local-part   = Dot-string / Quoted-string

Departures, each towards what a mail system meets every day:

* the angle brackets may be missing (Postfix's local submission has none);
* a source route is skipped (RFC 5321 section 4.1.1.3: SHOULD ignore);
* `postmaster` without a domain is an address (section 4.1.1.3), and so is any bare local part:
  the MTA qualifies it later. Its `domain` is empty;
* `_` is allowed in a domain, as every MTA does;
* the sizes of section 4.5.3.1 are what one must accept at least: a local part may have
  256 octets here, since VERP and SRS senders pass 64;
* a reverse-path may have dots in odd places (`a..b@`), a forward-path may not.
"""

import functools
import ipaddress
import re
import unicodedata
from dataclasses import dataclass

import idna

from aliasmilter.mail.kept import kept

MAX_LOCAL_OCTETS = 256
MAX_DOMAIN_OCTETS = 255  # RFC 5321 section 4.5.3.1.2
MAX_PATH_OCTETS = 1024  # with a source route; refused before anything is parsed

_ATEXT = r"A-Za-z0-9!#$%&'*+/=?^_`{|}~\-"
_UTF8 = r"\u00a0-\U0010ffff"  # RFC 6531 section 3.3: UTF8-non-ascii; C1 controls stay out
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?"

_DOT_STRING = re.compile(rf"[{_ATEXT}{_UTF8}]+(?:\.[{_ATEXT}{_UTF8}]+)*")
_DOTTED_ANYHOW = re.compile(rf"[{_ATEXT}{_UTF8}.]+")
# RFC 5321 section 4.1.2: qtextSMTP and quoted-pairSMTP
_QUOTED_STRING = re.compile(rf'"((?:[ !#-\[\]-~{_UTF8}]|\\[ -~])*)"')
_QUOTED_PAIR = re.compile(r"\\(.)")
_DOMAIN = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_SOURCE_ROUTE = re.compile(r"@[^:<>\"]*:")
# Nearly all addresses: what the functions below would say, in one step.
_HOST_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_COMMON = re.compile(
    rf"([{_ATEXT}]+(?:\.[{_ATEXT}]+)*)@({_HOST_LABEL}(?:\.{_HOST_LABEL})+)", re.ASCII
)
_ROUTE = re.compile(r"[%!@]")
_UNFIT_CATEGORIES = frozenset({"Cc", "Cs", "Cn", "Zl", "Zp"})


class AddressError(ValueError):
    """The text is no address; the message says what is wrong with it."""


@dataclass(frozen=True)  # no slots: the key is kept
class Address:
    """A mailbox name: who, at which domain.

    Attributes:
        local: the local part with its quoting undone, in the case it was written.
        domain: lower-case A-labels (RFC 5890), an address literal in brackets, or ""
            when the address is unqualified.
    """

    local: str
    domain: str

    @kept
    def key(self) -> str:
        """Two addresses with one key are one person: case and Unicode form do not count.

        RFC 5321 section 2.4 lets a host tell `Bob` from `bob`; none does that mail is sent to.
        """
        return f"{local_key(self.local)}@{self.domain}"

    @property
    def is_ascii(self) -> bool:
        """Whether it may be named in a message sent without SMTPUTF8."""
        return self.local.isascii()

    def at(self, domain: str) -> "Address":
        """The same local part at another domain (given as lower-case A-labels)."""
        return Address(self.local, domain)

    def __str__(self) -> str:
        """The addr-spec, quoted where RFC 5321 section 4.1.2 demands it."""
        local = self.local if _DOTTED_ANYHOW.fullmatch(self.local) else _quote(self.local)
        return f"{local}@{self.domain}" if self.domain else local

    @property
    def path(self) -> str:
        """The address as an argument of MAIL or RCPT: in angle brackets."""
        return f"<{self}>"


def readings(address: Address, seen: str) -> tuple[Address, ...]:
    """What else an MTA may take an address for, which is not as it is written.

    An MTA adds a domain where there is none, and goes on with the route in a local part when the
    domain is its own: `user%domain`, `domain!user`, `"user@domain"` (RFC 5321 appendix C calls
    that obsolete; Postfix and Sendmail do it).

    Args:
        address: as it was written.
        seen: the address as the MTA resolves it, where it tells; without a domain where its own
            users get the mail (Sendmail).

    Returns:
        The other addresses; none when the MTA means what is written.
    """
    if "@" in seen:
        found = _reading(seen)
        return (found,) if found and found.key != address.key else ()
    local = address.local.strip("%!@.")
    user, _, domain = local.rpartition("%")
    host, _, name = local.partition("!")
    texts = (local, f"{user}@{domain}", f"{name}@{host}")
    return tuple(found for text in texts if (found := _reading(text)))


def folded(address: Address) -> Address:
    """The address as Postfix looks it up, which folds case as Unicode has it: long s is s."""
    return Address(unicodedata.normalize("NFC", address.local.casefold()), address.domain)


def is_written_plainly(address: Address) -> bool:
    """Whether it has a domain, and nothing in it that an MTA could take for a route."""
    return bool(address.domain) and not holds_route(address.local)


def holds_route(local: str) -> bool:
    """Whether an MTA could take a local part, or what is added to one, for a route."""
    return _ROUTE.search(local) is not None


def is_postmaster(address: Address) -> bool:
    """Whether it is `<postmaster>`, which every host takes (RFC 5321 section 4.5.1)."""
    return not address.domain and local_key(address.local) == "postmaster"


def _reading(text: str) -> Address | None:
    try:
        return parse_address(text.removesuffix("."), any_dots=True)
    except AddressError:
        return None


def whole_address(address: Address) -> re.Pattern[bytes]:
    """What finds the address in a header field, and no longer one that it is a part of.

    Between apostrophes, as Outlook names a mailbox without a name, it is found too.
    """
    text = re.escape(str(address).encode("utf-8", "surrogateescape"))
    before, after = rb"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]", rb"[A-Za-z0-9-]|\.[A-Za-z0-9]"
    quoted = rb"(?<=')(?<!" + before + rb"')(?=" + text + rb"')"
    begin = rb"(?:(?<!" + before + rb")|" + quoted + rb")"
    return re.compile(begin + text + rb"(?!" + after + rb")", re.IGNORECASE)


def local_key(local: str) -> str:
    """The form of a local part under which rules are found: NFC, lower case."""
    if local.isascii():
        return local.lower()
    # Once more: a letter that is composed in lower case alone (U+01F0) comes in two pieces.
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", local).lower())


def parse_address(text: str, *, any_dots: bool = False) -> Address:
    """Parse a Mailbox without brackets, qualified by a domain.

    Args:
        text: `local@domain`, as in a rule, a configuration or on a command line.
        any_dots: take `a..b@` too; for senders, whose mistakes are not ours to punish.

    Raises:
        AddressError: says what is wrong. No other error, whatever the text is.
    """
    common = _COMMON.fullmatch(text)
    if common and len(text) <= MAX_DOMAIN_OCTETS:
        return Address(common[1], common[2].lower())
    local, at, domain = _split(text)
    if at != "@":
        raise AddressError("no domain")
    return Address(_parse_local(local, any_dots=any_dots), parse_domain(domain))


def parse_path(argument: bytes, *, any_dots: bool = False) -> Address | None:
    """Parse the argument of MAIL or RCPT, as it came over the wire.

    Args:
        argument: `<a@b>`, `<@route:a@b>`, `<>`, `<postmaster>`, or without brackets.
        any_dots: see `parse_address`.

    Returns:
        The address; None for the null reverse-path.

    Raises:
        AddressError: says what is wrong. No other error, whatever the octets are.
    """
    if len(argument) > MAX_PATH_OCTETS:
        raise AddressError("too long")
    try:
        text = argument.decode("utf-8")
    except UnicodeDecodeError:
        raise AddressError("neither ASCII nor UTF-8") from None
    if text.startswith("<"):
        if not text.endswith(">"):
            raise AddressError("angle bracket not closed")
        text = text[1:-1]
    if not text:
        return None
    if text.startswith("@"):
        route = _SOURCE_ROUTE.match(text)
        if not route:
            raise AddressError("no local part")
        text = text[route.end() :]
    if "@" not in text:
        return Address(_parse_local(text, any_dots=any_dots), "")
    return parse_address(text, any_dots=any_dots)


@functools.lru_cache(maxsize=4096)
def parse_domain(text: str) -> str:
    """Bring a domain or an address literal into its one form: lower-case A-labels.

    Raises:
        AddressError: says what is wrong.
    """
    if text.startswith("["):
        return _parse_literal(text)
    if not text.isascii():
        try:
            text = idna.encode(text, uts46=True).decode("ascii")
        except (idna.IDNAError, UnicodeError):  # RFC 5891 section 4
            raise AddressError("not an internationalised domain name") from None
    if len(text) > MAX_DOMAIN_OCTETS:
        raise AddressError("domain too long")
    # A final dot is no part of a Domain; an MTA that drops it later would deliver the mail
    # past the rules of that domain, so it must not go through.
    if not _DOMAIN.fullmatch(text) or any(len(label) > 63 for label in text.split(".")):
        raise AddressError("not a domain name")
    return text.lower()


def domain_named(text: str) -> str:
    """The domain of what is no address: what stands after the last @ in it, or "" for none."""
    _, at, rest = text.rpartition("@")
    domain = rest.strip(" >").rstrip(".")
    try:
        return parse_domain(domain) if at and len(domain) <= MAX_DOMAIN_OCTETS else ""
    except AddressError:
        return ""


def split_subaddress(local: str, delimiter: str) -> tuple[str, str] | None:
    """Take `user` and `detail` apart at the first delimiter (RFC 5233 section 4).

    Returns:
        (user, detail), or None when there is no delimiter in it, or nothing before it.
    """
    if not delimiter:
        return None
    user, found, detail = local.partition(delimiter)
    return (user, detail) if found and user else None


def _split(text: str) -> tuple[str, str, str]:
    """Split at the @ that follows the local part; a quoted local part may hold others."""
    quoted = _QUOTED_STRING.match(text)
    end = quoted.end() if quoted else max(text.find("@"), 0)
    return text[:end], text[end : end + 1], text[end + 1 :]


def _parse_local(text: str, *, any_dots: bool) -> str:
    quoted = _QUOTED_STRING.fullmatch(text)
    local = _QUOTED_PAIR.sub(r"\1", quoted[1]) if quoted else text
    if not local:
        raise AddressError("no local part")
    if not quoted and not (_DOTTED_ANYHOW if any_dots else _DOT_STRING).fullmatch(local):
        raise AddressError("local part with characters or dots where none may be")
    if len(local.encode("utf-8", "replace")) > MAX_LOCAL_OCTETS:
        raise AddressError("local part too long")
    if not local.isascii() and any(unicodedata.category(c) in _UNFIT_CATEGORIES for c in local):
        raise AddressError("local part with control characters")
    return local


def _parse_literal(text: str) -> str:
    """RFC 5321 section 4.1.3: `[192.0.2.1]`, `[IPv6:2001:db8::1]`."""
    if not text.endswith("]"):
        raise AddressError("address literal not closed")
    inner = text[1:-1]
    try:
        if inner[:5].lower() == "ipv6:":
            return f"[IPv6:{ipaddress.IPv6Address(inner[5:])}]"
        return f"[{ipaddress.IPv4Address(inner)}]"
    except ValueError:
        raise AddressError("not an address literal") from None


def _quote(local: str) -> str:
    return '"' + re.sub(r'(["\\])', r"\\\1", local) + '"'
