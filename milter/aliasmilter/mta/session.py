"""One SMTP session, one transaction after the other, seen from the rules.

No socket and no pymilter in here: callbacks come in as method calls, and what is to be done
comes out as values. `mta.filter` does the rest.
"""

import re
from collections.abc import Sequence
from dataclasses import replace

from aliasmilter import log
from aliasmilter.forwarding.arc import POSTFIX, Transport
from aliasmilter.mail.address import (
    AddressError,
    domain_named,
    is_written_plainly,
    parse_path,
    readings,
)
from aliasmilter.mail.replies import REPLIES, Reason, Reply
from aliasmilter.mta import measures
from aliasmilter.mta.admission import NOBODY, Admission, Resolved
from aliasmilter.mta.completion import Completion
from aliasmilter.mta.reinject import mail_parameters
from aliasmilter.mta.service import Service
from aliasmilter.mta.transaction import Client, Connection, Transaction, Verdict, login_of
from aliasmilter.mta.vendors import vendors_of
from aliasmilter.routing.decision import Decision
from aliasmilter.routing.plan import Recipient, handling_of, handlings_of

# RFC 3461 section 4: the two parameters of RCPT that belong to the recipient. Sendmail drops
# the whole message over one that it does not know.
_DSN_PARAMETER = re.compile(
    rb"NOTIFY=(?:NEVER|(?:SUCCESS|FAILURE|DELAY)(?:,(?:SUCCESS|FAILURE|DELAY))*)"
    rb"|ORCPT=[A-Za-z0-9-]+;[!-~]{1,500}",
    re.IGNORECASE,
)
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
            broken=self._broken,
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
            for found in readings(mail.sender or NOBODY, resolved):
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
        mail = self._mail
        decision = Admission(self._service, self._connection, mail).decide(argument, resolved)
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
        self._mail = Transaction(broken=self._broken)

    @measures.message_seconds.timed
    def end_of_message(self, queue_id: str) -> Verdict:
        """The final dot: what is to be done with the message."""
        # Not kept until the next MAIL: the client may stay connected, and the body is large.
        mail, self._mail = self._mail, Transaction(broken=self._broken)
        if mail.broken:
            measures.refused(Reason.INTERNAL_ERROR)
            return Verdict(REPLIES[Reason.INTERNAL_ERROR])
        if mail.deferred:
            measures.refused(Reason.DEFERRED)
            return Verdict(mail.deferred)
        completion = Completion(self._service, self._connection, mail, queue_id)
        return completion.verdict()

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


def _dsn_parameters(parameters: Sequence[bytes]) -> str:
    return " ".join(p.decode("ascii") for p in parameters if _DSN_PARAMETER.fullmatch(p))
