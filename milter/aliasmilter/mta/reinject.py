"""Submitting a copy to another listener of the same MTA, by SMTP.

A milter can change the sender, and hold, for a whole message only. A copy that needs something
else is submitted anew, before the original transaction is accepted: when that fails, the sender
keeps the mail and tries again, and what was submitted the first time is not submitted twice.
"""

import hashlib
import re
import smtplib
import socket
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Protocol

from aliasmilter.endpoints import parse_host_port
from aliasmilter.mail.message import Message
from aliasmilter.routing.lookup import Unavailable

# RFC 5321 section 4.5.3.1.8: what every server takes in one transaction.
MAX_RECIPIENTS = 100
# Postfix says "2.0.0 Ok: queued as 4Tz8Qk1x2y", Sendmail "2.0.0 5BK... Message accepted ...".
_QUEUE_ID = re.compile(r"queued as (\w+)|^(?:[0-9.]+ )?(\w+) Message accepted")
_LASTING = (b"from", b"to", b"cc", b"subject")
_IDENTIFYING = (b"message-id", b"date", *_LASTING)
# The parameters of MAIL that a copy keeps, and the extension that each belongs to.
_EXTENSIONS = {"BODY": "8bitmime", "SMTPUTF8": "smtputf8", "RET": "dsn", "ENVID": "dsn"}


class ReinjectError(Exception):
    """The listener did not take the copy; the message says why."""


@dataclass(frozen=True, slots=True)
class Copy:
    """A message to submit.

    Attributes:
        sender: reverse-path in brackets; octets that are no UTF-8 as surrogates.
        mail_parameters: of MAIL, such as BODY=8BITMIME.
        recipients: path in brackets -> its parameters ("NOTIFY=... ORCPT=...", or "").
        content: header and body, CRLF line ends.
    """

    sender: str
    mail_parameters: tuple[str, ...]
    recipients: dict[str, str]
    content: bytes


class Memory(Protocol):
    """What knows who was served; each method raises Unavailable."""

    def known(self, keys: Sequence[str], /) -> Collection[str]:
        """Those of these keys that were remembered."""

    def remember(self, keys: Sequence[str], /) -> None:
        """Remember them for a day."""

    def forget(self, keys: Sequence[str], /) -> None:
        """Forget them."""


class Reinjector:
    """Submits copies, each recipient once.

    Args:
        server: "HOST:PORT" of the listener.
        hostname: of this mail system; what we say in EHLO is made of it.
        timeout: seconds for all the copies of a message: the MTA that waits for us meanwhile
            must not give up first.
        memory: the store's.
    """

    def __init__(self, server: str, hostname: str, timeout: float, memory: Memory) -> None:
        self._server = parse_host_port(server)
        self._timeout = timeout
        self.memory = memory
        self.helo = f"alias-milter.{hostname}"

    def begin(self, identity: "Identity", paths: Iterable[str]) -> "Submission":
        """Begin with a message: its time runs from here.

        Args:
            identity: of the original message, the same at each try of its sender.
            paths: of all who are to get a copy.
        """
        keys = {path: _key(identity.digest, path) for path in paths}
        submission = Submission(self, keys, self._timeout, is_certain=identity.is_certain)
        try:
            submission.served = frozenset(self.memory.known(list(submission.keys.values())))
        except Unavailable as error:
            # A copy too many at worst; refusing would not make it fewer.
            submission.forgetful = str(error)
        return submission

    def send(self, copy: Copy, deadline: float) -> str:
        """Submit a copy; the text of the final reply.

        Args:
            copy: what to submit.
            deadline: of the monotonic clock.

        Raises:
            ReinjectError: nobody got it.
        """
        try:
            with _connected(self._server, self.helo, deadline) as smtp:
                _envelope(smtp, copy)
                reply = _expect("DATA", smtp.data(copy.content))
                # From here on the copy is the listener's: what QUIT comes to changes nothing.
                with suppress(OSError, smtplib.SMTPException):
                    smtp.putcmd("QUIT")
        except (OSError, smtplib.SMTPException) as error:
            raise ReinjectError(_describe(error, deadline)) from error
        return reply


