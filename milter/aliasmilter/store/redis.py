"""The alias store in Redis, as the daemon uses it: lookups with a deadline.

Callbacks of libmilter are threads that must never block for long, and a client library's
time-outs hold for one read each: a server that answers in drops, a slow name server or a TLS
handshake could add up to many times the limit. So all I/O runs in an event loop of its own
thread, where one deadline covers a lookup with everything in it: waiting for a connection,
name resolution, connecting, TLS, AUTH, the commands and the retry.
"""

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import CancelledError
from typing import Any

import redis.asyncio as aioredis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import InvalidResponse, RedisError, ResponseError

from aliasmilter import metrics
from aliasmilter.mail.address import Address
from aliasmilter.routing.lookup import (
    Absent,
    Answer,
    Found,
    Unavailable,
    Unreadable,
    fields_for,
)
from aliasmilter.store.schema import alias_key, counted_key, domain_key, reinjected_key

MAX_KNOWN_UNMANAGED = 10_000
REMEMBERED = 86_400  # seconds
_GRACE = 0.1  # seconds in which the event loop has to report that the deadline has passed


def client_options(timeout: float) -> dict[str, Any]:
    """What every connection to Redis is opened with; `timeout` in seconds for each read."""
    return {
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        # One more try, at once: an idle connection may have died with the last server. The
        # library's default would wait and try for three seconds when a server refuses.
        "retry": Retry(NoBackoff(), 1),
        "client_name": "alias-milter",
    }


