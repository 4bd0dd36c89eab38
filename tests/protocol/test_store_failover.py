"""Mail flows while a master dies and another server takes its place."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.harness.cluster import cluster
from tests.harness.daemon import Daemon
from tests.harness.mta_client import Mta
from tests.harness.redis import RedisServer
from tests.harness.sentinel import watched
from tests.harness.wait import LabError, wait_until
from tests.protocol.conftest import RULES

TIMEOUT = 0.5
SLACK = 0.7  # what a deadline may be late by on a busy machine
REPLIES = {
    "<sales@example.com>": "continue",
    "<out@example.com>": "continue",
    "<nobody@example.com>": "550 5.1.1 No such address here",
    "<me@gmail.example>": "continue",
}
UNAVAILABLE = "451 4.3.0 Address lookup is not possible now"

Start = Callable[[str], Daemon]


@pytest.fixture
def serve() -> Iterator[Start]:
    """`serve(url)`: a daemon with that store."""
    with ExitStack() as stack:
        yield lambda url: stack.enter_context(Daemon(url, {"store": {"timeout": TIMEOUT}}))


def load(cli: Callable[..., str]) -> None:
    for line in RULES:
        cli(*shlex.split(line))


def answers(daemon: Daemon) -> dict[str, str]:
    """The replies to some recipients in one new session, each in time."""
    found = {}
    with Mta(daemon.socket) as mta:
        for recipient in REPLIES:
            mta.mail()
            begun = time.monotonic()
            found[recipient] = str(mta.rcpt(recipient))
            assert time.monotonic() - begun < TIMEOUT + SLACK
            if found[recipient] == "continue":
                assert mta.message().answer.kind in ("continue", "accept")
            else:
                mta.abort()
    return found


def right_or_later(found: dict[str, str]) -> bool:
    """Every reply is the right one, or 451; whether all are right."""
    for recipient, reply in found.items():
        assert reply in (REPLIES[recipient], UNAVAILABLE)
    return found == REPLIES


def test_a_fail_over_of_sentinels_means_451_at_worst_and_ends_by_itself(serve: Start) -> None:
    with watched() as servers:
        load(servers.servers[0].cli)
        servers.wait_for_replica()
        daemon = serve(servers.url)
        assert answers(daemon) == REPLIES
        servers.servers[0].kill()
        assert not right_or_later(answers(daemon))
        wait_until(lambda: right_or_later(answers(daemon)), "the replica has taken over", 30)
        servers.servers[1].cli("HSET", "alias:example.com", "nobody", "bob@example.com")
        wait_until(lambda: answers(daemon)["<nobody@example.com>"] == "continue", "an edit holds")
        assert "Traceback" not in daemon.log


def test_a_fail_over_that_was_ordered_loses_nothing(serve: Start) -> None:
    with watched(sentinels=1) as servers:
        load(servers.servers[0].cli)
        servers.wait_for_replica()
        daemon = serve(servers.url)
        assert answers(daemon) == REPLIES
        servers.sentinels[0].cli("SENTINEL", "FAILOVER", "rules")
        heir: RedisServer = servers.servers[1]
        wait_until(lambda: right_or_later(answers(daemon)) and _is_master(heir), "it is over", 30)
        heir.cli("HSET", "alias:example.com", "nobody", "bob@example.com")
        wait_until(lambda: answers(daemon)["<nobody@example.com>"] == "continue", "an edit holds")


def test_a_node_of_a_cluster_dies_and_its_replica_takes_over(serve: Start) -> None:
    with cluster() as nodes:
        load(nodes.cli)
        daemon = serve(nodes.url)
        assert answers(daemon) == REPLIES
        done = daemon.run("resolve", "sales@example.com")
        assert "delivered to: bob@example.com" in done.stdout
        nodes.masters[0].kill()
        right_or_later(answers(daemon))
        wait_until(lambda: right_or_later(answers(daemon)), "the replica has taken over", 30)
        assert "Traceback" not in daemon.log


def test_check_reads_the_rules_of_a_cluster_and_of_a_master(serve: Start) -> None:
    with cluster() as nodes:
        load(nodes.cli)
        in_cluster = serve(nodes.url).run("check")
    with watched(sentinels=1) as servers:
        load(servers.servers[0].cli)
        behind_sentinel = serve(servers.url).run("check")
    for done in (in_cluster, behind_sentinel):
        assert "2 domains, 13 rules" in done.stdout
        assert "alias:example.com broken" in done.stdout


def _is_master(server: RedisServer) -> bool:
    try:
        return "master" in server.cli("ROLE").splitlines()[0]
    except LabError:  # Sentinel has it drop its clients as it is promoted
        return False
