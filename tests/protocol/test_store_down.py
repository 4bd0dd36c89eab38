"""Redis refuses, hangs, dies, comes back: what the MTA is told meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.harness.daemon import Config, Daemon
from tests.harness.fake_redis import FakeRedis, Proxy
from tests.harness.mta_client import Mta
from tests.harness.redis import RedisServer
from tests.harness.wait import wait_until
from tests.protocol.conftest import load_rules

TIMEOUT = 0.5
SLACK = 0.7  # what a deadline may be late by on a busy machine
UNAVAILABLE = "451 4.3.0 Address lookup is not possible now"


class Session(Mta):
    """An MTA's session, and the daemon that serves it."""

    def __init__(self, daemon: Daemon) -> None:
        super().__init__(daemon.socket)
        self.daemon = daemon
        self.mail()


Begin = Callable[..., Session]


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """A Redis that is this test's alone."""
    with RedisServer() as own:
        load_rules(own)
        yield own


@pytest.fixture
def session() -> Iterator[Begin]:
    """`session(url)`: a session with a transaction begun, at a new daemon with that store."""
    with ExitStack() as stack:

        def begin(url: str, **store: object) -> Session:
            config: Config = {"milter": {"workers": 1}, "store": {"timeout": TIMEOUT, **store}}
            return stack.enter_context(Session(stack.enter_context(Daemon(url, config))))

        yield begin


def refused_in_time(mta: Mta, recipient: str = "<bob@example.com>") -> bool:
    """Whether RCPT gets 451, and gets it within the time limit."""
    start = time.monotonic()
    answer = str(mta.rcpt(recipient))
    return answer == UNAVAILABLE and time.monotonic() - start < TIMEOUT + SLACK


def test_the_daemon_starts_and_defers_while_redis_refuses_and_serves_once_it_is_there(
    server: RedisServer, session: Begin
) -> None:
    server.kill()
    mta = session(server.tcp_url)
    assert refused_in_time(mta)
    assert refused_in_time(mta, "<me@gmail.example>"), "never accepted blindly"
    server.start()
    load_rules(server)
    assert mta.rcpt("<sales@example.com>").kind == "continue"
    assert mta.rcpt("<nobody@example.com>").text.startswith("550 5.1.1")


def test_what_rcpt_decided_holds_when_redis_dies_before_the_end_of_the_message(
    server: RedisServer, session: Begin
) -> None:
    mta = session(server.url)
    assert mta.rcpt("<out@example.com>").kind == "continue"
    server.kill()
    assert refused_in_time(mta)
    ending = mta.message()
    assert ending.answer.kind == "continue"
    assert ending.of("addrcpt") == [("<me@gmail.example>",)]
    assert ending.of("chgfrom")


def test_a_redis_that_hangs_means_451_in_time_and_nothing_once_it_goes_on(
    server: RedisServer, session: Begin
) -> None:
    mta = session(server.url)
    assert mta.rcpt("<bob@example.com>").kind == "continue"
    server.pause()
    assert refused_in_time(mta)
    assert refused_in_time(mta, "<nobody@example.com>")
    server.resume()
    assert mta.rcpt("<nobody@example.com>").text.startswith("550 5.1.1")
    assert mta.rcpt("<carol@example.com>").kind == "continue"
    assert mta.message().edits == []


def test_a_redis_that_hangs_before_the_first_lookup_means_451_in_time(
    server: RedisServer, session: Begin
) -> None:
    server.pause()
    assert refused_in_time(session(server.tcp_url))


def test_many_sessions_at_once_get_451_in_time_when_redis_hangs(
    server: RedisServer, session: Begin
) -> None:
    mta = session(server.url)
    server.pause()
    with ExitStack() as stack:
        others = [stack.enter_context(Mta(mta.daemon.socket)) for _ in range(8)]
        start = time.monotonic()
        for other in others:
            other.mail()
            other.send("R", b"<bob@example.com>\0")
        assert {str(other.read()) for other in others} == {UNAVAILABLE}
        # libmilter serves some of them one after the other.
        assert time.monotonic() - start < 4 * TIMEOUT + SLACK


