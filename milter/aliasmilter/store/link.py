"""One connection to one Redis server, with a deadline for whatever is done over it.

Callbacks of libmilter are threads that must never block for long, and a time-out of a socket
holds for one read: a server that answers in drops, a slow name server or a TLS handshake could add
up to many times the limit. So every call takes the deadline and passes on what is left of it.
"""

import contextlib
import re
import select
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import hiredis

from aliasmilter.redisurl import NOBODY, Endpoint, Login
from aliasmilter.routing.lookup import Unavailable
from aliasmilter.store.deadline import (
    BrokenLinkError,
    Deadline,
    GarbledError,
    LateError,
    RefusedError,
)
from aliasmilter.store.hosts import addresses

Command = tuple[str | bytes | int, ...]
"""A Redis command, word by word; the word after the name is the key, where it has one."""

Reply = Any
"""What hiredis makes of a reply: bytes, int, list, None, or a ReplyError in its place."""

CLIENT_NAME = "alias-milter"
_CHUNK = 65_536
_NOT_YET = object()
_RUN_ID = re.compile(rb"^run_id:([0-9a-f]+)\r?$", re.MULTILINE)

INFO: Command = ("INFO", "server")
"""Tells, among other things, the run id: each start of a server has another one."""


@dataclass(frozen=True, slots=True)
class Door:
    """How to get in at a server.

    Attributes:
        login: who we are.
        db: the database number.
        tls: None for a connection in the clear.
        greeting: commands to open with, after logging in.
    """

    login: Login = NOBODY
    db: int = 0
    tls: ssl.SSLContext | None = None
    greeting: tuple[Command, ...] = ()

    def with_greeting(self, more: tuple[Command, ...]) -> "Door":
        """The same door, where one says more."""
        return replace(self, greeting=self.greeting + more) if more else self


def pack(commands: Sequence[Command]) -> bytes:
    """The commands as they go over the wire."""
    return b"".join([hiredis.pack_command(command) for command in commands])  # type: ignore[arg-type]


class Link:
    """A connection that is open; for one thread at a time.

    Attributes:
        endpoint: the server's.
        used: it has answered before, so it may have died since.
        generation: the pool's when it was opened.
        greeted: the replies to the greeting.
        origin: the run id of the server process at the other end, if the greeting has INFO.
    """

    __slots__ = (
        "_glance", "_poll", "_reader", "_socket", "endpoint", "generation", "greeted", "origin",
        "used",
    )  # fmt: skip

    def __init__(self, endpoint: Endpoint, connection: socket.socket) -> None:
        self.endpoint = endpoint
        self.used = False
        self.generation = 0
        self.greeted: list[Reply] = []
        self.origin = ""
        self._socket = connection
        self._reader = hiredis.Reader(notEnoughData=_NOT_YET)
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)
        self._glance = select.poll()  # a second one: two threads cannot use one
        self._glance.register(connection, select.POLLIN)

    def ask(self, commands: Sequence[Command], deadline: Deadline) -> list[Reply]:
        """Send the commands in one go, and return their replies.

        Whatever is raised, the link is closed: what it would say next answers nobody's question.

        Raises:
            Unavailable: one of its kinds above, but no RefusedError.
        """
        self.send(pack(commands), deadline)
        return self.receive(len(commands), deadline)

    def send(self, request: bytes, deadline: Deadline) -> None:
        """Send commands; otherwise as `ask`."""
        try:
            self._socket.settimeout(deadline.left)
            self._socket.sendall(request)
        except (OSError, Unavailable) as error:
            self.close()
            raise self._translated(error, deadline) from None

    def receive(self, count: int, deadline: Deadline) -> list[Reply]:
        """The replies to so many commands; otherwise as `ask`."""
        try:
            replies = self._receive(count, deadline)
        except (OSError, hiredis.ProtocolError, Unavailable) as error:
            self.close()
            raise self._translated(error, deadline) from None
        self.used = True
        return replies

    def _receive(self, count: int, deadline: Deadline) -> list[Reply]:
        replies: list[Reply] = []
        while len(replies) < count:
            reply = self._reader.gets()
            if reply is not _NOT_YET:
                # Announcements answer no question; whoever wants them reads the news.
                if type(reply) is not hiredis.PushNotification:
                    replies.append(reply)
                continue
            # A time-out of a socket begins anew with each read; the deadline does not.
            self._socket.settimeout(deadline.left)
            data = self._socket.recv(_CHUNK)
            if not data:
                raise BrokenLinkError(f"Redis: {self.endpoint}: connection closed by the server")
            self._reader.feed(data)
        while (more := self._reader.gets()) is not _NOT_YET:
            if type(more) is not hiredis.PushNotification:
                raise GarbledError(f"Redis: {self.endpoint}: more answers than questions")
        return replies

    def news(self) -> list[Reply]:
        """What has come by now, without waiting.

        Raises:
            Unavailable: the connection has ended; the link is hung up, not closed.
        """
        replies: list[Reply] = []
        # Mostly nothing has, and an exception that says so takes longer than to ask. Nothing is
        # left in a TLS socket either: it was read until it said so.
        if not self._glance.poll(0):
            return replies
        try:
            self._socket.settimeout(0.0)
            while data := self._socket.recv(_CHUNK):
                self._reader.feed(data)
                while (reply := self._reader.gets()) is not _NOT_YET:
                    replies.append(reply)
        except (BlockingIOError, ssl.SSLWantReadError):
            return replies
        except (OSError, hiredis.ProtocolError) as error:
            self.hang_up()
            raise BrokenLinkError(f"Redis: {self.endpoint}: {error}") from None
        self.hang_up()
        raise BrokenLinkError(f"Redis: {self.endpoint}: connection closed by the server")

    def tell(self, request: bytes) -> None:
        """Send without waiting.

        Raises:
            Unavailable: it cannot be sent; the link is hung up, not closed.
        """
        try:
            self._socket.settimeout(0.0)
            if self._socket.send(request) == len(request):
                return
            problem = "does not read"
        except OSError as error:
            problem = str(error)
        self.hang_up()
        raise BrokenLinkError(f"Redis: {self.endpoint}: {problem}")

    def wait(self) -> None:
        """Wait until something comes, or the link is hung up."""
        self._poll.poll()

    def hang_up(self) -> None:
        """End the conversation, so that the thread that waits here notices.

        It has to close the link: the number of a socket closed under its feet could be that of
        another one the next moment.
        """
        with contextlib.suppress(OSError):  # it has ended already
            self._socket.shutdown(socket.SHUT_RDWR)

    def is_quiet(self) -> bool:
        """Whether nothing has come, not even the end: else it cannot be used again."""
        return not self._poll.poll(0) and not self._reader.has_data()

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def _translated(self, error: Exception, deadline: Deadline) -> Exception:
        if isinstance(error, OSError):
            return _failure(self.endpoint, error, deadline)
        if isinstance(error, hiredis.ProtocolError):
            return GarbledError(f"Redis: {self.endpoint}: {error}")
        return error


