"""The alias store in Redis, as the daemon uses it: lookups with a deadline."""

import random
import time
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial

from aliasmilter import metrics
from aliasmilter.mail.address import Address
from aliasmilter.routing.lookup import Absent, Answer, Found, Lookup, Unavailable
from aliasmilter.routing.rules import sender_keys
from aliasmilter.store.connect import connect
from aliasmilter.store.deadline import Deadline, LateError
from aliasmilter.store.link import Command, Reply, check
from aliasmilter.store.questions import Asked, Lifetimes, Questions, about_blocks, with_blocks
from aliasmilter.store.schema import DOMAIN_PREFIX, counted_key, domain_key, reinjected_key
from aliasmilter.store.servers import Servers, Single
from aliasmilter.store.snapshot import page
from aliasmilter.store.tracking import Tracking

MAX_KNOWN_UNMANAGED = 10_000
MAX_KNOWN_MANAGED = 10_000
WITNESSES = 20  # domains that are asked for when one has vanished
REFILLED = 60.0  # seconds in which a store that had lost its data is being filled again
LEARN = 10.0  # seconds, and pages of keys, in which to learn what is managed
LEARN_PAGES = 100
REMEMBERED = 86_400  # seconds


class AliasStore:
    """Looks addresses up in Redis. For any number of threads.

    Make it after forking: it has sockets, and with Sentinels a thread.

    Args:
        url: see redisurl.
        timeout: seconds for all the lookups of one decision, everything included.
        cached: keep answers while there are many lookups (see tracking).

    Raises:
        ValueError: there is something wrong with the URL.
    """

    def __init__(self, url: str, timeout: float, *, cached: bool = False) -> None:
        self._timeout = timeout
        self._servers = servers = connect(url, identified=cached)
        # A node of a Cluster that was cut off and replaced answers pings all the same.
        self._tracked: tuple[Single, Tracking] | None = None
        if cached and isinstance(servers, Single):
            self._tracked = servers, Tracking(servers, timeout)
        self._unmanaged: OrderedDict[str, None] = OrderedDict()
        self._managed: OrderedDict[str, None] = OrderedDict()
        self._lost = float("-inf")  # when all that was managed had vanished, last

    def lookups(self, sender: Address | None = None) -> Lookup:
        """A lookup function for one decision: one deadline, from now, for all it is asked.

        While the store does not answer, domains that it called unmanaged before still are.

        Args:
            sender: whom domains may block.
        """
        return partial(self._lookup, Deadline(self._timeout), sender)

    def lookups_now(self, sender: Address | None = None) -> Lookup:
        """As `lookups`, without what is known from before: a domain may be managed by now."""
        return partial(self._lookup_now, Deadline(self._timeout), sender)

    def lookup(self, addresses: Sequence[Address]) -> Sequence[Answer]:
        """Answer for each address, in one round trip: `lookups` for one question.

        Raises:
            Unavailable: no answer in time; the message says why.
        """
        return self.lookups()(addresses)

    def ask(self, commands: Sequence[Command]) -> list[Reply]:
        """Whatever else there is to ask or to write: the replies, none of them an error.

        Raises:
            Unavailable: no answer in time, or one is an error.
        """
        try:
            replies = self._servers.ask(commands, Deadline(self._timeout))
            return [check(reply) for reply in replies]
        except Unavailable as error:
            _count(error)
            raise

    def known(self, digests: Sequence[str]) -> set[str]:
        """Which of these submissions were remembered.

        Raises:
            Unavailable: no answer in time.
        """
        replies = self.ask([("GET", reinjected_key(digest)) for digest in digests])
        return {digest for digest, reply in zip(digests, replies, strict=True) if reply}

    def remember(self, digests: Sequence[str]) -> None:
        """Remember submissions for a day: as long as a sender may try again for its answer.

        Raises:
            Unavailable: no answer in time.
        """
        self.ask([("SET", reinjected_key(digest), 1, "EX", REMEMBERED) for digest in digests])

    def forget(self, digests: Sequence[str]) -> None:
        """Forget submissions.

        Raises:
            Unavailable: no answer in time.
        """
        self.ask([("DEL", reinjected_key(digest)) for digest in digests])

    def count(self, digests: Sequence[str], seconds: int) -> list[int]:
        """Add one to each counter, in one round trip; their values.

        Args:
            digests: of what is counted.
            seconds: how long a counter lasts from its first use.

        Raises:
            Unavailable: no answer in time.
        """
        commands: list[Command] = []
        for digest in digests:
            key = counted_key(digest)
            # Not EXPIRE after INCR: a counter must never be there without an end.
            commands += [("SET", key, 0, "EX", seconds, "NX"), ("INCR", key)]
        return [int(value) for value in self.ask(commands)[1::2]]

    def learn(self) -> None:
        """Get to know domains that are managed now, for when they vanish; in its own time."""
        deadline = Deadline(LEARN)
        try:
            for master in self._servers.each(deadline):
                self._learn_from(master, deadline)
        except Unavailable:
            return  # lookups say why, and teach the same

    def _learn_from(self, master: Servers, deadline: Deadline) -> None:
        cursor = b"0"
        for _ in range(LEARN_PAGES):
            command = ("SCAN", cursor, "MATCH", DOMAIN_PREFIX + "*", "COUNT", 1000)
            (reply,) = master.ask([command], deadline)
            cursor, keys = page(reply)
            for key in keys[: MAX_KNOWN_MANAGED - len(self._managed)]:
                self._managed[key.decode("utf-8", "replace").removeprefix(DOMAIN_PREFIX)] = None
            if cursor == b"0":
                return

    def ping(self) -> None:
        """Find out whether the store answers: all of its masters.

        Raises:
            Unavailable: it does not; the message says why.
        """
        deadline = Deadline(self._timeout)
        for master in self._servers.each(deadline):
            (reply,) = master.ask([("PING",)], deadline)
            check(reply)

    def close(self) -> None:
        """Close the connections."""
        if self._tracked:
            self._tracked[1].close()
        self._servers.close()

    def _lookup(
        self, deadline: Deadline, sender: Address | None, addresses: Sequence[Address]
    ) -> list[Answer]:
        try:
            return self._lookup_now(deadline, sender, addresses)
        except Unavailable:
            asked = [a for a in addresses if _can_be_managed(a.domain)]
            if all(address.domain in self._unmanaged for address in asked):
                return [Absent()] * len(addresses)
            raise

    def _lookup_now(
        self, deadline: Deadline, sender: Address | None, addresses: Sequence[Address]
    ) -> list[Answer]:
        asked = [a for a in addresses if _can_be_managed(a.domain)]
        if not asked:
            return [Absent()] * len(addresses)
        try:
            if self._tracked:
                found = self._recall(*self._tracked, asked, deadline)
            else:
                found = self._ask(asked, deadline)
            for one in found:
                if isinstance(one, Found) and one.has_blocks:
                    found = self._with_blocks(asked, found, sender_keys(sender), deadline)
                    break
        except Unavailable as error:
            _count(error)
            raise
        if len(asked) == len(addresses):
            return found
        answers = dict(zip(asked, found, strict=True))
        return [answers.get(address) or Absent() for address in addresses]

    def _with_blocks(
        self,
        addresses: Sequence[Address],
        found: Sequence[Answer],
        senders: Sequence[str],
        deadline: Deadline,
    ) -> list[Answer]:
        """The answers with what the domains say of the sender; never kept."""
        if not senders:
            return list(found)
        domains = [
            address.domain if isinstance(answer, Found) and answer.has_blocks else ""
            for address, answer in zip(addresses, found, strict=True)
        ]
        wanted = list(dict.fromkeys(filter(None, domains)))
        commands = [command for domain in wanted for command in about_blocks(domain, senders)]
        replies = self._servers.ask(commands, deadline)
        size = len(senders)
        by_domain = {d: replies[n * size : (n + 1) * size] for n, d in enumerate(wanted)}
        return [
            with_blocks(answer, domain, by_domain[domain])
            if domain and isinstance(answer, Found)
            else answer
            for domain, answer in zip(domains, found, strict=True)
        ]

    def _recall(
        self, server: Single, tracking: Tracking, addresses: Sequence[Address], deadline: Deadline
    ) -> list[Answer]:
        """Out of memory what is there, and the rest from the server."""
        kept, ticket = tracking.recall(addresses)
        found = [answer for answer in kept if answer is not None]
        if len(found) == len(addresses):
            metrics.store_cache_hits.inc()
            return found
        metrics.store_cache_misses.inc()
        missing = [a for a, answer in zip(addresses, kept, strict=True) if answer is None]
        questions = Questions(missing, ticket[1] if ticket else Lifetimes.NOTHING)
        replies, origin = server.exchange(questions.commands, deadline)
        asked = questions.answers(replies)
        fresh = iter(self._noted(missing, asked, deadline))
        if ticket:
            tracking.keep(missing, asked, ticket, origin)
        return [answer or next(fresh) for answer in kept]

    def _ask(self, addresses: Sequence[Address], deadline: Deadline) -> list[Answer]:
        questions = Questions(addresses)
        asked = questions.answers(self._servers.ask(questions.commands, deadline))
        return self._noted(addresses, asked, deadline)

    def _noted(
        self, addresses: Sequence[Address], asked: Sequence[Asked], deadline: Deadline
    ) -> list[Answer]:
        """The answers; who is managed and who is not is noted for when something is wrong."""
        answers = [one.answer for one in asked]
        for address, answer in zip(addresses, answers, strict=True):
            domain = address.domain
            if isinstance(answer, Absent):
                if domain in self._managed:
                    self._believe_that_it_vanished(domain, deadline)
                self._note_unmanaged(domain)
            else:
                self._unmanaged.pop(domain, None)
                self._managed[domain] = None
                # In one step: other threads put theirs in.
                while len(self._managed) > MAX_KNOWN_MANAGED:
                    self._managed.popitem(last=False)
        return answers

    def _believe_that_it_vanished(self, domain: str, deadline: Deadline) -> None:
        """A domain that was managed is not any more: somebody has removed it, if others are there.

        A server that was restarted without its data knows none. To believe it would be to let all
        addresses of all domains through, unknown ones too, and aliases unexpanded. Nor is it
        believed while somebody may be filling it again, one domain after the other.

        Raises:
            Unavailable: none of the others that were managed there is there, or there were none;
                or that was so lately; or the domain is back.
        """
        key = domain_key(domain)
        known = [domain_key(one) for one in list(self._managed) if one != domain]
        candidates = self._servers.neighbours(key, known)
        # By chance: those met last may have been removed together.
        others = random.sample(candidates, min(WITNESSES, len(candidates)))
        # The domain itself last: the others may have come back, and with them the domain, after
        # it was asked for.
        commands: list[Command] = [("EXISTS", one) for one in (*others, key)]
        *there, itself = [check(reply) for reply in self._servers.ask(commands, deadline)]
        now = time.monotonic()
        if 1 not in there:
            self._lost = now
            raise Unavailable(
                f"Redis: {domain} has vanished, and so has all else that was managed:"
                " has it lost its data? If it was meant, reload (SIGHUP)"
            )
        if itself != 0:
            raise Unavailable(f"Redis: {domain} was away, and is back")
        if now - self._lost < REFILLED:
            raise Unavailable(
                f"Redis: {domain} has vanished, and all else had a moment ago:"
                f" is it being filled again? Believed after {REFILLED:g} s, or a reload (SIGHUP)"
            )
        gone = [other for other, is_there in zip(others, there, strict=True) if not is_there]
        for one in (*gone, key):
            self._managed.pop(one.removeprefix(DOMAIN_PREFIX), None)

    def _note_unmanaged(self, domain: str) -> None:
        self._unmanaged[domain] = None
        while len(self._unmanaged) > MAX_KNOWN_UNMANAGED:
            self._unmanaged.popitem(last=False)


def _count(error: Unavailable) -> None:
    """Count what the store failed to answer."""
    metrics.store_errors.inc("timeout" if isinstance(error, LateError) else "error")


def _can_be_managed(domain: str) -> bool:
    """An unqualified address and an address literal belong to the MTA."""
    return bool(domain) and not domain.startswith("[")