def test_a_chain_of_aliases_in_a_slow_redis_is_answered_within_the_time_limit(
    server: RedisServer, session: Begin
) -> None:
    hops = [w for n in range(9) for w in (f"h{n}", f"h{n + 1}@example.com")]
    server.cli("HSET", "alias:example.com", *hops, "h9", "h9@example.com")
    with Proxy(server.port) as proxy:
        mta = session(proxy.url)
        assert mta.rcpt("<h0@example.com>").kind == "continue"
        proxy.delay = TIMEOUT / 2
        assert mta.rcpt("<bob@example.com>").kind == "continue"
        assert refused_in_time(mta, "<h0@example.com>")


def test_a_redis_restarted_empty_is_not_believed_until_a_reload(
    server: RedisServer, session: Begin
) -> None:
    mta = session(server.url)
    assert mta.rcpt("<nobody@example.com>").text.startswith("550 5.1.1")
    server.kill()
    server.start()
    # Whoever was unknown is not let in, and whoever was known does not bounce.
    assert str(mta.rcpt("<nobody@example.com>")) == UNAVAILABLE
    assert str(mta.rcpt("<sales@example.com>")) == UNAVAILABLE
    assert "has it lost its data?" in mta.daemon.log
    load_rules(server)
    assert mta.rcpt("<nobody@example.com>").text.startswith("550 5.1.1")
    server.cli("FLUSHALL")
    mta.daemon.reload()

    def passes() -> bool:  # the old worker may take another session or two
        with Mta(mta.daemon.socket) as after:
            after.mail()
            return after.rcpt("<nobody@example.com>").kind == "continue"

    wait_until(passes, "a new worker believes it")


def test_a_domain_that_is_removed_is_unmanaged_at_once_while_others_are_there(
    server: RedisServer, session: Begin
) -> None:
    mta = session(server.url)
    assert mta.rcpt("<nobody@example.com>").text.startswith("550 5.1.1")
    assert mta.rcpt("<x@new.example>").kind == "continue"
    server.cli("DEL", "domain:example.com")
    assert mta.rcpt("<nobody@example.com>").kind == "continue"


def test_a_domain_known_as_unmanaged_passes_while_redis_is_away_and_an_unknown_one_waits(
    server: RedisServer, session: Begin
) -> None:
    mta = session(server.url)
    assert mta.rcpt("<me@gmail.example>").kind == "continue"
    server.kill()
    assert mta.rcpt("<other@gmail.example>").kind == "continue"
    assert refused_in_time(mta, "<me@never-seen.example>")
    assert refused_in_time(mta, "<bob@example.com>")


def test_a_malformed_address_is_refused_for_good_without_redis(session: Begin) -> None:
    mta = session("unix:///nonexistent/redis.sock")
    assert mta.rcpt("<a@b@example.com>").text.startswith("501 5.1.3")
    assert mta.rcpt("<bob@[192.0.2.1]>").kind == "continue"


def test_a_wrong_password_means_451_and_the_log_says_why(session: Begin) -> None:
    with RedisServer(password="right") as server:
        load_rules(server)
        mta = session(server.tcp_url.replace("right", "wrong"))
        assert refused_in_time(mta)
        assert "invalid username-password" in mta.daemon.log
        assert "wrong@" not in mta.daemon.log


def test_a_right_password_over_tls_with_a_made_up_authority_is_served(session: Begin) -> None:
    with RedisServer(password="p@ss word", tls=True) as server:
        load_rules(server)
        mta = session(f"{server.tls_url}?ssl_ca_certs={server.ca_file}", timeout=5.0)
        assert mta.rcpt("<sales@example.com>").kind == "continue"
        assert mta.rcpt("<nobody@example.com>").text.startswith("550 5.1.1")
        mistrusting = session(server.tls_url, timeout=5.0)
        assert str(mistrusting.rcpt("<sales@example.com>")) == UNAVAILABLE
        assert "CERTIFICATE_VERIFY_FAILED" in mistrusting.daemon.log


