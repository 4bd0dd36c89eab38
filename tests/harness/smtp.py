"""An SMTP client that says what a test wants, however malformed, and returns every reply."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple, Self

HELO = "client.example"
OUTSIDE = {"ADDR": "192.0.2.10", "NAME": HELO}


class Reply(NamedTuple):
    """An SMTP reply: its code, and its text (lines joined by a newline, codes removed).

    Code 0 means that the server closed the connection instead.
    """

    code: int
    text: str

    @property
    def ok(self) -> bool:
        """Whether the server said yes."""
        return 200 <= self.code < 400

    def __str__(self) -> str:
        return f"{self.code} {self.text}"


CLOSED = Reply(0, "connection closed")


@dataclass(frozen=True)
class Outcome:
    """What the server answered to one message.

    `data` is the reply after the final dot (or to DATA itself when that was refused), and None
    when no recipient was accepted.
    """

    mail: Reply
    rcpts: tuple[Reply, ...]
    data: Reply | None

    @property
    def rcpt(self) -> Reply:
        """The reply to the first (or only) RCPT."""
        return self.rcpts[0]

    @property
    def accepted(self) -> bool:
        """Whether the server took the message for somebody."""
        return self.data is not None and self.data.ok

    @property
    def queue_id(self) -> str:
        """The queue id that the MTA tells in its last reply; "" if it does not."""
        text = self.data.text if self.data else ""
        found = re.search(r"queued as (\w+)", text) or re.search(r"(\w+) Message accepted", text)
        return found[1] if found else ""


class Client:
    """An SMTP connection, step by step. A context manager that closes it with QUIT.

    Args:
        port: on 127.0.0.1.
        xclient: attributes for Postfix's XCLIENT; by default those of a client outside, where
            the server offers XCLIENT. An empty mapping: none are sent.
        helo: the name in EHLO.
        timeout: seconds for each reply.
    """

    def __init__(
        self,
        port: int,
        xclient: Mapping[str, str] | None = None,
        helo: str = HELO,
        timeout: float = 40.0,
    ) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout)
        self._lines = self._socket.makefile("rb")
        self.banner = self.reply()
        self.ehlo = self.command(f"EHLO {helo}")
        if xclient is None:
            xclient = OUTSIDE if "\nXCLIENT " in self.ehlo.text else {}
        if xclient:
            words = " ".join(f"{name}={xtext(value)}" for name, value in xclient.items())
            self.banner = self.command(f"XCLIENT {words}")
            self.ehlo = self.command(f"EHLO {helo}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.command("QUIT")
        self.close()

    def close(self) -> None:
        """Hang up without a word."""
        self._lines.close()
        self._socket.close()

    def reply(self) -> Reply:
        """Read one reply, of several lines if need be (RFC 5321 4.2.1)."""
        texts = []
        try:
            while line := self._lines.readline():
                text = line.decode("utf-8", "surrogateescape").rstrip("\r\n")
                texts.append(text[4:])
                if text[3:4] != "-":
                    return Reply(int(text[:3]), "\n".join(texts))
        except ConnectionError:
            return CLOSED
        return CLOSED

    def write(self, octets: bytes) -> None:
        """Send octets as they are. A connection that is gone shows in the next reply."""
        try:
            self._socket.sendall(octets)
        except ConnectionError:
            return

    def command(self, line: str | bytes) -> Reply:
        """Send one line (CRLF is added) and read the reply."""
        octets = line.encode("utf-8", "surrogateescape") if isinstance(line, str) else line
        self.write(octets + b"\r\n")
        return self.reply()

    def data(self, content: bytes) -> Reply:
        """DATA and the message; the reply after the final dot, or to DATA if that is refused."""
        first = self.command("DATA")
        if first.code != 354:
            return first
        self.write(dot_stuffed(content))
        return self.reply()

    def send(
        self,
        sender: str,
        recipients: Sequence[str],
        content: bytes,
        mail_options: Sequence[str] = (),
        rcpt_options: Sequence[str] = (),
    ) -> Outcome:
        """One whole message; see the function `send`. The connection can be used again."""
        mail = self.command(" ".join([f"MAIL FROM:{path(sender)}", *mail_options]))
        if not mail.ok:
            return Outcome(mail, (), None)
        rcpts = tuple(
            self.command(" ".join([f"RCPT TO:{path(recipient)}", *rcpt_options]))
            for recipient in recipients
        )
        if any(reply.ok for reply in rcpts):
            return Outcome(mail, rcpts, self.data(content))
        self.command("RSET")
        return Outcome(mail, rcpts, None)


def send(
    port: int,
    sender: str,
    recipients: Sequence[str],
    content: bytes | None = None,
    *,
    mail_options: Sequence[str] = (),
    rcpt_options: Sequence[str] = (),
    xclient: Mapping[str, str] | None = None,
    helo: str = HELO,
    timeout: float = 40.0,
) -> Outcome:
    """Send one message in a connection of its own, and say what was answered.

    Args:
        port: of the server on 127.0.0.1.
        sender: a bare address ("" is the null sender), or a path with brackets, sent as it is.
        recipients: likewise, in this order, repeated if repeated.
        content: the message, CRLF or LF; a small one is made up when it is left out.
        mail_options: parameters of MAIL ("SMTPUTF8", "RET=HDRS").
        rcpt_options: parameters of each RCPT ("NOTIFY=FAILURE").
        xclient: who Postfix shall take us for, as for Client.
        helo: the name in EHLO.
        timeout: seconds for each reply.

    Returns:
        All the replies. Refusals are no errors here.

    Raises:
        OSError: no connection, or no reply in time.
    """
    if content is None:
        content = message(to=", ".join(recipients), sender=sender)
    with Client(port, xclient, helo, timeout) as client:
        return client.send(sender, recipients, content, mail_options, rcpt_options)


def message(
    *,
    to: str = "someone@example.com",
    sender: str = "alice@bank.example",
    subject: str = "Hello",
    body: str | bytes = "Hello there.\r\n",
    headers: Mapping[str, str] | Sequence[tuple[str, str]] = (),
) -> bytes:
    """A message with CRLF line ends.

    Args:
        to: the text of To:, as all others exactly as given.
        sender: the text of From:.
        subject: the text of Subject:.
        body: the text, in UTF-8 when it is not ASCII.
        headers: more fields, on top of the others; they may repeat.
    """
    more = list(headers.items()) if isinstance(headers, Mapping) else list(headers)
    fields = [
        *more,
        ("From", sender),
        ("To", to),
        ("Subject", subject),
        ("Date", "Mon, 02 Nov 2026 10:00:00 +0000"),
        ("Message-ID", "<1.test@bank.example>"),
    ]
    head = "".join(f"{name}: {value}\r\n" for name, value in fields).encode()
    return head + b"\r\n" + (body.encode() if isinstance(body, str) else body)


def path(address: str) -> str:
    """In brackets, unless it has one: whoever writes a bracket wants it sent as it is."""
    return address if "<" in address or ">" in address else f"<{address}>"


def xtext(value: str) -> str:
    """XCLIENT values are xtext (RFC 1891 5, RFC 3461 4)."""
    return "".join(c if "!" <= c <= "~" and c not in "+=" else f"+{ord(c):02X}" for c in value)


def dot_stuffed(content: bytes) -> bytes:
    """As DATA wants it (RFC 5321 4.5.2): CRLF, dots doubled, the final dot."""
    lines = re.sub(rb"\r?\n", b"\r\n", content)
    if lines and not lines.endswith(b"\r\n"):
        lines += b"\r\n"
    return re.sub(rb"(?m)^\.", b"..", lines) + b".\r\n"
