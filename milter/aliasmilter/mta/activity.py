"""What goes on in a worker, so that it can leave without cutting anybody off."""

import time
from collections.abc import Callable
from dataclasses import dataclass

_LOOK_EVERY = 0.02  # seconds


@dataclass(slots=True, eq=False)
class Part:
    """What one connection of the MTA does; its own thread says so, without a lock.

    Attributes:
        in_transaction: one has begun and is neither answered nor given up.
        in_callback: one that asks others, and must not be cut short, runs now.
    """

    in_transaction: bool = False
    in_callback: bool = False


class Activity:
    """Knows the connections that are open (and, for milters, negotiated). For any thread."""

    def __init__(self) -> None:
        self._parts: set[Part] = set()

    def begin(self) -> Part:
        """A connection begins."""
        part = Part()
        self._parts.add(part)
        return part

    def end(self, part: Part) -> None:
        """A connection is over."""
        self._parts.discard(part)

    @property
    def sessions(self) -> int:
        """How many connections there are."""
        return len(self._parts)

    @property
    def transactions(self) -> int:
        """How many transactions are under way."""
        return sum(part.in_transaction for part in list(self._parts))

    @property
    def callbacks(self) -> int:
        """How many callbacks run that must not be cut short."""
        return sum(part.in_callback for part in list(self._parts))

    def wait_until(self, condition: Callable[["Activity"], bool], timeout: float) -> bool:
        """Wait until it holds; False when it still does not after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while not condition(self):
            if time.monotonic() >= deadline:
                return False
            time.sleep(_LOOK_EVERY)
        return True
