r"""The grammar of the rules: what people type into Redis, and what it means.

    rule     = ( action / 1*target ) *option     ; words, parted by blanks or commas
    action   = "quarantine" / "discard" / ( "disabled" / "defer" / "reject" ) [ text ]
    target   = Local-part "@" Domain / "@" Domain
    option   = "vendor=" Domain [ "strict" ] / "expires=" YYYY-MM-DD / "note=" rest-of-line
             / "block=" sender *( ";" sender )       ; may stand several times
    sender   = Local-part "@" Domain / Domain        ; a domain stands for all below it too
    text     = the rest of the line, up to an option "note="

A word that is none of these makes the rule invalid: what was meant is not guessed, for a guess
could bounce mail or deliver it to somebody. Nothing here raises anything but `RuleError`.
"""

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from enum import StrEnum

from aliasmilter.mail.address import Address, AddressError, parse_address, parse_domain

MAX_RULE_OCTETS = 65_536
_MAX_CACHED = 2048  # octets: thousands of the longest rules would be gigabytes
CATCH_ALL = "*"

_WORD = re.compile(r'(?:[^\s,"]|"(?:[^"\\]|\\.)*")+|"')
_NOTE = re.compile(r"(?:^|[\s,])note=", re.IGNORECASE)
_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_DELIMITER = re.compile(r"[!#$%&'*/=?^_`{|}~.+-]")


class RuleError(ValueError):
    """A rule or a setting means nothing; the message says why, in the reader's terms."""


class Action(StrEnum):
    """What a rule says instead of a target."""

    QUARANTINE = "quarantine"
    DISCARD = "discard"
    DISABLED = "disabled"
    DEFER = "defer"
    REJECT = "reject"


_ACTIONS = frozenset(action.value for action in Action)
_ACTIONS_WITH_TEXT = frozenset({Action.DISABLED, Action.DEFER, Action.REJECT})


@dataclass(frozen=True, slots=True)
class SameLocalPart:
    """The target `@domain`: the same local part there."""

    domain: str


Target = Address | SameLocalPart


