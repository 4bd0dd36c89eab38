"""The listening socket, which all workers share.

It is opened here and not by libmilter, for several reasons at once: one socket for many
processes; TCP_NODELAY, without which a message over TCP takes 44 ms; a socket file that is
never another process's and never removed by one that does not own it.
"""

import errno
import grp
import os
import socket
import stat
import time
from collections.abc import Callable
from pathlib import Path

from aliasmilter.config import ConfigError, MilterSection

BACKLOG = 512
# Seconds for whoever listens there to let go: a supervisor that was killed leaves workers, which
# end by themselves, and whoever started it may start the next one sooner. libmilter looks every
# five seconds whether its socket is another one, if nothing wakes it.
HANDOVER = 6.0


class ListenerError(ConfigError):
    """The socket cannot be opened; the message names it and says why."""


class Listener:
    """A bound, listening, non-blocking socket; see `descriptor`.

    Args:
        name: `unix:PATH` or `inet:PORT@ADDRESS`.
        settings: mode and group of a unix socket.

    Raises:
        ListenerError: another process listens there, or the system refuses.
    """

    def __init__(self, name: str, settings: MilterSection) -> None:
        self.name = name
        self._owner = os.getpid()
        self._identity: tuple[int, int] | None = None
        kind, _, rest = name.partition(":")
        try:
            self.socket = _once_free(
                lambda: (
                    self._open_unix(Path(rest), settings)
                    if kind == "unix"
                    else _open_inet(kind, rest)
                )
            )
        except OSError as error:
            raise ListenerError(f"socket {self.name}: {error.strerror or error}") from None
        # A blocking accept() would hang in a worker whose sibling took the connection.
        self.socket.setblocking(False)

    @property
    def descriptor(self) -> int:
        """For libmilter: `fd:<descriptor>`."""
        return self.socket.fileno()

    def stop_accepting(self) -> None:
        """Take no further connections in this process; others go on with the socket.

        The descriptor stands for another socket from now on, to which nobody will connect:
        libmilter, which may be polling it, finds nothing to accept. (To close it would be an
        error there, and a connection taken at that moment would be cut.) While it is polling it
        holds the former one all the same; see `_leave` in worker.py.
        """
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as nobodys:
            nobodys.bind("")  # Linux gives it a name of its own, unix(7): autobind
            nobodys.listen(1)
            nobodys.setblocking(False)
            os.dup2(nobodys.fileno(), self.descriptor, inheritable=False)

    def close(self) -> None:
        """Close the socket; remove its file if it is still ours and we made it."""
        self.socket.close()
        path = Path(self.name.removeprefix("unix:"))
        if self._identity is None or os.getpid() != self._owner:
            return
        try:
            if _identity(path) == self._identity:
                path.unlink()
        except FileNotFoundError:
            return

    def _open_unix(self, path: Path, settings: MilterSection) -> socket.socket:
        _remove_stale(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # Nobody may connect before mode and group are right.
        umask = os.umask(0o777)
        try:
            listener.bind(str(path))
        finally:
            os.umask(umask)
        try:
            _open_to(path, settings)
            listener.listen(BACKLOG)
        except OSError:
            listener.close()
            # Left as it is, the next start could not tell whether somebody listens there.
            path.unlink()
            raise
        self._identity = _identity(path)
        return listener


def _open_to(path: Path, settings: MilterSection) -> None:
    """Give the socket its group and mode."""
    group = settings.socket_group
    try:
        if group:
            os.chown(path, -1, grp.getgrnam(group).gr_gid)
    except PermissionError as error:
        what = f"the daemon's user has to be in the group {group} ([milter] socket_group)"
        raise OSError(error.errno, what) from None
    path.chmod(int(settings.socket_mode, 8))


def _once_free(opened: Callable[[], socket.socket]) -> socket.socket:
    """The socket, when nobody else listens there any more; raises OSError."""
    deadline = time.monotonic() + HANDOVER
    while True:
        try:
            return opened()
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                raise
        time.sleep(0.1)


def _open_inet(kind: str, where: str) -> socket.socket:
    port, _, host = where.partition("@")
    family = socket.AF_INET6 if kind == "inet6" else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Accepted sockets inherit it.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.bind((host.strip("[]"), int(port)))
    listener.listen(BACKLOG)
    return listener


def _remove_stale(path: Path) -> None:
    """Remove a socket that nobody listens on; never a live one, never anything else."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OSError(errno.EEXIST, "there is something that is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise OSError(errno.EADDRINUSE, "another process listens there")


def _identity(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_dev, status.st_ino
