"""How many hits each domain's quarantine got: one hash, a field for each domain.

Counting is no part of deciding: it must cost a message no time and can never do it harm. A thread
of its own does it, which is only there once there was a hit; what cannot be written is added to the
next one. The hash is bounded by the number of managed domains, as others have no hits.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from redis.exceptions import RedisError

from aliasmilter.routing.lookup import Unavailable
from aliasmilter.store.schema import QUARANTINED_KEY

_Connect = Callable[[], Any]


class Tally:
    """Counts hits, in the background.

    Args:
        connect: makes a client.
        complain: told, once in a row, why the counts cannot be written.
    """

    def __init__(self, connect: _Connect, complain: Callable[[str], object]) -> None:
        self._connect = connect
        self._complain = complain
        self._condition = threading.Condition()
        self._counts: Counter[str] = Counter()
        self._thread: threading.Thread | None = None
        self._closing = False
        self._fresh = False

    def add(self, domains: Iterable[str]) -> None:
        """Count a hit for each of these domains; returns at once."""
        with self._condition:
            self._counts.update(domains)
            self._fresh = True
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="tally", daemon=True)
                self._thread.start()
            self._condition.notify()

    def close(self, timeout: float) -> None:
        """Write what is left, within `timeout` seconds."""
        with self._condition:
            self._closing = True
            self._condition.notify()
        if self._thread:
            self._thread.join(timeout)

    def _work(self) -> None:
        client = self._connect()
        failed = ""
        while counts := self._next(waits=bool(failed)):
            problem = _write(client, counts)
            if problem:
                with self._condition:
                    self._counts.update(counts)
                    if self._closing:
                        return
            if problem and not failed:
                self._complain(problem)
            failed = problem

    def _next(self, *, waits: bool) -> Counter[str]:
        """What has been counted since last time; empty at the end.

        With `waits` only once there is a new hit: what failed a moment ago would fail again.
        """
        with self._condition:
            self._condition.wait_for(
                lambda: self._closing or (self._fresh if waits else bool(self._counts))
            )
            counts, self._counts = self._counts, Counter()
            self._fresh = False
            return counts


def _write(client: Any, counts: Counter[str]) -> str:  # noqa: ANN401
    """Add the counts to those in Redis; why that failed, or ""."""
    pipeline = client.pipeline(transaction=True)
    for domain, count in counts.items():
        pipeline.hincrby(QUARANTINED_KEY, domain, count)
    try:
        pipeline.execute()
    except (RedisError, OSError) as error:
        return f"Redis: {error}"
    return ""


def read_hits(client: Any) -> dict[str, int]:  # noqa: ANN401  # sync or cluster client
    """Domain -> number of hits, since the key was last removed.

    Raises:
        Unavailable: Redis does not answer, or refuses.
    """
    try:
        found = client.hgetall(QUARANTINED_KEY)
    except (RedisError, OSError) as error:
        raise Unavailable(f"Redis: {error}") from error
    numbers = {name: int(count) for name, count in found.items() if count.isdigit()}
    return {name.decode("utf-8", "backslashreplace"): count for name, count in numbers.items()}