@dataclass(slots=True)
class Submission:
    """The copies of one message.

    Attributes:
        reinjector: submits them.
        keys: what each recipient's path is remembered by.
        seconds: for all of them.
        is_certain: another message with the same keys is the same message.
        served: the keys of those that got theirs at an earlier try of the sender.
        forgetful: why a retry will not be recognised, or "".
        done: who was submitted, and as what, for the log.
    """

    reinjector: Reinjector
    keys: dict[str, str]
    seconds: float
    is_certain: bool = True
    served: frozenset[str] = frozenset()
    forgetful: str = ""
    done: list[str] = field(default_factory=list)
    _deadline: float = 0.0

    def __post_init__(self) -> None:
        self._deadline = time.monotonic() + self.seconds

    @property
    def notes(self) -> dict[str, str]:
        """For the log line of the message."""
        notes = {"reinjected": "; ".join(self.done), "not_remembered": self.forgetful}
        return {name: text for name, text in notes.items() if text}

    def left(self, paths: Iterable[str]) -> list[str]:
        """Of these recipients, those that did not get the message before."""
        all_paths = list(paths)
        left = [path for path in all_paths if self.keys[path] not in self.served]
        before = " ".join(path for path in all_paths if path not in left)
        if before:
            self.done.append(f"{before} by an earlier try")
        return left

    def submit(self, copy: Copy) -> None:
        """Submit the copy, in as many transactions as its recipients need.

        Raises:
            ReinjectError: nobody, or nobody more, got it: the sender must keep the mail.
        """
        for recipients in _batches(copy.recipients):
            part = Copy(copy.sender, copy.mail_parameters, recipients, copy.content)
            reply = self.reinjector.send(part, self._deadline)
            match = _QUEUE_ID.search(reply)
            queue_id = (match[1] or match[2]) if match else reply[:80]
            self.done.append(f"{' '.join(recipients)} as {queue_id}")
            self._remember([self.keys[path] for path in recipients])

    def finish(self) -> None:
        """Everybody has got the message: the next one that looks like it is another one."""
        if self.is_certain:
            return  # or a sender that did not hear of it, and tries again
        with suppress(Unavailable):  # at worst it is taken for a retry for a day
            self.reinjector.memory.forget(list(self.keys.values()))

    def _remember(self, keys: Sequence[str]) -> None:
        if self.forgetful:
            return  # asking a store that is away again would cost its time-out each time
        try:
            self.reinjector.memory.remember(keys)
        except Unavailable as error:
            self.forgetful = str(error)


@contextmanager
def _connected(server: tuple[str, int], helo: str, deadline: float) -> Iterator[smtplib.SMTP]:
    """A dialogue that has come to EHLO, and ends at the deadline whatever the listener does.

    A time-out of a socket holds for one read: a listener that answers in drops would keep us for
    hours. So the connection is shut down from outside when the time is over.
    """
    smtp = smtplib.SMTP(local_hostname=helo)
    smtp.sock = socket.create_connection(server, _seconds_left(deadline))
    watchdog = threading.Timer(_seconds_left(deadline), _hang_up, [smtp.sock])
    watchdog.daemon = True
    watchdog.start()
    try:
        _expect("connection", smtp.getreply(), 22)
        smtp.ehlo_or_helo_if_needed()
        yield smtp
    finally:
        watchdog.cancel()
        smtp.close()


def _seconds_left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _hang_up(connection: socket.socket) -> None:
    with suppress(OSError):  # closed meanwhile
        connection.shutdown(socket.SHUT_RDWR)


