"""A crowd that asks about addresses, so often that the daemon keeps answers (`[store] cache`).

It speaks to the milter itself, past Postfix, as that would take a mail server of many cores. The
rules stay what they are whatever breaks, so each answer is known; instead of it there may be a
451, and nothing else.
"""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable
from typing import Self

from miltertest.client import MilterError

from tests.harness.mta_client import Answer, Mta
from tests.soak.mail import ADDRESSES

SESSIONS = 6  # at a time
TRANSACTIONS = 20  # of one session
UNKNOWN = 0.8  # of the questions: guesses, of which none is like another
SHOWN = 20  # wrong answers that are told
# A catch-all is none for who guesses; what no rule manages is not asked for.
_KINDS = sorted({*ADDRESSES} - {"unknown", "catch-all", "unmanaged"})


class Crowd:
    """Asks from when it is entered until it is left.

    Args:
        address: gives the milter's socket.
        rate: questions a second; 0: nobody asks.
        seed: for chance.

    Attributes:
        asked: how many answers there were.
        wrong: the answers that must not be, in words.
    """

    def __init__(self, address: Callable[[], str], rate: float, seed: int) -> None:
        self.asked = 0
        self.wrong: list[str] = []
        self._address = address
        self._pause = SESSIONS / rate if rate else 0.0
        self._seed = seed
        self._numbers = itertools.count()
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(number,), daemon=True)
            for number in range(SESSIONS if rate else 0)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    def leave(self) -> None:
        """Ask no more."""
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, number: int) -> None:
        chance = random.Random(f"{self._seed} {number}")
        while not self._over.is_set():
            try:
                with Mta(self._address()) as mta:
                    for _ in range(TRANSACTIONS):
                        self._transaction(mta, chance)
            except (OSError, MilterError):  # the daemon is away, or a worker was killed
                self._over.wait(0.1)

    def _transaction(self, mta: Mta, chance: random.Random) -> None:
        due = time.monotonic() + self._pause
        kind = "unknown" if chance.random() < UNKNOWN else chance.choice(_KINDS)
        template, fate = ADDRESSES[kind]
        recipient = template.format(n=f"-guess{next(self._numbers)}")
        mta.mail()
        answer = mta.rcpt(f"<{recipient}>")
        mta.abort()
        self.asked += 1
        if not _fits(answer, fate.refusal) and len(self.wrong) < SHOWN:
            self.wrong.append(f"the crowd asked for {recipient}: {answer}")
        self._over.wait(max(due - time.monotonic(), 0.0))


def _fits(answer: Answer, refusal: str) -> bool:
    text = str(answer)
    return text.startswith("451 ") or (
        text.startswith(refusal) if refusal else answer.kind == "continue"
    )