@dataclass(frozen=True, slots=True)
class Rule:
    """What a rule says: either an action or at least one target.

    Attributes:
        targets: in the order written, none twice.
        action: None when there are targets.
        text: the reply text of `disabled`, `defer` and `reject`, as written.
        vendor: the domain whose address this is (A-labels), or None.
        strict: nobody but the vendor may write to it.
        block: keys of addresses, and domains, whose mail is refused.
        expires: the last day (UTC) on which the rule holds, or None.
        note: for people; never acted on.
    """

    targets: tuple[Target, ...] = ()
    action: Action | None = None
    text: str = ""
    vendor: str | None = None
    strict: bool = False
    block: frozenset[str] = frozenset()
    expires: date | None = None
    note: str = ""

    def blocks(self, sender: Address | None) -> bool:
        """Whether mail of this sender is refused; that of the null sender never is."""
        return bool(self.block) and not self.block.isdisjoint(sender_keys(sender))


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of a managed domain; None stands for the configuration's default.

    Attributes:
        unknown_passes: an address without a rule is left to the MTA instead of refused.
        alias_of: the domain in which every address is looked up instead.
        delimiter: of subaddresses, one character; "" switches them off.
        quarantine: the mailbox that receives catch-all hits.
        srs_domain: the domain of SRS senders of mail forwarded from here.
        arc_domain: the domain (d=) that seals mail forwarded from here.
        arc_selector: the selector (s=) of its key.
    """

    unknown_passes: bool = False
    alias_of: str | None = None
    delimiter: str | None = None
    quarantine: Address | None = None
    srs_domain: str | None = None
    arc_domain: str | None = None
    arc_selector: str | None = None


def sender_keys(sender: Address | None) -> tuple[str, ...]:
    """What a sender can be blocked by: its key, its domain, and the domains above that."""
    if sender is None or not sender.domain:
        return ()
    labels = sender.domain.split(".")
    above = (".".join(labels[start:]) for start in range(len(labels)))
    return (sender.key, *above)


def parse_rule(raw: bytes) -> Rule:
    """Parse the text of a rule as Redis holds it.

    Raises:
        RuleError: says what is wrong.
    """
    return _parse_cached(raw) if len(raw) <= _MAX_CACHED else _parse(raw)


@functools.lru_cache(maxsize=8192)
def _parse_cached(raw: bytes) -> Rule:
    return _parse(raw)


def _parse(raw: bytes) -> Rule:
    text = _decode(raw)
    note = _NOTE.search(text)
    line, remark = (text[: note.start()], text[note.end() :]) if note else (text, "")
    first = next(_words(line), "")
    if not first:
        raise RuleError("empty rule")
    if first.lower() in _ACTIONS_WITH_TEXT:
        said = line.strip()[len(first) :].strip()
        return Rule(action=Action(first.lower()), text=said, note=remark.strip())
    return _Builder(note=remark.strip()).build(line)


def parse_settings(fields: Mapping[bytes, bytes]) -> Settings:
    """Parse the hash of a managed domain.

    Raises:
        RuleError: names the field and what is wrong with it.
    """
    return _parse_settings(tuple(fields.items()))


@functools.lru_cache(maxsize=8192)
def _parse_settings(items: tuple[tuple[bytes, bytes], ...]) -> Settings:
    values: dict[str, object] = {}
    for raw_name, raw_value in items:
        name = _decode(raw_name)
        if name == "note":
            continue
        if name not in _SETTINGS:
            raise RuleError(f"field {name}: no such setting")
        attribute, parse = _SETTINGS[name]
        try:
            values[attribute] = parse(_decode(raw_value))
        except (RuleError, AddressError) as error:
            raise RuleError(f"field {name}: {error}") from None
    return Settings(**values)  # type: ignore[arg-type]  # the table below pairs them


def parse_delimiter(text: str) -> str:
    """Parse a subaddress delimiter: one character that a local part may hold, or nothing.

    Raises:
        RuleError: says what is wrong.
    """
    if text and not _DELIMITER.fullmatch(text):
        raise RuleError("a delimiter is one character such as + or -, or empty")
    return text


def _parse_unknown(text: str) -> bool:
    if text not in ("reject", "pass"):
        raise RuleError("neither reject nor pass")
    return text == "pass"


def _parse_selector(text: str) -> str:
    parse_domain(text)  # RFC 6376 section 3.1: sub-domains, parted by dots
    return text


_SETTINGS: dict[str, tuple[str, Callable[[str], object]]] = {
    "unknown": ("unknown_passes", _parse_unknown),
    "alias_of": ("alias_of", parse_domain),
    "delimiter": ("delimiter", parse_delimiter),
    "quarantine": ("quarantine", parse_address),
    "srs_domain": ("srs_domain", parse_domain),
    "arc_domain": ("arc_domain", parse_domain),
    "arc_selector": ("arc_selector", _parse_selector),
}

SETTING_NAMES = (*_SETTINGS, "note")
"""The fields that the hash of a managed domain can have."""


@dataclass(slots=True)
class _Builder:
    """Collects the words of a rule that has no reply text."""

    note: str
    targets: dict[Target, None] = field(default_factory=dict)
    actions: list[Action] = field(default_factory=list)
    options: dict[str, str] = field(default_factory=dict)
    block: set[str] = field(default_factory=set)
    strict: bool = False

    def build(self, line: str) -> Rule:
        for word in _words(line):
            self._take(word)
        if len(self.actions) + bool(self.targets) != 1:
            raise RuleError("a rule has either targets or one action")
        if self.strict and "vendor" not in self.options:
            raise RuleError("strict goes with vendor=")
        return Rule(
            targets=tuple(self.targets),
            action=self.actions[0] if self.actions else None,
            vendor=self._vendor(),
            strict=self.strict,
            block=frozenset(self.block),
            expires=self._expires(),
            note=self.note,
        )

    def _take(self, word: str) -> None:
        name, equals, value = word.partition("=")
        if word.lower() in _ACTIONS:
            self.actions.append(Action(word.lower()))
        elif word.lower() == "strict":
            self.strict = True
        elif equals and name.lower() == "block":
            self.block.update(_parse_sender(one) for one in value.split(";"))
        elif equals and name.lower() in ("vendor", "expires"):
            if name.lower() in self.options:
                raise RuleError(f"{name} is given twice")
            self.options[name.lower()] = value
        elif "@" in word:
            self.targets[_parse_target(word)] = None
        elif equals:
            raise RuleError(f"unknown option {name}=")
        else:
            raise RuleError(f"unknown word {word[:40]!r}")

    def _vendor(self) -> str | None:
        if "vendor" not in self.options:
            return None
        try:
            return parse_domain(self.options["vendor"])
        except AddressError as error:
            raise RuleError(f"vendor={self.options['vendor'][:80]}: {error}") from None

    def _expires(self) -> date | None:
        if "expires" not in self.options:
            return None
        day = self.options["expires"]
        try:
            return date.fromisoformat(day if _DAY.fullmatch(day) else "")
        except ValueError:
            raise RuleError(f"expires={day[:40]}: not a day, as in 2027-01-31") from None


def _parse_sender(text: str) -> str:
    try:
        return parse_address(text).key if "@" in text else parse_domain(text)
    except AddressError as error:
        raise RuleError(f"block={text[:80]}: {error}") from None


def _parse_target(word: str) -> Target:
    try:
        return SameLocalPart(parse_domain(word[1:])) if word[0] == "@" else parse_address(word)
    except AddressError as error:
        raise RuleError(f"target {word[:80]}: {error}") from None


def _decode(raw: bytes) -> str:
    if len(raw) > MAX_RULE_OCTETS:
        raise RuleError(f"{len(raw)} octets long, at most {MAX_RULE_OCTETS} make a rule")
    try:
        text = raw.decode("utf-8").strip()
    except UnicodeDecodeError:
        raise RuleError("not UTF-8") from None
    if not text.replace("\t", " ").isprintable():
        raise RuleError("control characters in it")
    return text


def _words(line: str) -> Iterator[str]:
    return (match[0] for match in _WORD.finditer(line))
