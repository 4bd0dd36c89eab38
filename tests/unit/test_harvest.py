"""Clients that guess addresses, and what is counted beside the mail; on a real Redis."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import redis as client_library
import structlog

from aliasmilter.mail.address import Address, parse_address
from aliasmilter.mta.harvest import Harvest, client_of
from aliasmilter.routing.lookup import Unavailable
from aliasmilter.store import tally
from aliasmilter.store.journal import Journal
from aliasmilter.store.link import Command
from aliasmilter.store.tally import MAX_SENDERS, Seen
from tests.harness.redis import RedisServer
from tests.harness.wait import wait_until
from tests.unit.fakes import SRS, Scene, Store, no_thread_left

Ask = Callable[[Sequence[Command]], list[Any]]


@pytest.fixture
def ask(redis: RedisServer) -> Ask:
    connection = client_library.Redis.from_url(redis.url)

    def send(commands: Sequence[Command]) -> list[Any]:
        pipeline = connection.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)  # type: ignore[no-untyped-call]
        return pipeline.execute()

    return send


class Log:
    """A logger that keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.logger = structlog.wrap_logger(
            structlog.ReturnLogger(), processors=[self._keep],
            wrapper_class=structlog.make_filtering_bound_logger(0),
        )  # fmt: skip

    def _keep(self, _logger: object, _name: str, event: structlog.typing.EventDict) -> str:
        self.events.append((event.pop("event"), dict(event)))
        return ""

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.events]


def harvest(ask: Ask, log: Log, now: list[float], window: int = 600) -> Harvest:
    return Harvest(5, window, ask, log.logger, lambda: now[0])


def test_a_client_past_the_limit_is_guessing_and_others_are_not(ask: Ask) -> None:
    log = Log()
    guard = harvest(ask, log, [1e9])
    answers = [guard.is_guessing("192.0.2.1", f"a{n}@example.com") for n in range(8)]
    assert answers == [False] * 5 + [True] * 3
    assert not guard.is_guessing("192.0.2.2", "a9@example.com")
    assert log.names == ["a client guesses addresses"]


def test_the_same_address_again_is_no_further_guess(ask: Ask) -> None:
    guard = harvest(ask, Log(), [1e9])
    assert not any(guard.is_guessing("192.0.2.1", "typo@example.com") for _ in range(20))


def test_all_hosts_see_one_picture(ask: Ask) -> None:
    log = Log()
    hosts = [harvest(ask, log, [1e9]) for _ in range(2)]
    answers = [hosts[n % 2].is_guessing("192.0.2.1", f"a{n}@example.com") for n in range(8)]
    assert answers == [False] * 5 + [True] * 3
    assert log.names == ["a client guesses addresses"]


def test_what_was_guessed_before_the_window_is_forgotten(ask: Ask) -> None:
    now = [600_000.0]
    guard = harvest(ask, Log(), now)
    for n in range(8):
        guard.is_guessing("192.0.2.1", f"a{n}@example.com")
    now[0] += 600
    assert guard.is_guessing("192.0.2.1", "b@example.com"), "the window has not passed yet"
    now[0] += 590
    assert not guard.is_guessing("192.0.2.1", "c@example.com")


def test_the_end_of_an_attack_is_logged_once(ask: Ask) -> None:
    log = Log()
    guard = harvest(ask, log, [1e9], window=1)
    for n in range(8):
        guard.is_guessing("192.0.2.1", f"a{n}@example.com")
    wait_until(lambda: len(log.events) > 1, "the end is logged")
    assert log.names == ["a client guesses addresses", "a client has stopped guessing addresses"]


def test_many_clients_that_guess_take_one_thread_and_the_end_of_each_is_logged(ask: Ask) -> None:
    log = Log()
    guard = harvest(ask, log, [1e9], window=1)
    before = threading.active_count()
    for client in range(40):
        for n in range(6):
            guard.is_guessing(f"192.0.2.{client}", f"a{n}@example.com")
    assert threading.active_count() <= before + 1
    wait_until(lambda: len(log.events) == 80, "the end of each is logged")
    assert (
        len({e["client"] for name, e in log.events if name.endswith("stopped guessing addresses")})
        == 40
    )


