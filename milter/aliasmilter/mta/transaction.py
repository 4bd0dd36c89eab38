"""The values that a session works with: client, transaction, and what comes out in the end."""

import re
from dataclasses import dataclass, field

from aliasmilter.config import LimitsSection
from aliasmilter.forwarding.arc import POSTFIX, SENDMAIL, Transport
from aliasmilter.mail.address import Address
from aliasmilter.mail.message import HeaderField, Message
from aliasmilter.mail.replies import Reply
from aliasmilter.routing.decision import Decision
from aliasmilter.routing.plan import Handling, Recipient, RecipientEdits

_HEXCHAR = re.compile(rb"\+([0-9A-F]{2})")


@dataclass(frozen=True, slots=True)
class Client:
    """Who is connected.

    Attributes:
        name: as the MTA found it.
        ip: None when it came over no network.
        port: 0 for mail that was handed in on this host without SMTP.
    """

    name: str = ""
    ip: str | None = None
    port: int | None = None

    @property
    def is_local_submission(self) -> bool:
        """Postfix's pickup and bounce: a refused recipient is an error there, not a reply."""
        return self.port == 0 and (self.ip or "").startswith(("127.", "::1"))


@dataclass(frozen=True, slots=True)
class Connection:
    """A client and the MTA it talks to.

    Attributes:
        client: who is connected.
        helo: the name the client gives itself.
        transport: what the MTA does to a message after us.
    """

    client: Client = Client()
    helo: str = ""
    transport: Transport = POSTFIX


@dataclass(frozen=True, slots=True)
class Edits:
    r"""What the MTA is asked to change, in the order in which it is done.

    Attributes:
        recipients: to delete and to add.
        sender: the new reverse-path in brackets, or None.
        change: (name, number, value) of fields that get another value, before any is removed.
        remove: (name, number) of header fields, so that none shifts one that follows.
        headers: (name, value) to insert on top, the last one topmost; folds are `\n` and a tab.
        quarantine: why the MTA is to hold the message, or "".
    """

    recipients: RecipientEdits = field(default_factory=RecipientEdits)
    sender: str | None = None
    change: tuple[tuple[str, int, str], ...] = ()
    remove: tuple[tuple[str, int], ...] = ()
    headers: tuple[tuple[str, str], ...] = ()
    quarantine: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer to the end of a message: a refusal, or acceptance with edits.

    Attributes:
        reply: None when the message is accepted.
        discard: accepted, and nobody gets it.
        edits: to be applied before it is accepted.
    """

    reply: Reply | None = None
    discard: bool = False
    edits: Edits = field(default_factory=Edits)


@dataclass(slots=True)
class Transaction:
    """What is known of the message that is coming in.

    Attributes:
        sender_argument: of MAIL, as it came.
        sender: parsed; None for the null reverse-path and for one that is no address.
        sender_domain: of a sender that is no address, as far as it can be told, or "".
        objection: why the client, which has logged in, may not send as that, once it was asked.
        parameters: of MAIL, those that a copy keeps.
        login: of the client, when it authenticated.
        recipients: those that were accepted.
        copies: how many people they lead to, counted for each of them.
        handling: what the first of them that somebody gets needs as a whole.
        handlings: what all their copies need, each for itself.
        deferred: what the whole message is answered with, when a recipient could not be.
        broken: an event was lost.
        oversized: there were more header fields than are kept.
        new_sender: in brackets, when it is to be seen as another one, or None.
        changed: (name, number, value) of header fields that are to be seen in another way.
        notes: for the log line.
    """

    sender_argument: str = ""
    sender: Address | None = None
    sender_domain: str = ""
    objection: Decision | None = None
    parameters: tuple[str, ...] = ()
    login: str = ""
    recipients: list[Recipient] = field(default_factory=list)
    copies: int = 0
    handling: Handling | None = None
    handlings: frozenset[Handling] = frozenset()
    deferred: Reply | None = None
    broken: bool = False
    oversized: bool = False
    new_sender: str | None = None
    changed: tuple[tuple[str, int, str], ...] = ()
    headers: list[HeaderField] = field(default_factory=list)
    header_octets: int = 0
    chunks: list[bytes] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def is_smtputf8(self) -> bool:
        """Whether the message may name UTF-8 addresses (RFC 6531 section 3.4)."""
        return "SMTPUTF8" in self.parameters

    @property
    def is_sender_unclear(self) -> bool:
        """Whether it is nobody that we know of, without being the null reverse-path."""
        if self.sender is None:
            return self.sender_argument not in ("<>", "")
        return not self.sender.domain

    @property
    def origin(self) -> Address | None:
        """Whom rules can block: the sender; of one that is no address, its domain at least."""
        return Address("", self.sender_domain) if self.sender_domain else self.sender

    def keep_header(self, name: bytes, value: bytes, limits: LimitsSection) -> None:
        """Keep a header field, unless there are too many: then none is kept any more."""
        self.header_octets += len(name) + len(value)
        if len(self.headers) >= limits.headers or self.header_octets > limits.header_octets:
            self.oversized = True
            self.headers.clear()
        if not self.oversized:
            self.headers.append(HeaderField(name, value))

    @property
    def message(self) -> Message:
        """The message as received; without its body where nobody asked for that."""
        self.chunks = [b"".join(self.chunks)]  # in memory once: the pieces are let go
        return Message(tuple(self.headers), self.chunks[0])


def transport_of(version: str) -> Transport:
    """What the MTA will do to a message, from its macro `v`; the stricter one when in doubt."""
    return POSTFIX if version.startswith("Postfix") else SENDMAIL


def login_of(macro: str, transport: Transport) -> str:
    """The login that `{auth_authen}` names: Sendmail writes it as xtext (RFC 3461 section 4)."""
    if transport is POSTFIX:
        return macro
    octets = _HEXCHAR.sub(lambda found: bytes.fromhex(found[1].decode()), macro.encode())
    return octets.decode("utf-8", "replace")


def is_our_own(mail: Transaction, client: Client) -> bool:
    """Whether no host of the sender's domain has handed it to us: our own users."""
    return bool(mail.login) or client.ip is None or client.is_local_submission


def describe(recipient: Recipient) -> str:
    """A recipient and its verdict, for the log."""
    decision = recipient.decision
    targets = " ".join(final.address.path for final in decision.finals)
    goes = f" -> {targets}" if decision.rewrites else ""
    problem = f" ({decision.problem})" if decision.problem else ""
    return f"{recipient.argument} {decision.reason.value}{goes}{problem}"
