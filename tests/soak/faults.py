"""What breaks, and how it is mended: a context manager each.

`hold` lets the fault last; a fault that does several things holds several times. What has to be
true of the part itself (a worker is replaced, the others end) is waited for in here.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from tests.harness.daemon import Config
from tests.harness.dns import Fault as DnsFault
from tests.harness.wait import wait_until
from tests.soak.mail import RULES
from tests.soak.scene import (
    PATIENCE,
    STORE_TIMEOUT,
    Scene,
    wait_until_ended,
    wait_until_loaded,
    wait_until_stopped,
)

Strike = Callable[[Scene], AbstractContextManager[None]]


@dataclass(frozen=True)
class Fault:
    """Something that breaks.

    Attributes:
        name: for the account.
        part: "store", "daemon" or "around"; faults of different parts can come together.
        strike: breaks it when entered; mends it when left.
        alone: never together with another one.
    """

    name: str
    part: str
    strike: Strike
    alone: bool = False


FAULTS: dict[str, Fault] = {}


def _fault(
    name: str, part: str, *, alone: bool = False
) -> Callable[[Callable[[Scene], Iterator[None]]], Strike]:
    def register(function: Callable[[Scene], Iterator[None]]) -> Strike:
        strike = contextmanager(function)
        FAULTS[name] = Fault(name, part, strike, alone)
        return strike

    return register


@_fault("redis killed, restarted with its data", "store")
def redis_killed(scene: Scene) -> Iterator[None]:
    """Connections are refused meanwhile."""
    scene.redis.kill()
    with scene.blindness():
        yield
    scene.redis.start()
    wait_until_loaded(scene.redis)


@_fault("redis stands still", "store")
def redis_stopped(scene: Scene) -> Iterator[None]:
    """It accepts connections and says nothing."""
    scene.redis.pause()
    wait_until_stopped(scene.redis.pid)
    with scene.blindness():
        yield
    scene.redis.resume()


@_fault("redis emptied", "store", alone=True)
def redis_emptied(scene: Scene) -> Iterator[None]:
    """Restarted without its data, which somebody loads again later: nothing it says is believed.

    Only workers that have seen the rules know better: not struck together with their end.
    """
    scene.redis.kill()
    shutil.rmtree(scene.redis.folder / "appendonlydir")
    scene.redis.start()
    with scene.blindness():
        yield
    scene.rules(*RULES)


@_fault("redis failed over", "store")
def redis_failed_over(scene: Scene) -> Iterator[None]:
    """The master dies, and after a while its replica takes over; then it comes back as that."""
    scene.follow()
    scene.redis.kill()
    with scene.blindness():
        yield
    scene.fail_over()
    scene.standby.start()
    scene.follow()


@_fault("redis read-only", "store")
def redis_read_only(scene: Scene) -> Iterator[None]:
    """A replica of a master that is not there: answers, but remembers nothing."""
    scene.redis.cli("REPLICAOF", "127.0.0.1", str(scene.nowhere))
    yield
    scene.redis.cli("REPLICAOF", "NO", "ONE")


@_fault("redis refuses stale data", "store")
def redis_masterdown(scene: Scene) -> Iterator[None]:
    """The same, answering MASTERDOWN."""
    scene.redis.cli("CONFIG", "SET", "replica-serve-stale-data", "no")
    scene.redis.cli("REPLICAOF", "127.0.0.1", str(scene.nowhere))
    with scene.blindness():
        yield
    scene.redis.cli("REPLICAOF", "NO", "ONE")
    scene.redis.cli("CONFIG", "SET", "replica-serve-stale-data", "yes")


@_fault("redis slow", "store")
def redis_slow(scene: Scene) -> Iterator[None]:
    """A little, so that short chains of aliases still fit into the time limit."""
    scene.to_redis.delay = STORE_TIMEOUT / 4
    yield
    scene.to_redis.delay = 0.0


@_fault("redis too slow", "store")
def redis_too_slow(scene: Scene) -> Iterator[None]:
    """Each answer comes after the time limit."""
    scene.to_redis.delay = STORE_TIMEOUT * 1.5
    yield
    scene.to_redis.delay = 0.0


@_fault("redis sleeps", "store")
def redis_sleeps(scene: Scene) -> Iterator[None]:
    """One long command after the other, as of somebody who types KEYS *."""
    loop = f"while redis-cli -s {scene.redis.socket} DEBUG SLEEP 0.7 && sleep 0.3; do :; done"
    sleeper = subprocess.Popen(["sh", "-c", loop], stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        sleeper.kill()
        sleeper.wait()


@_fault("a worker killed", "daemon")
def worker_killed(scene: Scene) -> Iterator[None]:
    """SIGKILL."""
    os.kill(scene.daemon.workers[0], signal.SIGKILL)
    yield
    scene.wait_for_workers()


@_fault("all workers killed", "daemon")
def workers_killed(scene: Scene) -> Iterator[None]:
    """SIGKILL, and again as soon as there are new ones."""
    for worker in scene.daemon.workers:
        os.kill(worker, signal.SIGKILL)
    yield
    scene.wait_for_workers()
    for worker in scene.daemon.workers:
        os.kill(worker, signal.SIGKILL)
    scene.wait_for_workers()


@_fault("supervisor killed, restarted", "daemon")
def supervisor_killed(scene: Scene) -> Iterator[None]:
    """SIGKILL for it alone, and a start at once, as systemd would."""
    workers = scene.daemon.crash()
    scene.daemon.start()
    yield
    if not wait_until_ended(workers, PATIENCE):
        scene.complaints.append("workers did not end after their supervisor was killed")


@_fault("supervisor killed, away for a while", "daemon")
def supervisor_away(scene: Scene) -> Iterator[None]:
    """SIGKILL for it alone, and a start later."""
    workers = scene.daemon.crash()
    yield
    if not wait_until_ended(workers, PATIENCE):
        scene.complaints.append("workers did not end after their supervisor was killed")
    scene.daemon.start()


@_fault("stopped and started", "daemon")
def restarted(scene: Scene) -> Iterator[None]:
    """SIGTERM, and a start."""
    status = scene.daemon.stop(PATIENCE)
    if status != 0:
        scene.complaints.append(f"the daemon ended with status {status} after SIGTERM")
    yield
    scene.daemon.start()


@_fault("reloaded", "daemon")
def reloaded(scene: Scene) -> Iterator[None]:
    """SIGHUP, with a new configuration, a broken one, and the old one again."""
    _reload(scene, "reloaded ", {**scene.config, "milter": {"workers": 3}})
    yield
    good = scene.daemon.config_file.read_text()
    before = scene.daemon.log.count("not reloaded")
    scene.daemon.config_file.write_text(good + "\nnonsense = [")
    scene.daemon.reload()
    wait_until(lambda: scene.daemon.log.count("not reloaded") > before, "is refused", PATIENCE)
    _reload(scene, "reloaded ", scene.config)


def _reload(scene: Scene, word: str, config: Config) -> None:
    before = scene.daemon.log.count(f"\n{word}")
    scene.daemon.write_config(config)
    scene.daemon.reload()
    wait_until(
        lambda: scene.daemon.log.count(f"\n{word}") > before, "it reloads", PATIENCE,
        scene.daemon.log_tail,
    )  # fmt: skip


@_fault("disk of the log full", "daemon")
def log_full(scene: Scene) -> Iterator[None]:
    """No line can be written any more."""
    scene.daemon.limit_log(scene.daemon.log_file.stat().st_size)
    yield
    scene.daemon.limit_log(-1)


@_fault("DNS silent", "around")
def dns_silent(scene: Scene) -> Iterator[None]:
    """Mail that leaves waits for it in vain."""
    scene.dns.faults["*"] = DnsFault.SILENCE
    yield
    scene.dns.faults.clear()


@_fault("DNS fails", "around")
def dns_fails(scene: Scene) -> Iterator[None]:
    """SERVFAIL."""
    scene.dns.faults["*"] = DnsFault.SERVFAIL
    yield
    scene.dns.faults.clear()


@_fault("reinject listener gone", "around")
def reinject_gone(scene: Scene) -> Iterator[None]:
    """Connections end at once."""
    port, scene.to_reinject.port = scene.to_reinject.port, scene.nowhere
    yield
    scene.to_reinject.port = port


@_fault("reinject listener slow", "around")
def reinject_slow(scene: Scene) -> Iterator[None]:
    """Each reply takes a while; all of them together longer than a client of ours waits."""
    scene.to_reinject.delay = 0.4
    yield
    scene.to_reinject.delay = 0.0


@_fault("reinject listener hangs", "around")
def reinject_hangs(scene: Scene) -> Iterator[None]:
    """It accepts connections and says nothing in time."""
    scene.to_reinject.delay = 30.0
    yield
    scene.to_reinject.delay = 0.0
