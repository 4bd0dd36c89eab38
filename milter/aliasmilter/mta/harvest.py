"""Directory harvest: a client that guesses addresses gets no answer out of a catch-all.

Addresses without a rule of their own are counted for each client, in the store, so that all
hosts see one picture: as a HyperLogLog, which needs 12 KB at most and holds no address.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Any

import structlog

from aliasmilter.config import HarvestSection
from aliasmilter.mta import measures
from aliasmilter.routing.lookup import Unavailable
from aliasmilter.store.link import Command
from aliasmilter.store.schema import harvest_key, harvesting_key
from aliasmilter.store.threads import started

MAX_WATCHED = 10_000  # clients of whom the log will say when they have stopped

Ask = Callable[[Sequence[Command]], Sequence[Any]]


@dataclass(slots=True)
class Harvest:
    """Tells clients that guess from those that do not.

    Attributes:
        limit: so many different addresses are a client's to get wrong.
        window: seconds within which they are counted.
        ask: sends commands to the store, and raises Unavailable.
        logger: is told when a client begins to guess, and when it has stopped.
        clock: seconds since the epoch.
    """

    limit: int
    window: int
    ask: Ask
    logger: structlog.typing.FilteringBoundLogger
    clock: Callable[[], float]
    _watched: dict[str, float] = field(default_factory=dict)  # client -> when to look again
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _thread: threading.Thread | None = None

    def is_guessing(self, ip: str, address: str) -> bool:
        """Count an address that has no rule of its own; whether the client has passed the limit.

        While the store does not answer nobody is guessing.

        Args:
            ip: the client's.
            address: what it asked for; the same one again does not count.
        """
        client = client_of(ip)
        try:
            guessing = self._count(client, address) > self.limit
            if guessing:
                self._note(client)
        except Unavailable:
            return False
        return guessing

    def _count(self, client: str, address: str) -> float:
        """How many addresses within the window that ends now; what an earlier one had fades out."""
        number, into = divmod(self.clock(), self.window)
        now, before = harvest_key(client, int(number)), harvest_key(client, int(number) - 1)
        *_, current, earlier = self.ask(
            [
                ("PFADD", now, address),
                ("EXPIRE", now, 2 * self.window),
                ("PFCOUNT", now),
                ("PFCOUNT", before),
            ]
        )
        return int(current) + int(earlier) * (1 - into / self.window)

    def _note(self, client: str) -> None:
        """The first host that sees it says so, and keeps an eye on the client."""
        key = harvesting_key(client)
        began, _ = self.ask(
            [("SET", key, 1, "NX", "EX", self.window), ("EXPIRE", key, self.window)]
        )
        if began is not None:
            measures.harvests.inc()
            self.logger.warning("a client guesses addresses", client=client, limit=self.limit)
            self._look_again_later(client)

    def _look_again_later(self, client: str) -> None:
        """Have the one thread there is for it look again, a window from now."""
        with self._changed:
            if len(self._watched) < MAX_WATCHED:
                self._watched.setdefault(client, time.monotonic() + self.window)
            # No thread is left: then the log lacks a line.
            self._thread = self._thread or started(self._keep_watch, "harvest")
            self._changed.notify()

    def _keep_watch(self) -> None:
        while True:
            self._look_again(self._next())

    def _next(self) -> str:
        """Wait for the client whose turn is next: they come in the order of their time."""
        with self._changed:
            self._changed.wait_for(lambda: self._watched)
            client, due = next(iter(self._watched.items()))
        time.sleep(max(due - time.monotonic(), 0.0))
        with self._changed:
            del self._watched[client]
        return client

    def _look_again(self, client: str) -> None:
        try:
            (going_on,) = self.ask([("EXISTS", harvesting_key(client))])
        except Unavailable:
            going_on = 1
        if going_on:
            self._look_again_later(client)
        else:
            self.logger.warning("a client has stopped guessing addresses", client=client)


def client_of(ip: str) -> str:
    """Who counts as one client: an IPv4 address, the /64 of an IPv6 address."""
    address = ip_address(ip.removeprefix("IPv6:"))
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped:
            return str(address.ipv4_mapped)
        return str(ip_network((int(address), 64), strict=False))
    return str(address)


def make_harvest(
    settings: HarvestSection,
    ask: Ask,
    logger: structlog.typing.FilteringBoundLogger,
    clock: Callable[[], float],
) -> Harvest | None:
    """What the configuration asks for; None when nobody is counted."""
    if not settings.limit:
        return None
    return Harvest(settings.limit, settings.window, ask, logger, clock)
