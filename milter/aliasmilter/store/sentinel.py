"""The master that Redis Sentinels name, also after a fail-over.

A former master that is still up answers with old rules. So a connection is only taken to who
calls itself master, every failure leads back to the Sentinels, and in between they are asked
every second: there are faults after which the former master, and the way to it, work on.
"""

import threading
import time
from collections.abc import Callable, Sequence

from aliasmilter import log
from aliasmilter.redisurl import Endpoint
from aliasmilter.routing.lookup import Unavailable
from aliasmilter.store.deadline import BrokenLinkError, Deadline, GarbledError
from aliasmilter.store.link import Command, Door, Link, Reply, check, dial
from aliasmilter.store.servers import Pool, Single
from aliasmilter.store.threads import started

ASK_EVERY = 1.0  # seconds
SLOW = 0.1  # seconds; who takes longer to let us in may have missed an election
_ROLE: Command = ("ROLE",)


class Sentinels:
    """Those who know which server is the master.

    Args:
        endpoints: theirs.
        name: what they call the master.
        door: how to get in there.
    """

    def __init__(self, endpoints: Sequence[Endpoint], name: str, door: Door) -> None:
        self._question: Command = ("SENTINEL", "MASTER", name)
        self._servers = {endpoint: Single(Pool(endpoint, door)) for endpoint in endpoints}
        self._silent: frozenset[Endpoint] = frozenset()  # did not answer when last asked

    def master(self, deadline: Deadline, *, patient: bool = False) -> Endpoint:
        """Ask all of them, and believe the one with the latest news.

        After a fail-over it takes the others a while to hear of it.

        Args:
            deadline: for all of them.
            patient: ask also those who did not answer last time, though others have.

        Raises:
            Unavailable: none knows; the message says what each said.
        """
        silent = self._silent
        order = sorted(self._servers, key=silent.__contains__)
        news: list[tuple[int, Endpoint]] = []
        asked: set[Endpoint] = set()
        problems: dict[Endpoint, str] = {}
        for position, sentinel in enumerate(order):
            if news and sentinel in silent and not patient:
                break
            asked.add(sentinel)
            try:
                news.append(self._ask(sentinel, deadline.share(len(order) - position)))
            except Unavailable as error:
                problems[sentinel] = str(error)
        self._silent = (silent - asked) | problems.keys()
        if not news:
            raise BrokenLinkError("; ".join(problems.values()))
        return max(news, key=lambda one: one[0])[1]

    def close(self) -> None:
        """Close the connections."""
        for server in self._servers.values():
            server.close()

    def _ask(self, sentinel: Endpoint, deadline: Deadline) -> tuple[int, Endpoint]:
        """How often there was a new master, and who is it now."""
        (reply,) = self._servers[sentinel].ask([self._question], deadline)
        words = check(reply, sentinel)
        try:
            facts = dict(zip(words[::2], words[1::2], strict=True))
            return int(facts[b"config-epoch"]), Endpoint(
                facts[b"ip"].decode(), int(facts[b"port"])
            )
        except (TypeError, ValueError, KeyError, AttributeError):
            raise GarbledError(f"Redis: {sentinel}: an answer to another question") from None


class _MasterPool(Pool):
    """Connections to whoever is the master when they are opened.

    Attributes:
        moved: what is called when that is another one than before.
    """

    def __init__(self, sentinels: Sentinels, door: Door) -> None:
        super().__init__(Endpoint(), Door(door.login, door.db, door.tls, (_ROLE, *door.greeting)))
        self._sentinels = sentinels
        self._master: Endpoint | None = None
        self._lock = threading.Lock()
        self.moved: list[Callable[[], None]] = [self.drop]

    def follow(self, master: Endpoint) -> None:
        """Take note of who the master is, and leave the former one: its connections may work on."""
        with self._lock:
            if master == self._master:
                return
            self._master = master
        for call in self.moved:
            call()

    def open(self, greeting: tuple[Command, ...], deadline: Deadline) -> Link:
        """A Sentinel may not have noticed yet: only who says so itself is the master.

        Nor is that enough: who hung while another one was elected still believes it is.
        """
        endpoint = self._sentinels.master(deadline)
        self.follow(endpoint)
        asked = time.monotonic()
        link = dial(endpoint, self._door.with_greeting(greeting), deadline)
        try:
            role = check(link.greeted.pop(0), endpoint)
            if not isinstance(role, list) or role[:1] != [b"master"]:
                raise BrokenLinkError(f"Redis: {endpoint}: is not the master (yet)")
            if time.monotonic() - asked > SLOW and self._sentinels.master(deadline) != endpoint:
                raise BrokenLinkError(f"Redis: {endpoint}: is not the master any more")
        except Unavailable:
            link.close()
            raise
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
        self._ended = threading.Event()
        self._watch: threading.Thread | None = None
        self._starting = threading.Lock()

    def exchange(
        self, commands: Sequence[Command], deadline: Deadline
    ) -> tuple[list[Reply], str]:
        """See Single."""
        if self._watch is None:
            self._start()
        return super().exchange(commands, deadline)

    def when_moved(self, call: Callable[[], None]) -> None:
        """See Single."""
        self._masters.moved.append(call)

    def close(self) -> None:
        """See Servers."""
        self._ended.set()
        super().close()
        self._sentinels.close()

    def _start(self) -> None:
        with self._starting:
            self._watch = self._watch or started(self._run, "sentinel-watch")

    def _run(self) -> None:
        """Ask again and again, and leave a master that is none any more."""
        while not self._ended.wait(ASK_EVERY):
            try:
                master = self._sentinels.master(Deadline(ASK_EVERY), patient=True)
            except Unavailable as error:
                log.get().debug("no Sentinel answers", problem=str(error))
                continue
            self._masters.follow(master)
