"""The rest of the world: the mailbox server and every foreign MX in one SMTP server."""

from __future__ import annotations

import collections
import re
import threading
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Literal, Self

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session

from tests.harness.ports import reserved_port
from tests.harness.wait import LabTimeoutError

Stage = Literal["MAIL", "RCPT", "DATA"]

# aiosmtpd reads commands from a stream, so that pipelined ones are answered in order.
EXTENSIONS = ("PIPELINING", "DSN", "8BITMIME", "SMTPUTF8")

# RFC 5321 4.1.2: a path, whose local part may be quoted; the parameters follow.
PATH = re.compile(r'\s*<((?:"(?:\\.|[^"\\])*"|[^">])*)>(.*)', re.DOTALL)


@dataclass(frozen=True)
class Delivery:
    """One message as one recipient got it.

    `sender` and `recipient` are without brackets; the null sender is "". The options are the
    ESMTP parameters as they were sent. `content` is every byte, with CRLF and without the
    dots that SMTP adds.
    """

    sender: str
    recipient: str
    mail_options: tuple[str, ...]
    rcpt_options: tuple[str, ...]
    content: bytes

    @property
    def message(self) -> EmailMessage:
        """The content, parsed."""
        parsed = message_from_bytes(self.content, policy=policy.SMTP)
        if not isinstance(parsed, EmailMessage):
            raise TypeError("policy.SMTP makes EmailMessage")
        return parsed


@dataclass
class _Refusal:
    reply: str
    stage: Stage
    recipient: str | None
    sender: str | None
    times: int | None

    def fits(self, stage: Stage, sender: str, recipients: Iterable[str]) -> bool:
        return (
            self.stage == stage
            and self.times != 0
            and self.sender in (None, sender)
            and (self.recipient is None or self.recipient in recipients)
        )


@dataclass
class _State:
    """What the server's thread and the tests share, under `changed`."""

    changed: threading.Condition = field(default_factory=threading.Condition)
    deliveries: list[Delivery] = field(default_factory=list)
    refusals: list[_Refusal] = field(default_factory=list)
    extensions: Sequence[str] = EXTENSIONS

    def verdict(self, stage: Stage, sender: str, recipients: Iterable[str]) -> str:
        with self.changed:
            for refusal in self.refusals:
                if refusal.fits(stage, sender, recipients):
                    if refusal.times is not None:
                        refusal.times -= 1
                    return refusal.reply
        return "250 2.0.0 OK"

    def record(self, envelope: Envelope) -> None:
        content = envelope.original_content or b""
        with self.changed:
            for recipient, options in zip(envelope.rcpt_tos, envelope.rcpt_options, strict=True):
                self.deliveries.append(
                    Delivery(
                        envelope.mail_from or "",
                        recipient,
                        tuple(envelope.mail_options),
                        tuple(options.split()),
                        content,
                    )
                )
            self.changed.notify_all()

    async def handle_EHLO(  # noqa: N802 - aiosmtpd looks for this name
        self, server: SMTP, session: Session, envelope: Envelope, hostname: str, lines: list[str]
    ) -> list[str]:
        session.host_name = hostname
        return [lines[0], *(f"250-{name}" for name in self.extensions), "250 HELP"]

    async def handle_DATA(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope
    ) -> str:
        reply = self.verdict("DATA", envelope.mail_from or "", envelope.rcpt_tos)
        if reply.startswith("250"):
            self.record(envelope)
        return reply


class _Server(SMTP):
    """aiosmtpd, but taking envelopes as they are, parameters too, and lines of any length."""

    command_size_limit = 1 << 20
    command_size_limits = collections.defaultdict(lambda: 1 << 20)  # noqa: RUF012 - as inherited
    line_length_limit = 1 << 26
    event_handler: _State

    async def smtp_MAIL(self, arg: str | None) -> None:  # noqa: N802
        path = PATH.fullmatch((arg or "").partition(":")[2])
        if self.envelope is None or path is None:
            await self.push("501 5.5.4 Syntax: MAIL FROM:<address>")
            return
        sender, options = path.groups()
        reply = self.event_handler.verdict("MAIL", sender, ())
        if reply.startswith("250"):
            self.envelope.mail_from = sender
            self.envelope.mail_options.extend(options.split())
        await self.push(reply)

    async def smtp_RCPT(self, arg: str | None) -> None:  # noqa: N802
        path = PATH.fullmatch((arg or "").partition(":")[2])
        if self.envelope is None or self.envelope.mail_from is None or path is None:
            await self.push("501 5.5.4 Syntax: RCPT TO:<address>, after MAIL")
            return
        recipient, options = path.groups()
        reply = self.event_handler.verdict("RCPT", self.envelope.mail_from, (recipient,))
        if reply.startswith("250"):
            self.envelope.rcpt_tos.append(recipient)
            # One string for each recipient: the two lists are read side by side.
            self.envelope.rcpt_options.append(options)
        await self.push(reply)


