"""A master, its replica, and the Redis Sentinels that watch them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from tests.harness.ports import accepts, reserved_port
from tests.harness.redis import RedisServer
from tests.harness.service import Service
from tests.harness.wait import wait_until

NAME = "rules"  # what the Sentinels call the master


class Sentinel(Service):
    """`redis-server --sentinel`, watching one master.

    Args:
        master: who that is.
        quorum: how many have to agree that it is down.
        password: of the Sentinel itself.
    """

    name = "sentinel"

    def __init__(self, master: RedisServer, quorum: int, password: str | None = None) -> None:
        self.master = master
        self.quorum = quorum
        self.password = password
        self.port = 0

    def prepare(self, stack: ExitStack) -> None:
        """Take the port and write sentinel.conf, which the Sentinel rewrites."""
        self.port = stack.enter_context(reserved_port())
        host, _, port = self.master.endpoint.rpartition(":")
        lines = [
            "bind 127.0.0.1", f"dir {self.folder}",
            f"sentinel monitor {NAME} {host} {port} {self.quorum}",
            f"sentinel down-after-milliseconds {NAME} 400",
            f"sentinel failover-timeout {NAME} 2000",
        ]  # fmt: skip
        if self.master.password is not None:
            lines.append(f'sentinel auth-pass {NAME} "{self.master.password}"')
        if self.password is not None:
            lines.append(f'requirepass "{self.password}"')
            lines.append(f'sentinel sentinel-pass "{self.password}"')
        if self.master.tls:
            certificate, key = self.master.ca_file, self.master.folder / "redis.key"
            lines += [
                "port 0", f"tls-port {self.port}", "tls-auth-clients no", "tls-replication yes",
                f"tls-cert-file {certificate}", f"tls-key-file {key}",
                f"tls-ca-cert-file {self.master.ca_file}",
            ]  # fmt: skip
        else:
            lines.append(f"port {self.port}")
        (self.folder / "sentinel.conf").write_text("".join(f"{line}\n" for line in lines))

    def command(self) -> Sequence[str]:
        """The same program as the server."""
        return ["redis-server", str(self.folder / "sentinel.conf"), "--sentinel"]

    def is_ready(self) -> bool:
        """Whether it takes connections."""
        return accepts(self.port)

    def cli(self, *args: str) -> str:
        """Run redis-cli against it."""
        tls = ["--tls", "--cacert", str(self.master.ca_file)] if self.master.tls else []
        login = [] if self.password is None else ["-a", self.password, "--no-auth-warning"]
        run = subprocess.run(
            ["redis-cli", "-p", str(self.port), *tls, *login, *args],
            capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
        return run.stdout


@dataclass(frozen=True)
class Watched:
    """Two servers, the first of which begins as the master, and their Sentinels."""

    servers: tuple[RedisServer, RedisServer]
    sentinels: tuple[Sentinel, ...]

    @property
    def url(self) -> str:
        """The URL as `[store] url` has it."""
        return self.url_with()

    def url_with(self, *, login: str = "", scheme: str = "redis", options: str = "") -> str:
        """The URL with what else it may have."""
        hosts = ",".join(f"127.0.0.1:{s.port}" for s in self.sentinels)
        return f"{scheme}+sentinel://{login}{hosts}/{NAME}/0{options}"

    @property
    def master_port(self) -> int:
        """Who the first Sentinel that runs calls the master."""
        first = next(s for s in self.sentinels if s.running)
        lines = first.cli("SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME).split()
        return int(lines[1]) if len(lines) == 2 else 0

    def wait_for_replica(self) -> None:
        """Wait until the replica has what was written to the master."""
        master, replica = self.servers
        wait_until(
            lambda: master.cli("DBSIZE") == replica.cli("DBSIZE"),
            "the replica has it", 20, replica.log_tail,
        )  # fmt: skip

    def wait_for_master(self, server: RedisServer) -> None:
        """Wait until the Sentinels and the server itself call it the master."""
        wait_until(
            lambda: str(self.master_port) in server.endpoint
            and "master" in server.cli("ROLE").splitlines()[0],
            "the replica is promoted", 30, self.sentinels[0].log_tail,
        )  # fmt: skip


@contextmanager
def watched(
    *, sentinels: int = 3, password: str | None = None, own_password: str | None = None,
    tls: bool = False,
) -> Iterator[Watched]:  # fmt: skip
    """A master, a replica in step with it, and so many Sentinels that know each other.

    Args:
        sentinels: how many.
        password: of the servers.
        own_password: of the Sentinels.
        tls: everything over TLS, with one certificate, the first server's `ca_file`.
    """
    with ExitStack() as stack:
        auth = [] if password is None else [f'masterauth "{password}"']
        settings = [*auth, "repl-diskless-sync-delay 0", *(["tls-replication yes"] if tls else [])]
        master = stack.enter_context(RedisServer(password=password, tls=tls, settings=settings))
        host, _, port = master.endpoint.rpartition(":")
        replica = RedisServer(
            password=password, tls=tls, settings=[*settings, f"replicaof {host} {port}"]
        )
        if tls:
            replica.trusts = master
        stack.enter_context(replica)
        # Until its master calls it online, it is sent nothing of what is written.
        wait_until(
            lambda: "state=online" in master.cli("INFO", "replication"),
            "the replica is in step", 20, replica.log_tail,
        )  # fmt: skip
        quorum = sentinels // 2 + 1
        watchers = tuple(
            stack.enter_context(Sentinel(master, quorum, own_password)) for _ in range(sentinels)
        )
        found = Watched((master, replica), watchers)
        for sentinel in watchers:
            wait_until(
                lambda s=sentinel: _knows(s, sentinels - 1), "Sentinels meet", 20, sentinel.log_tail  # type: ignore[misc]
            )
        yield found


def _knows(sentinel: Sentinel, others: int) -> bool:
    words = sentinel.cli("SENTINEL", "MASTER", NAME).split()
    facts = dict(zip(words[::2], words[1::2], strict=False))
    return facts.get("num-slaves") == "1" and facts.get("num-other-sentinels") == str(others)
