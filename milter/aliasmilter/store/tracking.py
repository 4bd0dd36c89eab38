"""Answers kept in the process, for as long as Redis says that they are true.

Theory of operation. A connection of its own has Redis announce every edit of a rule (CLIENT
TRACKING in BCAST mode: a small message for each edited key, whoever knows it). Redis sends the
announcement before the answer to the edit, but for rule 2, and whoever is about to use a kept
answer first reads what has come: so the next RCPT knows of an edit, as it does without all this.
(Of FLUSHALL and FLUSHDB it may learn a moment later, within LEASE: there the answer comes first.
So it may when Redis writes in several threads, `io-threads`: there the order is anybody's.)

    Rule 1  Nothing is used on trust for longer than LEASE. Redis takes the commands of a
            connection in their order, and sends the announcements of a round of its event loop at
            the end of the round: they may follow the answer to a later command of that round, but
            to none of a later round. So the answer to a ping that was sent after the one before
            was answered proves that every edit up to the sending of the one *before* has been
            announced. Without such a proof (idle, a slow network, a server that hangs) nothing
            kept is used.
    Rule 2  Nothing kept is used while a ping is unanswered. At the end of a round Redis sends first
            to whom it had something to say last, and an announcement does not count for one that
            is to be sent something anyway: in the round that answers our ping, the answer to
            somebody's edit goes out before the announcement, which follows the answer to the ping.
    Rule 3  What was fetched is kept only if no announcement whatever came between the moment
            before it was asked for and the moment it is kept: it may have been about it. What
            is fetched in many steps (`whole`), if none came about it.
    Rule 4  It is kept only if the server process that answered is the one that announces: behind
            one name there may be two (a proxy, a fail-over, a restart).
    Rule 5  What will expire is not kept (PTTL, HPTTL): it stops to be true before Redis says so.
    Rule 6  SWAPDB exchanges everything and announces nothing; but it spoils a WATCH of a key that
            exists. So a ping is a transaction over a WATCH of the key of a managed domain, and
            until there is such a key nothing is kept.
    Rule 7  A connection that ends takes all that was kept with it.

It pays only for a busy process: below BUSY the store is asked each time, and nobody pings.
"""

import threading
import time
from collections.abc import Sequence
from contextlib import suppress

import hiredis

from aliasmilter import log
from aliasmilter.mail.address import Address
from aliasmilter.routing.lookup import Answer, Found, Unavailable
from aliasmilter.store.deadline import BrokenLinkError, Deadline, RefusedError
from aliasmilter.store.link import INFO, Command, Link, Reply, check, expect_ok, pack
from aliasmilter.store.memory import Memory
from aliasmilter.store.questions import Asked, Lifetimes
from aliasmilter.store.schema import ALIAS_PREFIX, BLOCK_PREFIX, DOMAIN_PREFIX, domain_key
from aliasmilter.store.servers import Single
from aliasmilter.store.threads import started
from aliasmilter.store.whole import Demand, Whole, read_whole

BUSY = 300.0  # lookups a second
LEASE = 0.045  # seconds: an edit holds within 50 ms, whatever happens to the network
PING_EVERY = LEASE / 4  # seconds between two pings
SPAN = 0.25  # seconds over which lookups are counted
RETRY = 1.0  # seconds until a lost connection is opened again
REFUSED = 60.0  # seconds until a server that refused is asked again
CALM = 0.05  # seconds between two looks of the thread that reads while nobody else does

_PREFIXES = (DOMAIN_PREFIX.encode(), ALIAS_PREFIX.encode(), BLOCK_PREFIX.encode())
_NEVER = float("-inf")


def _ping_for(key: str) -> tuple[Command, ...]:
    return ("MULTI",), ("EXEC",), ("WATCH", key), ("EXISTS", key)


GREETING: tuple[Command, ...] = (
    ("HELLO", 3),  # announcements on the connection itself: Redis 6 and later
    (
        *("CLIENT", "TRACKING", "ON", "BCAST"),
        *("PREFIX", ALIAS_PREFIX, "PREFIX", DOMAIN_PREFIX, "PREFIX", BLOCK_PREFIX),
    ),
    *_ping_for(DOMAIN_PREFIX),
    ("PTTL", DOMAIN_PREFIX),
    ("HPTTL", DOMAIN_PREFIX, "FIELDS", 1, "*"),
)
"""What opens the connection, and shows whether server and user can do all this."""

Ticket = tuple[int, Lifetimes]
"""To be shown when something is to be kept: how many announcements there had been."""