class _Controller(Controller):
    def factory(self) -> SMTP:
        return _Server(
            self.handler,
            hostname="world.example",
            enable_SMTPUTF8=True,
            data_size_limit=None,
            loop=self.loop,
        )


class World:
    """An SMTP server that records what it gets, and refuses what it is told to.

    Args:
        extensions: what EHLO offers; leave out "8BITMIME" to be an old next hop.
    """

    def __init__(self, extensions: Sequence[str] = EXTENSIONS) -> None:
        self._state = _State(extensions=extensions)
        self._controller: _Controller | None = None
        self.port = 0

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.port = stack.enter_context(reserved_port())
            stack.callback(self.stop)
            self.start()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self) -> None:
        """Listen (again), on the same port."""
        controller = _Controller(self._state, hostname="127.0.0.1", port=self.port)
        self._controller = controller
        controller.start()

    def stop(self) -> None:
        """Stop listening: the world is away. What it got stays recorded."""
        if self._controller is not None:
            self._controller.stop(no_assert=True)
            self._controller = None

    def refuse(
        self,
        reply: str,
        *,
        recipient: str | None = None,
        sender: str | None = None,
        stage: Stage = "RCPT",
        times: int | None = None,
    ) -> None:
        """Answer with `reply` ("550 5.1.1 No such user") at that stage from now on.

        Args:
            reply: the whole line.
            recipient: only for this one (at DATA: if it is among the recipients).
            sender: only for this one; the null sender is "".
            stage: "MAIL", "RCPT" or "DATA" (at the end of the message).
            times: so often, then accept.
        """
        with self._state.changed:
            self._state.refusals.append(_Refusal(reply, stage, recipient, sender, times))

    @property
    def deliveries(self) -> list[Delivery]:
        """All that arrived so far, in this order."""
        with self._state.changed:
            return list(self._state.deliveries)

    def take(self) -> list[Delivery]:
        """What arrived since the last time, which is forgotten: for long runs."""
        with self._state.changed:
            taken = list(self._state.deliveries)
            self._state.deliveries.clear()
            return taken

    def clear(self) -> None:
        """Forget what arrived."""
        with self._state.changed:
            self._state.deliveries.clear()

    def reset(self) -> None:
        """Forget what arrived, and refuse nothing any more."""
        with self._state.changed:
            self._state.deliveries.clear()
            self._state.refusals.clear()

    def wait_for(self, recipient: str, count: int = 1, timeout: float = 10.0) -> list[Delivery]:
        """The deliveries to `recipient`, once there are at least `count`.

        Raises:
            LabTimeoutError: they did not come; the message lists what did.
        """
        with self._state.changed:
            if not self._state.changed.wait_for(lambda: len(self._to(recipient)) >= count, timeout):
                raise LabTimeoutError(f"waited {timeout:g} s for {recipient}{self._arrived()}")
            return self._to(recipient)

    def wait_for_total(self, count: int, timeout: float = 10.0) -> list[Delivery]:
        """All deliveries, once there are at least `count`. Raises LabTimeoutError as `wait_for`."""
        with self._state.changed:
            if not self._state.changed.wait_for(
                lambda: len(self._state.deliveries) >= count, timeout
            ):
                raise LabTimeoutError(f"waited {timeout:g} s for {count}{self._arrived()}")
            return list(self._state.deliveries)

    def _to(self, recipient: str) -> list[Delivery]:
        return [found for found in self._state.deliveries if found.recipient == recipient]

    def _arrived(self) -> str:
        lines = [f"\n  <{found.sender}> to <{found.recipient}>" for found in self._state.deliveries]
        return "; arrived:" + ("".join(lines) or " nothing")
