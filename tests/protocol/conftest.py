"""The real daemon behind a real Redis, spoken to as an MTA does."""

from __future__ import annotations

import grp
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.harness.daemon import Config, Daemon
from tests.harness.mta_client import Mta
from tests.harness.redis import RedisServer

RULES = (
    "HSET domain:example.com unknown reject",
    "HSET alias:example.com bob bob@example.com carol carol@example.com",
    'HSET alias:example.com sales bob@example.com team "bob@example.com carol@example.com"',
    "HSET alias:example.com out me@gmail.example drop discard",
    'HSET alias:example.com gone "disabled Bob has left" slow defer no "reject 100% no"',
    "HSET alias:example.com broken nonsense a b@example.com b a@example.com",
    "HSET domain:new.example unknown reject",
    "HSET alias:new.example * quarantine",
)


def load_rules(redis: RedisServer) -> None:
    redis.cli(stdin="\n".join(RULES) + "\n")


@pytest.fixture(scope="module")
def shared_daemon(shared_redis: RedisServer) -> Iterator[Daemon]:
    with Daemon(shared_redis.url) as daemon:
        yield daemon


@pytest.fixture
def daemon(shared_daemon: Daemon, redis: RedisServer) -> Daemon:
    """The daemon with the rules of RULES."""
    load_rules(redis)
    return shared_daemon


@pytest.fixture(scope="module")
def shared_splitting_daemon(shared_redis: RedisServer) -> Iterator[Daemon]:
    with Daemon(shared_redis.url, {"reinject": {"server": "127.0.0.1:1"}}) as daemon:
        yield daemon


@pytest.fixture
def splitting_daemon(shared_splitting_daemon: Daemon, redis: RedisServer) -> Daemon:
    """A daemon with [reinject], which keeps headers and bodies and looks at HELO."""
    load_rules(redis)
    return shared_splitting_daemon


@pytest.fixture
def mta(daemon: Daemon) -> Iterator[Mta]:
    """A session with a transaction begun."""
    with Mta(str(daemon.folder / "milter.sock")) as connection:
        connection.mail()
        yield connection


@pytest.fixture
def connect(daemon: Daemon) -> Callable[..., Mta]:
    return lambda **options: Mta(str(daemon.folder / "milter.sock"), **options)


@pytest.fixture
def start(redis: RedisServer) -> Iterator[Callable[..., Daemon]]:
    """Start a daemon of one's own: `start({"milter": {"workers": 1}}, inet=True)`."""
    load_rules(redis)
    with ExitStack() as stack:

        def make(config: Config | None = None, *, url: str = "", **options: Any) -> Daemon:  # noqa: ANN401
            return stack.enter_context(Daemon(url or redis.url, config, **options))

        yield make


@pytest.fixture
def a_group() -> tuple[str, int]:
    """Name and number of a group that this user may give files to; for root, not its own."""
    mine = {os.getgid(), *os.getgroups()}
    groups = [g for g in grp.getgrall() if os.getuid() == 0 or g.gr_gid in mine]
    return groups[-1].gr_name, groups[-1].gr_gid
