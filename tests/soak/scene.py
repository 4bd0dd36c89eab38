"""The lab, with a handle on each of its parts by which it can be broken."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from aliasmilter.store.tracking import LEASE
from tests.harness.daemon import Config, Daemon
from tests.harness.dns import DnsServer
from tests.harness.fake_redis import Proxy
from tests.harness.lab import Lab
from tests.harness.ports import reserved_port
from tests.harness.redis import RedisServer
from tests.harness.signing import key, key_zone, pem
from tests.harness.wait import LabError, wait_until
from tests.soak.mail import RULES, SECRET, Arrival, Posting, arrival, zone_of

STORE_TIMEOUT = 1.0  # seconds, as the daemon has it
REINJECT_TIMEOUT = 3.0
DNS_TIMEOUT = 1.5
PATIENCE = 60.0  # seconds for a part to do what it must; only a machine in trouble needs that

# What is in the store survives its process, and it can be told to sleep.
DURABLE = ["appendonly yes", "enable-debug-command local", "repl-diskless-sync-delay 0"]


class Line(Proxy):
    """A connection that a fault can cut, slow down, or lead elsewhere."""

    def handle_error(self, *_: object) -> None:
        """Nobody at the other end: that is what the client is to see, and no news."""


class CrashingDaemon(Daemon):
    """The daemon, whose supervisor can be killed alone."""

    def crash(self) -> list[int]:
        """Kill the supervisor (SIGKILL), and nobody else.

        Returns:
            Descriptors (pidfd) of its workers, which have to end by themselves.
        """
        workers = [os.pidfd_open(pid) for pid in self.workers]
        if self._guard is not None:
            # It would end the workers, and remove the folder.
            self._guard.kill()
            self._guard.communicate()
            self._guard = None
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        self.process = None
        return workers

    def limit_log(self, octets: int) -> None:
        """Let the log grow to that size: a write beyond fails as on a full disk (EFBIG)."""
        for pid in (self.pid, *self.workers):
            _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (octets, hard))


class Scene(Lab):
    """Redis with a replica, the daemon, Postfix, DNS and the world, all of them breakable.

    Attributes:
        standby: the replica of `redis`.
        to_redis: what lies between the daemon and Redis.
        to_reinject: what lies between the daemon and Postfix's second listener.
        dns: the name server.
        blind: (from, until) in monotonic seconds in which the store could not answer.
        complaints: what was not as it should be, apart from the mail.
    """

    standby: RedisServer
    daemon: CrashingDaemon

    def __init__(self, *, dmarc_fail: str = "reject") -> None:
        self.dns = DnsServer(key_zone("arc.example.net"))
        config: Config = {
            "store": {"timeout": STORE_TIMEOUT},
            "dns": {"nameservers": [self.dns.address], "timeout": DNS_TIMEOUT},
            "arc": {
                "enabled": True, "domain": "example.net", "selector": "arc", "key_file": "arc.pem",
            },
            "authentication": {"dmarc_fail": dmarc_fail},
        }  # fmt: skip
        super().__init__(
            config, reinject=True, secrets=[SECRET], files={"arc.pem": pem(key()).decode()}
        )
        self.blind: list[tuple[float, float]] = []
        self.complaints: list[str] = []
        self._arrivals: list[Arrival] = []
        self._around = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self.dns)
            self.to_redis = stack.enter_context(Line(0))
            self.to_reinject = stack.enter_context(Line(0))
            self.nowhere = stack.enter_context(reserved_port())
            super().__enter__()
            stack.push(super().__exit__)
            self.standby = stack.enter_context(RedisServer(settings=DURABLE))
            self.follow()
            self._around = stack.pop_all()
        return self

    def __exit__(self, *details: Any) -> None:  # noqa: ANN401  # as the stack has them
        self._around.__exit__(*details)

    def make_daemon(self) -> CrashingDaemon:
        """The daemon, with lines to Redis and to the listener that can be cut."""
        with (self.redis.folder / "redis.conf").open("a") as settings:
            settings.writelines(f"{line}\n" for line in DURABLE)
        self.redis.stop()
        self.redis.start()
        self.rules(*RULES)  # before the daemon: it learns what is managed when it starts
        self.to_redis.port = self.redis.port
        self.to_reinject.port = int(str(self.config["reinject"]["server"]).rpartition(":")[2])
        self.config["reinject"] = {
            "server": "127.0.0.1:" + str(self.to_reinject.server_address[1]),
            "timeout": REINJECT_TIMEOUT,
        }
        return CrashingDaemon(
            self.to_redis.url, self.config, secrets=self.secrets, files=self.files
        )

    def announce(self, posting: Posting) -> None:
        """Let DNS know the sender of a message."""
        self.dns.zone.update(zone_of(posting.number))

    @contextmanager
    def blindness(self) -> Iterator[None]:
        """While the block runs, there is nobody who could say what the rules are.

        It begins when nothing that was kept is used any more.
        """
        start = time.monotonic() + LEASE
        yield
        self.blind.append((start, time.monotonic()))

    def follow(self) -> None:
        """Make the standby a replica of the master, and wait until it is in step."""
        for server in (self.redis, self.standby):
            wait_until_loaded(server)
        self.standby.cli("REPLICAOF", "127.0.0.1", str(self.redis.port))
        wait_until(
            lambda: "master_link_status:up" in self.standby.cli("INFO", "replication"),
            "the replica is in step", PATIENCE, self.standby.log_tail,
        )  # fmt: skip

    def fail_over(self) -> None:
        """Promote the standby in the place of a master that is dead."""
        self.standby.cli("REPLICAOF", "NO", "ONE")
        self.redis, self.standby = self.standby, self.redis
        self.to_redis.port = self.redis.port

    def wait_for_workers(self) -> None:
        """Wait until as many workers run as there should."""
        wait_until(lambda: len(self.daemon.workers) >= 2, "two workers", PATIENCE)

    def arrivals(self) -> list[Arrival]:
        """All that the world got so far."""
        self._arrivals += map(arrival, self.world.take())
        return self._arrivals

    def keep_logs(self, folder: Path) -> None:
        """Copy the logs there."""
        services = {"redis": self.redis, "standby": self.standby, "daemon": self.daemon,
                    "postfix": self.postfix}  # fmt: skip
        for name, service in services.items():
            if service.log_file.exists():
                shutil.copy(service.log_file, folder / f"{name}.log")


def wait_until_loaded(server: RedisServer) -> None:
    """Wait until Redis, which listens while it is loading its data, answers."""

    def answers() -> bool:
        with suppress(LabError):
            return server.cli("PING") == "PONG"
        return False

    wait_until(answers, "Redis has loaded its data", PATIENCE, server.log_tail)


def wait_until_stopped(pid: int) -> None:
    """Wait until a process has taken note of SIGSTOP: all its threads stand still."""
    status = Path(f"/proc/{pid}/stat")
    wait_until(
        lambda: status.read_text().rpartition(")")[2].split()[0] == "T", "it stands still", PATIENCE
    )


def wait_until_ended(processes: list[int], timeout: float) -> bool:
    """Wait until the processes (pidfds, which are closed) have ended; kill those that do not.

    Returns:
        Whether all of them ended by themselves.
    """
    deadline = time.monotonic() + timeout
    good = True
    for process in processes:
        while not _has_ended(process):
            if time.monotonic() > deadline:
                good = False
                signal.pidfd_send_signal(process, signal.SIGKILL)
                break
            time.sleep(0.02)
        os.close(process)
    return good


def _has_ended(process: int) -> bool:
    try:
        signal.pidfd_send_signal(process, 0)
    except ProcessLookupError:
        return True
    return False
