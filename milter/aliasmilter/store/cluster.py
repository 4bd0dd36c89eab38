"""A Redis Cluster: every key on the node that serves its slot.

The commands for all nodes are sent before the first reply is read, so that a lookup is one round
trip in parallel. Which node serves which slot is learnt from any of them, and again when one
says that a slot has moved or does not answer (Redis Cluster specification, "Redirection and
resharding").
"""

import binascii
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import hiredis

from aliasmilter.redisurl import Endpoint
from aliasmilter.routing.lookup import Unavailable
from aliasmilter.store.deadline import (
    BrokenLinkError,
    Deadline,
    GarbledError,
    LateError,
    RefusedError,
)
from aliasmilter.store.link import Command, Door, Link, Reply, check, pack
from aliasmilter.store.servers import Pool, Servers, Single

SLOTS = 16_384
MAX_REDIRECTIONS = 5  # of one command; each is a round trip within the same deadline

_ASKING: Command = ("ASKING",)
_MAP: Command = ("CLUSTER", "SLOTS")  # CLUSTER SHARDS is newer than many servers


@dataclass(slots=True)
class _Errand:
    """A command on its way.

    Attributes:
        command: what is asked.
        slot: of its key.
        node: who is asked, or is to be asked next.
        asking: the slot is on its way to that node (ASK), which has to be told so.
        reply: what was answered.
        failure: why nothing was answered.
        was_used: the connection that failed had worked before, so another one may do.
    """

    command: Command
    slot: int
    node: Endpoint
    asking: bool = False
    reply: Reply = None
    failure: Unavailable | None = None
    was_used: bool = False


