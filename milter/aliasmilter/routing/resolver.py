"""Where a recipient goes.

Theory of operation. An address is *expanded* to what its rule says: final, other addresses,
a refusal. The targets are expanded in turn, level by level, one lookup for a level, until
nothing is left. Every address is expanded once, however many ways lead to it, so that time and
memory are bounded by the number of different addresses; the arcs between them are kept, and a
cycle among them is a cycle in the rules. Then one verdict is drawn from all that was found:

    1. something cannot be decided now    -> that 4xx, for the copy there would be lost
    2. somebody is reached                -> accepted; refusals elsewhere are left out
    3. something is discarded             -> accepted, and dropped
    4. else                               -> the first refusal

No I/O, no clock: the lookup and the day are passed in.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from graphlib import CycleError, TopologicalSorter

from aliasmilter.mail.address import Address, split_subaddress
from aliasmilter.mail.replies import REPLIES, Reason
from aliasmilter.routing.decision import Decision, Final, Policy, Quarantined, Step, Vendor
from aliasmilter.routing.lookup import (
    Absent,
    Answer,
    Found,
    Lookup,
    Unreadable,
    fields_for,
    patterns_for,
)
from aliasmilter.routing.rules import (
    CATCH_ALL,
    Action,
    Rule,
    RuleError,
    SameLocalPart,
    Settings,
    parse_rule,
    parse_settings,
)

MAX_DEPTH = 10
MAX_FINALS = 500
MAX_ADDRESSES = 2 * MAX_FINALS  # finals and all that leads to them
MAX_TEXT = 524_288  # characters of rules that are read for one recipient


@dataclass(slots=True)  # not frozen: that costs more than the expansion
class _Hop:
    """An address to expand.

    Attributes:
        plain: the target as the rule has it.
        carried: the same with the subaddress that came along (RFC 5233 section 4).
        is_target: it comes out of a rule: mail to it is forwarded by us.
        held: the way to it leads through the hold queue.
        rule: the rule that names it; "" for the recipient itself, also in its other domain.
        second_of: the domain whose `alias_of` led here, or "".
    """

    plain: Address
    carried: Address
    is_target: bool = True
    held: bool = False
    rule: str = ""
    second_of: str = ""

    @property
    def key(self) -> tuple[str, str, bool]:
        return self.carried.key, self.plain.key, self.held


@dataclass(slots=True)
class _Outcome:
    """What the expansion of a hop came to: exactly one of the first three is set.

    Attributes:
        says: for people; "" where it names the targets.
        targets: in the order of the rule, the address itself included.
    """

    final: Final | None = None
    hops: tuple[_Hop, ...] = ()
    reason: Reason | None = None
    text: str = ""
    problem: str = ""
    says: str = ""
    quarantined: Quarantined | None = None
    vendor: Vendor | None = None
    rule: str = ""
    rule_text: str = ""
    settings: Settings | None = None
    targets: Sequence[_Hop] = ()

    @property
    def said(self) -> str:
        if self.says or not self.hops:
            return self.says or "mailbox"
        return "to " + ", ".join(str(target.carried) for target in self.targets)


def resolve(
    address: Address,
    lookup: Lookup,
    policy: Policy,
    today: date,
    *,
    is_target: bool = False,
    sender: Address | None = None,
    explain: bool = False,
) -> Decision:
    """Decide a recipient.

    Args:
        address: the recipient.
        lookup: asked once for each level of the rules.
        policy: what the configuration says.
        today: the day in UTC, for `expires`.
        is_target: mail to it is forwarded by us (a reversed SRS address): outside our domains
            it leaves.
        sender: of the message, for `block`; None for the null sender.
        explain: say how it was found; the daemon does not ask.

    Returns:
        The decision, whatever the rules hold.

    Raises:
        Unavailable: the lookup did.
    """
    search = _Search(address, policy, today, sender, explain=explain)
    frontier = [_Hop(address, address, is_target=is_target)]
    for _ in range(MAX_DEPTH + 1):
        if len(search.outcomes) + len(frontier) > MAX_ADDRESSES:
            return search.refuse(Reason.TOO_WIDE)
        frontier = search.expand_level(frontier, lookup([hop.carried for hop in frontier]))
        if search.read > MAX_TEXT:
            return search.refuse(Reason.TOO_WIDE)
        if not frontier:
            return search.decide()
    return search.refuse(Reason.CYCLE if search.cycle() else Reason.TOO_DEEP)


@dataclass(slots=True)
class _Search:
    address: Address
    policy: Policy
    today: date
    sender: Address | None
    outcomes: dict[tuple[str, str, bool], _Outcome] = field(default_factory=dict)
    hops: dict[tuple[str, str, bool], _Hop] = field(default_factory=dict)
    read: int = 0
    explain: bool = False
    met_again: bool = False  # a rule led to an address that was expanded before

    def expand_level(self, frontier: Sequence[_Hop], answers: Sequence[Answer]) -> list[_Hop]:
        """Expand the hops; returns those of the next level, each once; stops at too much."""
        known = {*self.outcomes, *(hop.key for hop in frontier)}
        following: dict[tuple[str, str, bool], _Hop] = {}
        for hop, answer in zip(frontier, answers, strict=True):
            # A thousand rules of 64 KB each would be millions of targets.
            if len(following) > MAX_ADDRESSES or self.read > MAX_TEXT:
                break
            outcome = _Expansion(hop, self.policy, self.today, self.sender).expand(answer)
            key = hop.key
            self.outcomes[key] = outcome
            self.hops[key] = hop
            self.read += len(outcome.rule_text)
            for target in outcome.hops:
                if target.key in known:
                    self.met_again = True
                else:
                    following[target.key] = target
        return list(following.values())

    def cycle(self) -> list[str]:
        """The addresses of a cycle in the rules, in their order; empty when there is none.

        A way back to a mailbox is none: it ends there (two mailboxes that copy each other).
        """
        if not self.met_again:
            return []  # as with nearly all rules
        mailboxes = {key for key, outcome in self.outcomes.items() if outcome.final}
        sorter = TopologicalSorter(
            {
                key: [hop.key for hop in outcome.hops if hop.key not in mailboxes]
                for key, outcome in self.outcomes.items()
            }
        )
        try:
            sorter.prepare()
        except CycleError as error:
            return [key[0] for key in reversed(error.args[1])]
        return []

    def decide(self) -> Decision:
        """Draw one verdict from all outcomes, as the head of this file says."""
        if self.cycle():
            return self.refuse(Reason.CYCLE)
        refusals = [outcome for outcome in self.outcomes.values() if outcome.reason]
        finals = self._finals()
        undecided = [outcome for outcome in refusals if _is_temporary(outcome)]
        if undecided:
            return self._refusal(undecided[0])
        if len(finals) > MAX_FINALS:
            return self.refuse(Reason.TOO_WIDE)
        if finals:
            return self._accept(finals)
        dropped = [o for o in refusals if o.reason is Reason.DISCARDED]
        return self._refusal((dropped or refusals)[0])

    def refuse(self, reason: Reason) -> Decision:
        """A refusal for the shape of the rules; the log gets the cycle."""
        cycle = self.cycle() if reason is Reason.CYCLE else []
        problem = " -> ".join(cycle) or f"more than {MAX_DEPTH} levels or {MAX_FINALS} recipients"
        return Decision(
            self.address, reason, problem=problem, settings=self._settings(), steps=self.steps()
        )

    def steps(self) -> tuple[Step, ...]:
        """How it was found, if that is asked for."""
        if not self.explain:
            return ()
        found = self.outcomes.items()
        return tuple(Step(self.hops[k].carried, o.rule, o.rule_text, o.said) for k, o in found)

    def _finals(self) -> list[Final]:
        """Each person once; somebody also reached by a way that holds nothing is not held."""
        finals: dict[str, Final] = {}
        for outcome in self.outcomes.values():
            if outcome.final:
                known = finals.get(outcome.final.address.key)
                if known is None or (known.held and not outcome.final.held):
                    finals[outcome.final.address.key] = outcome.final
        return list(finals.values())

    def _accept(self, finals: list[Final]) -> Decision:
        quarantined = tuple(o.quarantined for o in self.outcomes.values() if o.quarantined)
        vendors = tuple(o.vendor for o in self.outcomes.values() if o.vendor)
        settings = self._settings()
        if quarantined:
            reason = quarantined[0].reason
        elif [final.address.key for final in finals] != [self.address.key]:
            reason = Reason.ALIAS
        elif settings is None:
            reason = Reason.UNMANAGED
        else:
            reason = Reason.MAILBOX if next(iter(self.outcomes.values())).rule else Reason.PASSED
        return Decision(
            self.address,
            reason,
            finals=tuple(finals),
            quarantined=quarantined,
            vendors=vendors,
            settings=settings,
            steps=self.steps(),
        )

    def _refusal(self, outcome: _Outcome) -> Decision:
        return Decision(
            self.address,
            outcome.reason or Reason.UNKNOWN,
            text=outcome.text,
            problem=outcome.problem,
            settings=self._settings(),
            steps=self.steps(),
        )

    def _settings(self) -> Settings | None:
        """Of the recipient's own domain: it stands for the mail, wherever a chain leads."""
        first = next(iter(self.outcomes.values()), None)
        return first.settings if first else None


