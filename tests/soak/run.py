"""A run: mail flows, one thing after the other breaks, and in the end the books are settled.

    python -m tests.soak [--minutes 10] [--seed N] [--rate N] [--only NAME ...]
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from tests.harness.wait import LabTimeoutError
from tests.soak.account import Account
from tests.soak.faults import FAULTS, Fault
from tests.soak.mail import Composer
from tests.soak.scene import PATIENCE, Scene
from tests.soak.stream import Stream, codes

FINISH = 180.0  # seconds for what is left when nothing is broken any more
TOGETHER = 0.25  # how often two things break at once
Say = Callable[[str], None]


@dataclass(frozen=True)
class Struck:
    """One fault as it was: when (seconds from the start), and how long until mail went again."""

    names: tuple[str, ...]
    begun: float
    mended: float
    recovery: float


@dataclass
class Run:
    """Breaks things while mail flows.

    Attributes:
        scene: the lab.
        stream: the mail.
        say: told what happens.
        struck: the faults so far.
    """

    scene: Scene
    stream: Stream
    say: Say = lambda _: None
    struck: list[Struck] = field(default_factory=list)
    _start: float = field(default_factory=time.monotonic)

    def strike(self, faults: Sequence[Fault], *, attempts: int, seconds: float = 0.0) -> None:
        """Break those parts, for so many transactions and so long at least; mend, and recover."""
        names = tuple(fault.name for fault in faults)
        begun = self._now()
        with ExitStack() as stack:
            for fault in faults:
                stack.enter_context(fault.strike(self.scene))
            self._hold(attempts, seconds)
        mended = self._now()
        recovery = self._recover(" and ".join(names))
        self.struck.append(Struck(names, begun, mended, recovery))
        self.scene.arrivals()
        self.say(f"{begun:7.1f} s  {' and '.join(names)}: {mended - begun:.1f} s, "
                 f"mail goes again after {recovery:.1f} s")  # fmt: skip

    def settle(self) -> Account:
        """Let all come to its end, and settle the books."""
        if not self.stream.finish(FINISH):
            self.scene.complaints.append(f"{len(self.stream.open)} messages are never done with")
        try:
            self.scene.settle(PATIENCE)
        except LabTimeoutError as error:
            self.scene.complaints.append(str(error))
        complaints = [*self.scene.complaints, *_exceptions(self.scene.daemon.log)]
        return Account(
            self.stream.postings,
            self.stream.attempts,
            self.scene.arrivals(),
            self.scene.blind,
            complaints,
        )

    def keep(self, folder: Path, account: Account) -> None:
        """Write there what is needed to find out what happened."""
        self.scene.keep_logs(folder)
        lines = (json.dumps(line) for line in self._journal())
        (folder / "transactions.jsonl").write_text("\n".join(lines) + "\n")
        faults = (json.dumps(struck.__dict__) for struck in self.struck)
        (folder / "faults.jsonl").write_text("\n".join(faults) + "\n")
        arrived = (json.dumps(copy.__dict__) for copy in self.scene.arrivals())
        (folder / "arrivals.jsonl").write_text("\n".join(arrived) + "\n")
        (folder / "problems.txt").write_text("".join(f"{entry}\n" for entry in account.entries))

    def _journal(self) -> Iterator[dict[str, object]]:
        for attempt in self.stream.attempts:
            yield {
                "number": attempt.number,
                "kind": self.stream.postings[attempt.number].kind,
                "asked": [round(a.asked - self._start, 3) for a in attempt.answers.values()],
                "rcpt": codes(attempt),
                "data": str(attempt.data) if attempt.data is not None else None,
                "trouble": attempt.trouble,
            }

    def _now(self) -> float:
        return time.monotonic() - self._start

    def _hold(self, attempts: int, seconds: float) -> None:
        end = time.monotonic() + seconds
        self.stream.wait_for_attempts(attempts, 2 * PATIENCE)
        time.sleep(max(end - time.monotonic(), 0.0))

    def _recover(self, what: str) -> float:
        """Wait until mail is accepted again; seconds that it took."""
        mended = time.monotonic()
        while not self.stream.accepted_since(mended):
            if time.monotonic() > mended + PATIENCE:
                self.scene.complaints.append(f"after {what}: no mail in {PATIENCE:g} s")
                break
            time.sleep(0.02)
        return time.monotonic() - mended


def make_stream(scene: Scene, seed: int, rate: float, clients: int) -> Stream:
    """The stream of mail for a scene."""
    return Stream(
        scene.postfix.port,
        Composer(seed),
        scene.announce,
        rate=rate,
        clients=clients,
        seed=seed,
    )


def at_random(seed: int, names: Iterable[str]) -> Iterator[list[Fault]]:
    """Faults without end: each in turn, in an order by chance, sometimes two of different parts."""
    chance = random.Random(seed)
    chosen = [FAULTS[name] for name in names]
    while True:
        bag = chance.sample(chosen, len(chosen))
        for fault in bag:
            others = [o for o in chosen if o.part != fault.part and not (o.alone or fault.alone)]
            both = others and chance.random() < TOGETHER
            yield [fault, chance.choice(others)] if both else [fault]


def _exceptions(log: str) -> list[str]:
    """What the daemon did not foresee."""
    count = log.count("Traceback")
    return [f"{count} exceptions in the daemon's log"] if count else []