class Cluster:
    """All the masters of a Cluster.

    Args:
        seeds: some nodes, which are asked who else there is.
        door: how to get in at a node.
    """

    def __init__(self, seeds: Sequence[Endpoint], door: Door) -> None:
        self._seeds = tuple(seeds)
        self._door = door
        self._pools: dict[Endpoint, Pool] = {}
        self._slots: list[Endpoint | None] = []
        self._suspects: set[Endpoint] = set()
        self._lock = threading.Lock()

    def ask(self, commands: Sequence[Command], deadline: Deadline) -> list[Reply]:
        """See Servers. The second word of each command is its key."""
        slots = self._slots or self._learn(self._slots, deadline)
        errands = []
        for command in commands:
            slot = key_slot(command[1])
            errands.append(_Errand(command, slot, self._owner(slots, slot)))
        waiting: Sequence[_Errand] = errands
        for _ in range(MAX_REDIRECTIONS):
            self._run(waiting, deadline)
            waiting = self._redirected(waiting, deadline)
            if not waiting:
                return [errand.reply for errand in errands]
        raise RefusedError(f"Redis: {waiting[0].node}: redirected too often: {waiting[0].reply}")

    def each(self, deadline: Deadline) -> Sequence[Servers]:
        """See Servers."""
        slots = self._learn(self._slots, deadline)
        return [Single(self._pool(node)) for node in dict.fromkeys(slots) if node]

    def neighbours(self, key: str, keys: Sequence[str]) -> list[str]:
        """See Servers."""
        slots = self._slots
        if not slots:
            return []
        node = slots[key_slot(key)]
        return [other for other in keys if slots[key_slot(other)] == node]

    def close(self) -> None:
        """See Servers."""
        for pool in list(self._pools.values()):
            pool.drop()

    def _run(self, errands: Sequence[_Errand], deadline: Deadline) -> None:
        """Send every node all that it is to be asked, and only then hear the answers."""
        by_node: dict[Endpoint, list[_Errand]] = {}
        for errand in errands:
            by_node.setdefault(errand.node, []).append(errand)
        sent: list[tuple[Link, list[_Errand]]] = []
        try:
            for node, group in by_node.items():
                if link := self._send(node, group, deadline):
                    sent.append((link, group))
            while sent:
                self._hear(*sent[-1], deadline)
                sent.pop()
        finally:
            for link, _ in sent:  # what they say next would be taken for another answer
                link.close()

    def _send(self, node: Endpoint, group: Sequence[_Errand], deadline: Deadline) -> Link | None:
        commands: list[Command] = []
        for errand in group:
            commands += [_ASKING, errand.command] if errand.asking else [errand.command]
        was_used = False
        try:
            link = self._pool(node).take(deadline)
            was_used = link.used
            link.send(pack(commands), deadline)
        except Unavailable as error:
            self._failed(node, group, error, was_used=was_used)
            return None
        return link

    def _hear(self, link: Link, group: Sequence[_Errand], deadline: Deadline) -> None:
        was_used = link.used
        try:
            replies = iter(link.receive(len(group) + sum(e.asking for e in group), deadline))
        except Unavailable as error:
            self._failed(link.endpoint, group, error, was_used=was_used)
            return
        self._pool(link.endpoint).give(link)
        for errand in group:
            if errand.asking:
                next(replies)  # +OK, or an error that the next reply shows as well
            errand.reply, errand.failure = next(replies), None

    def _failed(
        self, node: Endpoint, group: Sequence[_Errand], error: Unavailable, *, was_used: bool
    ) -> None:
        """Note what went wrong; raises what no other connection could mend in time."""
        self._pool(node).drop()
        if not isinstance(error, BrokenLinkError):
            # It hangs: whoever comes next asks the others first who has taken its place.
            self._suspects.add(node)
            self._slots = []
            raise error
        for errand in group:
            errand.failure, errand.was_used = error, was_used

    def _redirected(self, errands: Sequence[_Errand], deadline: Deadline) -> list[_Errand]:
        """Those that have to be run again, elsewhere."""
        failed = [errand for errand in errands if errand.failure]
        if failed:
            self._suspects.update(e.node for e in failed if not e.was_used)
            slots = self._learn(self._slots, deadline)
            for errand in failed:
                self._try_again(errand, self._owner(slots, errand.slot))
        return failed + [e for e in errands if not e.failure and self._moved(e)]

    def _try_again(self, errand: _Errand, node: Endpoint) -> None:
        if errand.failure and node == errand.node and not errand.was_used:
            raise errand.failure
        errand.node, errand.asking = node, False

    def _moved(self, errand: _Errand) -> bool:
        """Whether the node sent us to another one: `MOVED SLOT HOST:PORT`, or `ASK ...`."""
        if not isinstance(errand.reply, hiredis.ReplyError):
            return False
        kind, _, rest = str(errand.reply).partition(" ")
        if kind not in ("MOVED", "ASK"):
            return False
        host, _, port = rest.partition(" ")[2].rpartition(":")
        if not port.isdigit():
            return False
        # No host: the same one, as seen from here.
        errand.node = Endpoint(host or errand.node.host, int(port))
        errand.asking = kind == "ASK"
        if kind == "MOVED" and (slots := self._slots):
            slots[errand.slot] = errand.node
        return True

    def _learn(self, known: Sequence[Endpoint | None], deadline: Deadline) -> list[Endpoint | None]:
        """Ask who serves which slot, unless another thread has done so meanwhile.

        Args:
            known: what turned out to be wrong.
            deadline: for this too.

        Raises:
            Unavailable: nobody says; the message tells what each said.
        """
        if not self._lock.acquire(timeout=deadline.left):
            raise LateError(f"Redis: no answer within {deadline.limit:g} s")
        try:
            if self._slots is not known and self._slots:
                return self._slots
            self._slots = slots = self._ask_around(deadline)
            return slots
        finally:
            self._lock.release()

    def _ask_around(self, deadline: Deadline) -> list[Endpoint | None]:
        nodes = list(dict.fromkeys((*list(self._pools), *self._seeds)))
        nodes.sort(key=self._suspects.__contains__)
        problems = []
        for position, node in enumerate(nodes):
            try:
                slots = self._map_of(node, deadline.share(len(nodes) - position))
            except Unavailable as error:
                self._suspects.add(node)
                problems.append(str(error))
                continue
            self._suspects.discard(node)
            self._forget_all_but(slots)
            return slots
        raise BrokenLinkError("; ".join(problems))

    def _map_of(self, node: Endpoint, deadline: Deadline) -> list[Endpoint | None]:
        (reply,) = Single(self._pool(node)).ask([_MAP], deadline)
        slots: list[Endpoint | None] = [None] * SLOTS
        try:
            for first, last, master, *_ in check(reply, node):
                host = (master[0] or b"").decode()
                owner = Endpoint(host if host not in ("", "?") else node.host, int(master[1]))
                slots[first : last + 1] = [owner] * (last + 1 - first)
        except (TypeError, ValueError, IndexError, AttributeError):
            raise GarbledError(f"Redis: {node}: an answer to another question") from None
        if len(slots) != SLOTS:
            raise GarbledError(f"Redis: {node}: a slot that there is not")
        return slots

    def _forget_all_but(self, slots: Sequence[Endpoint | None]) -> None:
        masters = set(slots)
        for node in list(self._pools):
            if node not in masters:
                self._pools.pop(node).drop()
        self._suspects &= {*self._pools, *self._seeds}

    def _owner(self, slots: Sequence[Endpoint | None], slot: int) -> Endpoint:
        node = slots[slot]
        if node is None:
            self._slots = []  # it is somebody's, soon
            raise RefusedError(f"Redis: nobody in the Cluster serves slot {slot}")
        return node

    def _pool(self, node: Endpoint) -> Pool:
        pool = self._pools.get(node)
        return pool or self._pools.setdefault(node, Pool(node, self._door))


def key_slot(key: str | bytes | int) -> int:
    """The slot of a key: CRC16 of it, or of what stands in its first braces."""
    data = key if isinstance(key, bytes) else str(key).encode()
    _, opened, rest = data.partition(b"{")
    tag, closed, _ = rest.partition(b"}")
    if opened and closed and tag:
        data = tag
    return binascii.crc_hqx(data, 0) % SLOTS