def dial(endpoint: Endpoint, door: Door, deadline: Deadline) -> Link:
    """Open a connection and log in.

    Raises:
        Unavailable: one of its kinds above; the message says why, and where.
    """
    connection = _connect(endpoint, deadline)
    if door.tls is not None:
        connection = _wrap(connection, endpoint, door.tls, deadline)
    link = Link(endpoint, connection)
    opening: list[Command] = []
    if door.login.password:
        # Redis before 6 knows passwords, but no users.
        user = (door.login.username,) if door.login.username else ()
        opening.append(("AUTH", *user, door.login.password))
    if door.db:
        opening.append(("SELECT", door.db))
    # Only a convenience for CLIENT LIST: a user may not be allowed to.
    name: Command = ("CLIENT", "SETNAME", CLIENT_NAME)
    replies = link.ask([*opening, name, *door.greeting], deadline)
    try:
        for reply in replies[: len(opening)]:
            expect_ok(reply, endpoint)
        if not isinstance(replies[len(opening)], hiredis.ReplyError):
            expect_ok(replies[len(opening)], endpoint)
    except Unavailable:
        link.close()
        raise
    link.greeted = replies[len(opening) + 1 :]
    link.origin = _run_id(link.greeted)
    link.used = False
    return link


def _run_id(greeted: Sequence[Reply]) -> str:
    for reply in greeted:
        if isinstance(reply, bytes) and (found := _RUN_ID.search(reply)):
            return found[1].decode()
    return ""


def check(reply: Reply, endpoint: Endpoint | None = None) -> Reply:
    """The reply itself.

    Raises:
        RefusedError: it is an error.
    """
    if isinstance(reply, hiredis.ReplyError):
        raise RefusedError(_says(endpoint, str(reply)))
    return reply


def expect_ok(reply: Reply, endpoint: Endpoint | None = None) -> None:
    """Take note of a success.

    Raises:
        RefusedError, GarbledError: it is none.
    """
    if check(reply, endpoint) != b"OK":
        raise GarbledError(_says(endpoint, "an answer to another question"))


def _says(endpoint: Endpoint | None, text: str) -> str:
    return f"Redis: {endpoint}: {text}" if endpoint else f"Redis: {text}"


def _connect(endpoint: Endpoint, deadline: Deadline) -> socket.socket:
    if endpoint.path:
        return _open(socket.AF_UNIX, endpoint.path, endpoint, deadline)
    places = addresses(endpoint, deadline)
    for position, (family, place) in enumerate(places, 1):
        left = len(places) - position
        try:
            return _open(family, place, endpoint, deadline.share(left + 1))
        except (BrokenLinkError, LateError):
            if not left:
                raise
    raise BrokenLinkError(f"Redis: {endpoint}: no address")


def _open(
    family: socket.AddressFamily, place: Any, endpoint: Endpoint, deadline: Deadline  # noqa: ANN401
) -> socket.socket:
    connection = socket.socket(family, socket.SOCK_STREAM)
    try:
        connection.settimeout(deadline.left)
        connection.connect(place)
        if family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    except OSError as error:
        connection.close()
        raise _failure(endpoint, error, deadline) from None
    return connection


def _wrap(
    connection: socket.socket, endpoint: Endpoint, context: ssl.SSLContext, deadline: Deadline
) -> socket.socket:
    try:
        connection.settimeout(deadline.left)
        return context.wrap_socket(connection, server_hostname=endpoint.host)
    except (OSError, ValueError) as error:
        connection.close()
        raise _failure(endpoint, error, deadline) from None


def _failure(endpoint: Endpoint, error: OSError | ValueError, deadline: Deadline) -> Unavailable:
    if isinstance(error, TimeoutError):
        return LateError(f"Redis: {endpoint}: no answer within {deadline.limit:g} s")
    return BrokenLinkError(f"Redis: {endpoint}: {error}")
