"""Whether rules that are about to be written are good: all of them, as they will be.

Theory of operation. Every rule that changes is parsed. What most rules are (to a mailbox, to an
address elsewhere, a few levels deep) is *proven* good from the rules of its targets, each looked at
once, however many rules lead there; what is proven cannot be a mistake for the resolver, either.
All others are decided by the resolver itself, as the daemon would. So are the rules that did not
change but lead to one that did: those that were broken before do not count.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import date

from aliasmilter.admin.dependants import Before, Owner, leading_to
from aliasmilter.admin.report import Finding, Severity, error, warning
from aliasmilter.mail.address import (
    Address,
    AddressError,
    local_key,
    parse_address,
    parse_domain,
)
from aliasmilter.mail.replies import Reason
from aliasmilter.routing.decision import Policy
from aliasmilter.routing.lookup import Lookup, is_pattern, is_usable_pattern
from aliasmilter.routing.resolver import resolve
from aliasmilter.routing.rules import (
    CATCH_ALL,
    Action,
    Rule,
    RuleError,
    SameLocalPart,
    parse_rule,
    parse_settings,
)
from aliasmilter.store.audit import Change, Subject, rule_address
from aliasmilter.store.schema import alias_key, domain_key
from aliasmilter.store.snapshot import Snapshot

MISTAKES = frozenset(
    {Reason.INVALID_RULE, Reason.DANGLING, Reason.CYCLE, Reason.TOO_DEEP, Reason.TOO_WIDE}
)
UNUSABLE_PATTERN = "never found: one *, at an end or between two of . - _ and the like"
PROBE = "alias-milter-check"
"""The local part that stands for what nobody has a rule for."""

_MAX_HEIGHT = 5
_MAX_WIDTH = 100

Place = Callable[[Change], str]
"""Names what changes, for a finding."""


def validate(
    snapshot: Snapshot,
    changes: Sequence[Change],
    policy: Policy,
    today: date,
    *,
    place: Place,
    progress: Callable[[int], None] = lambda _: None,
) -> Iterator[Finding]:
    """What is wrong with changes.

    Args:
        snapshot: all rules and settings as they will be.
        changes: those that lead there.
        policy: of the configuration.
        today: the day in UTC.
        place: names a change in a finding.
        progress: told of the number of changes looked at since the last time.
    """
    checker = _Checker(snapshot, policy, today, place)
    for number, change in enumerate(changes, 1):
        yield from checker.findings(change)
        if not number % 1000:
            progress(1000)
    leading = [change for change in changes if change.kind is not Subject.BLOCK]
    before = Before(snapshot, leading)
    for domain, name in _dependants(snapshot, leading):
        yield from checker.broken(domain, name, before.lookup)


def catch_all_warning(policy: Policy) -> str:
    """What is to be said of a catch-all with ordinary targets."""
    goes = "are held for it" if policy.hold else "go to the quarantine mailbox"
    return f"a catch-all never reaches a real inbox: its hits {goes}"


def field_problem(domain: str, name: str) -> tuple[Severity, str] | None:
    """What is wrong with a field of `alias:<domain>`, whatever its rule says.

    A quoted local part may hold an @, but a field that is a whole address was hardly meant so.
    """
    if not name:
        return Severity.ERROR, "never found: an empty field"
    if name != local_key(name):
        return Severity.ERROR, "never found: local parts are looked up in lower case"
    if is_pattern(name) and not is_usable_pattern(name):
        return Severity.ERROR, UNUSABLE_PATTERN
    if "@" not in name:
        return None
    try:
        address = parse_address(name)
    except AddressError:
        return None
    what = f"a whole address, found for {rule_address(domain, name)} only: write the local part"
    own = address.domain == domain
    return Severity.ERROR if own else Severity.WARNING, f"{what}, {address.local}"


def member_problem(member: bytes) -> str:
    """Why a member of `block:<domain>` never blocks anybody; "" when it can."""
    try:
        text = member.decode("utf-8")
        canonical = parse_address(text).key if "@" in text else parse_domain(text)
    except UnicodeDecodeError:
        return "never found: not UTF-8"
    except AddressError as problem:
        return f"never found, neither an address nor a domain: {problem}"
    return "" if text == canonical else f"never found: write it {canonical}"


def alias_problem(domain: str, snapshot: Snapshot, local_domains: Collection[str]) -> str:
    """Why the addresses of a second domain cannot be looked up in the other; "" when they can."""
    way = [domain]
    while other := _alias_of(snapshot.settings.get(way[-1], {})):
        if other in way:
            return f"a circle: {' -> '.join((*way, other))}"
        if other not in snapshot.settings and other not in local_domains:
            return f"{other} is not managed"
        way.append(other)
    return ""


def _alias_of(fields: Mapping[bytes, bytes]) -> str | None:
    try:
        return parse_settings(fields).alias_of
    except RuleError:
        return None


class _Checker:
    """The findings about single rules."""

    def __init__(self, snapshot: Snapshot, policy: Policy, today: date, place: Place) -> None:
        self._snapshot = snapshot
        self._policy = policy
        self._today = today
        self._place = place
        self._prover = _Prover(snapshot, today)

    def findings(self, change: Change) -> Iterator[Finding]:
        """What is wrong with a change itself."""
        if change.kind is Subject.SETTING:
            yield from self.setting(change)
        elif change.after is None:
            return
        elif not self._snapshot.settings.get(change.domain):
            hint = f"HSET {domain_key(change.domain)} unknown reject, or --create-domains"
            what = f"{change.domain} is not a managed domain ({hint})"
            yield error(self._place(change), what)
        elif change.kind is Subject.RULE:
            yield from self.rule(change, change.after)
        elif problem := member_problem(change.after):
            yield error(self._place(change), problem)

    def setting(self, change: Change) -> Iterator[Finding]:
        """A domain whose settings change: each must mean something, `alias_of` lead somewhere."""
        try:
            settings = parse_settings(self._snapshot.settings.get(change.domain, {}))
        except RuleError as problem:
            yield error(change.key, str(problem))
            return
        if change.name == "alias_of" and settings.alias_of:
            local_domains = self._policy.local_domains
            if unfit := alias_problem(change.domain, self._snapshot, local_domains):
                yield error(f"{change.key} alias_of", unfit)

    def rule(self, change: Change, raw: bytes) -> Iterator[Finding]:
        """A rule that is new or different."""
        domain, name, where = change.domain, change.name, self._place(change)
        unfit = field_problem(domain, name)
        if unfit:
            yield Finding(unfit[0], where, unfit[1])
            if unfit[0] is Severity.ERROR:
                return
        try:
            rule = parse_rule(raw)
        except RuleError as problem:
            yield error(where, str(problem))
            return
        yield from self._meaning(domain, name, rule, where)
        if not self._prover.proves(domain, name, rule):
            verdict = self._verdict(domain, name, self._snapshot.lookup)
            if verdict:
                yield Finding(verdict[0], where, verdict[1])

    def _meaning(self, domain: str, name: str, rule: Rule, where: str) -> Iterator[Finding]:
        """What a rule says that may not be what was meant."""
        if rule.expires and self._today > rule.expires:
            yield warning(where, f"expired on {rule.expires}")
        if name == CATCH_ALL and any(isinstance(target, Address) for target in rule.targets):
            yield warning(where, catch_all_warning(self._policy))
        second_of = self._snapshot.settings[domain].get(b"alias_of")
        if second_of:
            other = second_of.decode("utf-8", "replace")
            yield warning(where, f"never used: the domain is alias_of {other}")

    def _verdict(self, domain: str, name: str, lookup: Lookup) -> tuple[Severity, str] | None:
        """What is wrong with where a rule leads, as the resolver says it."""
        address = Address(PROBE if name == CATCH_ALL else name, domain)
        decision = resolve(address, lookup, self._policy, self._today)
        if decision.reason in MISTAKES:
            return Severity.ERROR, f"{decision.reason}: {decision.problem}"
        for hit in decision.quarantined:
            if hit.reason is Reason.CATCH_ALL and name != CATCH_ALL:
                what = f"{hit.address} has no rule: mail to it is quarantined by {hit.rule}"
                return Severity.WARNING, what
        return None

    def broken(self, domain: str, name: str, before: Lookup) -> Iterator[Finding]:
        """A rule that stays as it is, when something is wrong with it that was not before."""
        verdict = self._verdict(domain, name, self._snapshot.lookup)
        known = self._verdict(domain, name, before) if verdict else None
        if verdict and not (known and known[0] in (verdict[0], Severity.ERROR)):
            yield Finding(verdict[0], f"{alias_key(domain)} {name}", verdict[1])


class _Prover:
    """Proves rules good that are plainly so; says nothing of the others."""

    def __init__(self, snapshot: Snapshot, today: date) -> None:
        self._snapshot = snapshot
        self._today = today
        self._sizes: dict[Owner, tuple[int, int] | None] = {}
        self._plain_domains: dict[str, bool] = {}

    def proves(self, domain: str, name: str, rule: Rule) -> bool:
        """Whether the rule is certainly no mistake.

        Args:
            domain: of the rule.
            name: the field of the rule.
            rule: parsed.
        """
        if name == CATCH_ALL:
            return self._is_plain(domain) and rule.action not in (None, Action.QUARANTINE)
        return self._size(domain, name, rule, 0) is not None

    def _size(
        self, domain: str, name: str, rule: Rule | None, level: int
    ) -> tuple[int, int] | None:
        """Levels and recipients below an address, or None when it is not plain."""
        owner = (domain, name)
        if owner in self._sizes:
            return self._sizes[owner]
        # What leads back here while this is being proven is no proof.
        self._sizes[owner] = None
        if level <= _MAX_HEIGHT and self._is_plain(domain) and name == local_key(name):
            self._sizes[owner] = self._measure(domain, name, rule, level)
        return self._sizes[owner]

    def _measure(
        self, domain: str, name: str, rule: Rule | None, level: int
    ) -> tuple[int, int] | None:
        rule = rule or self._rule(domain, name)
        if rule is None or rule.action is Action.QUARANTINE:
            return None
        height, width = 0, 1
        for target in rule.targets:
            size = self._target(domain, name, target, level)
            if size is None:
                return None
            height, width = max(height, size[0] + 1), width + size[1]
        return (height, width) if height <= _MAX_HEIGHT and width <= _MAX_WIDTH else None

    def _target(
        self, domain: str, name: str, target: Address | SameLocalPart, level: int
    ) -> tuple[int, int] | None:
        if isinstance(target, SameLocalPart):
            return None
        local = local_key(target.local)
        if target.domain not in self._snapshot.settings or (target.domain, local) == (domain, name):
            return 0, 1
        return self._size(target.domain, local, None, level + 1)

    def _rule(self, domain: str, name: str) -> Rule | None:
        raw = self._snapshot.rules.get(domain, {}).get(name)
        try:
            return parse_rule(raw) if raw is not None and name != CATCH_ALL else None
        except RuleError:
            return None

    def _is_plain(self, domain: str) -> bool:
        """Whether a domain has rules of its own, and settings that mean something."""
        known = self._plain_domains.get(domain)
        if known is None:
            known = self._plain_domains[domain] = self._has_own_rules(domain)
        return known

    def _has_own_rules(self, domain: str) -> bool:
        keys = (domain_key(domain), alias_key(domain))
        fields = self._snapshot.settings.get(domain)
        if not fields or any(key in self._snapshot.unreadable for key in keys):
            return False
        try:
            return parse_settings(fields).alias_of is None
        except RuleError:
            return False


def _dependants(snapshot: Snapshot, changes: Sequence[Change]) -> Iterator[Owner]:
    written = sum(change.after is not None for change in changes if change.kind is Subject.RULE)
    if written < sum(len(rules) for rules in snapshot.rules.values()):
        yield from leading_to(snapshot, changes)