def test_a_flood_of_clients_that_guess_takes_bounded_memory(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aliasmilter.mta.harvest.MAX_WATCHED", 3)
    log = Log()
    guard = harvest(ask, log, [1e9], window=1)
    for client in range(5):
        answers = [guard.is_guessing(f"192.0.2.{client}", f"a{n}@example.com") for n in range(6)]
        assert answers[-1]
    wait_until(lambda: log.names.count("a client has stopped guessing addresses") == 3, "the end")
    assert log.names.count("a client guesses addresses") == 5


RULES = {
    "example.com": {
        "bob": "bob@example.com",
        "team": "bob@example.com list@catch.example",
    },
    "catch.example": {"*": "quarantine"},
    "old.example": {},
    "new.example": {"*": "@example.com"},
}
SETTINGS = {"old.example": {"alias_of": "example.com"}}


@dataclass
class Noted:
    """Takes note of addresses without a rule, and of nothing else."""

    addresses: list[str] = field(default_factory=list)

    def note(self, address: Address, *_: object) -> None:
        self.addresses.append(str(address))


def watched(guard: Harvest | None, noted: Noted) -> Scene:
    scene = Scene(Store(RULES, SETTINGS))
    scene.session._service = replace(scene.session._service, harvest=guard, misses=noted)  # type: ignore[arg-type]
    scene.session.mail(b"<alice@bank.example>", [])
    return scene


def test_an_alias_of_which_the_catch_all_gets_a_copy_is_no_guess(ask: Ask) -> None:
    noted = Noted()
    scene = watched(harvest(ask, Log(), [1e9]), noted)
    guesses = [f"a{n}@catch.example" for n in range(8)]
    assert [reply[:9] for reply in scene.rcpt(*(f"<{one}>" for one in guesses))][-1] == "550 5.1.1"
    assert scene.rcpt("<team@example.com>", "<bob@old.example>") == ["", ""]
    assert noted.addresses == guesses


@pytest.mark.parametrize(
    ("recipient", "address"),
    [
        ("bbo@example.com", "bbo@example.com"),
        ("bbo@old.example", "bbo@example.com"),
        ("bbo@new.example", "bbo@example.com"),
        ("bbo@catch.example", "bbo@catch.example"),
    ],
)
def test_a_typo_is_noted_in_the_domain_that_would_have_the_rule(
    recipient: str, address: str
) -> None:
    noted = Noted()
    watched(None, noted).rcpt(f"<{recipient}>")
    assert noted.addresses == [address]


def test_a_bounce_to_somebody_who_is_gone_is_no_typo() -> None:
    noted = Noted()
    scene = watched(None, noted)
    gone = scene.rewriter.forward(parse_address("gone@example.com"), SRS)
    assert [reply[:9] for reply in scene.rcpt(gone.path)] == ["550 5.1.1"]
    assert noted.addresses == []


def test_while_the_store_is_away_nobody_is_guessing() -> None:
    def away(_: Sequence[Command]) -> list[Any]:
        raise Unavailable("switched off")

    guard = harvest(away, Log(), [1e9])
    assert not any(guard.is_guessing("192.0.2.1", f"a{n}@example.com") for n in range(20))


@pytest.mark.parametrize(
    ("ip", "client"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::/64"),
        ("IPv6:2001:db8:0:0:ffff::1", "2001:db8::/64"),
        ("2001:db8:0:1::1", "2001:db8:0:1::/64"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
    ],
)
def test_who_is_one_client(ip: str, client: str) -> None:
    assert client_of(ip) == client


def test_mail_is_counted_by_sender_with_its_first_and_last_day(ask: Ask) -> None:
    for day, sender in (("2026-01-01", "a.example"), ("2026-01-02", "a.example")):
        ask([tally.count("k", "hub", sender, day)])
    ask([tally.count("k", "hub", "b.example", "2026-01-03")])
    (fields,) = ask([("HGETALL", "k")])
    assert tally.read(fields) == {
        "hub": {
            "a.example": Seen(2, "2026-01-01", "2026-01-02"),
            "b.example": Seen(1, "2026-01-03", "2026-01-03"),
        }
    }


def test_counts_are_bounded_and_go_when_they_are_told_to(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tally, "MAX_FIELDS", 3)
    day = "2026-11-01"
    ask([tally.count("k", "hub", f"{n}.example", day, seconds=60) for n in range(MAX_SENDERS + 9)])
    ask([tally.count("k", f"hub{n}", "x.example", day, seconds=60) for n in range(9)])
    fields, ttl = ask([("HGETALL", "k"), ("TTL", "k")])
    found = tally.read(fields)
    assert len(found) == 3
    assert len(found["hub"]) == MAX_SENDERS
    assert found["hub"]["others"].count == 10
    assert 0 < ttl <= 60


def test_what_is_older_than_it_is_kept_makes_room_and_nothing_else_does(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tally, "MAX_FIELDS", 1000)
    week = 7 * 86_400

    def count(local: str, day: str) -> int:
        (written,) = ask([tally.count("k", local, "x.example", day, seconds=week)])
        return int(written)

    assert all(count(f"guess{n}", "2026-11-01") for n in range(1000))
    assert count("guess0", "2026-11-03")
    assert not any(count(f"slaes{n}", "2026-11-08") for n in range(9))
    # At the end of the hash there may be nothing to look at.
    assert sum(count(f"slaes{n}", "2026-11-09") for n in range(99)) > 80
    fields, size = ask([("HGETALL", "k"), ("HLEN", "k")])
    assert size <= 1000
    assert "guess0" in tally.read(fields)


def test_vendors_are_never_forgotten_to_make_room(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tally, "MAX_FIELDS", 1)
    assert ask([tally.count("k", "hub", "x.example", "2026-11-01")]) == [1]
    assert ask([tally.count("k", "shop", "x.example", "2030-11-01")]) == [0]


def test_what_somebody_else_wrote_is_left_out() -> None:
    odd = {b"a": b"[1]", b"b": b"no json", b"c": b'{"x": 1}', b"d": b'{"x": [1, "a", "b"]}'}
    assert tally.read(odd) == {"d": {"x": Seen(1, "a", "b")}}


def broken() -> list[Command]:
    raise ValueError("an entry that cannot be made")


def test_the_journal_writes_what_it_can_and_goes_on_after_what_it_cannot(ask: Ask) -> None:
    log = Log()
    journal = Journal(ask, log.logger)
    journal.note(lambda: [("SET", "a", 1)])
    journal.written(10)
    journal.note(broken)
    journal.written(10)
    journal.note(lambda: [("SET", "b", 1)])
    journal.written(10)
    assert ask([("MGET", "a", "b")]) == [[b"1", b"1"]]
    assert log.names == ["journal entry failed"]


def test_the_journal_begins_as_soon_as_there_is_a_thread_for_it(ask: Ask) -> None:
    journal = Journal(ask, Log().logger)
    with no_thread_left():
        assert journal.note(lambda: [("SET", "a", 1)])
        journal.written(0.1)
    assert journal.note(lambda: [("SET", "b", 2)])
    journal.written(10)
    assert ask([("MGET", "a", "b")]) == [[b"1", b"2"]]


def test_the_journal_waits_no_longer_than_it_is_told_to(ask: Ask) -> None:
    journal = Journal(ask, Log().logger)
    go = threading.Event()
    journal.note(lambda: [("SET", "a", 1)] if go.wait(10) else [])
    journal.written(0.01)
    assert ask([("GET", "a")]) == [None]
    go.set()
    journal.written(10)
    assert ask([("GET", "a")]) == [b"1"]


def test_a_client_that_guesses_is_refused_though_there_is_no_thread_to_watch_it(ask: Ask) -> None:
    mine = harvest(ask, Log(), [1e9])
    with no_thread_left():
        assert [mine.is_guessing("192.0.2.1", f"x{n}@example.com") for n in range(6)][-1]


def test_the_journal_says_that_counts_are_lost_and_not_each_time() -> None:
    def away(_: Sequence[Command]) -> list[Any]:
        raise Unavailable("switched off")

    log = Log()
    journal = Journal(away, log.logger)
    for _ in range(5):
        journal.note(lambda: [("SET", "a", 1)])
        journal.written(10)
    assert log.names == ["counts are lost"]
