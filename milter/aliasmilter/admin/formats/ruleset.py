"""Rules, settings and blocked senders as a file or a command line gives them."""

from dataclasses import dataclass, field
from typing import NamedTuple

from aliasmilter.admin.report import Finding, error
from aliasmilter.mail.address import AddressError, local_key, parse_address, parse_domain
from aliasmilter.routing.rules import CATCH_ALL
from aliasmilter.store.audit import Change, Subject
from aliasmilter.store.schema import domain_key


class Given(NamedTuple):
    """A rule as it was given: its text, and the line (0: on the command line)."""

    raw: bytes
    line: int


@dataclass(slots=True)
class RuleSet:
    """What is to be in Redis, and what is wrong with how it was said.

    Attributes:
        source: the name of the file, for findings; "" for the command line.
        origin: the domain of names without one, or None: then they are mistakes.
        rules: domain -> local part or `*` -> rule.
        settings: domain -> setting -> value.
        blocks: domain -> sender that it blocks -> line.
        problems: mistakes; with any of them nothing may be written.
        left_out: what was understood, and cannot be said in rules (or in the file's format).
        notices: what was left out and is not missed.
    """

    source: str = ""
    origin: str | None = None
    rules: dict[str, dict[str, Given]] = field(default_factory=dict)
    settings: dict[str, dict[bytes, bytes]] = field(default_factory=dict)
    blocks: dict[str, dict[bytes, int]] = field(default_factory=dict)
    problems: list[Finding] = field(default_factory=list)
    left_out: list[Finding] = field(default_factory=list)
    notices: list[Finding] = field(default_factory=list)

    def add(self, domain: str, name: str, raw: bytes, line: int = 0) -> None:
        """Take a rule; giving an address two different rules is a mistake.

        Args:
            domain: lower-case A-labels.
            name: a local part or `*`.
            raw: the text of the rule.
            line: where it stands.
        """
        rules = self.rules.setdefault(domain, {})
        known = rules.setdefault(name, Given(raw, line))
        if known.raw != raw:
            before = f" (also line {known.line})" if known.line else ""
            self.mistake(line, f"{name}@{domain} has two rules{before}")

    def add_address(self, text: str, raw: bytes, line: int = 0) -> None:
        """Take a rule for an address as people write it; see `parse_owner`."""
        try:
            domain, name = parse_owner(text, self.origin)
        except AddressError as problem:
            self.mistake(line, f"{text[:80]}: {problem}")
            return
        self.add(domain, name, raw, line)

    def add_setting(self, domain: str, name: bytes, value: bytes, line: int) -> None:
        """Take a setting; giving it twice with different values is a mistake."""
        if self.settings.setdefault(domain, {}).setdefault(name, value) != value:
            shown = name.decode("utf-8", "replace")
            self.mistake(line, f"{domain_key(domain)} {shown} has two values")

    def add_block(self, domain: str, member: bytes, line: int) -> None:
        """Take a sender that the domain blocks."""
        self.blocks.setdefault(domain, {}).setdefault(member, line)

    def mistake(self, line: int, what: str) -> None:
        """Note a mistake in a line."""
        self.problems.append(error(self.where(line), what))

    def where(self, line: int) -> str:
        """Name a line of the source."""
        return f"{self.source}:{line}" if line else self.source or "command line"

    def place(self, change: Change) -> str:
        """Name what changes, for a finding about it: by its line, when it came out of a file."""
        line, name = 0, change.name
        if change.kind is Subject.RULE and (given := self.rules.get(change.domain, {}).get(name)):
            line = given.line
        elif change.kind is Subject.BLOCK and change.after is not None:
            line = self.blocks.get(change.domain, {}).get(change.after, 0)
            name = change.after.decode("utf-8", "backslashreplace")
        key = f"{change.key} {name}"
        return f"{self.where(line)}: {key}" if line else key

    @property
    def size(self) -> int:
        """The number of rules."""
        return sum(len(rules) for rules in self.rules.values())

    @property
    def domains(self) -> list[str]:
        """All that it names, sorted."""
        return sorted({*self.rules, *self.settings, *self.blocks})


def parse_owner(text: str, origin: str | None = None) -> tuple[str, str]:
    """The domain and the field of the rule for an address.

    Args:
        text: `bob@example.com`; `*@example.com` or `@example.com` for the catch-all.
        origin: the domain of a name without one.

    Raises:
        AddressError: says what is wrong.
    """
    if text.startswith(("@", "*@")):
        return parse_domain(text.partition("@")[2]), CATCH_ALL
    if "@" not in text:
        if not origin:
            raise AddressError("no domain")
        text = f"{text}@{origin}"
    address = parse_address(text)
    if address.local == CATCH_ALL or address.domain.startswith("["):
        # RFC 5321 section 4.1.3: an address literal is no domain that rules could manage.
        raise AddressError("no address that can have a rule")
    return address.domain, local_key(address.local)
