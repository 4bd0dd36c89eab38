"""What is written down beside the mail: counts for people, which no message waits for.

A thread of its own writes; what it cannot write is lost, for a count is no reason to delay or
refuse mail. It starts with the first entry, so it is made after forking.
"""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import structlog

from aliasmilter.routing.lookup import Unavailable
from aliasmilter.store.link import Command
from aliasmilter.store.threads import started

MAX_WAITING = 10_000  # entries
_BATCH = 200  # entries written at once
_COMPLAINT_EVERY = 60.0  # seconds

Entry = Callable[[], Sequence[Command]]
"""Says what to write; called in the journal's thread, where it may take its time."""


class Journal:
    """Writes entries, in their order, sooner or later.

    Args:
        ask: sends commands to the store, and raises Unavailable.
        logger: is told when entries are lost.
    """

    def __init__(
        self,
        ask: Callable[[Sequence[Command]], Any],
        logger: structlog.typing.FilteringBoundLogger,
    ) -> None:
        self._ask = ask
        self._logger = logger
        self._entries: queue.Queue[Entry] = queue.Queue(MAX_WAITING)
        self._start = threading.Lock()
        self._thread: threading.Thread | None = None
        self._lost = 0
        self._complained = -_COMPLAINT_EVERY

    def note(self, entry: Entry) -> bool:
        """Take an entry; False when too many are waiting already. Never waits, never raises."""
        if self._thread is None:
            self._begin()
        try:
            self._entries.put_nowait(entry)
        except queue.Full:
            self._lost += 1
            return False
        return True

    def written(self, timeout: float) -> None:
        """Wait until all that was noted has been written, or lost; `timeout` seconds at most."""
        if self._thread is not None:
            entries = self._entries  # whose `join` knows no time-out
            with entries.all_tasks_done:
                entries.all_tasks_done.wait_for(lambda: not entries.unfinished_tasks, timeout)

    def _begin(self) -> None:
        with self._start:
            self._thread = self._thread or started(self._run, "journal")

    def _run(self) -> None:
        while True:
            batch = [self._entries.get()]
            while len(batch) < _BATCH and not self._entries.empty():
                batch.append(self._entries.get())
            try:
                self._write(batch)
            except Exception:  # whatever an entry came to: the next ones
                self._logger.exception("journal entry failed")
            for _ in batch:
                self._entries.task_done()

    def _write(self, batch: Sequence[Entry]) -> None:
        commands = [command for entry in batch for command in entry()]
        try:
            self._ask(commands)
        except Unavailable as error:
            self._lost += len(batch)
            self._complain(str(error))

    def _complain(self, problem: str) -> None:
        now = time.monotonic()
        if now - self._complained >= _COMPLAINT_EVERY:
            self._complained = now
            self._logger.warning("counts are lost", entries=self._lost, problem=problem)
            self._lost = 0