class AliasStore:
    """Looks addresses up in Redis.

    Make it after forking: it owns a thread and sockets.

    Args:
        url: `redis://`, `rediss://` or `unix://`, with password and database number.
        timeout: seconds for a lookup, everything included.
    """

    def __init__(self, url: str, timeout: float) -> None:
        self._timeout = timeout
        self._client = aioredis.Redis.from_url(url, **client_options(timeout))
        self._unmanaged: OrderedDict[str, None] = OrderedDict()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="alias-store", daemon=True
        )
        self._thread.start()

    def lookup(self, addresses: Sequence[Address]) -> list[Answer]:
        """Answer for each address, in one round trip.

        While the store does not answer, domains that it called unmanaged before still are.

        Raises:
            Unavailable: no answer in time; the message says why.
        """
        domains = {a.domain for a in addresses if _can_be_managed(a.domain)}
        if not domains:
            return [Absent()] * len(addresses)
        try:
            return self._ask(addresses)
        except Unavailable:
            if all(domain in self._unmanaged for domain in domains):
                return [Absent()] * len(addresses)
            raise

    def lookup_now(self, addresses: Sequence[Address]) -> list[Answer]:
        """As `lookup`, without what is known from before: a domain may be managed by now.

        Raises:
            Unavailable: no answer in time; the message says why.
        """
        return self._ask(addresses)

    def known(self, digests: Sequence[str]) -> set[str]:
        """Which of these submissions were remembered.

        Raises:
            Unavailable: no answer in time.
        """
        replies = self._run(self._client.mget([reinjected_key(digest) for digest in digests]))
        return {digest for digest, reply in zip(digests, replies, strict=True) if reply}

    def remember(self, digests: Sequence[str]) -> None:
        """Remember submissions for a day: as long as a sender may try again for its answer.

        Raises:
            Unavailable: no answer in time.
        """
        self._run(self._remember(digests))

    def count(self, digests: Sequence[str], seconds: int) -> list[int]:
        """Add one to each counter, in one round trip; their values.

        Args:
            digests: of what is counted.
            seconds: how long a counter lasts from its first use.

        Raises:
            Unavailable: no answer in time.
        """
        counted: list[int] = self._run(self._count(digests, seconds))
        return counted

    def ping(self) -> None:
        """Find out whether the store answers.

        Raises:
            Unavailable: it does not; the message says why.
        """
        self._run(self._ping())

    def close(self) -> None:
        """Close the connections and end the thread."""
        try:
            self._run(self._client.aclose())
        except Unavailable:
            return  # the process ends; a server that is gone closed them already
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(self._timeout)

    def _ask(self, addresses: Sequence[Address]) -> list[Answer]:
        answers: list[Answer] = self._run(self._fetch(addresses))
        for address, answer in zip(addresses, answers, strict=True):
            if isinstance(answer, Absent):
                self._unmanaged[address.domain] = None
                while len(self._unmanaged) > MAX_KNOWN_UNMANAGED:
                    self._unmanaged.popitem(last=False)
            else:
                self._unmanaged.pop(address.domain, None)
        return answers

    def _run(self, work: Any) -> Any:  # noqa: ANN401  # whatever the coroutine returns
        future = asyncio.run_coroutine_threadsafe(self._within_deadline(work), self._loop)
        try:
            return future.result(self._timeout + _GRACE)
        except TimeoutError:
            future.cancel()
            metrics.store_errors.inc("timeout")
            raise Unavailable(f"Redis: no answer within {self._timeout:g} s") from None
        except (RedisError, OSError, CancelledError) as error:
            metrics.store_errors.inc("error")
            raise Unavailable(f"Redis: {error}") from error

    async def _within_deadline(self, work: Any) -> Any:  # noqa: ANN401
        async with asyncio.timeout(self._timeout):
            return await work

    async def _ping(self) -> None:
        await self._client.execute_command("PING")  # type: ignore[no-untyped-call]

    async def _remember(self, digests: Sequence[str]) -> None:
        pipeline = self._client.pipeline(transaction=False)
        for digest in digests:
            pipeline.set(reinjected_key(digest), 1, ex=REMEMBERED)
        await pipeline.execute()

    async def _count(self, digests: Sequence[str], seconds: int) -> list[int]:
        pipeline = self._client.pipeline(transaction=False)
        for digest in digests:
            # Not EXPIRE after INCR: a counter must never be there without an end.
            pipeline.set(counted_key(digest), 0, ex=seconds, nx=True)
            pipeline.incr(counted_key(digest))
        return list((await pipeline.execute())[1::2])

    async def _fetch(self, addresses: Sequence[Address]) -> list[Answer]:
        domains = list(dict.fromkeys(a.domain for a in addresses if _can_be_managed(a.domain)))
        pipeline = self._client.pipeline(transaction=False)
        for domain in domains:
            pipeline.hgetall(domain_key(domain))
        asked = [a for a in addresses if _can_be_managed(a.domain)]
        for address in asked:
            pipeline.hmget(alias_key(address.domain), list(fields_for(address.local)))
        replies = await pipeline.execute(raise_on_error=False)
        settings = dict(zip(domains, replies, strict=False))
        rules = dict(zip(asked, replies[len(domains) :], strict=True))
        return [_answer(a, settings.get(a.domain), rules.get(a)) for a in addresses]


def _can_be_managed(domain: str) -> bool:
    """An unqualified address and an address literal belong to the MTA."""
    return bool(domain) and not domain.startswith("[")


def _answer(address: Address, settings: Any, rules: Any) -> Answer:  # noqa: ANN401
    if not _can_be_managed(address.domain):
        return Absent()
    for key, reply in ((domain_key, settings), (alias_key, rules)):
        if isinstance(reply, ResponseError) and str(reply).startswith("WRONGTYPE"):
            return Unreadable(key(address.domain), "holds another type than a hash")
        if isinstance(reply, Exception):
            raise reply
    fields = fields_for(address.local)
    # What is no answer to the question says nothing: not even that there is no such domain.
    if not isinstance(settings, dict) or not isinstance(rules, list) or len(rules) != len(fields):
        raise InvalidResponse("an answer to another question")
    if not settings:
        return Absent()
    return Found(settings, {f: r for f, r in zip(fields, rules, strict=True) if r is not None})