class Tracking:
    """Keeps answers, and keeps them true. For any number of threads.

    Args:
        server: who is asked, and announces.
        timeout: seconds for it to answer a ping, after which the connection counts as lost.
    """

    def __init__(self, server: Single, timeout: float) -> None:
        self._server = server
        self._timeout = timeout
        self._rate = _Rate()
        self._memory = Memory()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._link: Link | None = None
        self._lifetimes = Lifetimes.OF_KEYS
        self._announced = 0
        self._guard: str | None = None  # rule 6: the key under WATCH
        self._guarded = False  # and Redis has said that it exists
        self._demand = Demand()
        self._reading: str | None = None  # the domain of which all rules are being read
        self._spoiled = False  # it was edited meanwhile, or that cannot be known
        self._pong: list[Reply] = []
        self._pinged = _NEVER  # when the last ping was sent
        self._waiting = False  # for its answer
        self._before = _NEVER  # when the one before was sent
        self._proved = _NEVER  # rule 1: every edit until then has been announced
        server.when_moved(self.lose)

    def recall(self, addresses: Sequence[Address]) -> tuple[list[Answer | None], Ticket | None]:
        """The answers that are kept and true; None for the others.

        Returns:
            Also the ticket with which to keep what is asked for now; None: it will not be kept.
        """
        now = time.monotonic()
        if not self._rate.is_busy(now):
            return [None] * len(addresses), None
        with self._lock:
            if self._thread is None:
                self._start()
            self._read()
            unanswered = self._waiting  # before we send one
            self._ping(now)
            ticket = (self._announced, self._lifetimes) if self._link else None
            if unanswered or now - self._proved > LEASE:
                return [None] * len(addresses), ticket
            self._memory.age(now)
            return [self._memory.get(address) for address in addresses], ticket

    def keep(
        self, addresses: Sequence[Address], asked: Sequence[Asked], ticket: Ticket, origin: str
    ) -> None:
        """Keep what was fetched with a ticket from the server process `origin`."""
        lasting = [(a, one.answer) for a, one in zip(addresses, asked, strict=True) if one.lasts]
        with self._lock:
            self._read()
            if self._link is None:
                return
            if not origin or origin != self._link.origin:
                self._lose("another server answers lookups")
                return
            if ticket[0] != self._announced:
                return
            now = time.monotonic()
            if not self._guarded:
                self._post_guard(lasting, now)
                return
            for address, answer in lasting:
                self._memory.put(address, answer, now)
                domain = address.domain
                if not isinstance(answer, Found) or self._memory.has_whole(domain):
                    continue
                if self._demand.note(domain):
                    self._begin_reading(domain)

    def lose(self) -> None:
        """Begin again with a new connection: another server may have taken over."""
        with self._lock:
            self._lose("another server has taken over")

    def close(self) -> None:
        """Close the connection and end the thread."""
        self._ended.set()
        self.lose()
        if self._thread:
            self._thread.join(self._timeout)

    # The conversation. The lock is held in all of these.

    def _read(self) -> None:
        """Take note of what has come."""
        if self._link is None:
            return
        try:
            for reply in self._link.news():
                if isinstance(reply, hiredis.PushNotification):
                    self._take_announcement(reply)
                else:
                    self._take_reply(reply)
        except Unavailable as error:
            self._lose(str(error))

    def _take_announcement(self, push: list[Reply]) -> None:
        if push[0] != b"invalidate":
            return
        self._announced += 1
        if push[1] is None:  # FLUSHALL, FLUSHDB
            self._memory.clear()
            self._spoiled = True
            return
        for key in push[1]:
            for prefix in _PREFIXES:
                if key.startswith(prefix):
                    self._forget(key[len(prefix) :].decode("utf-8", "replace"))

    def _forget(self, domain: str) -> None:
        self._memory.forget(domain)
        self._demand.edited(domain)
        self._spoiled = self._spoiled or domain == self._reading

    def _take_reply(self, reply: Reply) -> None:
        self._pong.append(reply)
        if len(self._pong) < len(_ping_for("")):
            return
        (_, undisturbed, watching, exists), self._pong = self._pong, []
        check(watching)
        self._waiting = False
        if isinstance(undisturbed, list) and exists == 1:
            # What was fetched before Redis watched is not kept: see rule 3.
            self._announced += not self._guarded
            self._guarded = True
            self._proved, self._before = self._before, self._pinged
        else:
            self._unguard()

    def _post_guard(self, lasting: Sequence[tuple[Address, Answer]], now: float) -> None:
        if self._guard is None:
            found = [address.domain for address, answer in lasting if isinstance(answer, Found)]
            if found:
                self._guard = domain_key(found[0])
                self._send_ping(now)

    def _unguard(self) -> None:
        """The key that was watched is gone or was edited, or everything was exchanged."""
        self._memory.clear()
        self._announced += 1
        self._spoiled = True
        self._demand = Demand()
        self._guard, self._guarded = None, False
        self._before = self._proved = _NEVER

    def _ping(self, now: float) -> None:
        if self._link is None or self._guard is None:
            return
        if not self._waiting and now - self._pinged > PING_EVERY:
            self._send_ping(now)
        elif self._waiting and now - self._pinged > self._timeout:
            self._lose(f"no answer to a ping within {self._timeout:g} s")

    def _send_ping(self, now: float) -> None:
        if self._link is None or self._guard is None:
            return
        try:
            self._link.tell(pack(_ping_for(self._guard)))
        except Unavailable as error:
            self._lose(str(error))
        self._pinged, self._waiting = now, True

    def _lose(self, problem: str) -> None:
        if self._link is None:
            return
        if not self._ended.is_set():
            log.get().info("answers are no longer kept", problem=problem)
        self._link.hang_up()
        self._link = None
        self._pong.clear()
        self._waiting = False
        self._unguard()

    def _start(self) -> None:
        if not self._ended.is_set():
            self._thread = started(self._run, "tracking")

    # Whole domains: nobody waits for them. One is read at a time.

    def _begin_reading(self, domain: str) -> None:
        if self._reading is not None or self._link is None:
            return
        work = (domain, self._link.origin, self._lifetimes, self._demand.affords(domain))
        if started(self._read_whole, "reading", *work):
            self._reading, self._spoiled = domain, False
        else:
            self._demand.served(domain)

    def _read_whole(self, domain: str, origin: str, lifetimes: Lifetimes, most: int) -> None:
        def ask(commands: Sequence[Command]) -> list[Reply]:
            replies, of = self._server.exchange(commands, Deadline(self._timeout))
            if of != origin:  # rule 4
                raise BrokenLinkError("another server answers")
            return replies

        whole: Whole | float | None = None
        with suppress(Unavailable):  # lookups say why; more of them, and it is tried again
            whole = read_whole(domain, ask, lifetimes, most)
        with self._lock:
            self._read()
            self._reading = None
            if self._spoiled or self._link is None:
                return
            if whole is None:
                self._demand.served(domain)
            elif isinstance(whole, Whole):
                self._demand.served(domain)
                self._memory.put_whole(domain, whole, time.monotonic())
            else:
                self._demand.found(domain, whole)

    # The thread: connects, and reads while nobody else does, or Redis would have to keep all
    # that it announces.

    def _run(self) -> None:
        warned = False
        while not self._ended.is_set():
            try:
                link = self._open()
            except RefusedError as error:
                if not warned:
                    log.get().warning("answers are not kept in memory", problem=str(error))
                warned = True
                self._ended.wait(REFUSED)
            except Unavailable:
                self._ended.wait(RETRY)  # lookups say why
            else:
                self._attend(link)
                link.close()
                self._ended.wait(RETRY)

    def _open(self) -> Link:
        link = self._server.open((*GREETING, INFO), Deadline(self._timeout))
        hello, tracking, *others, of_fields = link.greeted[-len(GREETING) - 1 : -1]
        try:
            check(hello)
            expect_ok(tracking)
            for reply in others:
                check(reply)
            if not str(of_fields).startswith("ERR unknown command"):
                check(of_fields)
            if not link.origin:
                raise RefusedError(f"Redis: {link.endpoint}: INFO tells no run_id")
        except Unavailable:
            link.close()
            raise
        with self._lock:
            knows_fields = not isinstance(of_fields, hiredis.ReplyError)
            self._lifetimes = Lifetimes.OF_FIELDS if knows_fields else Lifetimes.OF_KEYS
            self._announced += 1
            self._link = link
        return link

    def _attend(self, link: Link) -> None:
        while self._link is link and not self._ended.is_set():
            link.wait()
            with self._lock:
                self._read()
            self._ended.wait(CALM)
        with self._lock:
            if self._link is link:
                self._lose("closed")


class _Rate:
    """Counts lookups; a count that two threads make at once may get lost."""

    def __init__(self) -> None:
        self._since = 0.0
        self._count = 0
        self._busy = False

    def is_busy(self, now: float) -> bool:
        """Count one lookup, and say whether there have been many."""
        self._count += 1
        if now - self._since > SPAN:
            self._busy = self._count >= BUSY * (now - self._since)
            self._since, self._count = now, 0
        return self._busy
