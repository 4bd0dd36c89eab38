"""What one address comes to, from what the store holds about it.

An address is final, or leads to others, or is refused. Nothing here looks further than one step;
the resolver takes them all.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date

from aliasmilter.mail.address import Address, holds_route, local_key, split_subaddress
from aliasmilter.mail.replies import Reason
from aliasmilter.routing.decision import Final, Policy, Quarantined, Vendor
from aliasmilter.routing.lookup import (
    Absent,
    Answer,
    Found,
    Unreadable,
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


@dataclass(slots=True)  # not frozen: that costs more than the expansion
class Hop:
    """An address to expand.

    Attributes:
        plain: the target as the rule has it.
        carried: the same with the subaddress that came along (RFC 5233 section 4).
        is_target: it comes out of a rule: mail to it is forwarded by us.
        held: the way to it leads through the hold queue.
        rule: the rule that names it; "" for the recipient itself, also in its other domain.
        second_of: the domain whose `alias_of` led here, or "".
        given: its local part is the one that the client gave, at another domain.
    """

    plain: Address
    carried: Address
    is_target: bool = True
    held: bool = False
    rule: str = ""
    second_of: str = ""
    given: bool = False

    @property
    def key(self) -> tuple[str, str, bool]:
        """What tells hops apart: whichever way leads to one, it is expanded once."""
        return self.carried.key, self.plain.key, self.held


@dataclass(slots=True)
class Outcome:
    """What the expansion of a hop came to: exactly one of the first three is set.

    Attributes:
        says: for people; "" where it names the targets.
        by_sender: another sender may be told something else.
        targets: in the order of the rule, the address itself included.
    """

    final: Final | None = None
    hops: tuple[Hop, ...] = ()
    reason: Reason | None = None
    text: str = ""
    problem: str = ""
    says: str = ""
    quarantined: Quarantined | None = None
    vendor: Vendor | None = None
    by_sender: bool = False
    rule: str = ""
    rule_text: str = ""
    settings: Settings | None = None
    targets: Sequence[Hop] = ()

    @property
    def said(self) -> str:
        """What follows from it, for people."""
        if self.says or not self.hops:
            return self.says or "mailbox"
        return "to " + ", ".join(str(target.carried) for target in self.targets)


@dataclass(slots=True)
class Expansion:
    """Says what one address comes to, from what the store holds about it."""

    hop: Hop
    policy: Policy
    today: date
    sender: Address | None

    def expand(self, answer: Answer) -> Outcome:
        """Draw the outcome from the store's answer."""
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
            outcome = Outcome(reason=Reason.BLOCKED, says=says)
        else:
            outcome = self._managed(answer, settings)
        outcome.settings = settings
        return outcome

    def _unmanaged(self) -> Outcome:
        hop = self.hop
        if hop.second_of and hop.carried.domain not in self.policy.local_domains:
            problem = f"alias_of: {hop.carried.domain} is not managed"
            return _invalid(f"domain:{hop.second_of}", problem)
        if hop.carried.domain in self.policy.local_domains or not hop.is_target:
            if self._is_routed:
                return _routed()
            says = "delivered here" if hop.is_target else "not managed: the MTA decides"
            mailbox = self._unruled(self.policy.delimiter)
            final = Final(hop.carried, held=hop.held, mailbox=mailbox)
            return Outcome(final=final, says=says)
        # A subaddress means something to us, nothing to somebody else's system.
        return Outcome(
            final=Final(hop.plain, leaves=True, held=hop.held), says="leaves for another system"
        )

    def _managed(self, found: Found, settings: Settings) -> Outcome:
        hop = self.hop
        if settings.alias_of:
            return self._second_domain(settings.alias_of)
        delimiter = self.policy.delimiter if settings.delimiter is None else settings.delimiter
        respelt = self._respelt(delimiter)
        if respelt:
            hops = (replace(hop, plain=respelt, carried=respelt),)
            return Outcome(hops=hops, says="subaddress as this domain writes it")
        name, detail = self._match(found, delimiter)
        if name is None:
            return self._unknown(settings, delimiter)
        rule_name = f"alias:{hop.carried.domain} {name}"
        raw = found.rules[name]
        try:
            rule = parse_rule(raw)
        except RuleError as error:
            return _invalid(rule_name, str(error))
        outcome = self._apply(rule, name, detail, settings)
        outcome.rule, outcome.rule_text = rule_name, raw.decode("utf-8")
        outcome.by_sender = bool(rule.block)
        if rule.vendor and not outcome.reason:
            # The rule's: whoever writes to hub+1, hub+2, ... shall not fill what is counted.
            given = Address(name, hop.carried.domain)
            outcome.vendor = Vendor(given, rule.vendor, rule.strict)
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
        rules, local = found.rules, self.hop.carried.local
        exact = local_key(local)
        if exact in rules and exact != CATCH_ALL:
            return exact, ""
        parts = split_subaddress(local, delimiter)
        if parts:
            base = local_key(parts[0])
            if base in rules and base != CATCH_ALL:
                return base, delimiter + parts[1]
        if found.has_patterns:
            for pattern in patterns_for(local):
                if pattern in rules:
                    return pattern, ""
        return (CATCH_ALL if CATCH_ALL in rules else None), ""

    def _unruled(self, delimiter: str) -> Address:
        """The mailbox of an address without a rule: its subaddress is what looks like one."""
        plain = self.hop.plain
        parts = split_subaddress(plain.local, delimiter)
        return Address(parts[0], plain.domain) if parts else plain

    def _unknown(self, settings: Settings, delimiter: str) -> Outcome:
        hop = self.hop
        if settings.unknown_passes:
            if self._is_routed:
                return _routed()
            final = Final(hop.carried, held=hop.held, mailbox=self._unruled(delimiter))
            return Outcome(final=final, says="passed to the MTA")
        if hop.rule:
            # A mistake in the rules must not bounce mail: it waits at the sender.
            problem = f"its target {hop.carried} has no rule"
            return Outcome(
                reason=Reason.DANGLING, problem=f"{hop.rule}: {problem}", says="no such address"
            )
        return Outcome(reason=Reason.UNKNOWN, says="no such address")

    def _apply(self, rule: Rule, name: str, detail: str, settings: Settings) -> Outcome:
        if rule.expires and self.today > rule.expires:
            return Outcome(reason=Reason.EXPIRED, says=f"expired on {rule.expires}")
        if rule.blocks(self.sender):
            return Outcome(reason=Reason.BLOCKED, says=f"blocks {self.sender}")
        if rule.action is Action.QUARANTINE:
            return self._quarantine(rule, name, settings)
        if rule.action:
            reason = _REASONS[rule.action]
            text = "" if self.hop.rule else rule.text  # another address's would tell of it
            return Outcome(reason=reason, text=text, says=reason.value)
        if name == CATCH_ALL and any(isinstance(target, Address) for target in rule.targets):
            return self._quarantine(rule, name, settings)
        return self._targets(rule, name, detail)

    def _targets(self, rule: Rule, name: str, detail: str) -> Outcome:
        address = self.hop.carried
        if name == CATCH_ALL and SameLocalPart(address.domain) in rule.targets:
            # Every address would be a mailbox. Who means that writes `unknown pass`.
            return _invalid(f"alias:{address.domain} {name}", "it leads to its own domain")
        hops = [self._hop(target, name, detail) for target in rule.targets]
        itself = [hop for hop in hops if hop.carried.key == address.key]
        final = None
        if itself:
            mailbox = Address(address.local.removesuffix(detail), address.domain)
            whole = mailbox if self.hop.given and holds_route(detail) else address
            final = Final(whole, held=self.hop.held, mailbox=mailbox)
        others = tuple(hop for hop in hops if hop not in itself)
        return Outcome(final=final, hops=others, targets=hops)

    def _hop(self, target: Address | SameLocalPart, name: str, detail: str) -> Hop:
        address, held = self.hop.carried, self.hop.held
        rule = f"alias:{address.domain} {name}"
        if isinstance(target, SameLocalPart):
            user = address.local.removesuffix(detail)
            # `* @new.example` stands for the whole domain: unknown there is simply unknown.
            rule = self.hop.rule if name == CATCH_ALL else rule
            local = user if holds_route(detail) else address.local
            target, carried = Address(user, target.domain), Address(local, target.domain)
            return Hop(target, carried, held=held, rule=rule, given=True)
        carried = Address(target.local + detail, target.domain) if detail else target
        if target.key == address.key:
            carried = target  # `bob: bob+x@` keeps the subaddress that it names itself
        elif holds_route(detail) and carried.key != address.key:
            # `sales+x%domain`: the MTA would take it for a route, and nobody asks what it makes of
            # a target.
            carried = target
        return Hop(target, carried, held=held, rule=rule)

    def _quarantine(self, rule: Rule, name: str, settings: Settings) -> Outcome:
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
        final = Final(mailbox, quarantined=True)
        return Outcome(final=final, quarantined=what, says=f"quarantine: {mailbox}")

    def _hold(self, rule: Rule, what: Quarantined) -> Outcome:
        """Held under the names the rule gives, else under the address as it came."""
        if not rule.targets:
            return Outcome(final=Final(self.hop.carried, held=True), quarantined=what, says="held")
        hops = tuple(replace(self._hop(t, CATCH_ALL, ""), held=True) for t in rule.targets)
        return Outcome(hops=hops, quarantined=what, says="held for its targets")

    @property
    def _is_routed(self) -> bool:
        """Whether the MTA could take a client's local part for a route, at a domain of its own."""
        return self.hop.given and holds_route(self.hop.carried.local)

    def _second_domain(self, domain: str) -> Outcome:
        hop = self.hop
        following = replace(
            hop,
            plain=hop.plain.at(domain),
            carried=hop.carried.at(domain),
            second_of=hop.carried.domain,
            given=True,
        )
        return Outcome(hops=(following,), says=f"looked up at {domain} instead")


def _invalid(where: str, problem: str) -> Outcome:
    return Outcome(reason=Reason.INVALID_RULE, problem=f"{where}: {problem}", says=problem)


def _routed() -> Outcome:
    return Outcome(reason=Reason.UNKNOWN, says="a route, not an address")


_REASONS = {
    Action.DISCARD: Reason.DISCARDED,
    Action.DISABLED: Reason.DISABLED,
    Action.DEFER: Reason.DEFERRED,
    Action.REJECT: Reason.REJECTED,
}
