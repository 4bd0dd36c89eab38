"""What goes on in a worker, so that it can leave without cutting anybody off."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(slots=True)
class Activity:
    """Counts what is going on; safe for threads.

    Attributes:
        sessions: connections of the MTA that have been negotiated and are open.
        transactions: those that have begun and are neither answered nor given up.
        callbacks: running now.
    """

    sessions: int = 0
    transactions: int = 0
    callbacks: int = 0
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def count(self, *, sessions: int = 0, transactions: int = 0, callbacks: int = 0) -> None:
        """Add to the counts (-1: one less)."""
        with self._changed:
            self.sessions += sessions
            self.transactions += transactions
            self.callbacks += callbacks
            self._changed.notify_all()

    @contextmanager
    def callback(self) -> Iterator[None]:
        """One callback, from its beginning to its end."""
        self.count(callbacks=1)
        try:
            yield
        finally:
            self.count(callbacks=-1)

    def wait_until(self, condition: Callable[["Activity"], bool], timeout: float) -> bool:
        """Wait until it holds; False when it still does not after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        with self._changed:
            return self._changed.wait_for(lambda: condition(self), deadline - time.monotonic())
