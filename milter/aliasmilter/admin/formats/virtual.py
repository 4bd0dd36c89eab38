"""Postfix's virtual(5) tables: `address target, target`; `@domain target` is a catch-all.

A logical line starts with something else than a blank, and goes on in lines that start with one.
Lines whose first character besides blanks is `#`, and empty ones, are comments, in the middle of a
logical line too. What such a table can say and rules cannot: names without a domain (unless the
origin is told), regular expressions, domains without an address (`example.com anything`, which
declares a domain).
"""

import re
from collections.abc import Iterable, Iterator

from aliasmilter.admin.formats.ruleset import RuleSet
from aliasmilter.admin.report import error, warning
from aliasmilter.mail.address import Address, AddressError, parse_address, parse_domain
from aliasmilter.routing.lookup import is_pattern
from aliasmilter.routing.rules import (
    CATCH_ALL,
    Rule,
    RuleError,
    SameLocalPart,
    Target,
    parse_rule,
)
from aliasmilter.store.audit import rule_address
from aliasmilter.store.snapshot import Snapshot

_TARGET = re.compile(r'(?:[^\s,"]|"(?:[^"\\]|\\.)*")+|"')
_OWNER = re.compile(r'((?:[^\s"]|"(?:[^"\\]|\\.)*")+|\S+)\s*(.*)', re.DOTALL | re.ASCII)
_BLANKS = " \t\r\n\v\f"  # Postfix knows no others


def read(lines: Iterable[str], rules: RuleSet) -> None:
    """Take the entries of a table.

    Args:
        lines: text.
        rules: takes them, every mistake, and what cannot be taken over.
    """
    declared = []
    for number, line in _logical(lines):
        match = _OWNER.match(line)
        if match and _declares(match[1], match[2]):
            declared.append((number, match[1]))
        elif match:
            _take(match[1], match[2].strip(_BLANKS), number, rules)
    for number, name in declared:
        what = f"{name}: taken for a declared domain; here that is a key domain:{name}"
        # `first.last bob` looks the same; what no address of the file belongs to needs a look.
        found = rules.notices if name.lower() in rules.rules else rules.left_out
        found.append(warning(rules.where(number), what))


def write(snapshot: Snapshot, said: RuleSet) -> Iterator[str]:
    """The entries for all rules that have nothing but targets; the others go to `said.left_out`."""
    for domain in sorted(snapshot.rules):
        for name, raw in sorted(snapshot.rules[domain].items()):
            address = rule_address(domain, name)
            entry = _entry(domain, name, raw)
            if isinstance(entry, str):
                said.left_out.append(error(address, entry))
                continue
            owner, rule = entry
            if rule.vendor or rule.block or rule.note:
                said.notices.append(warning(address, "its options are left out"))
            yield f"{owner} {', '.join(map(_written, rule.targets))}\n"


def _logical(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    start, parts = 0, list[str]()
    for number, line in enumerate(lines, 1):
        text = line.strip(_BLANKS)
        if not text or text.startswith("#"):
            continue
        if line[0] not in _BLANKS:
            if parts:
                yield start, " ".join(parts)
            start, parts = number, []
        parts.append(text)
    if parts:
        yield start, " ".join(parts)


def _take(owner: str, value: str, line: int, rules: RuleSet) -> None:
    reason = _beyond_rules(owner, rules.origin)
    if reason:
        rules.left_out.append(warning(rules.where(line), f"{owner[:80]}: {reason}"))
        return
    words = _TARGET.findall(value)
    if not words:
        rules.mistake(line, f"{owner[:80]}: no target")
        return
    try:
        targets = [_target(word, rules.origin) for word in words]
    except AddressError as problem:
        rules.left_out.append(warning(rules.where(line), f"{owner[:80]}: {problem}"))
        return
    rules.add_address(owner, ", ".join(targets).encode(), line)


def _beyond_rules(owner: str, origin: str | None) -> str:
    """Why rules cannot say what an entry says; "" when they can."""
    if owner.startswith(("/", "!/")) or owner in ("if", "endif"):
        return "a regular expression; rules have exact addresses, subaddresses and *"
    return "" if origin or "@" in owner else "no domain; name it with --origin"


def _declares(owner: str, value: str) -> bool:
    """Whether an entry looks like `example.com anything`, a domain with nothing but a word."""
    if "@" in owner or "@" in value or len(value.split()) != 1:
        return False
    try:
        return "." in parse_domain(owner)
    except AddressError:
        return False


def _target(word: str, origin: str | None) -> str:
    if word.startswith("@"):
        return f"@{parse_domain(word[1:])}"
    if "@" not in word:
        if not origin or word.startswith(("|", "/", ":")):
            raise AddressError(f"target {word[:80]}: no domain; name it with --origin")
        word = f"{word}@{origin}"
    try:
        return str(parse_address(word))
    except AddressError as problem:
        raise AddressError(f"target {word[:80]}: {problem}") from None


def _entry(domain: str, name: str, raw: bytes) -> tuple[str, Rule] | str:
    """Owner and rule of an entry, or why there can be none."""
    if is_pattern(name):
        return "a pattern"
    owner = f"@{domain}" if name == CATCH_ALL else rule_address(domain, name)
    if owner.startswith("#"):
        return "would be a comment"
    try:
        rule = parse_rule(raw)
    except RuleError as problem:
        return f"an invalid rule: {problem}"
    return _beyond_tables(rule) or (owner, rule)


def _beyond_tables(rule: Rule) -> str:
    """Why a table cannot say what a rule says; "" when it can."""
    if rule.action:
        return f"the action {rule.action.value}"
    if rule.expires:
        return "it expires"
    if any(isinstance(target, SameLocalPart) for target in rule.targets[1:]):
        return "@domain after another target"  # virtual(5): works for the first address alone
    return ""


def _written(target: Target) -> str:
    return str(target) if isinstance(target, Address) else f"@{target.domain}"
