"""Whether a recipient is accepted, and who gets the mail then.

The rules decide; what they cannot know is added here: what the MTA takes an address for, what
the client may do, and what the transaction can still carry.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from aliasmilter.mail.address import (
    Address,
    AddressError,
    folded,
    is_postmaster,
    is_written_plainly,
    parse_path,
    readings,
)
from aliasmilter.mail.replies import Reason
from aliasmilter.mta.service import Service
from aliasmilter.mta.transaction import Connection, Transaction, is_our_own
from aliasmilter.routing.decision import Decision, Final
from aliasmilter.routing.lookup import Unavailable
from aliasmilter.routing.plan import Handling, handling_of, handlings_of, held_apart

NOBODY = Address("", "")
# All that the recipients of one message may lead to: a rule with 500 targets hands a subaddress on
# to each, so that list+1@, list+2@, ... are 500 others every time.
MAX_COPIES = 10_000
_LOOP = "[reinject] server leads back to this milter: give it the port of a listener without it"
_MISSES = frozenset({Reason.UNKNOWN, Reason.CATCH_ALL})
_GUESSING = "the client guesses addresses: no catch-all for it"

Resolved = Callable[[], str]
"""Asks for an address as the MTA resolves it; "" when it does not tell."""


@dataclass(slots=True)
class Admission:
    """Decides on the recipients of one transaction, one after the other.

    Attributes:
        service: what all sessions share.
        connection: the client.
        mail: the transaction, with the recipients that were accepted before.
    """

    service: Service
    connection: Connection
    mail: Transaction

    def decide(self, argument: bytes, resolved: Resolved) -> Decision:
        """What becomes of a recipient.

        Args:
            argument: of RCPT.
            resolved: the recipient as the MTA resolves it.
        """
        decision = self._decide(argument, resolved)
        if decision.reply is not None and self.connection.client.is_local_submission:
            return self._left_to_the_mta(decision)
        return decision

    def _decide(self, argument: bytes, resolved: Resolved) -> Decision:
        if self._is_our_own():
            return Decision(NOBODY, Reason.REINJECT_LOOP, problem=_LOOP)
        if self.mail.broken:
            return Decision(NOBODY, Reason.INTERNAL_ERROR)
        try:
            address = parse_path(argument) or NOBODY
        except AddressError as error:
            return Decision(NOBODY, Reason.MALFORMED, problem=str(error))
        return self._decide_address(address, resolved)

    def _decide_address(self, address: Address, resolved: Resolved) -> Decision:
        if address is NOBODY:
            return Decision(address, Reason.MALFORMED, problem="no address")
        # Mail handed in on this host cannot be split by whoever hands it in.
        local = self.connection.client.is_local_submission
        if len(self.mail.recipients) >= self.service.limits.recipients and not local:
            return Decision(address, Reason.TOO_MANY_RECIPIENTS)
        try:
            if objection := self._objection():
                return objection
            decision = self.service.decider.decide(address, self.mail.origin)
            if _may_mean_another(decision):
                decision = self._read(decision, resolved)
            decision = self._watched(decision)
            if decision.reason is Reason.SRS_REVERSED and self._is_too_much(decision.address):
                return Decision(address, Reason.SRS_THROTTLED)
        except Unavailable as error:
            return Decision(address, Reason.STORE_UNAVAILABLE, problem=str(error))
        return self._fit(decision)

    def _read(self, decision: Decision, resolved: Resolved) -> Decision:
        """The decision for what the MTA takes the recipient for: rules cannot be gone round."""
        others = readings(decision.address, resolved())
        if not others and decision.reason is Reason.PASSED:
            others = (folded(decision.address),)
        for address in others:
            other = self.service.decider.decide(address, self.mail.origin)
            if other.reason is not Reason.UNMANAGED and not _must_be_taken(decision, other):
                return other
        return decision

    def _is_too_much(self, address: Address) -> bool:
        """Whether this is one message too many to a return address; bounces never are."""
        throttle = self.service.throttle
        if throttle is None or self.mail.sender_argument in ("<>", ""):
            return False
        return throttle.is_too_much(address, self.connection.client.ip)

    def _watched(self, decision: Decision) -> Decision:
        """Take note of an address without a rule of its own; a client that guesses gets none."""
        client = self.connection.client
        if decision.missing is None or client.ip is None or self.mail.login:
            return decision
        service, helo = self.service, self.connection.helo
        if service.misses:
            service.misses.note(decision.missing, client.ip, helo, self.mail.sender)
        if service.harvest and not client.is_local_submission:
            guessing = service.harvest.is_guessing(client.ip, decision.address.key)
            if guessing and decision.reply is None:
                return replace(decision, reason=Reason.UNKNOWN, finals=(), problem=_GUESSING)
        return decision

    def _objection(self) -> Decision | None:
        """Why the client, when it has logged in, may not send as its sender (RFC 6409, 6.1)."""
        mail, submission = self.mail, self.service.submission
        if submission is None or not mail.login or mail.recipients:
            return None  # nobody is accepted before it was asked
        if submission.owners_only and mail.is_sender_unclear:
            text = f"{mail.sender_argument} is no address that {mail.login} may send from"
            mail.objection = Decision(NOBODY, Reason.NOT_OWNER, text=text)
        mail.objection = mail.objection or submission.objection(mail.login, mail.sender)
        return mail.objection

    def _is_our_own(self) -> bool:
        """Whether the client is our own reinjection, which must not pass here a second time."""
        reinjector = self.service.reinjector
        return reinjector is not None and self.connection.helo.lower() == reinjector.helo.lower()

    def _fit(self, decision: Decision) -> Decision:
        """Refuse what cannot be served in this transaction."""
        beyond_ascii = any(f.leaves and not f.address.is_ascii for f in decision.finals)
        if beyond_ascii and not self.mail.is_smtputf8:
            # RFC 6531 section 3.2: never sent to a system in a message that did not ask for it.
            return replace(decision, reason=Reason.NEEDS_SMTPUTF8, finals=())
        copies = len(decision.finals) + self.mail.copies
        if copies > MAX_COPIES and not self.connection.client.is_local_submission:
            return replace(decision, reason=Reason.TOO_MANY_RECIPIENTS, finals=())
        if self._needs_own_transaction(decision):
            return replace(decision, reason=Reason.OTHER_HANDLING, finals=())
        return decision

    def _needs_own_transaction(self, decision: Decision) -> bool:
        mail = self.mail
        if mail.handling is None:
            return False
        handling = handling_of(decision)
        if handling is None:
            return False
        if self.connection.client.is_local_submission:
            return False
        first = mail.handling
        if is_our_own(mail, self.connection.client):
            # Strict or not: whom the end of the message never refuses needs no other transaction.
            handling, first = replace(handling, strict=""), replace(first, strict="")
        elif self._may_be_refused_alone(handling, first):
            return True
        if self.service.reinjector:
            return held_apart(handlings_of(decision), mail.handlings)
        return handling != first

    def _may_be_refused_alone(self, one: Handling, other: Handling) -> bool:
        """Whether the end of the message may refuse one of the two, and with it the other."""
        outbound = self.service.outbound
        by_policy = outbound is not None and outbound.refuses_dmarc and one.leaves != other.leaves
        return by_policy or one.strict != other.strict

    def _left_to_the_mta(self, decision: Decision) -> Decision:
        """Mail handed in on this host: what we would refuse for now waits as a whole."""
        if decision.reply is not None and decision.reply.is_temporary:
            self.mail.deferred = decision.reply
        return Decision(
            decision.address,
            Reason.PASSED,
            finals=(Final(decision.address),),
            problem=f"not refused ({decision.reason.value}): handed in on this host",
        )


def _must_be_taken(decision: Decision, read: Decision) -> bool:
    """Whether it is `<postmaster>`, and no rule of its own says where that goes."""
    refused = read.reply is not None and not read.reply.is_temporary
    return is_postmaster(decision.address) and (refused or read.reason in _MISSES)


def _may_mean_another(decision: Decision) -> bool:
    """Whether an MTA may take the recipient for an address that other rules are for.

    In a managed domain, too: when the MTA delivers that itself it goes on with a route, which a
    target may have got by way of the subaddress.
    """
    if decision.reason is Reason.UNMANAGED:
        return True
    address, reason = decision.address, decision.reason
    if reason is Reason.PASSED and not address.is_ascii:
        return True
    accepted = decision.reply is None and reason is not Reason.SRS_REVERSED
    return accepted and not is_written_plainly(address)
