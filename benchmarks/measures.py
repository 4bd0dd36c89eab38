"""What is measured; README.md says why and how in words."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

from benchmarks import scene
from benchmarks.load import ACCEPTED, REJECTED, Load, run_load
from benchmarks.machine import Watch, cpu_count, rsa_limit
from benchmarks.memory import forget_peak, private, resident
from benchmarks.postfix import ALIAS_MAP, Setup, delivered
from benchmarks.scene import Bare
from benchmarks.stack import replaced, require_work, why_no_stack
from benchmarks.table import QUIET, Pairs, Row
from tests.harness.daemon import Daemon
from tests.harness.dns import DnsServer
from tests.harness.redis import RedisServer

STAYS, LEAVES = "<sales@example.com>", "<out@example.com>"
NOBODY = "<user%ld@example.com>"
SENDER = f"<alice@{scene.bank(1)}>"
# Postfix opens a connection for each SMTP session, and most of these bring one message.
SESSIONS = {"": 50, ", one a session": 1}
BIG = 50_000_000
MANY_RULES = 1_000_000


@dataclass
class Bench:
    """The servers that all measurements share, and how long they take.

    Attributes:
        folder: for messages.
        redis: holds scene.RULES.
        dns: knows all senders.
        quick: a tenth of everything, to see that it runs.
    """

    folder: Path
    redis: RedisServer
    dns: DnsServer
    quick: bool

    def __post_init__(self) -> None:
        self.workers = cpu_count()
        self.rounds = 2 if self.quick else 5
        self.seconds = 1.0 if self.quick else 3.0
        self.deliveries = 300 if self.quick else 4_000
        self.small = scene.write_messages(self.folder, 2_048, 100)
        self.medium = scene.write_messages(self.folder, 50_000, 20)

    @contextmanager
    def milter(
        self, *, workers: int = 0, inet: bool = False, cache: bool = True
    ) -> Iterator[Daemon]:
        """alias-milter, warm: its caches filled, its code run."""
        with scene.milter(
            workers=workers or self.workers, inet=inet, cache=cache, redis=self.redis, dns=self.dns
        ) as daemon:
            for recipient in (LEAVES, STAYS):
                self.load(daemon.socket, recipient, self.small, seconds=0.5)
            yield daemon

    def load(
        self, socket: str, recipient: str, messages: Sequence[Path], **options: object
    ) -> Load:
        """One load, the work of which is checked."""
        options = {"seconds": self.seconds, "sender": SENDER, **options}
        done = run_load(socket, messages, recipients=[recipient], **options)  # type: ignore[arg-type]
        if recipient == LEAVES:
            return done.require(ACCEPTED, deleted=1, added=1, inserted=4, sender=1)
        if recipient == STAYS:
            return done.require(ACCEPTED, deleted=1, added=1, inserted=1)
        return done.require(REJECTED)

    def rate(self, socket: str, recipient: str, per_connection: int = 50) -> float:
        """Messages of 2 KB a second; so many go over one connection."""
        return self.load(socket, recipient, self.small, per_connection=per_connection).rate

    def pairs(self, ours: Callable[[], float], reference: Callable[[], float]) -> Pairs:
        """Both, in turn."""
        found = []
        for _ in range(self.rounds):
            watch = Watch()
            found.append((ours(), reference(), watch.others()))
        return Pairs(*zip(*found, strict=True)).quiet()


def forward(bench: Bench) -> Iterator[Row]:
    """Mail that leaves, against what the processors can sign."""
    with bench.milter() as daemon:
        for name, messages, goal in (("2 KB", bench.small, 0.75), ("50 KB", bench.medium, 0.6)):
            pairs = bench.pairs(
                lambda messages=messages: bench.load(daemon.socket, LEAVES, messages).rate,  # type: ignore[misc]
                lambda: rsa_limit(1) / 2,
            )
            yield pairs.row(f"forward with SRS and ARC, {name}", goal, "RSA limit, 2 a message")


def stays(bench: Bench) -> Iterator[Row]:
    """An alias that stays, against a filter that makes the same edits."""
    with bench.milter() as daemon, Bare(bench.workers) as bare:
        for name, messages in SESSIONS.items():
            pairs = bench.pairs(
                partial(bench.rate, daemon.socket, STAYS, messages),
                partial(bench.rate, bare.socket, STAYS, messages),
            )
            yield pairs.row(f"alias that stays, 2 KB{name}", 0.6, "bare filter")


def rejects(bench: Bench) -> Iterator[Row]:
    """A dictionary attack, against a filter that refuses without looking."""
    with bench.milter() as daemon, Bare(bench.workers) as bare:
        for name, messages in SESSIONS.items():
            pairs = bench.pairs(
                partial(bench.rate, daemon.socket, NOBODY, messages),
                partial(bench.rate, bare.socket, "<user%ld@unknown.example>", messages),
            )
            yield pairs.row(f"unknown recipient{name}", 0.7, "bare filter")


def inet(bench: Bench) -> Iterator[Row]:
    """Latency over TCP, against that over a unix socket."""
    with bench.milter() as unix, bench.milter(inet=True) as tcp:

        def latency(daemon: Daemon) -> float:
            return bench.load(daemon.socket, STAYS, bench.small, connections=1).p50

        pairs = bench.pairs(lambda: latency(tcp), lambda: latency(unix))
    ratio = median(pairs.ratios)
    figures = [f"{median(each):.2f} ms" for each in (pairs.ours, pairs.reference)]
    yield Row(
        "inet socket, median latency", figures[0], f"unix: {figures[1]}", ratio, 1.5,
        at_most=True, disturbed=pairs.disturbed,
    )  # fmt: skip


def memory(bench: Bench) -> Iterator[Row]:
    """What a worker takes, whether it grows, and what a big message costs."""
    with bench.milter(workers=1) as daemon:
        (worker,) = daemon.workers
        count = 10_000 if bench.quick else 100_000
        # The first tenth fills caches and the allocator's free lists.
        for part, recipient in ((0.05, STAYS), (0.05, LEAVES)):
            bench.load(daemon.socket, recipient, bench.small, count=int(count * part), seconds=120)
        before = private(worker)
        for part, recipient in ((0.6, STAYS), (0.2, NOBODY), (0.1, LEAVES)):
            bench.load(daemon.socket, recipient, bench.small, count=int(count * part), seconds=300)
        after = private(worker)
        yield Row(
            "memory, private to a worker", f"{after:.1f} MB", "60 MB", after / 60, 1.0, at_most=True
        )
        yield Row(
            f"memory after {count:,} messages", f"{after:.1f} MB",
            f"a tenth of them: {before:.1f} MB", after / before, 1.05, at_most=True,
        )  # fmt: skip
        big = bench.folder / "big.eml"
        big.write_bytes(scene.message(0, BIG, sign=False))
        for recipient, goal, name in ((STAYS, 0.1, "stays"), (LEAVES, 3.0, "leaves")):
            cost = _peak(bench, daemon, worker, recipient, big)
            yield Row(
                f"memory, a 50 MB message that {name}", f"{cost:.1f} MB more", "50 MB",
                cost * 1e6 / BIG, goal, at_most=True,
            )  # fmt: skip


def _peak(bench: Bench, daemon: Daemon, worker: int, recipient: str, message: Path) -> float:
    """Megabytes that the message takes at most."""
    forget_peak(worker)
    before = resident(worker)
    bench.load(daemon.socket, recipient, [message], count=1, connections=1, seconds=60)
    return resident(worker, "VmHWM") - before


def postfix(bench: Bench) -> Iterator[Row]:
    """Delivered messages through a whole Postfix."""
    with bench.milter() as daemon:
        pairs = _delivered(bench, Setup(daemon.endpoint, {}), Setup("", ALIAS_MAP))
    yield pairs.row("whole Postfix, forward with SRS and ARC", 0.6, "Postfix with an alias map")


def stack(bench: Bench) -> Iterator[Row]:
    """Delivered messages through a whole Postfix, against the daemons that we replace."""
    path, goal = "whole Postfix, the stack it replaces", 1.0
    if reason := why_no_stack():
        yield Row(path, f"not measured: {reason}", "", None, goal)
        return
    with bench.milter() as daemon, replaced(bench.dns) as (theirs, rspamd):
        ours = Setup(daemon.endpoint, {})
        for setup in (ours, theirs):
            require_work(setup, bench.small[1], bench.dns)
        pairs = _delivered(bench, ours, theirs)
        rspamd.require(bench.rounds * bench.deliveries)
    yield pairs.row(path, goal, "alias map, PostSRSd, rspamd")


def _delivered(bench: Bench, ours: Setup, reference: Setup) -> Pairs:
    """Both, in turn."""
    found = []
    for _ in range(bench.rounds):
        mine, others = delivered(ours, bench.small[1], bench.deliveries)
        theirs, more = delivered(reference, bench.small[1], bench.deliveries)
        found.append((mine, theirs, max(others, more)))
    return Pairs(*zip(*found, strict=True)).quiet()


def growth(bench: Bench) -> Iterator[Row]:
    """Cost against the number of rules, the size of a message and the number of recipients."""
    yield from _rules(bench)
    with bench.milter(workers=1) as daemon:
        yield _size(bench, daemon)
        yield _recipients(bench, daemon)


def _rules(bench: Bench) -> Iterator[Row]:
    count = MANY_RULES // 10 if bench.quick else MANY_RULES
    with RedisServer() as redis:
        redis.cli(stdin="\n".join(scene.RULES) + "\n")
        many = Bench.__new__(Bench)
        many.__dict__.update(bench.__dict__, redis=redis)
        _load_rules(redis, count)
        for name, cache in (("asked of Redis", False), ("answers kept", True)):
            with bench.milter(cache=cache) as little, many.milter(cache=cache) as much:
                if cache:
                    _until_kept(many, much)
                pairs = bench.pairs(
                    partial(bench.rate, much.socket, NOBODY),
                    partial(bench.rate, little.socket, NOBODY),
                )
            yield pairs.row(f"lookups with {count:,} rules, {name}", 0.9, "with 10")


def _until_kept(bench: Bench, daemon: Daemon) -> None:
    """Guess addresses until every worker has paid for the rules of the domain, and read them."""
    for _ in range(60):
        before = _questions(bench.redis)
        guesses = bench.load(daemon.socket, NOBODY, bench.small, seconds=1.0).messages
        if _questions(bench.redis) - before < guesses / 100:
            return
    raise RuntimeError("Redis is still asked for each address after a minute of guesses")


def _questions(redis: RedisServer) -> int:
    """How often Redis was asked for rules."""
    found = re.search(r"cmdstat_hmget:calls=(\d+)", redis.cli("INFO", "commandstats"))
    return int(found[1]) if found else 0


def _load_rules(redis: RedisServer, count: int) -> None:
    """So many rules in the same domain, by redis-cli --pipe."""
    command = "HSET alias:example.com filler{} bob@example.com\r\n"
    lines = (command.format(number) for number in range(count))
    subprocess.run(
        ["redis-cli", "-s", str(redis.socket), "--pipe"],
        input="".join(lines).encode(), check=True, capture_output=True, timeout=300,
    )  # fmt: skip


def _size(bench: Bench, daemon: Daemon) -> Row:
    """Milliseconds a megabyte, of a big message against a tenth of it."""
    watch = Watch()
    times = {}
    for size in (1_000_000, 10_000_000):
        path = bench.folder / f"{size}.eml"
        path.write_bytes(scene.message(0, size, sign=False))
        count = 5 * bench.rounds
        done = bench.load(daemon.socket, LEAVES, [path], count=count, connections=1, seconds=60)
        times[size] = done.p50 / (size / 1e6)
    small, big = times.values()
    return Row(
        "10 MB that leave, a megabyte", f"{big:.1f} ms", f"of 1 MB: {small:.1f} ms",
        big / small, 1.5, at_most=True, disturbed=watch.others() > QUIET,
    )  # fmt: skip


def _recipients(bench: Bench, daemon: Daemon) -> Row:
    """Milliseconds a recipient, of many recipients against few."""
    rules = " ".join(f"many{number} to{number}@example.com" for number in range(1000))
    mailboxes = " ".join(f"to{number} to{number}@example.com" for number in range(1000))
    bench.redis.cli(stdin=f"HSET alias:example.com {rules}\nHSET alias:example.com {mailboxes}\n")
    watch = Watch()
    times = {}
    for count in (100, 1000):
        names = [f"<many{number}@example.com>" for number in range(count)]
        done = run_load(
            daemon.socket, bench.small, recipients=names, connections=1,
            count=3 * bench.rounds, seconds=60, sender=SENDER,
        )  # fmt: skip
        done.require(ACCEPTED, deleted=count, added=count, inserted=1)
        times[count] = done.p50 / count
    few, many = times.values()
    return Row(
        "1,000 recipients, each", f"{many:.3f} ms", f"of 100: {few:.3f} ms",
        many / few, 1.5, at_most=True, disturbed=watch.others() > QUIET,
    )  # fmt: skip


def curve(bench: Bench) -> dict[str, list[tuple[int, float]]]:
    """Messages a second against connections, by path; for the picture."""
    paths = {"leaves": LEAVES, "stays": STAYS, "unknown recipient": NOBODY}
    found: dict[str, list[tuple[int, float]]] = {name: [] for name in paths}
    with bench.milter() as daemon:
        for name, recipient in paths.items():
            for connections in (1, 2, 4, 8, 16, 32):
                done = bench.load(
                    daemon.socket, recipient, bench.small,
                    connections=connections, seconds=bench.seconds / 2,
                )  # fmt: skip
                found[name].append((connections, done.rate))
    return found


MEASURES: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "forward": forward,
    "stays": stays,
    "rejects": rejects,
    "inet": inet,
    "memory": memory,
    "postfix": postfix,
    "stack": stack,
    "growth": growth,
}
