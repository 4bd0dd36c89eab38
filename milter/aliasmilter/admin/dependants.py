"""The rules that do not change, but lead to one that does.

A store may hold a million rules, and most changes are of one: rules are only parsed when they could
name what is asked for, by a pattern that never misses any.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from aliasmilter.mail.address import Address, local_key
from aliasmilter.routing.lookup import Absent, Answer, Found, Unreadable, fields_for
from aliasmilter.routing.resolver import MAX_DEPTH
from aliasmilter.routing.rules import CATCH_ALL, RuleError, SameLocalPart, parse_rule
from aliasmilter.store.audit import Change, Subject
from aliasmilter.store.snapshot import Snapshot

Owner = tuple[str, str]
"""The domain and the field of a rule; with the field `*`, all that has no rule of its own."""

_FEW = 100
_ORDINARY = re.compile(r"[a-z0-9.+_=-]+")


def leading_to(snapshot: Snapshot, changes: Sequence[Change]) -> Iterator[Owner]:
    """The rules that are not among the changed, but lead to one of them, each once.

    So do those that stood there already when a domain is managed from now on.

    Args:
        snapshot: all rules and settings as they will be.
        changes: of rules and settings; a changed setting stands for all addresses of its domain.
    """
    changed = {(c.domain, CATCH_ALL if c.kind is Subject.SETTING else c.name) for c in changes}
    second = _second_domains(snapshot)
    seen, frontier = set(changed), changed
    awake = {(d, name) for d in _awoken(snapshot, changes) for name in snapshot.rules.get(d, ())}
    yield from sorted(awake - {(c.domain, c.name) for c in changes if c.kind is Subject.RULE})
    seen |= awake
    for _ in range(MAX_DEPTH):
        # Another domain of the same addresses leads here as well.
        names = {domain: _names_of(domain, second) for domain, _ in frontier}
        wanted = {(each, name) for domain, name in frontier for each in names[domain]}
        if not wanted:
            return
        frontier = set(_naming(snapshot, wanted)) - seen
        seen |= frontier
        yield from sorted(frontier)


def _awoken(snapshot: Snapshot, changes: Iterable[Change]) -> Iterator[str]:
    """The domains whose rules count from now on: managed, or no second domains any more."""
    by_domain = defaultdict[str, list[Change]](list)
    for change in changes:
        if change.kind is Subject.SETTING:
            by_domain[change.domain].append(change)
    for domain, some in by_domain.items():
        added = {change.name.encode() for change in some if change.before is None}
        was_managed = not snapshot.settings[domain].keys() <= added
        was_second = any(c.name == "alias_of" and c.after is None for c in some)
        if was_second or not was_managed:
            yield domain


def _second_domains(snapshot: Snapshot) -> dict[str, list[str]]:
    """Domain -> those whose addresses are looked up in it, though no rule spells that out."""
    second = defaultdict[str, list[str]](list)
    for domain, fields in snapshot.settings.items():
        if alias_of := fields.get(b"alias_of"):
            second[alias_of.decode("utf-8", "replace").lower()].append(domain)
    for domain, rules in snapshot.rules.items():
        for name, raw in rules.items():
            if CATCH_ALL in name and b"@" in raw:
                for other in _same_local_parts(raw):
                    second[other].append(domain)
    return second


def _same_local_parts(raw: bytes) -> list[str]:
    """The domains where a rule leads to the same local part."""
    try:
        targets = parse_rule(raw).targets
    except RuleError:
        return []
    return [target.domain for target in targets if isinstance(target, SameLocalPart)]


def _names_of(domain: str, second: Mapping[str, Sequence[str]]) -> set[str]:
    """A domain, its second ones, and theirs."""
    found, waiting = {domain}, [domain]
    while waiting:
        new = {*second.get(waiting.pop(), ())} - found
        found |= new
        waiting += new
    return found


def _naming(snapshot: Snapshot, wanted: Collection[Owner]) -> Iterator[Owner]:
    """The rules that name one of these."""
    pattern = _pattern(wanted)
    domains = {domain for domain, name in wanted if name == CATCH_ALL}
    for domain, rules in snapshot.rules.items():
        if b"alias_of" in snapshot.settings.get(domain, {}):
            continue  # never used
        for name, raw in rules.items():
            if (b"@" in raw if pattern is None else pattern.search(raw)) and _names(
                (domain, name), raw, wanted, domains
            ):
                yield domain, name


def _pattern(wanted: Collection[Owner]) -> re.Pattern[bytes] | None:
    """What a rule holds that names one of these; None when it could be written in many ways."""
    names = {name for _, name in wanted}
    if len(wanted) > _FEW or not all(n == CATCH_ALL or _ORDINARY.fullmatch(n) for n in names):
        return None
    domains = "|".join(re.escape(domain) for domain in sorted({domain for domain, _ in wanted}))
    # Quotes, escapes and U-labels let one name be written in many ways.
    alternatives = [rf"(?:^|[\s,])@(?:{domains})", r"[\x80-\xff\\]"]
    if CATCH_ALL in names:
        alternatives.append(f"@(?:{domains})")
    if locals_ := "|".join(re.escape(name) for name in sorted(names - {CATCH_ALL})):
        alternatives.append(locals_)
    return re.compile("|".join(alternatives).encode("ascii"), re.IGNORECASE)


def _names(owner: Owner, raw: bytes, wanted: Collection[Owner], domains: Collection[str]) -> bool:
    """Whether a rule names one of the wanted, or an address in one of the domains."""
    try:
        targets = parse_rule(raw).targets
    except RuleError:
        return False
    for target in targets:
        local = owner[1] if isinstance(target, SameLocalPart) else local_key(target.local)
        if (target.domain, local) == owner:
            continue
        if target.domain in domains:
            return True
        if any((target.domain, name) in wanted for name in fields_for(local)):
            return True
    return False


class Before:
    """What the store says now: the snapshot with the changes undone."""

    def __init__(self, snapshot: Snapshot, changes: Iterable[Change]) -> None:
        self._snapshot = snapshot
        self._rules: dict[Owner, bytes | None] = {}
        self._settings: dict[str, dict[bytes, bytes]] = {}
        for change in changes:
            if change.kind is Subject.SETTING:
                self._undo_setting(change)
            else:
                self._rules[change.domain, change.name] = change.before

    def lookup(self, addresses: Sequence[Address]) -> list[Answer]:
        """Answer as the store itself would now."""
        return [self._answer(address) for address in addresses]

    def _answer(self, address: Address) -> Answer:
        answer = self._snapshot.lookup([address])[0]
        if isinstance(answer, Unreadable):
            return answer
        domain = address.domain
        settings = self._settings.get(domain, self._snapshot.settings.get(domain))
        if not settings:
            return Absent()
        now = self._snapshot.rules.get(domain, {})
        fields = {f: self._rules.get((domain, f), now.get(f)) for f in fields_for(address.local)}
        return Found(settings, {f: raw for f, raw in fields.items() if raw is not None})

    def _undo_setting(self, change: Change) -> None:
        fields = self._settings.setdefault(
            change.domain, dict(self._snapshot.settings.get(change.domain, {}))
        )
        name = change.name.encode()
        fields.pop(name, None)
        if change.before is not None:
            fields[name] = change.before
