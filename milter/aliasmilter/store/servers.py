"""What answers commands: one server, with a pool of connections to it.

Every failure empties the pool: what goes wrong on one connection (a server that hangs, was
replaced or became a replica) is wrong with the others to the same place, and an answer of a
former master would be an old one.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

import hiredis

from aliasmilter.redisurl import Endpoint
from aliasmilter.routing.lookup import Unavailable
from aliasmilter.store.deadline import BrokenLinkError, Deadline
from aliasmilter.store.link import Command, Door, Link, Reply, dial

MAX_IDLE = 64
# What a server says that is no master, or no longer one.
_NOT_THE_MASTER = ("READONLY", "MASTERDOWN", "LOADING")


class Servers(Protocol):
    """What answers commands."""

    def ask(self, commands: Sequence[Command], deadline: Deadline) -> list[Reply]:
        """The replies, in one round trip when nothing is in disorder.

        An error of the server is a reply.

        Raises:
            Unavailable: no answer in time; the message says why.
        """

    def each(self, deadline: Deadline) -> Sequence["Servers"]:
        """The masters, one by one: for commands without a key."""

    def neighbours(self, key: str, keys: Sequence[str]) -> list[str]:
        """Those of the keys that are on the server of this one: lost when that loses its data."""

    def close(self) -> None:
        """Close all connections."""


class Pool:
    """Open connections to one place, as many as are in use at once.

    Args:
        endpoint: the place.
        door: how to get in there.
    """

    def __init__(self, endpoint: Endpoint, door: Door) -> None:
        self._endpoint = endpoint
        self._door = door
        self._idle: deque[Link] = deque()
        self._generation = 0

    def take(self, deadline: Deadline) -> Link:
        """A connection for the caller alone, who gives it back or closes it.

        Raises:
            Unavailable: there is none to be had.
        """
        while True:
            try:
                link = self._idle.pop()
            except IndexError:
                break
            # Whatever lies there already would be taken for the answer to the next question. And
            # who gave it back may have done so while another thread dropped all.
            if link.generation == self._generation and link.is_quiet():
                return link
            link.close()
        generation = self._generation
        link = self.open((), deadline)
        link.generation = generation
        return link

    def open(self, greeting: tuple[Command, ...], deadline: Deadline) -> Link:
        """A connection of the caller's own, which begins with more commands than the door's.

        Raises:
            Unavailable: there is none to be had.
        """
        return dial(self._endpoint, self._door.with_greeting(greeting), deadline)

    def give(self, link: Link) -> None:
        """Take a connection back."""
        if link.generation == self._generation and len(self._idle) < MAX_IDLE:
            self._idle.append(link)
        else:
            link.close()

    def drop(self) -> None:
        """Forget all connections, those in use as soon as they are given back."""
        self._generation += 1
        while True:
            try:
                self._idle.pop().close()
            except IndexError:
                return


class Single:
    """One server at a time, wherever the pool's connections lead."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def ask(self, commands: Sequence[Command], deadline: Deadline) -> list[Reply]:
        """See Servers."""
        return self.exchange(commands, deadline)[0]

    def exchange(
        self, commands: Sequence[Command], deadline: Deadline
    ) -> tuple[list[Reply], str]:
        """As `ask`, and the run id of the server process that answered, where it is known."""
        while True:
            link = self._pool.take(deadline)
            was_used = link.used
            try:
                replies = link.ask(commands, deadline)
            except BrokenLinkError:
                self._pool.drop()
                # It may have died with the last server: a new one shows how things are.
                if not was_used:
                    raise
            except Unavailable:
                self._pool.drop()
                raise
            else:
                self._pool.give(link)
                if any(_is_not_the_master(reply) for reply in replies):
                    self._pool.drop()
                return replies, link.origin

    def open(self, greeting: tuple[Command, ...], deadline: Deadline) -> Link:
        """A connection of the caller's own; see Pool."""
        return self._pool.open(greeting, deadline)

    def when_moved(self, call: Callable[[], None]) -> None:
        """Have `call` called when another server may have taken over. This one stays."""

    def each(self, deadline: Deadline) -> Sequence[Servers]:  # noqa: ARG002
        """See Servers."""
        return [self]

    def neighbours(self, key: str, keys: Sequence[str]) -> list[str]:  # noqa: ARG002
        """See Servers."""
        return list(keys)

    def close(self) -> None:
        """See Servers."""
        self._pool.drop()


def _is_not_the_master(reply: Reply) -> bool:
    return isinstance(reply, hiredis.ReplyError) and str(reply).startswith(_NOT_THE_MASTER)
