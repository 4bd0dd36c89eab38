"""The final dot: what becomes of a message whose recipients have been decided."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from email.utils import formatdate

from aliasmilter import log
from aliasmilter.forwarding import authentication
from aliasmilter.forwarding.arc import Sealed
from aliasmilter.forwarding.authserv import NAME as RESULTS_HEADER
from aliasmilter.forwarding.authserv import forged_results
from aliasmilter.forwarding.results import Results
from aliasmilter.forwarding.srs import CannotRewrite, Unchanged
from aliasmilter.forwarding.trace import HEADER as TRACE_HEADER
from aliasmilter.mail.message import HeaderField, Message
from aliasmilter.mail.replies import REPLIES, Reason
from aliasmilter.mta import measures, quarantine
from aliasmilter.mta.reinject import Copy, ReinjectError, Reinjector, Submission, identity_of
from aliasmilter.mta.service import Service
from aliasmilter.mta.submission import Outgoing, numbered
from aliasmilter.mta.transaction import (
    Connection,
    Edits,
    Transaction,
    Verdict,
    describe,
    is_our_own,
)
from aliasmilter.mta.vendors import vendors_of
from aliasmilter.routing.lookup import Unavailable
from aliasmilter.routing.plan import (
    Envelope,
    Handling,
    Recipient,
    merge,
    partition,
    recipient_edits,
)
from aliasmilter.store import tally

# Postfix looks through all fields for each that is removed: 16,000 take it half a minute, and then
# it gives up with a 451, each time.
MAX_REMOVED = 1000
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(slots=True)
class Completion:
    """Completes one transaction: examine, submit copies, then say what the MTA is to change."""

    service: Service
    connection: Connection
    mail: Transaction
    queue_id: str
    forged: tuple[tuple[str, int], ...] = ()  # fields that are to be removed

    def verdict(self) -> Verdict:
        """The answer to the end of the message."""
        message = self.mail.message
        obstacle = self._obstacle(message)
        if obstacle:
            return self._refused(obstacle)
        try:
            outgoing = self._outgoing(message)
        except Unavailable as error:
            self.mail.notes["problem"] = str(error)
            return self._refused(Reason.STORE_UNAVAILABLE)
        if outgoing.refusal:
            return self._refused(outgoing.refusal.reason, outgoing.refusal.text)
        return self._decide(message.with_changed_fields(outgoing.changed))

    def _obstacle(self, message: Message) -> Reason | None:
        """Why nobody gets the message, whatever else is true of it."""
        if not self.mail.recipients:
            # Whoever the MTA has it for, we know nobody: not accepted and dropped, but kept.
            self.mail.notes["problem"] = "no recipient was accepted"
            return Reason.INTERNAL_ERROR
        if self.mail.oversized:
            return Reason.HEADER_TOO_BIG
        self.forged = self._forged(message)
        if len(self.forged) > MAX_REMOVED:
            return Reason.HEADER_TOO_BIG
        return self._loop(message)

    def _outgoing(self, message: Message) -> Outgoing:
        """What holds for mail of our own users; it becomes what they are to be seen as."""
        submission = self.service.submission
        if submission is None or not self.mail.login:
            return Outgoing()
        outgoing = submission.outgoing(self.mail, message)
        if outgoing.answer:
            self.mail.changed = numbered(message, outgoing.changed)
            self.mail.notes["shown_as"] = outgoing.answer.alias.path
            author, sender = outgoing.answer.author, self.mail.sender
            if sender and submission.is_of_one_mailbox(sender, author):
                self.mail.sender = outgoing.answer.alias
                self.mail.sender_argument = outgoing.answer.alias.path
                self.mail.new_sender = outgoing.answer.alias.path
        return outgoing

    def _decide(self, message: Message) -> Verdict:
        split = self.service.reinjector is not None
        envelopes = (partition if split else merge)(self.mail.recipients)
        if not envelopes:
            return self._discarded()
        leaving = any(envelope.handling.leaves for envelope in envelopes)
        watched = self.service.vendors is not None and any(vendors_of(self.mail.recipients))
        wanted = watched or (leaving and self.service.outbound is not None)
        results = self._examine(message) if wanted else None
        refusal = self._refusal(results, leaving=leaving) if results else None
        if refusal:
            return self._refused(refusal)
        return self._carry_out(envelopes, message, results)

    def _refusal(self, results: Results, *, leaving: bool) -> Reason | None:
        """Why the message is refused for what is true of it."""
        outbound, vendors = self.service.outbound, self.service.vendors
        if leaving and outbound and not self._is_bounce_on_its_way_back:
            reason = outbound.refusal(results)
            if reason:
                return reason
        if vendors is None or self._is_our_own:
            return None
        return vendors.watch(self.mail.recipients, results)

    @property
    def _is_bounce_on_its_way_back(self) -> bool:
        """Whether it answers mail that we forwarded: nobody must miss that, signed or not."""
        reasons = {r.decision.reason for r in self.mail.recipients if r.decision.finals}
        return self.mail.sender_argument in ("<>", "") and reasons == {Reason.SRS_REVERSED}

    @property
    def _is_our_own(self) -> bool:
        return is_our_own(self.mail, self.connection.client)

    def _carry_out(
        self, envelopes: Sequence[Envelope], message: Message, results: Results | None
    ) -> Verdict:
        own, *others = envelopes
        if others and _CONTROL.search(self.mail.sender_argument):
            # It could not be handed over, today or tomorrow: no 4xx for what a sender can cause.
            return self._refused(Reason.SENDER_MALFORMED)
        reinjector = self.service.reinjector
        if reinjector and (others or not own.handling.is_ordinary):
            try:
                own = self._submit(reinjector, own, others, message, results)
            except ReinjectError as error:
                measures.reinjections.inc("failed")
                self.mail.notes["problem"] = f"[reinject] server: {error}"
                return self._refused(Reason.REINJECT_FAILED)
        if not own.deliveries:
            return self._discarded()
        edits = Edits(
            recipients=recipient_edits(own, self.mail.recipients),
            sender=self._srs_sender(own.handling) or self.mail.new_sender,
            change=self.mail.changed,
            remove=self.forged,
            headers=tuple(self._headers(own, message, results)),
            quarantine=quarantine.hold_reason(self.mail.recipients) if own.handling.held else "",
        )
        self._remember(message)
        self._count_hits()
        outcome = "held" if edits.quarantine else "accepted"
        measures.accepted(outcome)
        self._log(outcome)
        return Verdict(edits=edits)

    def _count_hits(self) -> None:
        journal = self.service.journal
        hits = [hit.address.domain for r in self.mail.recipients for hit in r.decision.quarantined]
        if hits and journal:
            journal.note(lambda: [tally.hit(domain) for domain in hits])

    def _remember(self, message: Message) -> None:
        submission = self.service.submission
        if submission and submission.memory:
            submission.memory.note(message, self.mail.recipients)

    def _loop(self, message: Message) -> Reason | None:
        if message.count("received") > self.service.max_received:  # RFC 5321 section 6.3
            return Reason.TOO_MANY_HOPS
        traces = [field.value for field in message.fields(TRACE_HEADER)]
        if self.service.tracer.passed(traces, _rewritten(self.mail.recipients)):
            return Reason.LOOP
        return None

    def _examine(self, message: Message) -> Results | None:
        examiner, client = self.service.examiner, self.connection.client
        if examiner is None:
            return None
        if client.ip is None or self._is_our_own:
            return Results()
        # RFC 7208 2.4: HELO stands for the null sender alone, not for one that cannot be read.
        written = self.mail.sender_argument.removeprefix("<").removesuffix(">")
        sender = str(self.mail.sender) if self.mail.sender else written
        results = examiner.examine(
            message, authentication.Client(client.ip, self.connection.helo), sender
        )
        measures.examined(results)
        self.mail.notes.update(results.summary)
        return results

    def _submit(
        self,
        reinjector: Reinjector,
        own: Envelope,
        others: Sequence[Envelope],
        message: Message,
        results: Results | None,
    ) -> Envelope:
        """Submit the envelopes that cannot go on in the MTA's own transaction.

        Returns:
            The one for that transaction, without those who got the message at an earlier try, when
            there were other recipients and theirs was submitted.
        """
        identity = identity_of(self.mail.sender_argument, message, self.queue_id)
        deliveries = [delivery for each in (own, *others) for delivery in each.deliveries]
        submission = reinjector.begin(identity, [d.address.path for d in deliveries])
        try:
            for envelope in others:
                left = _left(envelope, submission)
                if left.deliveries:
                    submission.submit(self._copy(left, message, results))
                measures.reinjections.inc("submitted" if left.deliveries else "repeated")
            left = _left(own, submission) if identity.is_certain else own
            submission.finish()
        finally:
            # When it fails half-way, the log tells who got the message.
            self.mail.notes.update(submission.notes)
        return left

    def _copy(self, envelope: Envelope, message: Message, results: Results | None) -> Copy:
        """The message as one envelope's recipients get it."""
        inserted = self._headers(envelope, message, results)
        above = [HeaderField(name.encode(), value.encode()) for name, value in reversed(inserted)]
        forged = {id(message.fields(name)[number - 1]) for name, number in self.forged}
        fields = [field for field in message.headers if id(field) not in forged]
        return Copy(
            sender=self._srs_sender(envelope.handling) or self.mail.sender_argument,
            mail_parameters=self.mail.parameters,
            recipients={d.address.path: d.recipient.parameters for d in envelope.deliveries},
            content=Message((*above, self._received(), *fields), message.body).as_bytes(),
        )

    def _received(self) -> HeaderField:
        """How the message came here (RFC 5321 section 4.4): its own such field is the MTA's."""
        client = self.connection.client
        # Names that a client gives: nothing in them may end the line, or reach a terminal.
        helo, name = (_CONTROL.sub("?", text[:255]) for text in (self.connection.helo, client.name))
        value = (
            f" from {helo or 'unknown'} ({name} [{client.ip}])"
            f"\n\tby {self.service.hostname} (alias-milter) with ESMTP"
            f" id {self.queue_id or log.NO_QUEUE};\n\t{formatdate(localtime=True)}"
        )
        return HeaderField(b"Received", quarantine.ascii_only(value).encode())

    def _headers(
        self, envelope: Envelope, message: Message, results: Results | None
    ) -> list[tuple[str, str]]:
        """What is inserted on top, one after the other."""
        recipients = self._recipients(envelope)
        rewritten = _rewritten(recipients)
        headers = []
        if rewritten:
            headers.append((TRACE_HEADER, " " + self.service.tracer.stamp(rewritten)))
        visible = (*message.fields("to"), *message.fields("cc"))
        if envelope.handling.quarantined or self.service.reinjector is None:
            notes = quarantine.notes(recipients, visible)
            headers += [(quarantine.HEADER, " " + note) for note in notes]
        if envelope.handling.leaves and results is not None:
            headers += self._seal(message, headers, results, envelope.handling)
        return headers

    def _recipients(self, envelope: Envelope) -> list[Recipient]:
        """All that led to somebody in the envelope, also those that came second."""
        keys = {delivery.address.key for delivery in envelope.deliveries}
        return [
            recipient
            for recipient in self.mail.recipients
            if any(final.address.key in keys for final in recipient.decision.finals)
        ]

    def _seal(
        self,
        message: Message,
        headers: Sequence[tuple[str, str]],
        results: Results,
        handling: Handling,
    ) -> list[tuple[str, str]]:
        """AAR, AMS and AS, in the order in which they are inserted."""
        outbound = self.service.outbound
        if outbound is None or outbound.keyring is None:
            return []
        above = [HeaderField(name.encode(), value.encode()) for name, value in reversed(headers)]
        sealed = outbound.seal(
            message.with_fields_on_top(above), results, handling.seal, self.connection.transport
        )
        measures.sealed(sealed)
        if not isinstance(sealed, Sealed):
            self.mail.notes["unsealed"] = sealed.value
            return []
        self.mail.notes["sealed"] = f"i={sealed.instance} cv={sealed.cv}"
        return [(field.name.decode(), field.value.decode()) for field in sealed.fields]

    def _forged(self, message: Message) -> tuple[tuple[str, int], ...]:
        """Results that claim to be ours and cannot be: we had not spoken yet (RFC 8601 5)."""
        outbound = self.service.outbound
        if outbound is None or outbound.trust:
            return ()
        # From the highest index down: the indices shift.
        return tuple((RESULTS_HEADER, n) for n in forged_results(message, outbound.authserv_id))

    def _srs_sender(self, handling: Handling) -> str | None:
        """None: the sender stays. The null reverse-path always does (RFC 5321 section 4.5.5)."""
        if not handling.leaves:
            return None
        if self.mail.sender is None:
            malformed = "sender_unchanged" in self.mail.notes
            measures.sender(Unchanged.MALFORMED if malformed else Unchanged.NULL)
            return None
        domain = handling.srs_domain or self.service.srs_domain
        try:
            sender = self.service.decider.rewriter.forward(self.mail.sender, domain)
        except CannotRewrite as error:
            measures.sender(error.cause)
            self.mail.notes["sender_unchanged"] = str(error)
            return None
        if sender == self.mail.sender:
            measures.sender(Unchanged.OWN)
            return None
        measures.sender(None)
        self.mail.notes["srs_sender"] = sender.path
        return sender.path

    def _discarded(self) -> Verdict:
        measures.accepted("discarded")
        self._log("discarded")
        return Verdict(discard=True)

    def _refused(self, reason: Reason, text: str = "") -> Verdict:
        measures.refused(reason)
        reply = REPLIES[reason].saying(text)
        self._log("refused", reason=reason.value, reply=str(reply))
        return Verdict(reply)

    def _log(self, what: str, **fields: str) -> None:
        self.service.logger.info(
            what,
            queue_id=self.queue_id or log.NO_QUEUE,
            sender=self.mail.sender_argument,
            recipients=[describe(recipient) for recipient in self.mail.recipients],
            client=self.connection.client.ip or "local",
            **fields,
            **self.mail.notes,
        )


def _left(envelope: Envelope, submission: Submission) -> Envelope:
    """The envelope for those who did not get the message at an earlier try."""
    left = set(submission.left(d.address.path for d in envelope.deliveries))
    return replace(
        envelope, deliveries=tuple(d for d in envelope.deliveries if d.address.path in left)
    )


def _rewritten(recipients: Sequence[Recipient]) -> list[str]:
    """The aliases, by their keys, that a message passes on its way to these recipients."""
    return [r.decision.address.key for r in recipients if r.decision.rewrites]
