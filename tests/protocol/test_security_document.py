"""SECURITY.md is true: the users for Redis that it has people paste are enough, and no more."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from aliasmilter.mail.address import Address
from aliasmilter.store import tracking
from aliasmilter.store.redis import AliasStore
from tests.harness.daemon import Config, Daemon
from tests.harness.mta_client import Mta
from tests.harness.redis import RedisServer
from tests.harness.wait import LabError, wait_until
from tests.harness.world import World
from tests.protocol.conftest import RULES

Start = Callable[..., Daemon]

DOCUMENT = (Path(__file__).parents[2] / "SECURITY.md").read_text()
USERS = re.findall(r"^user (.*)$", DOCUMENT, re.MULTILINE)


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    # The harness itself speaks to Redis as the default user.
    with RedisServer(users=[line for line in USERS if line != "default off"]) as running:
        yield running


def cli(server: RedisServer, user: str, *command: str) -> str:
    password = f"CHANGE-ME-{'DAEMON' if user == 'alias-milter' else 'EDITOR'}"
    return server.cli("--user", user, "--pass", password, "--no-auth-warning", *command)


def test_the_lines_are_those_of_three_users() -> None:
    assert [line.split()[0] for line in USERS] == ["alias-milter", "alias-editor", "default"]


def test_an_editor_s_rules_are_served_by_a_daemon_that_cannot_write_them(
    start: Start, server: RedisServer, world: World
) -> None:
    server.flush()
    password = ["--user", "alias-editor", "--pass", "CHANGE-ME-EDITOR", "--no-auth-warning"]
    server.cli(*password, stdin="\n".join(RULES) + "\n")
    cli(
        server,
        "alias-editor",
        "HSET",
        "alias:example.com",
        "both",
        "bob@example.com me@gmail.example",
    )
    url = f"redis://alias-milter:CHANGE-ME-DAEMON@127.0.0.1:{server.port}/0"
    cli(server, "alias-editor", "HSET", "alias:example.com", "hub", "bob@example.com vendor=x.test")
    cli(server, "alias-editor", "SADD", "block:example.com", "spam.example")
    config: Config = {
        "reinject": {"server": f"127.0.0.1:{world.port}"},
        "harvest": {"limit": 1},
        "suggest": {"remember_days": 1},
        "submission": {"identity": "rewrite"},
        "dns": {"nameservers": ["127.0.0.1:1"]},
    }
    daemon = start(config, url=url)
    with Mta(daemon.socket) as mta:
        mta.mail()
        assert mta.rcpt("<nobody@example.com>").text.startswith("550 5.1.1")
        assert mta.rcpt("<both@example.com>").kind == "continue"
        assert mta.message().answer.kind == "continue"
        (leaves,) = world.wait_for("me@gmail.example")
        mta.mail("<vacation@gmail.example>")
        assert mta.rcpt(f"<{leaves.sender}>").kind == "continue"
        mta.mail()
        assert [mta.rcpt(f"<{name}@new.example>").kind for name in "ab"] == ["reply", "reply"]
        assert mta.rcpt("<hub@example.com>").kind == "continue"
        headers = [("From", " alice@bank.example"), ("Message-ID", " <1@bank.example>")]
        assert mta.message(headers).answer.kind == "continue"
        mta.mail("<x@spam.example>")
        assert mta.rcpt("<bob@example.com>").text.startswith("550 5.7.1")
    for kept in ("vendors:example.com", "misses:new.example", "answered:*", "harvest:*"):
        wait_until(lambda key=kept: server.cli("KEYS", key) != "(empty array)", kept)  # type: ignore[misc]
    assert server.cli("KEYS", "reinjected:*") != "(empty array)"
    assert server.cli("KEYS", "counted:*") != "(empty array)"
    assert "NOPERM" not in daemon.log
    assert "error:" not in daemon.log
    assert "counts are lost" not in daemon.log
    checked = daemon.run("check")
    assert "NOPERM" not in checked.stdout + checked.stderr
    assert "alias:example.com broken" in checked.stdout
    assert daemon.run("resolve", "sales@example.com").returncode == 0


def test_the_daemon_s_user_may_read_domains_as_a_whole(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.flush()
    server.cli(stdin="\n".join(RULES) + "\n")
    server.cli("CONFIG", "RESETSTAT")
    monkeypatch.setattr(tracking, "BUSY", 0.0)
    url = f"redis://alias-milter:CHANGE-ME-DAEMON@127.0.0.1:{server.port}/0"
    numbers = itertools.count()
    with closing(AliasStore(url, 1.0, cached=True)) as store:

        def is_read() -> bool:
            store.lookup([Address(f"guess{next(numbers)}", "example.com")])
            return "cmdstat_hscan" in server.cli("INFO", "commandstats")

        wait_until(is_read, "the rules are read")
    statistics = server.cli("INFO", "commandstats")
    assert re.findall(r"cmdstat_(\S+):.*rejected_calls=[1-9]", statistics) == []


@pytest.mark.parametrize(
    ("user", "command"),
    [
        ("alias-milter", "HSET alias:example.com bob eve@evil.example"),
        ("alias-milter", "SET domain:example.com x"),
        ("alias-milter", "DEL domain:example.com"),
        ("alias-milter", "GET other:key"),
        ("alias-milter", "CONFIG GET requirepass"),
        ("alias-milter", "ACL LIST"),
        ("alias-milter", "KEYS *"),
        ("alias-milter", "FLUSHALL"),
        ("alias-editor", "DEL reinjected:x"),
        ("alias-editor", "SET counted:x 0"),
        ("alias-editor", "FLUSHALL"),
        ("alias-editor", "CONFIG SET dir /tmp"),
        ("alias-editor", "ACL SETUSER eve on nopass +@all ~*"),
        ("alias-editor", "EVAL return(1) 0"),
    ],
)
def test_what_a_user_need_not_do_it_may_not(server: RedisServer, user: str, command: str) -> None:
    with pytest.raises(LabError, match="NOPERM"):
        cli(server, user, *command.split())


def test_an_editor_may_do_what_editing_takes(server: RedisServer) -> None:
    for command in (
        "HSET domain:new.example unknown reject", "HSET staged:x:new.example bob b@example.com",
        "RENAME staged:x:new.example alias:new.example", "HGETALL alias:new.example",
        "HDEL alias:new.example bob", "DEL domain:new.example", "EXISTS domain:new.example",
        "XADD audit * who me", "XRANGE audit - +", "SCAN 0", "HSCAN domain:example.com 0", "MULTI",
        "EXPIRE alias:new.example 3600", "SADD block:new.example x.example",
        "SSCAN block:new.example 0", "HDEL quarantined new.example",
    ):  # fmt: skip
        cli(server, "alias-editor", *command.split())
