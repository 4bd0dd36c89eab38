"""What stands between the daemon and the listener that it submits copies to, and is in the way."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import BinaryIO, Literal, Self

from tests.harness.ports import reserved_port


class Obstacle:
    """Passes an SMTP dialogue on to `target`, except where a test says otherwise.

    Attributes:
        target: port on 127.0.0.1 of the listener.
        refusals: text of a command -> the reply that it gets instead of the listener's.
        hang_up: leave without a word at the final dot, "before" it is passed on, or "after": then
            the listener has the message, and its client does not know.
        mute: take connections and say nothing.
    """

    def __init__(self) -> None:
        self.target = 0
        self.refusals: dict[str, str] = {}
        self.hang_up: Literal["", "before", "after"] = ""
        self.mute = False

    def __enter__(self) -> Self:
        self._reserved = reserved_port()
        self.port = self._reserved.__enter__()
        self._server = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.close()
        self._reserved.__exit__(None, None, None)

    @property
    def address(self) -> str:
        """As `[reinject] server` has it."""
        return f"127.0.0.1:{self.port}"

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._meet, args=(client,), daemon=True).start()

    def _meet(self, client: socket.socket) -> None:
        with client, suppress(OSError):
            if self.mute:
                client.recv(1)  # until it gives up
                return
            with socket.create_connection(("127.0.0.1", self.target)) as server:
                self._relay(client, server)

    def _relay(self, client: socket.socket, server: socket.socket) -> None:
        """Line by line: one command, one reply; after DATA lines up to the dot have none."""
        commands, replies = client.makefile("rb"), server.makefile("rb")
        client.sendall(_reply(replies))
        content = False
        for line in commands:
            refusal = None if content else self._refusal(line)
            if refusal:
                client.sendall(refusal)
                continue
            final = content and line == b".\r\n"
            if final and self.hang_up == "before":
                return
            server.sendall(line)
            if content and not final:
                continue
            reply = _reply(replies)
            if final and self.hang_up == "after":
                return
            content = reply.startswith(b"354")
            client.sendall(reply)

    def _refusal(self, line: bytes) -> bytes | None:
        found = (reply for part, reply in self.refusals.items() if part.encode() in line)
        return next((f"{reply}\r\n".encode() for reply in found), None)


def _reply(stream: BinaryIO) -> bytes:
    """All lines of a reply."""
    lines = b""
    while line := stream.readline():
        lines += line
        if line[3:4] != b"-":
            break
    return lines