@dataclass(slots=True)
class _Expansion:
    """Says what one address comes to, from what the store holds about it."""

    hop: _Hop
    policy: Policy
    today: date
    sender: Address | None

    def expand(self, answer: Answer) -> _Outcome:
        if isinstance(answer, Absent):
            return self._unmanaged()
        if isinstance(answer, Unreadable):
            return _invalid(answer.key, answer.problem)
        try:
            settings = parse_settings(answer.settings)
        except RuleError as error:
            return _invalid(f"domain:{self.hop.carried.domain}", str(error))
        if answer.blocked:
            says = f"{self.hop.carried.domain} blocks {self.sender}"
            outcome = _Outcome(reason=Reason.BLOCKED, says=says)
        else:
            outcome = self._managed(answer, settings)
        outcome.settings = settings
        return outcome

    def _unmanaged(self) -> _Outcome:
        hop = self.hop
        if hop.second_of and hop.carried.domain not in self.policy.local_domains:
            problem = f"alias_of: {hop.carried.domain} is not managed"
            return _invalid(f"domain:{hop.second_of}", problem)
        if hop.carried.domain in self.policy.local_domains or not hop.is_target:
            says = "delivered here" if hop.is_target else "not managed: the MTA decides"
            return _Outcome(final=Final(hop.carried, held=hop.held), says=says)
        # A subaddress means something to us, nothing to somebody else's system.
        return _Outcome(
            final=Final(hop.plain, leaves=True, held=hop.held), says="leaves for another system"
        )

    def _managed(self, found: Found, settings: Settings) -> _Outcome:
        hop = self.hop
        if settings.alias_of:
            return self._second_domain(settings.alias_of)
        delimiter = self.policy.delimiter if settings.delimiter is None else settings.delimiter
        respelt = self._respelt(delimiter)
        if respelt:
            hops = (replace(hop, plain=respelt, carried=respelt),)
            return _Outcome(hops=hops, says="subaddress as this domain writes it")
        name, detail = self._match(found, delimiter)
        if name is None:
            return self._unknown(settings)
        rule_name = f"alias:{hop.carried.domain} {name}"
        raw = found.rules[name]
        try:
            rule = parse_rule(raw)
        except RuleError as error:
            return _invalid(rule_name, str(error))
        outcome = self._apply(rule, name, detail, settings)
        outcome.rule, outcome.rule_text = rule_name, raw.decode("utf-8")
        if rule.vendor:
            outcome.vendor = Vendor(hop.carried, rule.vendor, rule.strict)
        return outcome

    def _respelt(self, delimiter: str) -> Address | None:
        """The target as its own domain spells subaddresses, when the one before differs."""
        plain, carried = self.hop.plain, self.hop.carried
        if carried == plain or (delimiter and carried.local.startswith(plain.local + delimiter)):
            return None
        detail = carried.local[len(plain.local) + 1 :]
        return Address(plain.local + delimiter + detail, plain.domain) if delimiter else plain

    def _match(self, found: Found, delimiter: str) -> tuple[str | None, str]:
        """Exact local part, then without the subaddress, then patterns, then the catch-all."""
        exact, *_ = fields_for(self.hop.carried.local)
        if exact in found.rules and exact != CATCH_ALL:
            return exact, ""
        parts = split_subaddress(self.hop.carried.local, delimiter)
        if parts:
            base, *_ = fields_for(parts[0])
            if base in found.rules and base != CATCH_ALL:
                return base, delimiter + parts[1]
        patterns = (p for p in patterns_for(self.hop.carried.local) if p in found.rules)
        return next(patterns, CATCH_ALL if CATCH_ALL in found.rules else None), ""

    def _unknown(self, settings: Settings) -> _Outcome:
        hop = self.hop
        if settings.unknown_passes:
            return _Outcome(final=Final(hop.carried, held=hop.held), says="passed to the MTA")
        if hop.rule:
            # A mistake in the rules must not bounce mail: it waits at the sender.
            problem = f"its target {hop.carried} has no rule"
            return _Outcome(
                reason=Reason.DANGLING, problem=f"{hop.rule}: {problem}", says="no such address"
            )
        return _Outcome(reason=Reason.UNKNOWN, says="no such address")

    def _apply(self, rule: Rule, name: str, detail: str, settings: Settings) -> _Outcome:
        if rule.expires and self.today > rule.expires:
            return _Outcome(reason=Reason.EXPIRED, says=f"expired on {rule.expires}")
        if rule.blocks(self.sender):
            return _Outcome(reason=Reason.BLOCKED, says=f"blocks {self.sender}")
        if rule.action is Action.QUARANTINE:
            return self._quarantine(rule, name, settings)
        if rule.action:
            reason = _REASONS[rule.action]
            text = "" if self.hop.rule else rule.text  # another address's would tell of it
            return _Outcome(reason=reason, text=text, says=reason.value)
        if name == CATCH_ALL and any(isinstance(target, Address) for target in rule.targets):
            return self._quarantine(rule, name, settings)
        return self._targets(rule, name, detail)

    def _targets(self, rule: Rule, name: str, detail: str) -> _Outcome:
        hops = [self._hop(target, name, detail) for target in rule.targets]
        itself = [hop for hop in hops if hop.carried.key == self.hop.carried.key]
        final = Final(self.hop.carried, held=self.hop.held) if itself else None
        others = tuple(hop for hop in hops if hop not in itself)
        return _Outcome(final=final, hops=others, targets=hops)

    def _hop(self, target: Address | SameLocalPart, name: str, detail: str) -> _Hop:
        address, held = self.hop.carried, self.hop.held
        rule = f"alias:{address.domain} {name}"
        if isinstance(target, SameLocalPart):
            user = address.local[: len(address.local) - len(detail)]
            # `* @new.example` stands for the whole domain: unknown there is simply unknown.
            rule = self.hop.rule if name == CATCH_ALL else rule
            target, carried = Address(user, target.domain), address.at(target.domain)
        elif not detail or target.key == address.key:
            # `bob: bob+x@` keeps the subaddress that it names itself.
            carried = target
        else:
            carried = Address(target.local + detail, target.domain)
        return _Hop(target, carried, held=held, rule=rule)

    def _quarantine(self, rule: Rule, name: str, settings: Settings) -> _Outcome:
        address = self.hop.carried
        reason = Reason.CATCH_ALL if name == CATCH_ALL else Reason.QUARANTINED
        what = Quarantined(address, f"{name}@{address.domain}", reason)
        if self.policy.hold:
            return self._hold(rule, what)
        mailbox = settings.quarantine or self.policy.quarantine
        if mailbox is None:
            return _invalid(
                f"domain:{address.domain}", "quarantine: no mailbox here nor in the configuration"
            )
        # Ours, whatever its domain: not looked up further, and its sender stays.
        return _Outcome(final=Final(mailbox), quarantined=what, says=f"quarantine: {mailbox}")

    def _hold(self, rule: Rule, what: Quarantined) -> _Outcome:
        """Held under the names the rule gives, else under the address as it came."""
        if not rule.targets:
            return _Outcome(final=Final(self.hop.carried, held=True), quarantined=what, says="held")
        hops = tuple(replace(self._hop(t, CATCH_ALL, ""), held=True) for t in rule.targets)
        return _Outcome(hops=hops, quarantined=what, says="held for its targets")

    def _second_domain(self, domain: str) -> _Outcome:
        hop = self.hop
        following = replace(
            hop,
            plain=hop.plain.at(domain),
            carried=hop.carried.at(domain),
            second_of=hop.carried.domain,
        )
        return _Outcome(hops=(following,), says=f"looked up at {domain} instead")


def _is_temporary(outcome: _Outcome) -> bool:
    reply = REPLIES.get(outcome.reason) if outcome.reason else None
    return reply is not None and reply.is_temporary


def _invalid(where: str, problem: str) -> _Outcome:
    return _Outcome(reason=Reason.INVALID_RULE, problem=f"{where}: {problem}", says=problem)


_REASONS = {
    Action.DISCARD: Reason.DISCARDED,
    Action.DISABLED: Reason.DISABLED,
    Action.DEFER: Reason.DEFERRED,
    Action.REJECT: Reason.REJECTED,
}
