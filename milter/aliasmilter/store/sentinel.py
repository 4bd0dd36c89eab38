"""The master that Redis Sentinels name, also after a fail-over.

A former master that is still up answers with old rules. So a connection is only taken to who
calls itself master, every failure leads back to the Sentinels, and in between they are asked
every second: there are faults after which the former master, and the way to it, work on.
"""

import threading
from collections.abc import Callable, Sequence

from aliasmilter import log
from aliasmilter.redisurl import Endpoint
from aliasmilter.routing.lookup import Unavailable
from aliasmilter.store.link import (
    BrokenLinkError,
    Command,
    Deadline,
    Door,
    Link,
    RefusedError,
    Reply,
    check,
    dial,
)
from aliasmilter.store.servers import Pool, Single

ASK_EVERY = 1.0  # seconds
_ROLE: Command = ("ROLE",)


class Sentinels:
    """Those who know which server is the master.

    Args:
        endpoints: theirs.
        name: what they call the master.
        door: how to get in at a Sentinel.
    """

    def __init__(self, endpoints: Sequence[Endpoint], name: str, door: Door) -> None:
        self._name = name
        self._order = [(endpoint, Single(Pool(endpoint, door))) for endpoint in endpoints]
        self._lock = threading.Lock()

    def master(self, deadline: Deadline) -> Endpoint:
        """Ask one after the other, first who answered last time.

        Raises:
            Unavailable: none knows; the message says what each said.
        """
        with self._lock:
            order = list(self._order)
        problems = []
        for position, sentinel in enumerate(order):
            try:
                master = self._ask(*sentinel, deadline.share(len(order) - position))
            except Unavailable as error:
                problems.append(str(error))
                continue
            with self._lock:
                self._order.remove(sentinel)
                self._order.insert(0, sentinel)
            return master
        raise BrokenLinkError("; ".join(problems))

    def close(self) -> None:
        """Close the connections."""
        for _, sentinel in self._order:
            sentinel.close()

    def _ask(self, endpoint: Endpoint, sentinel: Single, deadline: Deadline) -> Endpoint:
        question = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._name)
        (reply,) = sentinel.ask([question], deadline)
        if check(reply, endpoint) is None:
            raise RefusedError(f"Redis Sentinel {endpoint}: knows no master {self._name!r}")
        try:
            host, port = reply
            return Endpoint(host.decode(), int(port))
        except (TypeError, ValueError, AttributeError):
            raise RefusedError(f"Redis Sentinel {endpoint}: names no address") from None


class _MasterPool(Pool):
    """Connections to whoever is the master when they are opened.

    Attributes:
        last: who that was, as far as is known.
    """

    def __init__(self, sentinels: Sentinels, door: Door) -> None:
        super().__init__(Endpoint(), Door(door.login, door.db, door.tls, (_ROLE, *door.greeting)))
        self._sentinels = sentinels
        self.last: Endpoint | None = None

    def open(self, greeting: tuple[Command, ...], deadline: Deadline) -> Link:
        """A Sentinel may not have noticed yet: only who says so itself is the master."""
        endpoint = self._sentinels.master(deadline)
        link = dial(endpoint, self._door.with_greeting(greeting), deadline)
        try:
            role = check(link.greeted.pop(0), endpoint)
            if not isinstance(role, list) or role[:1] != [b"master"]:
                raise BrokenLinkError(f"Redis {endpoint}: is not the master (yet)")
        except Unavailable:
            link.close()
            raise
        self.last = endpoint
        return link


class Master(Single):
    """The master, which is another one after a fail-over.

    Args:
        sentinels: who know it.
        door: how to get in there.
    """

    def __init__(self, sentinels: Sentinels, door: Door) -> None:
        self._masters = _MasterPool(sentinels, door)
        super().__init__(self._masters)
        self._sentinels = sentinels
        self._moved: list[Callable[[], None]] = [self._masters.drop]
        self._ended = threading.Event()
        self._watch = threading.Thread(target=self._run, name="sentinel-watch", daemon=True)
        self._starting = threading.Lock()

    def exchange(
        self, commands: Sequence[Command], deadline: Deadline
    ) -> tuple[list[Reply], str]:
        """See Single."""
        if self._watch.ident is None:
            self._start()
        return super().exchange(commands, deadline)

    def when_moved(self, call: Callable[[], None]) -> None:
        """See Single."""
        self._moved.append(call)

    def close(self) -> None:
        """See Servers."""
        self._ended.set()
        super().close()
        self._sentinels.close()

    def _start(self) -> None:
        with self._starting:
            if self._watch.ident is None:
                self._watch.start()

    def _run(self) -> None:
        """Ask again and again, and leave a master that is none any more."""
        while not self._ended.wait(ASK_EVERY):
            try:
                master = self._sentinels.master(Deadline(ASK_EVERY))
            except Unavailable as error:
                log.get().debug("no Sentinel answers", problem=str(error))
                continue
            if master != self._masters.last:
                self._masters.last = master
                for call in self._moved:
                    call()
