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
from dataclasses import dataclass, field
from datetime import date
from graphlib import CycleError, TopologicalSorter

from aliasmilter.mail.address import Address
from aliasmilter.mail.replies import REPLIES, Reason
from aliasmilter.routing.decision import Decision, Final, Policy, Step
from aliasmilter.routing.expansion import Expansion, Hop, Outcome
from aliasmilter.routing.known import Known, Level
from aliasmilter.routing.lookup import Answer, Lookup
from aliasmilter.routing.rules import Settings

MAX_DEPTH = 10
MAX_FINALS = 500
MAX_ADDRESSES = 1 + MAX_DEPTH * MAX_FINALS  # each final reached by ten levels of its own
MAX_TEXT = 524_288  # characters of rules that are read for one recipient


def resolve(
    address: Address,
    lookup: Lookup,
    policy: Policy,
    today: date,
    *,
    is_target: bool = False,
    sender: Address | None = None,
    explain: bool = False,
    known: Known | None = None,
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
        known: decisions of the same policy, of which this may be one, and will be.

    Returns:
        The decision, whatever the rules hold.

    Raises:
        Unavailable: the lookup did.
    """
    said: Sequence[Answer] = ()
    if known and not explain:
        decision, said = known.recall(address, today, lookup, is_target=is_target)
        if decision:
            return decision
    search = _Search(address, policy, today, sender, explain=explain)
    decision = search.run(lookup, said, is_target=is_target)
    if known and not explain and not search.by_sender:
        known.keep(decision, today, search.levels, is_target=is_target)
    return decision


@dataclass(slots=True)
class _Search:
    address: Address
    policy: Policy
    today: date
    sender: Address | None
    outcomes: dict[tuple[str, str, bool], Outcome] = field(default_factory=dict)
    hops: dict[tuple[str, str, bool], Hop] = field(default_factory=dict)
    read: int = 0
    explain: bool = False
    met_again: bool = False  # a rule led to an address that was expanded before
    by_sender: bool = False  # another sender may be told something else
    levels: list[Level] = field(default_factory=list)

    def run(self, lookup: Lookup, said: Sequence[Answer], *, is_target: bool) -> Decision:
        """Expand level by level, and draw the verdict.

        Args:
            lookup: asked for each level.
            said: the answers for the first one, where it was asked for them already.
            is_target: see `resolve`.
        """
        frontier = [Hop(self.address, self.address, is_target=is_target)]
        for _ in range(MAX_DEPTH + 1):
            if len(self.outcomes) + len(frontier) > MAX_ADDRESSES:
                return self.refuse(Reason.TOO_WIDE)
            asked = [hop.carried for hop in frontier]
            answers, said = said or lookup(asked), ()
            self.levels.append((asked, answers))
            frontier = self.expand_level(frontier, answers)
            if self.read > MAX_TEXT:
                return self.refuse(Reason.TOO_WIDE)
            if not frontier:
                return self.decide()
        return self.refuse(Reason.CYCLE if self.cycle() else Reason.TOO_DEEP)

    def expand_level(self, frontier: Sequence[Hop], answers: Sequence[Answer]) -> list[Hop]:
        """Expand the hops; returns those of the next level, each once; stops at too much."""
        keys = [hop.key for hop in frontier]
        level = frozenset(keys)
        following: dict[tuple[str, str, bool], Hop] = {}
        for key, hop, answer in zip(keys, frontier, answers, strict=True):
            # A thousand rules of 64 KB each would be millions of targets.
            if len(following) > MAX_ADDRESSES or self.read > MAX_TEXT:
                break
            outcome = Expansion(hop, self.policy, self.today, self.sender).expand(answer)
            self.by_sender = self.by_sender or outcome.by_sender
            self.outcomes[key] = outcome
            self.hops[key] = hop
            self.read += len(outcome.rule_text)
            for target in outcome.hops:
                met = target.key
                if met in level or met in self.outcomes:
                    self.met_again = True
                else:
                    following[met] = target
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
        if len(self.outcomes) == 1 and not self.met_again:  # as with most mail
            (only,) = self.outcomes.values()
            return self._accept([only.final]) if only.final else self._refusal(only)
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
            missing=self._missing() if quarantined else None,
            steps=self.steps(),
        )

    def _refusal(self, outcome: Outcome) -> Decision:
        return Decision(
            self.address,
            outcome.reason or Reason.UNKNOWN,
            text=outcome.text,
            problem=outcome.problem,
            settings=self._settings(),
            missing=self._missing(),
            steps=self.steps(),
        )

    def _missing(self) -> Address | None:
        """The recipient, in whichever domain it was looked up last, when it has no rule there."""
        for key, outcome in self.outcomes.items():
            caught = outcome.quarantined and outcome.quarantined.reason is Reason.CATCH_ALL
            if (caught or outcome.reason is Reason.UNKNOWN) and not self.hops[key].rule:
                return self.hops[key].carried
        return None

    def _settings(self) -> Settings | None:
        """Of the recipient's own domain: it stands for the mail, wherever a chain leads."""
        first = next(iter(self.outcomes.values()), None)
        return first.settings if first else None


def _is_temporary(outcome: Outcome) -> bool:
    reply = REPLIES.get(outcome.reason) if outcome.reason else None
    return reply is not None and reply.is_temporary
