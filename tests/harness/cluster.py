"""A Redis Cluster of three masters, and a replica of the first."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from tests.harness.ports import reserved_port
from tests.harness.redis import ERROR_LINES, RedisServer
from tests.harness.wait import LabError, wait_until

SLOTS = 16_384
RANGES = ((0, 5460), (5461, 10_922), (10_923, SLOTS - 1))


@dataclass(frozen=True)
class RedisCluster:
    """The nodes; the last one replicates the first."""

    nodes: tuple[RedisServer, ...]

    @property
    def masters(self) -> tuple[RedisServer, ...]:
        """Those that have slots from the beginning, in the order of their slots."""
        return self.nodes[: len(RANGES)]

    @property
    def url(self) -> str:
        """The URL as `[store] url` has it."""
        first, *_ = self.nodes
        scheme = "rediss" if first.tls else "redis"
        login = "" if first.password is None else f":{first.password}@"
        hosts = ",".join(node.endpoint for node in self.masters)
        return f"{scheme}+cluster://{login}{hosts}/"

    def cli(self, *args: str) -> str:
        """Run redis-cli, which follows redirections. Raises LabError like RedisServer.cli."""
        node = next(node for node in self.nodes if node.running)
        login = [] if node.password is None else ["-a", node.password, "--no-auth-warning"]
        run = subprocess.run(
            ["redis-cli", "-c", "-p", str(node.port), "--no-raw", *login, *args],
            capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
        if run.returncode or run.stdout.startswith(ERROR_LINES):
            raise LabError(f"redis-cli {' '.join(args)}: {run.stdout}{run.stderr}")
        return run.stdout.rstrip("\n")

    def slot(self, key: str) -> int:
        """The slot of a key."""
        return _number(self.nodes[-1].cli("CLUSTER", "KEYSLOT", key))

    def owner(self, key: str) -> RedisServer:
        """Who served a key in the beginning."""
        slot = self.slot(key)
        return next(n for n, (a, b) in zip(self.masters, RANGES, strict=True) if a <= slot <= b)

    def begin_to_move(self, slot: int, source: RedisServer, target: RedisServer) -> None:
        """From now on `source` answers ASK for keys that it does not have any more."""
        target.cli("CLUSTER", "SETSLOT", str(slot), "IMPORTING", node_id(source))
        source.cli("CLUSTER", "SETSLOT", str(slot), "MIGRATING", node_id(target))

    def move(self, key: str, source: RedisServer, target: RedisServer) -> None:
        """Move a key of a slot that is on its way."""
        source.cli("MIGRATE", "127.0.0.1", str(target.port), key, "0", "5000")

    def end_move(self, slot: int, target: RedisServer) -> None:
        """From now on the others answer MOVED."""
        for node in (target, *(m for m in self.masters if m is not target)):
            node.cli("CLUSTER", "SETSLOT", str(slot), "NODE", node_id(target))


def node_id(node: RedisServer) -> str:
    """What a node calls itself."""
    return node.cli("CLUSTER", "MYID").strip('"')


@contextmanager
def cluster(*, tls: bool = False, password: str | None = None) -> Iterator[RedisCluster]:
    """A Cluster in which everything is well."""
    with ExitStack() as stack:
        nodes: list[RedisServer] = []
        for _ in range(len(RANGES) + 1):
            node = RedisServer(tls=tls, password=password, settings=_settings(stack, tls, password))
            node.trusts = nodes[0] if nodes and tls else None
            nodes.append(stack.enter_context(node))
        for node, (first, last) in zip(nodes, RANGES, strict=False):
            node.cli("CLUSTER", "ADDSLOTSRANGE", str(first), str(last))
        for node in nodes[1:]:
            port = nodes[0].tls_port if tls else nodes[0].port
            bus = _number(nodes[0].cli("CONFIG", "GET", "cluster-port").split('"')[3])
            node.cli("CLUSTER", "MEET", "127.0.0.1", str(port), str(bus))
        _wait(nodes, "cluster_known_nodes:4")
        nodes[-1].cli("CLUSTER", "REPLICATE", node_id(nodes[0]))
        _wait(nodes, "cluster_state:ok")
        wait_until(
            lambda: "master_link_status:up" in nodes[-1].cli("INFO", "replication"),
            "the replica is in step", 20, nodes[-1].log_tail,
        )  # fmt: skip
        yield RedisCluster(tuple(nodes))


def _settings(stack: ExitStack, tls: bool, password: str | None) -> list[str]:
    bus = stack.enter_context(reserved_port())
    settings = [
        "cluster-enabled yes", "cluster-config-file nodes.conf", f"cluster-port {bus}",
        "cluster-node-timeout 1000", "cluster-require-full-coverage no",
        "repl-diskless-sync-delay 0",
    ]  # fmt: skip
    if tls:
        settings += ["tls-cluster yes", "tls-replication yes"]
    if password is not None:
        settings.append(f'masterauth "{password}"')
    return settings


def _wait(nodes: list[RedisServer], fact: str) -> None:
    for node in nodes:
        wait_until(
            lambda n=node: fact in n.cli("CLUSTER", "INFO"), fact, 20, node.log_tail  # type: ignore[misc]
        )


def _number(text: str) -> int:
    return int(text.removeprefix("(integer) "))
