"""What monitoring asks over HTTP: /metrics, /livez and /readyz.

Served by a process of its own, so that no mail waits for it. Nothing here needs a secret and
nothing tells one: no address and no domain is in it. Only GET and HEAD; every connection ends
after one answer, or after LIFETIME seconds, and there are never more than MAX_CONNECTIONS.
"""

import mmap
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler

from aliasmilter import log, metrics
from aliasmilter.mta.threaded import ThreadedServer
from aliasmilter.routing.lookup import Unavailable

MAX_CONNECTIONS = 16
PATIENCE = 5.0  # seconds that a client may take for a step
LIFETIME = 15.0  # seconds for a connection as a whole
DEAF = 10.0  # seconds without a sign of life of the supervisor, which gives two a second
MILTER_PATIENCE = 2.0  # seconds for a worker to take part in a negotiation

PLAIN = "text/plain; charset=utf-8"
# What Postfix offers: version 6 of the protocol, all actions and all steps to leave out.
_OFFER = struct.pack("!LcLLL", 13, b"O", 6, 0x1FF, 0x1FFFFF)
_QUIT = struct.pack("!Lc", 1, b"Q")


class Heartbeat:
    """A sign of life that another process can see. Make it before forking."""

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, 8)
        self.beat()

    def beat(self) -> None:
        """We are alive."""
        self._shared[:] = struct.pack("d", time.monotonic())

    @property
    def age(self) -> float:
        """Seconds since the last one."""
        (last,) = struct.unpack("d", self._shared[:])
        return float(time.monotonic() - last)


@dataclass(frozen=True, slots=True)
class Page:
    """An answer."""

    status: HTTPStatus
    body: bytes
    content_type: str = PLAIN


def _plain(status: HTTPStatus, *lines: str) -> Page:
    return Page(status, "".join(f"{log.printable(line)}\n" for line in lines).encode())


@dataclass(frozen=True, slots=True)
class Monitor:
    """What there is to say about the daemon.

    Attributes:
        heartbeat: of the supervisor.
        milter_socket: the one that is open, in the form of `[milter] socket`.
        ping: asks the store whether it answers; raises Unavailable.
    """

    heartbeat: Heartbeat
    milter_socket: str
    ping: Callable[[], None]

    @property
    def pages(self) -> Mapping[str, Callable[[str], Page]]:
        """The pages by their paths; each takes the Accept field."""
        return {"/metrics": self.metrics, "/livez": self.livez, "/readyz": self.readyz}

    def metrics(self, accept: str) -> Page:
        """All metrics of all processes."""
        found = metrics.exposition(accept)
        if found is None:
            return _plain(HTTPStatus.SERVICE_UNAVAILABLE, "no metrics: the log says why")
        content_type, body = found
        return Page(HTTPStatus.OK, body, content_type)

    def livez(self, _accept: str) -> Page:
        """Whether the supervisor lives."""
        age = self.heartbeat.age
        if age > DEAF:
            problem = f"the supervisor has given no sign of life for {age:.0f} s"
            return _plain(HTTPStatus.SERVICE_UNAVAILABLE, problem)
        return _plain(HTTPStatus.OK, "ok")

    def readyz(self, _accept: str) -> Page:
        """Whether mail can be decided: the store answers, and a worker does."""
        problems = [problem for problem in (self._store(), self._milter()) if problem]
        if problems:
            return _plain(HTTPStatus.SERVICE_UNAVAILABLE, *problems)
        return _plain(HTTPStatus.OK, "ok")

    def _store(self) -> str:
        try:
            self.ping()
        except Unavailable as error:
            return f"store: {error}"
        return ""

    def _milter(self) -> str:
        try:
            negotiate(self.milter_socket, MILTER_PATIENCE)
        except OSError as error:
            return f"milter: no worker answers at {self.milter_socket}: {error.strerror or error}"
        return ""


def negotiate(name: str, timeout: float) -> None:
    """Begin a milter session as an MTA does, and end it.

    Args:
        name: `unix:PATH` or `inet:PORT@ADDRESS`.
        timeout: seconds for all of it.

    Raises:
        OSError: nobody accepts, or answers in time.
    """
    deadline = time.monotonic() + timeout
    with _connect(name, timeout) as connection:
        connection.sendall(_OFFER)
        answer = b""
        while len(answer) < 5:  # length and command
            connection.settimeout(max(deadline - time.monotonic(), 0.001))
            more = connection.recv(4096)
            if not more:
                raise ConnectionResetError("the connection was closed")
            answer += more
        if answer[4:5] != b"O":
            raise ConnectionRefusedError("no milter answers there")
        connection.sendall(_QUIT)


def _connect(name: str, timeout: float) -> socket.socket:
    kind, _, where = name.partition(":")
    if kind != "unix":
        port, _, host = where.partition("@")
        return socket.create_connection((host.strip("[]"), int(port)), timeout)
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(timeout)
        connection.connect(where)
    except OSError:
        connection.close()
        raise
    return connection


class Server(ThreadedServer):
    """Serves the pages.

    Args:
        listener: bound and listening.
        monitor: what is served.
    """

    def __init__(self, listener: socket.socket, monitor: Monitor) -> None:
        super().__init__(listener, _Handler)
        self.pages = monitor.pages
        self._free = threading.BoundedSemaphore(MAX_CONNECTIONS)

    def process_request(self, request: object, client_address: object) -> None:
        """Start the thread for a connection; close it at once where there are too many."""
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)  # type: ignore[arg-type]
        except BaseException:
            self._free.release()
            raise

    def process_request_thread(self, request: object, client_address: object) -> None:
        """In the thread: answer, in bounded time."""
        cut = threading.Timer(LIFETIME, _cut, (request,))
        cut.daemon = True
        try:
            cut.start()
            super().process_request_thread(request, client_address)  # type: ignore[arg-type]
        finally:
            cut.cancel()
            self._free.release()

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002
        """A client that breaks off is its own business; nothing else ends here."""
        log.get().debug("monitoring connection ended", exc_info=True)


def _cut(request: socket.socket) -> None:
    with suppress(OSError):
        request.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    server: Server
    server_version = "alias-milter"
    sys_version = ""
    timeout = PATIENCE

    def do_GET(self) -> None:  # http.server names them
        """Send a page."""
        page = self._page()
        self._head(page)
        self.wfile.write(page.body)

    def do_HEAD(self) -> None:
        """Send what GET would, without the page."""
        self._head(self._page())

    def _not_allowed(self) -> None:
        page = _plain(HTTPStatus.METHOD_NOT_ALLOWED, "GET and HEAD only")
        self._head(page)
        self.wfile.write(page.body)

    do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _not_allowed  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # http.server's name
        """Into our log, and only when somebody looks for that."""
        log.get().debug("monitoring", client=self.client_address[0], request=format % args)

    def _page(self) -> Page:
        page = self.server.pages.get(self.path.partition("?")[0])
        if page is None:
            return _plain(HTTPStatus.NOT_FOUND, "no such page", *self.server.pages)
        try:
            return page(self.headers.get("Accept", ""))
        except Exception:  # noqa: BLE001  # a bug here must not end the connection without a word
            log.get().exception("exception", where="monitoring")
            metrics.exceptions.inc("metrics")
            return _plain(HTTPStatus.INTERNAL_SERVER_ERROR, "internal error: the log has it")

    def _head(self, page: Page) -> None:
        self.send_response(page.status)
        self.send_header("Content-Type", page.content_type)
        self.send_header("Content-Length", str(len(page.body)))
        self.send_header("Cache-Control", "no-store")
        if page.status is HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET, HEAD")
        self.end_headers()
