"""The MTA's side of the milter protocol, on top of miltertest's codec."""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from miltertest import codec, constants
from miltertest.client import DISPOSITION_REPLIES, MilterConnection, MilterError

# libmilter ends a change of sender with one NUL when there are no arguments; miltertest wants two.
codec.codec["e"] = (("from", "str"),)

ACTIONS = constants.SMFI_V6_ACTS
STEPS = constants.SMFI_V6_PROT

# Which step an MTA may leave unanswered, or not send at all, when the milter says so.
_UNANSWERED = {
    "C": constants.SMFIP_NR_CONN,
    "H": constants.SMFIP_NR_HELO,
    "M": constants.SMFIP_NR_MAIL,
    "L": constants.SMFIP_NR_HDR,
}
_UNSENT = {
    "H": constants.SMFIP_NOHELO,
    "B": constants.SMFIP_NOBODY,
}


@dataclass(frozen=True)
class Answer:
    """What the milter said: `kind` is accept, continue, reject, tempfail, discard, or a reply."""

    kind: str
    text: str = ""

    def __str__(self) -> str:
        return self.text or self.kind


_KINDS = {"a": "accept", "c": "continue", "r": "reject", "t": "tempfail", "d": "discard"}


@dataclass
class Ending:
    """The answer to the end of a message, and the edits before it, in order."""

    answer: Answer
    edits: list[tuple[str, ...]] = field(default_factory=list)

    def of(self, kind: str) -> list[tuple[str, ...]]:
        """The edits of a kind (delrcpt, addrcpt, chgfrom, insheader, chgheader, quarantine)."""
        return [edit[1:] for edit in self.edits if edit[0] == kind]


class Mta:
    """A connection to a milter, as an MTA has one for each SMTP session.

    Args:
        address: as `[milter] socket` has it, or the path of a unix socket.
        actions: what the MTA lets the milter do.
        steps: what it can leave out.
        client: name, IP address and port of the client.
        helo: what the client calls itself.

    Attributes:
        actions: what the milter may do, as agreed.
        steps: what is left out, as agreed.
        macro_lists: the macros the milter asks for, by stage (SMFIM_*).
    """

    def __init__(
        self,
        address: str,
        *,
        actions: int = ACTIONS,
        steps: int = STEPS,
        client: tuple[str, str, int] = ("client.example", "192.0.2.10", 34567),
        helo: str = "client.example",
    ) -> None:
        self.socket = dial(address)
        self._wire = MilterConnection(self.socket)
        self.actions, self.steps, self.macro_lists = negotiate(self.socket, actions, steps)
        self.macros("C", j="mx.example.net", v="Postfix 3.7.11")
        name, ip, port = client
        self.step("C", hostname=name, family="4", port=port, address=ip)
        self.step("H", helo=helo)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.socket.close()

    def macros(self, stage: str, **values: str) -> None:
        """Give macros for a stage."""
        self._wire.send_macro(stage, **values)

    def step(self, command: str, **arguments: object) -> Answer:
        """Send a command, and read its answer where there is one."""
        if self.steps & _UNSENT.get(command, 0):
            return Answer("continue")
        self.socket.sendall(codec.encode_msg(command, **arguments))
        if self.steps & _UNANSWERED.get(command, 0):
            return Answer("continue")
        return self.read()

    def send(self, command: str, data: bytes) -> None:
        """Send a command with arguments that miltertest would not encode; reads no answer."""
        self.socket.sendall(packet(command, data))

    def read(self) -> Answer:
        """Read an answer. Raises MilterError at the end of the connection."""
        return _answer(*self._wire.recv())

    def mail(self, sender: str = "<alice@bank.example>", *parameters: str) -> Answer:
        """MAIL."""
        return self.step("M", args=[sender, *parameters])

    def rcpt(self, recipient: str, *parameters: str) -> Answer:
        """RCPT."""
        return self.step("R", args=[recipient, *parameters])

    def message(
        self,
        headers: Sequence[tuple[str, str]] = (("From", " alice@bank.example"),),
        body: str = "hello\r\n",
        queue_id: str = "QUEUEID",
    ) -> Ending:
        """Header fields, body and the end of the message."""
        self.content(headers, body)
        return self.end(queue_id)

    def content(self, headers: Sequence[tuple[str, str]], body: str = "") -> None:
        """Header fields and body."""
        for name, value in headers:
            self.step("L", name=name, value=value)
        if body:
            self.step("B", buf=body)

    def end(self, queue_id: str = "QUEUEID") -> Ending:
        """The end of the message. Raises MilterError when the connection ends instead."""
        self.macros("E", i=queue_id)
        self.socket.sendall(codec.encode_msg("E"))
        return self.ending()

    def ending(self) -> Ending:
        """Read the edits and the answer to the end of the message."""
        ending = Ending(Answer(""))
        while True:
            command, values = self._wire.recv()
            if command in DISPOSITION_REPLIES and command != "q":
                ending.answer = _answer(command, values)
                return ending
            ending.edits.append(_edit(command, values))

    def abort(self) -> None:
        """RSET: the transaction ends."""
        self.socket.sendall(codec.encode_msg("A"))


