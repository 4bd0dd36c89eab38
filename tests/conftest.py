"""Fixtures: real servers, shared where a test cannot tell, and new ones where it can."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.harness.lab import Lab, MtaName
from tests.harness.postfix import why_no_postfix
from tests.harness.redis import RedisServer
from tests.harness.service import Service
from tests.harness.world import World

SKIP_VARIABLE = "ALIAS_MILTER_SKIP_MTA"


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line("markers", "mta: needs root and a real MTA")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all that is under tests/mta."""
    for item in items:
        if Path(__file__).parent / "mta" in item.path.parents:
            item.add_marker("mta")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fail, never skip unasked, where the MTA tests cannot run."""
    if item.get_closest_marker("mta") is None:
        return
    if os.environ.get(SKIP_VARIABLE) == "1":
        pytest.skip(f"{SKIP_VARIABLE}=1")
    if reason := why_no_postfix():
        pytest.fail(f"{reason} (or set {SKIP_VARIABLE}=1 to leave these tests out)", pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the logs of the servers that were up when a test failed."""
    report = yield
    if report.failed:
        report.sections += [
            (f"{service.name} in {service.folder}", service.log_tail()) for service in Service.live
        ]
    return report


@pytest.fixture(scope="session")
def shared_redis() -> Iterator[RedisServer]:
    """One server for all the tests of a process; use `redis`."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def redis(shared_redis: RedisServer) -> RedisServer:
    """An empty Redis server. A test that stops or pauses it makes a RedisServer of its own."""
    shared_redis.flush()
    return shared_redis


@pytest.fixture(scope="session")
def shared_world() -> Iterator[World]:
    """One world for all the tests of a process; use `world`."""
    with World() as world:
        yield world


@pytest.fixture
def world(shared_world: World) -> World:
    """A world that has seen nothing and refuses nothing."""
    shared_world.reset()
    return shared_world


@pytest.fixture(scope="module")
def mta() -> MtaName:
    """The MTA of the labs; see MTAS in tests/mta/conftest.py."""
    return "postfix"


@pytest.fixture(scope="module")
def shared_lab(mta: MtaName) -> Iterator[Lab]:
    """One lab for the tests of a module; use `lab`."""
    with Lab(mta=mta) as lab:
        yield lab


@pytest.fixture
def lab(shared_lab: Lab) -> Iterator[Lab]:
    """The whole scene with the default configuration, without rules and mail.

    A test that breaks or configures a server takes `make_lab`.
    """
    shared_lab.reset()
    yield shared_lab
    check_log(shared_lab)


@pytest.fixture
def make_lab(mta: MtaName) -> Iterator[Callable[..., Lab]]:
    """Start a lab of one's own: `make_lab({"quarantine": {"action": "hold"}}, reinject=True)`."""
    with ExitStack() as stack:

        def make(*args: Any, **options: Any) -> Lab:  # noqa: ANN401 - whatever Lab takes
            lab = stack.enter_context(Lab(*args, **{"mta": mta, **options}))
            stack.callback(check_log, lab)
            return lab

        yield make


def check_log(lab: Lab) -> None:
    """No test may upset the daemon, whatever it looks at, unless it says so."""
    if "Traceback" in lab.daemon.log and not lab.traceback_expected:
        pytest.fail(f"the daemon had an unexpected exception\n{lab.daemon.log_tail()}")
