"""[socketmap]: the real daemon serves its tables beside the milter, out of the same Redis."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO

import pytest

from aliasmilter.mta.socketmap import netstring, read_netstring
from tests.harness.daemon import Daemon
from tests.harness.redis import RedisServer
from tests.harness.wait import wait_until
from tests.protocol.conftest import load_rules

MAPS = {"socketmap": {"listen": "unix:map.sock"}, "store": {"timeout": 0.5}}


class Asker:
    """An MTA's process that keeps its connection to the tables."""

    def __init__(self, connection: socket.socket, stream: BinaryIO) -> None:
        self.connection = connection
        self.stream = stream

    def ask(self, table: str, key: str) -> str:
        self.connection.sendall(netstring(f"{table} {key}".encode()))
        reply = read_netstring(self.stream)
        assert reply is not None, "the daemon closed the connection"
        return reply.decode()


@contextmanager
def asking(daemon: Daemon) -> Iterator[Asker]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(str(daemon.folder / "map.sock"))
        with connection.makefile("rb") as stream:
            yield Asker(connection, stream)


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """A Redis that is this test's alone."""
    with RedisServer() as own:
        load_rules(own)
        yield own


def test_an_edit_holds_from_the_next_lookup_on_the_same_connection(
    start: Callable[..., Daemon], redis: RedisServer
) -> None:
    with asking(start(MAPS)) as mta:
        assert mta.ask("relay-domains", "fresh.example") == "NOTFOUND "
        redis.cli("HSET", "domain:fresh.example", "alias_of", "example.com")
        assert mta.ask("relay-domains", "fresh.example") == "OK fresh.example"
        assert mta.ask("senders", "sales@fresh.example") == "OK bob@example.com"
        redis.cli("DEL", "domain:fresh.example")
        assert mta.ask("relay-domains", "fresh.example") == "NOTFOUND "


@pytest.mark.parametrize("away", ["stop", "pause"])
def test_a_store_that_is_away_is_a_temporary_error_also_for_what_was_not_found_before(
    start: Callable[..., Daemon], server: RedisServer, away: str
) -> None:
    with asking(start(MAPS, url=server.url)) as mta:
        assert mta.ask("relay-domains", "gmail.example") == "NOTFOUND "
        assert mta.ask("aliases", "me@gmail.example") == "NOTFOUND "
        getattr(server, away)()
        for table, key in (
            ("relay-domains", "gmail.example"),
            ("relay-domains", "example.com"),
            ("aliases", "me@gmail.example"),
            ("aliases", "bob@example.com"),
            ("senders", "nobody@example.com"),
        ):
            assert mta.ask(table, key).startswith("TEMP Redis: "), (table, key)
        if away == "pause":
            server.resume()
        else:
            server.start()
            load_rules(server)
        assert mta.ask("aliases", "sales@example.com") == "OK bob@example.com"


def test_a_worker_that_is_killed_is_replaced_and_mail_goes_on(
    start: Callable[..., Daemon],
) -> None:
    daemon = start(MAPS | {"milter": {"workers": 1}})

    def answers() -> bool:
        try:
            with asking(daemon) as mta:
                return mta.ask("relay-domains", "example.com") == "OK example.com"
        except (AssertionError, OSError):
            return False

    assert answers()
    before = daemon.workers
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    wait_until(answers, "the tables are served again")
    assert not set(before) & set(daemon.workers)


def test_tables_go_on_over_a_reload(start: Callable[..., Daemon]) -> None:
    daemon = start(MAPS)
    before = daemon.workers
    daemon.reload()
    wait_until(lambda: not set(before) & set(daemon.workers), "all workers are new", timeout=40)
    with asking(daemon) as mta:
        assert mta.ask("relay-domains", "example.com") == "OK example.com"


def test_a_connection_goes_on_over_a_reload_for_as_long_as_drain_says(
    start: Callable[..., Daemon],
) -> None:
    daemon = start({**MAPS, "milter": {"workers": 1, "drain": 3.0}})
    old = daemon.workers
    with asking(daemon) as mta:
        assert mta.ask("relay-domains", "example.com") == "OK example.com"
        daemon.reload()
        wait_until(lambda: "reloaded" in daemon.log, "the daemon has reloaded")
        wait_until(lambda: len(set(old) & set(daemon.workers)) == 1, "the milter's worker leaves")
        assert mta.ask("relay-domains", "example.com") == "OK example.com"
        with asking(daemon) as other:
            assert other.ask("relay-domains", "example.com") == "OK example.com"
        wait_until(lambda: not set(old) & set(daemon.workers), "the other one leaves", 15)
        assert mta.stream.read() == b""


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_a_connection_that_is_open_holds_up_no_stop_and_no_new_start(
    start: Callable[..., Daemon], end: signal.Signals
) -> None:
    daemon = start({**MAPS, "milter": {"workers": 1}})
    old = daemon.workers
    with asking(daemon) as mta:
        assert mta.ask("relay-domains", "example.com") == "OK example.com"
        daemon.reload()
        wait_until(lambda: "reloaded" in daemon.log, "the daemon has reloaded")
        wait_until(lambda: len(set(old) & set(daemon.workers)) == 1, "the milter's worker leaves")
        os.kill(daemon.pid, end)
        assert mta.stream.read() == b""


def test_the_socket_has_mode_and_group_of_the_milters(
    start: Callable[..., Daemon], a_group: tuple[str, int]
) -> None:
    name, number = a_group
    daemon = start(MAPS | {"milter": {"socket_mode": "0620", "socket_group": name}})
    status = (daemon.folder / "map.sock").stat()
    assert (status.st_mode & 0o777, status.st_gid) == (0o620, number)