def dial(address: str) -> socket.socket:
    """Connect to `inet:PORT@HOST`, `unix:PATH` or a path."""
    if address.startswith("inet:"):
        port, _, host = address.removeprefix("inet:").partition("@")
        return socket.create_connection((host, int(port)), 30)
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(30)
    connection.connect(address.removeprefix("unix:"))
    return connection


def drain(connection: socket.socket) -> bytes:
    """Say that nothing more comes, and read until the other side closes the connection."""
    data = b""
    with suppress(ConnectionError):  # closed without reading what we sent
        connection.shutdown(socket.SHUT_WR)
        while more := connection.recv(65_536):
            data += more
    return data


def packet(command: str, data: bytes = b"") -> bytes:
    """A command as it goes over the wire."""
    return struct.pack("!L", len(data) + 1) + command.encode() + data


def negotiate(
    connection: socket.socket, actions: int, steps: int
) -> tuple[int, int, dict[int, str]]:
    """Offer actions and steps. miltertest's own negotiation knows no lists of macros.

    Returns:
        The actions and steps that the milter takes, and the macros it asks for by stage.

    Raises:
        MilterError: it takes what was not offered, or ends the connection.
    """
    offer = struct.pack("!LLL", constants.MILTER_VERSION, actions, steps)
    connection.sendall(packet("O", offer))
    (length,) = struct.unpack("!L", _read_exactly(connection, 4))
    reply = _read_exactly(connection, length)
    command, _, taken, skipped = struct.unpack("!cLLL", reply[:13])
    if command != b"O" or taken & ~actions or skipped & ~steps:
        raise MilterError(f"offered {actions:x} {steps:x}, got {reply!r}")
    lists, rest = {}, reply[13:]
    while rest:
        names, _, rest_after = rest[4:].partition(b"\0")
        lists[struct.unpack("!L", rest[:4])[0]] = names.decode()
        rest = rest_after
    return taken, skipped, lists


def _read_exactly(connection: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        more = connection.recv(length - len(data))
        if not more:
            raise MilterError("the milter closed the connection")
        data += more
    return data


def _answer(command: str, values: dict[str, str]) -> Answer:
    if command == "y":
        return Answer("reply", f"{values['smtpcode']} {values['text']}")
    return Answer(_KINDS.get(command, command))


def _edit(command: str, values: dict[str, object]) -> tuple[str, ...]:
    """The edit as (name, argument, ...)."""
    texts: list[str] = []
    for value in values.values():
        texts += [str(v) for v in value] if isinstance(value, list) else [str(value)]
    return _EDITS.get(command, command), *texts


_EDITS = {
    "+": "addrcpt",
    "2": "addrcpt",
    "-": "delrcpt",
    "e": "chgfrom",
    "i": "insheader",
    "m": "chgheader",
    "q": "quarantine",
}
