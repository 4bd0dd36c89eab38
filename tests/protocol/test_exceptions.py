"""A mistake in our own code: a traceback in the log, 451, and the service goes on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.harness.daemon import Daemon
from tests.harness.mta_client import Mta
from tests.harness.redis import RedisServer
from tests.harness.wait import wait_until
from tests.protocol.conftest import load_rules
from tests.protocol.shim import ESCAPES, RAISES, RAISES_AT_THE_END, ShimmedDaemon

INTERNAL = "451 4.3.0 Internal error, try again later"


@pytest.fixture(scope="module")
def shared_trap(shared_redis: RedisServer) -> Iterator[Daemon]:
    # With [reinject] all callbacks are called.
    config = {"reinject": {"server": "127.0.0.1:1"}}
    with ShimmedDaemon(shared_redis.url, RAISES, config) as daemon:
        yield daemon


@pytest.fixture
def trap(shared_trap: Daemon, redis: RedisServer) -> Daemon:
    """A daemon that raises where an argument holds "boom-" and the name of the callback."""
    load_rules(redis)
    return shared_trap


def traceback_in(log: str) -> bool:
    return "RuntimeError: boom" in log and "Traceback (most recent call last):" in log


def test_in_rcpt_that_recipient_gets_451_and_so_does_all_that_follows_in_the_transaction(
    trap: Daemon,
) -> None:
    before = len(trap.log)
    with Mta(trap.socket) as mta:
        mta.macros("M", i="4Tz8Qk1x2y")
        mta.mail()
        assert mta.rcpt("<bob@example.com>").kind == "continue"
        assert mta.rcpt("<boom-rcpt@example.com>").text == INTERNAL
        log = trap.log[before:]
        assert traceback_in(log)
        assert "4Tz8Qk1x2y: error: exception callback=envrcpt reason=internal-error" in log
        # Nobody knows what was lost: nothing is accepted any more.
        assert mta.rcpt("<carol@example.com>").text == INTERNAL
        assert mta.message().answer.text == INTERNAL
        mta.mail()
        assert mta.rcpt("<sales@example.com>").kind == "continue"
        assert mta.message().of("addrcpt") == [("<bob@example.com>",)]


def test_in_mail_every_recipient_gets_451_and_the_next_message_is_fine(trap: Daemon) -> None:
    before = len(trap.log)
    with Mta(trap.socket) as mta:
        mta.mail("<boom-mail@bank.example>")
        assert mta.rcpt("<bob@example.com>").text == INTERNAL
        assert traceback_in(trap.log[before:])
        mta.mail()
        assert mta.rcpt("<bob@example.com>").kind == "continue"


def test_in_connect_no_transaction_of_the_session_is_accepted_and_the_next_session_is_fine(
    trap: Daemon,
) -> None:
    before = len(trap.log)
    with Mta(trap.socket, client=("boom-connected.example", "192.0.2.1", 25)) as mta:
        for _ in range(2):
            mta.mail()
            assert mta.rcpt("<bob@example.com>").text == INTERNAL
            mta.abort()
        assert traceback_in(trap.log[before:])
    with Mta(trap.socket) as mta:
        mta.mail()
        assert mta.rcpt("<bob@example.com>").kind == "continue"


@pytest.mark.parametrize("place", ["header", "body", "end_of_message"])
def test_after_rcpt_the_message_gets_451_without_any_edit_and_the_next_one_is_fine(
    trap: Daemon, place: str
) -> None:
    before = len(trap.log)
    with Mta(trap.socket) as mta:
        mta.mail()
        # One who leaves and one who stays: now the body is wanted.
        assert mta.rcpt("<out@example.com>").kind == "continue"
        assert mta.rcpt("<sales@example.com>").kind == "continue"
        headers = [("Subject", f" boom-{place}")]
        ending = mta.message(headers, f"boom-{place}", f"boom-{place}")
        assert ending.answer.text == INTERNAL
        assert ending.edits == []
        assert traceback_in(trap.log[before:])
        mta.mail()
        assert mta.rcpt("<sales@example.com>").kind == "continue"
        assert mta.message().of("addrcpt") == [("<bob@example.com>",)]


def test_every_line_of_a_traceback_says_where_it_belongs_and_none_can_be_forged(
    trap: Daemon,
) -> None:
    before = len(trap.log)
    with Mta(trap.socket) as mta:
        mta.mail()
        mta.rcpt("<boom-rcpt@example.com>")
    log = trap.log[before:]
    assert log.endswith("\n")
    assert all(line.startswith("NOQUEUE: ") for line in log.splitlines())
    assert "\x1b" not in log
    assert "\u202e" not in log


def test_one_that_gets_out_of_a_callback_is_told_like_any_other(redis: RedisServer) -> None:
    load_rules(redis)
    with ShimmedDaemon(redis.url, RAISES_AT_THE_END) as daemon:
        before = len(daemon.log)
        with Mta(daemon.socket) as mta:
            mta.mail()
        wait_until(lambda: traceback_in(daemon.log[before:]), "the end of the session is logged")
        log = daemon.log[before:]
    first, *others = log.splitlines()
    assert first == "error: exception outside of a session"
    assert all(line.startswith("  ") for line in others)


def test_no_worker_dies_of_exceptions(trap: Daemon) -> None:
    workers = trap.workers
    for _ in range(20):
        with Mta(trap.socket, helo="boom-helo") as mta:
            mta.mail("<boom-mail@bank.example>")
            mta.rcpt("<boom-rcpt@example.com>")
            mta.message([("Subject", " boom-header")])
    assert trap.workers == workers


def test_one_that_gets_out_of_a_callback_does_not_stop_the_worker_even_with_nowhere_to_print_it(
    redis: RedisServer,
) -> None:
    load_rules(redis)
    with (
        ShimmedDaemon(redis.url, ESCAPES, {"milter": {"workers": 1}}) as daemon,
        ExitStack() as stack,
    ):
        boom = daemon.folder / "boom"
        # Python takes a thread for that which first had a session in it, whoever has the GIL now.
        sessions = [stack.enter_context(Mta(daemon.socket)) for _ in range(4)]
        for mta in sessions:
            mta.mail()
        boom.touch()
        answers = [str(mta.rcpt("<bob@example.com>")) for mta in sessions]
        assert [answer[:3] for answer in answers] == ["451"] * 4
        boom.unlink()
        for mta in sessions:
            mta.mail()
            # Of those that write no line: the log is still full.
            assert mta.rcpt("<bob@example.com>").kind == "continue"
