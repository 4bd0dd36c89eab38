"""One SMTP session, one transaction after the other, seen from the rules.

No socket and no pymilter in here: callbacks come in as method calls, and what is to be done
comes out as values. `mta.filter` does the rest.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from aliasmilter import log
from aliasmilter.forwarding.arc import POSTFIX, Transport
from aliasmilter.mail.address import (
    Address,
    AddressError,
    domain_named,
    folded,
    is_postmaster,
    is_written_plainly,
    parse_path,
    readings,
)
from aliasmilter.mail.replies import REPLIES, Reason, Reply
from aliasmilter.mta import measures
from aliasmilter.mta.completion import Completion
from aliasmilter.mta.reinject import mail_parameters
from aliasmilter.mta.service import Service
from aliasmilter.mta.transaction import (
    Client,
    Connection,
    Transaction,
    Verdict,
    is_our_own,
    login_of,
)
from aliasmilter.mta.vendors import vendors_of
from aliasmilter.routing.decision import Decision, Final
from aliasmilter.routing.lookup import Unavailable
from aliasmilter.routing.plan import (
    Handling,
    Recipient,
    handling_of,
    handlings_of,
    held_apart,
)

# RFC 3461 section 4: the two parameters of RCPT that belong to the recipient. Sendmail drops
# the whole message over one that it does not know.
_DSN_PARAMETER = re.compile(
    rb"NOTIFY=(?:NEVER|(?:SUCCESS|FAILURE|DELAY)(?:,(?:SUCCESS|FAILURE|DELAY))*)"
    rb"|ORCPT=[A-Za-z0-9-]+;[!-~]{1,500}",
    re.IGNORECASE,
)
_NOBODY = Address("", "")
# All that the recipients of one message may lead to: a rule with 500 targets hands a subaddress on
# to each, so that list+1@, list+2@, ... are 500 others every time.
MAX_COPIES = 10_000
_LOOP = "[reinject] server leads back to this milter: give it the port of a listener without it"
_MISSES = frozenset({Reason.UNKNOWN, Reason.CATCH_ALL})
_GUESSING = "the client guesses addresses: no catch-all for it"
_CALLS_FOR_REPAIR = frozenset(
    {
        Reason.INVALID_RULE,
        Reason.DANGLING,
        Reason.CYCLE,
        Reason.TOO_DEEP,
        Reason.TOO_WIDE,
        Reason.STORE_UNAVAILABLE,
        Reason.REINJECT_LOOP,
    }
)


Resolved = Callable[[], str]
"""Asks for an address as the MTA resolves it; "" when it does not tell."""


class Session:
    """The SMTP session of one client."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._connection = Connection()
        self._is_open = False
        self._broken = False
        self._mail = Transaction()

    def connected(self, client: Client, transport: Transport = POSTFIX) -> None:
        """A client has connected to the MTA, which handles messages in its own way."""
        self._connection = Connection(client, transport=transport)
        self._is_open = True
        measures.sessions.inc()
        measures.open_sessions.inc()

    def closed(self) -> None:
        """The client has gone."""
        if self._is_open:
            self._is_open = False
            measures.open_sessions.dec()

    def helo(self, name: str) -> None:
        """HELO or EHLO: the name the client gives itself."""
        self._connection = replace(self._connection, helo=name)

    def mail(
        self,
        argument: bytes,
        parameters: Sequence[bytes],
        login: str = "",
        resolved: Resolved = str,
    ) -> None:
        """MAIL FROM: whatever was left of an earlier transaction is gone.

        Args:
            argument: the reverse-path.
            parameters: of the command.
            login: of the client as the MTA writes it, or "".
            resolved: the sender as the MTA resolves it.
        """
        self._mail = mail = Transaction(
            sender_argument=argument.decode("utf-8", "surrogateescape"),
            login=login_of(login, self._connection.transport),
        )
        if parameters:
            mail.parameters = mail_parameters(parameters)
        try:
            # A sender's odd address is no reason to refuse its mail.
            mail.sender = parse_path(argument, any_dots=True)
        except AddressError as error:
            mail.notes["sender_unchanged"] = str(error)
        if mail.is_sender_unclear or (mail.sender and not is_written_plainly(mail.sender)):
            self._read_sender(resolved())

    def _read_sender(self, resolved: str) -> None:
        """Take the sender for what the MTA takes it for: under that address the mail goes on."""
        mail = self._mail
        if "@" in resolved:
            for found in readings(mail.sender or _NOBODY, resolved):
                mail.sender = found
                mail.notes.pop("sender_unchanged", None)
        if mail.sender is None:
            # Too long, `""@`, `a;b@`: an MTA takes it all the same, and a block must hold.
            mail.sender_domain = domain_named(resolved if "@" in resolved else mail.sender_argument)

    @measures.rcpt_seconds.timed
    def rcpt(
        self,
        argument: bytes,
        parameters: Sequence[bytes],
        queue_id: str = "",
        resolved: Resolved = str,
    ) -> Reply | None:
        """RCPT TO: the reply when it is refused, None when it is accepted.

        Args:
            argument: the forward-path.
            parameters: of the command.
            queue_id: of the message, where it has one already.
            resolved: the recipient as the MTA resolves it.
        """
        decision = self._decide(argument, resolved)
        mail, reply = self._mail, decision.reply
        if reply is not None and self._connection.client.is_local_submission:
            decision = self._left_to_the_mta(decision)
            reply = decision.reply
        measures.recipient(decision.reason)
        text = argument.decode("utf-8", "replace")
        if reply is not None:
            self._log_refusal(text, decision, reply, queue_id)
            return reply
        mail.handling = mail.handling or handling_of(decision)
        mail.handlings |= handlings_of(decision)
        mail.copies += len(decision.finals)
        mail.recipients.append(Recipient(text, _dsn_parameters(parameters), decision))
        return None

    def header(self, name: str, value: bytes) -> None:
        """One header field of the message; the value byte for byte, leading space included."""
        self._mail.keep_header(name.encode(), value, self._service.limits)

    @property
    def wants_body(self) -> bool:
        """Whether the body is looked at: hardly ever that of mail that simply stays."""
        handlings, service = self._mail.handlings, self._service
        if self._mail.oversized:
            return False
        if service.reinjector and not all(h.is_ordinary for h in handlings):
            return True  # a retry, of a part even, is recognised by it
        if service.vendors and any(vendors_of(self._mail.recipients)):
            return True
        return service.outbound is not None and any(h.leaves for h in handlings)

    def body(self, chunk: bytes) -> None:
        """A piece of the body."""
        self._mail.chunks.append(chunk)

    def broke(self, *, for_good: bool) -> None:
        """An event was lost: nothing may be accepted on what is left of the transaction.

        Args:
            for_good: nor in any later one of this session.
        """
        self._broken = self._broken or for_good
        self._mail.broken = True

    def abort(self) -> None:
        """The transaction is over without a message."""
        self._mail = Transaction()

    @measures.message_seconds.timed
    def end_of_message(self, queue_id: str) -> Verdict:
        """The final dot: what is to be done with the message."""
        # Not kept until the next MAIL: the client may stay connected, and the body is large.
        mail, self._mail = self._mail, Transaction()
        if self._broken or mail.broken:
            measures.refused(Reason.INTERNAL_ERROR)
            return Verdict(REPLIES[Reason.INTERNAL_ERROR])
        if mail.deferred:
            measures.refused(Reason.DEFERRED)
            return Verdict(mail.deferred)
        completion = Completion(self._service, self._connection, mail, queue_id)
        return completion.verdict()

    def _decide(self, argument: bytes, resolved: Resolved) -> Decision:
        if self._is_our_own():
            return Decision(_NOBODY, Reason.REINJECT_LOOP, problem=_LOOP)
        if self._broken or self._mail.broken:
            return Decision(_NOBODY, Reason.INTERNAL_ERROR)
        try:
            address = parse_path(argument) or _NOBODY
        except AddressError as error:
            return Decision(_NOBODY, Reason.MALFORMED, problem=str(error))
        return self._decide_address(address, resolved)

    def _decide_address(self, address: Address, resolved: Resolved) -> Decision:
        if address is _NOBODY:
            return Decision(address, Reason.MALFORMED, problem="no address")
        # Mail handed in on this host cannot be split by whoever hands it in.
        local = self._connection.client.is_local_submission
        if len(self._mail.recipients) >= self._service.limits.recipients and not local:
            return Decision(address, Reason.TOO_MANY_RECIPIENTS)
        try:
            if objection := self._objection():
                return objection
            decision = self._service.decider.decide(address, self._mail.origin)
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
            other = self._service.decider.decide(address, self._mail.origin)
            if other.reason is not Reason.UNMANAGED and not _must_be_taken(decision, other):
                return other
        return decision

    def _is_too_much(self, address: Address) -> bool:
        """Whether this is one message too many to a return address; bounces never are."""
        throttle = self._service.throttle
        if throttle is None or self._mail.sender_argument in ("<>", ""):
            return False
        return throttle.is_too_much(address, self._connection.client.ip)

    def _watched(self, decision: Decision) -> Decision:
        """Take note of an address without a rule of its own; a client that guesses gets none."""
        client = self._connection.client
        if decision.missing is None or client.ip is None or self._mail.login:
            return decision
        service, helo = self._service, self._connection.helo
        if service.misses:
            service.misses.note(decision.missing, client.ip, helo, self._mail.sender)
        if service.harvest and not client.is_local_submission:
            guessing = service.harvest.is_guessing(client.ip, decision.address.key)
            if guessing and decision.reply is None:
                return replace(decision, reason=Reason.UNKNOWN, finals=(), problem=_GUESSING)
        return decision

    def _objection(self) -> Decision | None:
        """Why the client, when it has logged in, may not send as its sender (RFC 6409, 6.1)."""
        mail, submission = self._mail, self._service.submission
        if submission is None or not mail.login or mail.recipients:
            return None  # nobody is accepted before it was asked
        if submission.owners_only and mail.is_sender_unclear:
            text = f"{mail.sender_argument} is no address that {mail.login} may send from"
            mail.objection = Decision(_NOBODY, Reason.NOT_OWNER, text=text)
        mail.objection = mail.objection or submission.objection(mail.login, mail.sender)
        return mail.objection

    def _is_our_own(self) -> bool:
        """Whether the client is our own reinjection, which must not pass here a second time."""
        reinjector = self._service.reinjector
        return reinjector is not None and self._connection.helo.lower() == reinjector.helo.lower()

    def _fit(self, decision: Decision) -> Decision:
        """Refuse what cannot be served in this transaction."""
        beyond_ascii = any(f.leaves and not f.address.is_ascii for f in decision.finals)
        if beyond_ascii and not self._mail.is_smtputf8:
            # RFC 6531 section 3.2: never sent to a system in a message that did not ask for it.
            return replace(decision, reason=Reason.NEEDS_SMTPUTF8, finals=())
        copies = len(decision.finals) + self._mail.copies
        if copies > MAX_COPIES and not self._connection.client.is_local_submission:
            return replace(decision, reason=Reason.TOO_MANY_RECIPIENTS, finals=())
        if self._needs_own_transaction(decision):
            return replace(decision, reason=Reason.OTHER_HANDLING, finals=())
        return decision

    def _needs_own_transaction(self, decision: Decision) -> bool:
        mail = self._mail
        if mail.handling is None:
            return False
        handling = handling_of(decision)
        if handling is None:
            return False
        if self._connection.client.is_local_submission:
            return False
        first = mail.handling
        if is_our_own(mail, self._connection.client):
            # Strict or not: whom the end of the message never refuses needs no other transaction.
            handling, first = replace(handling, strict=""), replace(first, strict="")
        elif self._may_be_refused_alone(handling, first):
            return True
        if self._service.reinjector:
            return held_apart(handlings_of(decision), mail.handlings)
        return handling != first

    def _may_be_refused_alone(self, one: Handling, other: Handling) -> bool:
        """Whether the end of the message may refuse one of the two, and with it the other."""
        outbound = self._service.outbound
        by_policy = outbound is not None and outbound.refuses_dmarc and one.leaves != other.leaves
        return by_policy or one.strict != other.strict

    def _left_to_the_mta(self, decision: Decision) -> Decision:
        """Mail handed in on this host: what we would refuse for now waits as a whole."""
        if decision.reply is not None and decision.reply.is_temporary:
            self._mail.deferred = decision.reply
        return Decision(
            decision.address,
            Reason.PASSED,
            finals=(Final(decision.address),),
            problem=f"not refused ({decision.reason.value}): handed in on this host",
        )

    def _log_refusal(self, argument: str, decision: Decision, reply: Reply, queue_id: str) -> None:
        write = (
            self._service.logger.error
            if decision.reason in _CALLS_FOR_REPAIR
            else self._service.logger.info
        )
        fields = {"problem": decision.problem} if decision.problem else {}
        write(
            "refused",
            queue_id=queue_id or log.NO_QUEUE,
            sender=self._mail.sender_argument,
            recipient=argument,
            reason=decision.reason.value,
            reply=str(reply),
            client=self._connection.client.ip or "local",
            **fields,
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


def _dsn_parameters(parameters: Sequence[bytes]) -> str:
    return " ".join(p.decode("ascii") for p in parameters if _DSN_PARAMETER.fullmatch(p))
