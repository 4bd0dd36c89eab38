"""Host names to addresses, in time."""

import ipaddress
import socket
import threading
from concurrent.futures import Future
from typing import Any

from aliasmilter.redisurl import Endpoint
from aliasmilter.store.deadline import BrokenLinkError, Deadline, LateError

Addresses = list[tuple[socket.AddressFamily, Any]]

_resolving: dict[Endpoint, "Future[Addresses]"] = {}
_resolving_lock = threading.Lock()


def addresses(endpoint: Endpoint, deadline: Deadline) -> Addresses:
    """Look the host name up, in time; nothing to do for an IP address.

    getaddrinfo(3) knows no deadline: it runs in a thread of its own, one for each name however
    many wait for it.

    Raises:
        BrokenLinkError, LateError: it has no address, or none in time, or there is no thread left.
    """
    if family := _family(endpoint.host):
        return [(family, (endpoint.host, endpoint.port))]
    with _resolving_lock:
        future = _resolving.get(endpoint)
        if future is None:
            future = _begin(endpoint)
    try:
        return future.result(deadline.left)
    except TimeoutError:
        raise LateError(f"Redis: {endpoint}: no address within {deadline.limit:g} s") from None
    except (OSError, UnicodeError) as error:
        raise BrokenLinkError(f"Redis: {endpoint}: {error}") from None


def _begin(endpoint: Endpoint) -> "Future[Addresses]":
    """Have a thread look the name up. The lock is held."""
    future: Future[Addresses] = Future()
    try:
        threading.Thread(target=_resolve, args=(endpoint, future), daemon=True).start()
    except RuntimeError as error:  # the system has no thread left
        raise BrokenLinkError(f"Redis: {endpoint}: {error}") from None
    _resolving[endpoint] = future
    return future


def _resolve(endpoint: Endpoint, future: "Future[Addresses]") -> None:
    try:
        found = socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
        result: Addresses = [(family, place) for family, _, _, _, place in found]
    except Exception as error:  # noqa: BLE001  # whatever it is, somebody waits for it
        with _resolving_lock:
            del _resolving[endpoint]
        future.set_exception(error)
    else:
        with _resolving_lock:
            del _resolving[endpoint]
        future.set_result(result)


def _family(host: str) -> socket.AddressFamily | None:
    """The family of an IP address; None for a name."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    return socket.AF_INET6 if address.version == 6 else socket.AF_INET
