"""Tests for both MTAs; and of Sendmail alone: a stand-in milter, and docs/sendmail.md's set-ups."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.harness.ports import reserved_port
from tests.harness.sendmail import Sendmail
from tests.harness.standin import SRS_DOMAIN, StandIn
from tests.harness.world import World

MakeSendmail = Callable[..., Sendmail]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run the tests of a module that says `MTAS = ("postfix", "sendmail")` with each of them."""
    names = getattr(metafunc.module, "MTAS", ())
    if names and "mta" in metafunc.fixturenames:
        metafunc.parametrize("mta", names, scope="module")


@pytest.fixture(scope="module")
def shared_standin() -> Iterator[StandIn]:
    with StandIn() as milter:
        yield milter


@pytest.fixture
def standin(shared_standin: StandIn) -> Iterator[StandIn]:
    if not shared_standin.running:
        shared_standin.start()
    shared_standin.clear()
    yield shared_standin
    # At the end, not at the start: a Sendmail that the next tests share starts before this fixture.
    shared_standin.folder.chmod(0o755)


@pytest.fixture(scope="module")
def shared_sendmail(shared_standin: StandIn, shared_world: World) -> Iterator[Sendmail]:
    with ExitStack() as stack:
        yield documented(stack, shared_standin, shared_world)


@pytest.fixture
def sendmail(shared_sendmail: Sendmail, standin: StandIn, world: World) -> Sendmail:
    """The document's case 3a; a test that changes it takes `make`."""
    return tidy(shared_sendmail, world)


@pytest.fixture
def make(standin: StandIn, world: World) -> Iterator[MakeSendmail]:
    """Start a Sendmail of one's own; keyword arguments as for `Sendmail`."""
    with ExitStack() as stack:
        yield lambda **options: documented(stack, standin, world, **options)


def documented(stack: ExitStack, milter: StandIn, around: World, **options: object) -> Sendmail:
    """Start a Sendmail that has the document's names."""
    standard: dict[str, object] = {
        "milters": [milter.socket],
        "next_hop": around.port,
        "relay_domains": ["example.com"],
        "srs_domains": [SRS_DOMAIN],
        "reinject_port": stack.enter_context(reserved_port()),
    }
    return stack.enter_context(Sendmail(**(standard | options)))  # type: ignore[arg-type]


def tidy(server: Sendmail, world: World) -> Sendmail:
    """Forget the mail of the test before."""
    server.purge()
    world.reset()
    return server


@pytest.fixture(scope="module")
def shared_local(shared_standin: StandIn, shared_world: World) -> Iterator[Sendmail]:
    with ExitStack() as stack:
        yield documented(stack, shared_standin, shared_world, delivery="local")


@pytest.fixture
def local(shared_local: Sendmail, standin: StandIn, world: World) -> Sendmail:
    """The document's case 3b."""
    return tidy(shared_local, world)
