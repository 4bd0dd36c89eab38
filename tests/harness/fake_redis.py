"""Servers where Redis should be: one that misbehaves on purpose, and one that only listens in."""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import ClassVar, Self, cast

# What the client sends before its first command, and what it is told: CLIENT SETNAME and such.
GREETINGS = (b"CLIENT", b"SELECT", b"AUTH", b"HELLO")


class _Server(socketserver.ThreadingTCPServer):
    """A server on a port of 127.0.0.1 that ends with the block."""

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    handler: ClassVar[type[socketserver.BaseRequestHandler]]

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), self.handler)
        self.stopped = threading.Event()

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self.shutdown()
        self.server_close()

    @property
    def url(self) -> str:
        """The server, as `[store] url` has it."""
        return f"redis://127.0.0.1:{self.server_address[1]}/0"


class _Talk(socketserver.BaseRequestHandler):
    """One connection to a FakeRedis."""

    server: FakeRedis

    def handle(self) -> None:
        connection: socket.socket = self.request
        with connection.makefile("rb") as stream:
            try:
                while words := _read_command(stream.readline, stream.read):
                    if words[0].upper() in GREETINGS and self.server.greets:
                        connection.sendall(b"+OK\r\n")
                    else:
                        self._answer(connection)
            except OSError:
                return  # the client has had enough

    def _answer(self, connection: socket.socket) -> None:
        server = self.server
        if server.answer is None:
            server.stopped.wait()
        elif not server.pause:
            connection.sendall(server.answer)
        else:
            for octet in server.answer:
                connection.sendall(bytes([octet]))
                if server.stopped.wait(server.pause):
                    return


class FakeRedis(_Server):
    """Answers each command with the same bytes, whatever the command is.

    Args:
        answer: the bytes; None to accept commands and say nothing.
        pause: seconds after each octet.
        greets: what opens a connection is answered as Redis does.
    """

    handler = _Talk

    def __init__(self, answer: bytes | None, *, pause: float = 0.0, greets: bool = True) -> None:
        super().__init__()
        self.answer = answer
        self.pause = pause
        self.greets = greets


class _Relay(socketserver.BaseRequestHandler):
    """One connection through a Proxy."""

    server: Proxy

    def handle(self) -> None:
        client = cast("socket.socket", self.request)
        self.server.connections += 1
        with socket.create_connection(("127.0.0.1", self.server.port)) as upstream:
            threading.Thread(target=self._back, args=(upstream, client), daemon=True).start()
            while data := _receive(client):
                self.server.turn("request")
                upstream.sendall(data)

    def _back(self, upstream: socket.socket, client: socket.socket) -> None:
        with suppress(OSError):  # the client has had enough
            while data := _receive(upstream):
                self.server.turn("reply")
                if self.server.stopped.wait(self.server.delay):
                    return
                client.sendall(data)
            client.shutdown(socket.SHUT_RDWR)


class Proxy(_Server):
    """Passes everything on to a TCP port of 127.0.0.1; counts connections and round trips.

    Args:
        port: where Redis listens.
        delay: seconds that each reply takes longer.
    """

    handler = _Relay

    def __init__(self, port: int, *, delay: float = 0.0) -> None:
        super().__init__()
        self.port = port
        self.delay = delay
        self.round_trips = 0
        self.connections = 0
        self._last = ""

    def turn(self, direction: str) -> None:
        """Data goes that way; a reply after a request completes a round trip."""
        if (self._last, direction) == ("request", "reply"):
            self.round_trips += 1
        self._last = direction


def _receive(connection: socket.socket) -> bytes:
    try:
        return connection.recv(65_536)
    except OSError:
        return b""


def _read_command(line: Callable[[], bytes], read: Callable[[int], bytes]) -> list[bytes]:
    """A command as an array of bulk strings; empty at the end of the connection."""
    words = []
    for _ in range(int(line()[1:] or b"0")):
        words.append(read(int(line()[1:])))
        line()
    return words
