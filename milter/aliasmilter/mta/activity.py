"""What goes on in a worker, so that it can leave without cutting anybody off."""

import threading
import time
from collections.abc import Callable
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
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _waiting: threading.Condition | None = None

    def count(self, *, sessions: int = 0, transactions: int = 0, callbacks: int = 0) -> None:
        """Add to the counts (-1: one less)."""
        with self._lock:
            self.sessions += sessions
            self.transactions += transactions
            self.callbacks += callbacks
            if self._waiting:
                self._waiting.notify_all()

    def wait_until(self, condition: Callable[["Activity"], bool], timeout: float) -> bool:
        """Wait until it holds; False when it still does not after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        with self._lock:
            self._waiting = self._waiting or threading.Condition(self._lock)
            return self._waiting.wait_for(lambda: condition(self), deadline - time.monotonic())