@pytest.mark.parametrize("way", ["url", "tcp_url"])
def test_unix_and_tcp_sockets_are_served(server: RedisServer, session: Begin, way: str) -> None:
    assert session(getattr(server, way)).rcpt("<sales@example.com>").kind == "continue"


def test_an_error_of_redis_means_451_and_the_log_says_which(session: Begin) -> None:
    with FakeRedis(b"") as fake:
        mta = session(fake.url)
        for error in (
            "LOADING Redis is loading the dataset in memory",
            "READONLY You can't write against a read only replica.",
            "OOM command not allowed",
            "NOAUTH Authentication required.",
        ):
            fake.answer = f"-{error}\r\n".encode()
            assert refused_in_time(mta), error
            assert error.partition(" ")[2] in mta.daemon.log
        assert "Traceback" not in mta.daemon.log


def test_whatever_answers_in_the_place_of_redis_nothing_is_accepted_blindly(
    session: Begin,
) -> None:
    with FakeRedis(b"") as fake:
        mta = session(fake.url)
        for answer in (b"$-1\r\n", b"*-1\r\n", b"+OK\r\n", b":7\r\n", b"*0\r\n", b"220 SMTP\r\n"):
            fake.answer = answer
            assert refused_in_time(mta), answer
            assert refused_in_time(mta, "<me@gmail.example>"), answer
        assert "Traceback" not in mta.daemon.log


@pytest.mark.parametrize("key", ["domain:example.com", "alias:example.com"])
def test_a_key_of_the_wrong_type_defers_its_domain_alone_and_the_log_names_it(
    server: RedisServer, session: Begin, key: str
) -> None:
    server.cli("SET", key, "oops")
    mta = session(server.url)
    assert str(mta.rcpt("<bob@example.com>")) == "451 4.3.5 The rule for this address is in error"
    assert mta.rcpt("<me@gmail.example>").kind == "continue"
    assert f'problem="{key}: holds another type than a hash"' in mta.daemon.log


def test_a_rule_of_a_megabyte_defers_its_address_alone_and_is_not_logged(
    server: RedisServer, session: Begin
) -> None:
    server.cli("-x", "HSET", "alias:example.com", "big", stdin="x@y.example " * 90_000)
    mta = session(server.url, timeout=5.0)
    assert mta.rcpt("<big@example.com>").text.startswith("451 4.3.5")
    assert mta.rcpt("<bob@example.com>").kind == "continue"
    assert "alias:example.com big" in mta.daemon.log
    assert len(mta.daemon.log) < 2000


def test_a_rcpt_costs_one_round_trip_and_the_rest_of_a_message_none(
    server: RedisServer, session: Begin
) -> None:
    with Proxy(server.port) as proxy:
        mta = session(proxy.url)
        mta.rcpt("<bob@example.com>")
        for recipient in (
            "<bob@example.com>", "<bob+x-y+z@example.com>", "<nobody@example.com>",
            "<x@new.example>", "<me@gmail.example>", "<slow@example.com>",
        ):  # fmt: skip
            before = proxy.round_trips
            mta.rcpt(recipient)
            assert proxy.round_trips - before == 1, recipient
        # Without the catch-all hit among them: counting that takes a connection of its own.
        mta.abort()
        mta.mail()
        mta.rcpt("<bob@example.com>")
        before = proxy.round_trips
        mta.rcpt("<a@b@example.com>")
        mta.rcpt("<postmaster>")
        mta.message()
        mta.mail()
        mta.abort()
        mta.mail()
        assert proxy.round_trips == before
        mta.rcpt("<sales@example.com>")
        assert proxy.round_trips - before == 2, "one for the alias, one for its target"


def test_connections_to_redis_are_kept_between_messages(
    server: RedisServer, session: Begin
) -> None:
    with Proxy(server.port) as proxy:
        mta = session(proxy.url)
        for _ in range(30):
            mta.mail()
            mta.rcpt("<sales@example.com>")
            mta.message()
        # One, and another if the worker was still getting to know the domains.
        assert proxy.connections <= 2
