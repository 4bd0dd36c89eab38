"""Standard error, written so that the log can never hold up or end anything.

Whoever reads our standard error may be gone (EPIPE), stuck (a full pipe), or have no room left
(ENOSPC). A write that blocks there would hold a message until the MTA gives up on us; one that
raises would refuse it. So nothing here waits longer than a moment, nothing raises, and what is
lost is counted, and said as soon as the log works again.

O_NONBLOCK belongs to an open file that we share with whoever started us, so it is never set on
descriptor 2: a pipe or terminal is opened anew, and a socket (systemd's journal) is asked not to
wait with each line.
"""

import os
import select
import socket
import stat
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

STDERR = 2
PATIENCE = 0.5  # seconds that a reader may be behind; afterwards nobody waits until it is back

_loss_listeners: list[Callable[[], None]] = []


def on_loss(listener: Callable[[], None]) -> None:
    """Have `listener` called for each line that is lost; it must not log."""
    _loss_listeners[:] = [listener]


@dataclass(frozen=True, slots=True)
class Sink:
    """What takes octets without waiting.

    Attributes:
        descriptor: to wait for room in.
        send: writes what there is room for, and says how much; raises BlockingIOError, OSError.
    """

    descriptor: int
    send: Callable[[memoryview], int]


class Stream:
    """Takes one line after the other, as structlog's loggers do. Safe for threads.

    Args:
        sink: where lines go.
        notice: the line, in the log's own form, that says how many were lost.

    Attributes:
        lost: lines that could not be written since the last one that could.
    """

    def __init__(self, sink: Sink, notice: Callable[[int], str]) -> None:
        self.lost = 0
        self._sink = sink
        self._notice = notice
        self._torn = False  # the last line was broken off in the middle
        self._stuck = False
        self._lock = threading.Lock()

    def __call__(self, *_: Any) -> "Stream":  # noqa: ANN401
        """Be structlog's logger factory: there is one logger."""
        return self

    def msg(self, line: str) -> None:
        """Write a line, or count it as lost."""
        with self._lock:
            text = f"{self._notice(self.lost)}\n{line}\n" if self.lost else f"{line}\n"
            data = text.encode("utf-8", "backslashreplace")
            written = self._write(b"\n" + data if self._torn else data)
            self.lost = 0 if written else self.lost + 1
        if not written:
            for listener in _loss_listeners:
                listener()

    log = debug = info = warning = warn = error = exception = critical = fatal = msg

    def _write(self, data: bytes) -> bool:
        """Whether all of it was written."""
        deadline = time.monotonic() + (0 if self._stuck else PATIENCE)
        rest, self._stuck = memoryview(data), False
        try:
            while rest and not self._stuck:
                try:
                    rest = rest[self._sink.send(rest) :]
                except BlockingIOError:
                    self._stuck = not self._wait(deadline)
        except OSError:  # EPIPE, ENOSPC, EBADF: there is no other place to say so
            self._stuck = False
        if len(rest) < len(data):
            self._torn = bool(rest)
        return not rest

    def _wait(self, deadline: float) -> bool:
        """Whether there is room again in time."""
        left = deadline - time.monotonic()
        return left > 0 and _has_room(self._sink.descriptor, left)


def open_stream(notice: Callable[[int], str]) -> Stream:
    """Standard error. When it is closed its number is taken, or a socket would get it, and lines.

    Args:
        notice: see `Stream`.
    """
    for descriptor in range(STDERR + 1):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
    return Stream(_sink(os.fstat(STDERR)), notice)


_sinks: dict[tuple[int, int], Sink] = {}


def _sink(status: os.stat_result) -> Sink:
    """The sink for standard error, made once however often the log is set up."""
    identity = status.st_dev, status.st_ino
    if identity not in _sinks:
        _sinks[identity] = _open_sink(status.st_mode)
    return _sinks[identity]


def _open_sink(mode: int) -> Sink:
    if stat.S_ISSOCK(mode):
        connection = socket.socket(fileno=os.dup(STDERR))
        flags = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
        return Sink(connection.fileno(), lambda data: connection.send(data, flags))
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        # Refused where it belongs to another user, or there is no /proc.
        with suppress(OSError):
            own = os.open(f"/proc/self/fd/{STDERR}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
            return Sink(own, lambda data: os.write(own, data))
    if stat.S_ISREG(mode):
        return Sink(STDERR, lambda data: os.write(STDERR, data))
    return Sink(STDERR, _write_where_there_is_room)


def _write_where_there_is_room(data: memoryview) -> int:
    """To a pipe that cannot be opened anew: it takes so much without waiting."""
    if not _has_room(STDERR, 0):
        raise BlockingIOError
    return os.write(STDERR, data[: select.PIPE_BUF])


def _has_room(descriptor: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(seconds * 1000))