def _envelope(smtp: smtplib.SMTP, copy: Copy) -> None:
    """MAIL and RCPT, with the parameters that the listener knows."""
    smtp.command_encoding = "latin-1"  # see _octets
    known = [p for p in copy.mail_parameters if smtp.has_extn(_EXTENSIONS[_name(p)])]
    lost = {_name(p) for p in copy.mail_parameters if p not in known}
    if lost & {"SMTPUTF8", "BODY"}:
        raise ReinjectError(f"the listener does not offer {', '.join(sorted(lost))}")
    _expect("MAIL", smtp.docmd("MAIL", _octets(" ".join([f"FROM:{copy.sender}", *known]))))
    for path, parameters in copy.recipients.items():
        given = f" {parameters}" if parameters and smtp.has_extn("dsn") else ""
        _expect(f"RCPT {path}", smtp.docmd("RCPT", _octets(f"TO:{path}{given}")))


def _octets(text: str) -> str:
    """For smtplib: each octet a letter. A sender goes on as it came, UTF-8 or not."""
    return text.encode("utf-8", "surrogateescape").decode("latin-1")


def _batches(recipients: dict[str, str]) -> Iterator[dict[str, str]]:
    items = list(recipients.items())
    for start in range(0, len(items), MAX_RECIPIENTS):
        yield dict(items[start : start + MAX_RECIPIENTS])


def mail_parameters(parameters: Sequence[bytes]) -> tuple[str, ...]:
    """Of the parameters of MAIL, those that a copy keeps (RFC 6152, RFC 6531, RFC 3461)."""
    # Clients may write them as they like; who looks for SMTPUTF8 shall find it.
    texts = (p.decode("ascii", "replace") for p in parameters)
    pairs = (t.partition("=") for t in texts if t.isascii() and t.isprintable())
    return tuple(
        name.upper() + equals + value
        for name, equals, value in pairs
        if name.upper() in _EXTENSIONS
    )


@dataclass(frozen=True, slots=True)
class Identity:
    """What a message is recognised by when its sender tries again.

    Attributes:
        digest: of who wrote what.
        is_certain: its sender has given it a Message-ID. Without, two alerts with the same words
            have one digest.
    """

    digest: str
    is_certain: bool


def identity_of(sender: str, message: Message, queue_id: str) -> Identity:
    """The identity of a message.

    Fields that the next try may bring anew, such as Received, do not count. Nor do Message-ID and
    Date where the MTA has added them (RFC 6409 section 8), which it does under a new queue id at
    each try.

    Args:
        sender: the argument of MAIL.
        message: as it came in.
        queue_id: of this try, or "".
    """
    identifiers = message.fields("message-id")
    is_certain = bool(identifiers) and not (
        queue_id and any(queue_id.encode() in field.value for field in identifiers)
    )
    digest = hashlib.sha256(sender.encode("utf-8", "surrogateescape"))
    for name in _IDENTIFYING if is_certain else _LASTING:
        for header in message.by_name.get(name, ()):
            digest.update(header.as_bytes())
    digest.update(message.body)
    return Identity(digest.hexdigest(), is_certain)


def _key(identity: str, path: str) -> str:
    return hashlib.sha256(f"{identity} {path.lower()}".encode()).hexdigest()


def _name(parameter: str) -> str:
    return parameter.partition("=")[0].upper()


def _expect(command: str, reply: tuple[int, bytes], wanted: int = 25) -> str:
    """The text of a positive reply, whose first two digits are wanted."""
    code, text = reply
    said = text.decode("utf-8", "replace")
    if code // 10 != wanted:
        raise ReinjectError(f"{command}: {code} {said}")
    return said


def _describe(error: Exception, deadline: float) -> str:
    if time.monotonic() >= deadline:
        return "not done in time"
    if isinstance(error, smtplib.SMTPResponseException):
        text = error.smtp_error
        said = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        return f"{error.smtp_code} {said}"
    return str(error) or type(error).__name__
