"""Free TCP ports that two test processes never get at once."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tests.harness.wait import LabError

# Below the range that Linux gives to outgoing connections (32768 and up):
# such a connection can never take a port away from a server that restarts.
FIRST, LAST = 20000, 31999


@contextmanager
def reserved_port() -> Iterator[int]:
    """A port on 127.0.0.1 that is ours until the block ends, in use or not.

    An abstract unix socket of that name is the lock. It spans processes, leaves no file, and
    goes with the process, however that ends.

    Raises:
        LabError: no port is free.
    """
    for port in random.sample(range(FIRST, LAST + 1), 200):
        with socket.socket(socket.AF_UNIX) as lock:
            try:
                lock.bind(f"\0alias-milter-test-port-{port}")
            except OSError:
                continue
            if can_bind(port):
                yield port
                return
    raise LabError(f"no free port between {FIRST} and {LAST}")


def can_bind(port: int) -> bool:
    """Whether nothing listens on that port of 127.0.0.1."""
    with socket.socket() as probe:
        # As servers do: the last connections of a stopped server do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def accepts(address: int | str) -> bool:
    """Whether a server accepts connections on that TCP port of 127.0.0.1, or unix socket."""
    family = socket.AF_INET if isinstance(address, int) else socket.AF_UNIX
    with socket.socket(family) as probe, suppress(OSError):
        probe.settimeout(1)
        probe.connect(("127.0.0.1", address) if isinstance(address, int) else address)
        return True
    return False
