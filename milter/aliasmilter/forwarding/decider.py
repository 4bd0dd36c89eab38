"""Decides a recipient, return addresses that we made included.

What the daemon does at RCPT and `alias-milter resolve` shows is this one function.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from functools import lru_cache

from aliasmilter.forwarding.srs import Rewriter, SRSError, looks_like_srs
from aliasmilter.mail.address import Address
from aliasmilter.mail.replies import Reason
from aliasmilter.routing.decision import Decision, Policy
from aliasmilter.routing.known import Known
from aliasmilter.routing.lookup import Lookup
from aliasmilter.routing.resolver import resolve

Lookups = Callable[[Address | None], Lookup]
"""Begins a lookup for one decision, all of it within one deadline, for mail of a sender."""


@dataclass(frozen=True, slots=True)
class Decider:
    """Where recipients go.

    Attributes:
        lookups: the store's.
        policy: what the configuration says about routing.
        rewriter: makes and undoes SRS addresses.
        srs_domain: the one domain that is ours even when no key in the store says so.
        clock: seconds since the epoch.
        known: decisions that it has made.
    """

    lookups: Lookups
    policy: Policy
    rewriter: Rewriter
    srs_domain: str
    clock: Callable[[], float]
    known: Known = field(default_factory=Known)

    def decide(
        self, address: Address, sender: Address | None = None, *, explain: bool = False
    ) -> Decision:
        """The decision of the rules, or that of a return address.

        Args:
            address: the recipient.
            sender: of the message, whom rules may block; None for the null sender.
            explain: say how it was found.

        Raises:
            Unavailable: the store did not answer.
        """
        if not looks_like_srs(address):
            return self._resolve(address, sender, explain=explain)
        try:
            original = self.rewriter.reverse(address)
        except SRSError as error:
            return self._unproven(address, sender, error, explain=explain)
        decision = self._resolve(original, sender, is_target=True, explain=explain)
        if decision.reply is None and decision.reason is not Reason.DISCARDED:
            decision = replace(decision, reason=Reason.SRS_REVERSED)
        return replace(decision, address=address, missing=None)  # made here: nobody's guess

    def _unproven(
        self, address: Address, sender: Address | None, error: SRSError, *, explain: bool
    ) -> Decision:
        """Forged when it should be ours; somebody else's SRS address is left alone.

        Every managed domain counts as ours: what looks like SRS there and has no rule of its
        own is no address, so that a forged one needs no list of SRS domains to be refused.
        """
        if error.reason is Reason.SRS_EXPIRED or address.domain == self.srs_domain:
            return Decision(address, error.reason, problem=str(error))
        decision = self._resolve(address, sender, explain=explain)
        if decision.reason in (Reason.UNKNOWN, Reason.CATCH_ALL):
            # Of a managed domain it remains, so that no login sends as it either.
            settings = decision.settings
            return Decision(address, error.reason, problem=str(error), settings=settings)
        return decision

    def _resolve(
        self,
        address: Address,
        sender: Address | None,
        *,
        is_target: bool = False,
        explain: bool = False,
    ) -> Decision:
        return resolve(
            address,
            self.lookups(sender),
            self.policy,
            _day(int(self.clock() // 86_400)),
            is_target=is_target,
            sender=sender,
            explain=explain,
            known=self.known,
        )


@lru_cache(maxsize=2)
def _day(since_the_epoch: int) -> date:
    """The day in UTC."""
    return date(1970, 1, 1) + timedelta(days=since_the_epoch)
