"""Domains of which all rules are kept: read when it is worth while, and never an old one."""

from __future__ import annotations

import math
import threading
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aliasmilter.mail.address import Address
from aliasmilter.routing.lookup import Found
from aliasmilter.store import tracking, whole
from aliasmilter.store.deadline import Deadline, LateError, RefusedError
from aliasmilter.store.link import Command, Reply
from aliasmilter.store.names import Names
from aliasmilter.store.questions import Lifetimes
from aliasmilter.store.redis import AliasStore
from aliasmilter.store.servers import Single
from aliasmilter.store.whole import (
    FIRST,
    MAX_NAMES,
    MAX_RULES,
    RULES_A_LOOKUP,
    Demand,
    Whole,
    read_whole,
)
from tests.harness.redis import RedisServer
from tests.harness.wait import wait_until

DOMAIN = "example.com"
OpenStore = Callable[[], AliasStore]


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with RedisServer() as own:
        own.cli("HSET", f"domain:{DOMAIN}", "unknown", "reject")
        own.cli("HSET", f"alias:{DOMAIN}", "bob", "0", "sales-*", "bob@example.com")
        yield own


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[Command]]:
    """All that the server is asked. Every process counts as busy."""
    monkeypatch.setattr(tracking, "BUSY", 0.0)
    commands: list[Sequence[Command]] = []
    real = Single.exchange

    def noting(
        self: Single, these: Sequence[Command], deadline: Deadline
    ) -> tuple[list[Reply], str]:
        commands.append(these)
        return real(self, these, deadline)

    monkeypatch.setattr(Single, "exchange", noting)
    return commands


@pytest.fixture
def store(server: RedisServer, asked: list[Sequence[Command]]) -> Iterator[AliasStore]:
    with ExitStack() as stack:
        yield stack.enter_context(closing(AliasStore(server.url, 1.0, cached=True)))


class Guesser:
    """Asks for another address each time."""

    def __init__(self, store: AliasStore, asked: list[Sequence[Command]]) -> None:
        self.store = store
        self.asked = asked
        self.number = 0

    def guess(self) -> Found:
        self.number += 1
        (answer,) = self.store.lookup([Address(f"user{self.number}", DOMAIN)])
        assert isinstance(answer, Found)
        return answer

    def takes_a_round_trip(self) -> bool:
        before = len(self.asked)
        self.guess()
        return len(self.asked) > before

    def guess_kept(self) -> Found:
        """A guess that takes no round trip: of names that are kept one in 200 does, by mistake."""
        while True:
            before = len(self.asked)
            answer = self.guess()
            if len(self.asked) == before:
                return answer

    def until_kept(self) -> None:
        wait_until(
            lambda: not any(self.takes_a_round_trip() for _ in range(10)), "all rules are kept"
        )


@pytest.fixture
def guesser(store: AliasStore, asked: list[Sequence[Command]]) -> Guesser:
    return Guesser(store, asked)


def pages(asked: list[Sequence[Command]]) -> int:
    """How many pages of rules were read."""
    return sum(commands[0][0] == "HSCAN" for commands in asked)


def test_who_guesses_addresses_costs_no_round_trip_each(guesser: Guesser) -> None:
    guesser.until_kept()
    assert guesser.number >= FIRST
    assert set(guesser.guess().rules) == {"bob", "sales-*"}
    assert guesser.guess().has_patterns


@pytest.mark.parametrize(
    ("commands", "rules"),
    [
        (["HSET alias:example.com new x@y.example"], {"bob", "sales-*", "new"}),
        (["HDEL alias:example.com bob"], {"sales-*"}),
        (["RENAME alias:other alias:example.com"], {"carol"}),
        (["MULTI", "DEL alias:example.com", "HSET alias:example.com z 1", "EXEC"], {"z"}),
    ],
    ids=["added", "removed", "renamed", "replaced"],
)
def test_an_edit_holds_for_the_next_lookup(
    server: RedisServer, guesser: Guesser, commands: list[str], rules: set[str]
) -> None:
    server.cli("HSET", "alias:other", "carol", "1")
    guesser.until_kept()
    server.cli(stdin="\n".join(commands) + "\n")
    for name in ("bob", "new", "carol", "z"):
        (found,) = guesser.store.lookup([Address(name, DOMAIN)])
        assert isinstance(found, Found)
        assert (name in found.rules) == (name in rules)
    guesser.until_kept()
    assert set(guesser.guess().rules) == rules


def test_an_edit_of_the_settings_holds_for_the_next_lookup(
    server: RedisServer, guesser: Guesser
) -> None:
    guesser.until_kept()
    server.cli("HSET", f"domain:{DOMAIN}", "unknown", "pass")
    assert guesser.guess().settings == {b"unknown": b"pass"}


def test_a_domain_that_blocks_senders_from_now_on_is_noticed(
    server: RedisServer, guesser: Guesser
) -> None:
    guesser.until_kept()
    assert not guesser.guess().has_blocks
    server.cli("SADD", f"block:{DOMAIN}", "spam.example")
    assert guesser.guess().has_blocks


def test_an_edit_while_the_rules_are_read_is_not_lost(
    server: RedisServer, guesser: Guesser, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.cli(stdin="".join(f"HSET alias:{DOMAIN} r{n} 0\n" for n in range(1500)))
    edited: list[str] = []
    real = Single.exchange

    def editing(
        self: Single, these: Sequence[Command], deadline: Deadline
    ) -> tuple[list[Reply], str]:
        replies = real(self, these, deadline)
        if these[0][0] == "HSCAN" and not edited:
            edited.append("r1")
            server.cli(stdin="".join(f"HSET alias:{DOMAIN} r{n} 1\n" for n in range(1500)))
        return replies

    monkeypatch.setattr(Single, "exchange", editing)
    guesser.until_kept()
    assert edited
    rules = guesser.guess().rules
    assert {text for name, text in rules.items() if name.startswith("r")} == {b"1"}


@pytest.mark.parametrize("key", ["alias:example.com", "domain:example.com"])
def test_what_will_expire_is_not_kept(
    server: RedisServer, guesser: Guesser, asked: list[Sequence[Command]], key: str
) -> None:
    server.cli("EXPIRE", key, "60")
    for _ in range(3 * FIRST):
        assert guesser.takes_a_round_trip()
    assert pages(asked) == 0


def test_a_domain_with_too_many_rules_is_asked_about_each_time_and_never_read(
    server: RedisServer, guesser: Guesser, asked: list[Sequence[Command]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(whole, "MAX_NAMES", 1)
    for _ in range(3 * FIRST):
        assert guesser.takes_a_round_trip()
    assert pages(asked) == 0
    counts = [commands for commands in asked if commands[0][0] == "HLEN"]
    assert len(counts) <= 1, "that it is too big is found out once"
    del server


# A large domain


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole, "MAX_RULES", 1)


@pytest.mark.usefixtures("large")
def test_who_guesses_addresses_of_a_large_domain_costs_no_round_trip_either(
    server: RedisServer, guesser: Guesser
) -> None:
    server.cli("HSET", f"alias:{DOMAIN}", "*", "quarantine")
    guesser.until_kept()
    found = guesser.guess_kept()
    assert found.rules == {"sales-*": b"bob@example.com", "*": b"quarantine"}
    assert found.has_patterns


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("local", ["bob", "Bob", "bob+x", "bob-x.y"])
def test_an_address_of_a_large_domain_that_may_have_a_rule_is_asked_for(
    guesser: Guesser, asked: list[Sequence[Command]], local: str
) -> None:
    guesser.until_kept()

    def takes_a_round_trip() -> bool:
        before = len(asked)
        (found,) = guesser.store.lookup([Address(local, DOMAIN)])
        assert isinstance(found, Found)
        assert found.rules["bob"] == b"0"
        return len(asked) > before

    assert takes_a_round_trip()
    # Not at once: nothing kept is used while a ping is unanswered.
    wait_until(lambda: not takes_a_round_trip(), "the answer is kept")


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize(
    "edit",
    [
        ["HSET", f"alias:{DOMAIN}", "user{next}", "bob@example.com"],
        ["HSET", f"alias:{DOMAIN}", "user{next}", "bob@example.com", "bob", "1"],
        ["HSET", f"alias:{DOMAIN}", "user*", "bob@example.com"],
        ["HSET", f"alias:{DOMAIN}", "*", "bob@example.com"],
    ],
)
def test_an_edit_of_a_large_domain_holds_for_the_next_lookup(
    server: RedisServer, guesser: Guesser, edit: list[str]
) -> None:
    guesser.until_kept()
    server.cli(*(word.format(next=guesser.number + 1) for word in edit))
    assert b"bob@example.com" in [
        text for name, text in guesser.guess().rules.items() if name != "sales-*"
    ]


@pytest.mark.usefixtures("large")
def test_a_large_domain_that_is_kept_is_not_read_again(
    guesser: Guesser, asked: list[Sequence[Command]]
) -> None:
    guesser.until_kept()
    del asked[:]
    for number in range(3 * FIRST):
        guesser.store.lookup([Address(f"bob+{number}", DOMAIN)])
    assert len(asked) == 3 * FIRST, "the server is asked, as there may be a rule"
    assert pages(asked) == 0


@pytest.mark.usefixtures("large")
def test_a_rule_of_a_large_domain_may_expire_but_not_one_for_many_addresses() -> None:
    names = {b"bob": b"x", b"carol": b"x", b"sales-*": b"x"}
    assert isinstance(read(Server(names, mortal=b"bob")), Whole)
    assert read(Server(names, mortal=b"sales-*")) == math.inf


def test_a_user_who_may_not_count_rules_gets_answers_all_the_same(
    server: RedisServer, guesser: Guesser
) -> None:
    server.cli("ACL", "SETUSER", "default", "-hlen")
    for _ in range(3 * FIRST):
        assert guesser.takes_a_round_trip()


def test_a_system_without_a_thread_to_spare_costs_no_answer(
    guesser: Guesser, asked: list[Sequence[Command]], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = threading.Thread.start

    def start(self: threading.Thread) -> None:
        if self.name == "reading":
            raise RuntimeError("can't start new thread")
        real(self)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        for _ in range(3 * FIRST):
            guesser.guess()
    assert pages(asked) == 0
    guesser.until_kept()


def test_a_domain_that_could_not_be_read_once_is_read_later(
    guesser: Guesser, asked: list[Sequence[Command]], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Single.exchange
    late: list[str] = []

    def exchange(
        self: Single, commands: Sequence[Command], deadline: Deadline
    ) -> tuple[list[Reply], str]:
        if commands[0][0] == "HLEN" and not late:
            late.append("once")
            raise LateError("once, too late")
        return real(self, commands, deadline)

    monkeypatch.setattr(Single, "exchange", exchange)
    guesser.until_kept()
    assert late
    assert pages(asked) == 1


# Reading


class Server:
    """Answers `ask` out of a dictionary of rules, in pages."""

    def __init__(self, rules: dict[bytes, bytes], *, mortal: bytes = b"") -> None:
        self.rules = rules
        self.mortal = mortal
        self.settings = [b"unknown", b"reject"]
        self.pages = 0
        self.largest = 0  # octets of a page
        self.copies = False

    def __call__(self, commands: Sequence[Command]) -> list[Reply]:
        return [self.answer(str(name), *words) for name, *words in commands]

    def answer(self, name: str, *words: object) -> Reply:
        if name == "HSCAN":
            names = sorted(self.rules)
            start = int(words[1])  # type: ignore[call-overload]
            end = start + int(words[3])  # type: ignore[call-overload]
            page = names[start:end]
            self.pages += 1
            self.largest = max(self.largest, sum(len(self.rules[name]) for name in page))
            after = end if end < len(names) else 0
            words_found = [word for n in page for word in (n, self.rules[n])]
            if self.copies:
                words_found = [bytes(bytearray(word)) for word in words_found]
            return [b"%d" % after, words_found]
        if name == "HPTTL":
            return [1000 if word == self.mortal else -1 for word in words[3:]]
        return {
            "HLEN": len(self.rules),
            "HGETALL": self.settings,
            "EXISTS": 1,
            "PTTL": -1,
        }[name]


def read(server: Server, most: int = MAX_RULES) -> Whole | float:
    return read_whole(DOMAIN, server, Lifetimes.OF_FIELDS, most)


def test_all_pages_are_read_and_names_that_no_address_has_are_left_out() -> None:
    rules = {b"user%d" % number: b"x" for number in range(2500)}
    server = Server({**rules, b"\xff": b"x"})
    found = read(server)
    assert isinstance(found, Whole)
    assert set(found.found.rules) == {name.decode() for name in rules}
    assert (server.pages, found.found.has_blocks, found.found.has_patterns) == (5, True, False)


def test_no_more_rules_are_read_than_are_worth_it_and_their_number_is_told() -> None:
    server = Server({b"user%d" % number: b"x" for number in range(200)})
    assert read(server, most=199) == 200
    assert server.pages == 0
    assert isinstance(read(server, most=200), Whole)


def test_a_rule_that_will_expire_keeps_the_domain_from_being_kept() -> None:
    assert read(Server({b"bob": b"x", b"tmp": b"x"}, mortal=b"tmp")) == math.inf


def test_a_domain_that_is_gone_is_not_kept_for_its_rules() -> None:
    server = Server({b"bob": b"x"})
    server.settings = []
    assert read(server) == math.inf


def test_rules_that_take_too_much_memory_are_not_kept() -> None:
    assert read(Server({b"user%d" % number: b"x" * 60_000 for number in range(100)})) == math.inf


def test_large_rules_are_read_few_at_a_time() -> None:
    rules = {b"user%d" % number: b"x" for number in range(1000)}
    for size in (60_000, 10_000, 600):
        server = Server({**rules, **{b"user%d" % n: b"x" * size for n in range(0, 1000, 2)}})
        read(server)
        assert server.largest < 2**20


@pytest.mark.parametrize("command", ["HLEN", "HGETALL", "EXISTS", "HSCAN"])
def test_an_answer_to_another_question_is_no_answer(command: str) -> None:
    class Garbling(Server):
        def answer(self, name: str, *words: object) -> Reply:
            return b"OK" if name == command else super().answer(name, *words)

    with pytest.raises(Exception, match="another question"):
        read(Garbling({}))


def test_an_error_of_the_server_is_no_answer() -> None:
    def refuse(_commands: Sequence[Command]) -> list[Reply]:
        raise RefusedError("NOPERM")

    with pytest.raises(RefusedError):
        read_whole(DOMAIN, refuse, Lifetimes.OF_KEYS, MAX_RULES)


def test_no_more_memory_is_taken_than_is_counted() -> None:
    server = Server({b"user%d" % number: b"bob%d@example.com" % number for number in range(5000)})
    server.copies = True
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        found = read(server)
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert isinstance(found, Whole)
    assert found.octets / 2 < taken < found.octets


def test_of_a_large_domain_the_names_are_kept_in_a_few_octets() -> None:
    server = Server({b"user%d" % number: b"bob@example.com" for number in range(MAX_RULES + 1)})
    found = read(server, most=MAX_NAMES)
    assert isinstance(found, Whole)
    assert found.octets < 4 * MAX_RULES + 2000
    assert found.answer(Address("user7", DOMAIN)) is None
    strangers = [found.answer(Address(f"x{number}", DOMAIN)) for number in range(1000)]
    assert strangers.count(found.found) > 980


@given(st.sets(st.binary(max_size=20)), st.integers(0, 100))
def test_a_name_that_was_added_may_always_be_there(names: set[bytes], expected: int) -> None:
    found = Names(expected)
    found.update(names)
    assert all(map(found.may_hold, names))


# When it is worth while


def test_a_domain_is_wanted_after_so_many_lookups() -> None:
    demand = Demand()
    assert [demand.note(DOMAIN) for _ in range(FIRST)] == [False] * (FIRST - 1) + [True]
    assert demand.affords(DOMAIN) == FIRST * RULES_A_LOOKUP


def test_a_large_domain_takes_more_lookups() -> None:
    demand = Demand()
    demand.found(DOMAIN, 100 * RULES_A_LOOKUP)
    assert [demand.note(DOMAIN) for _ in range(100)] == [False] * 99 + [True]


def test_what_was_read_has_to_be_paid_for_again_when_it_is_let_go_of() -> None:
    demand = Demand()
    demand.found(DOMAIN, 100 * RULES_A_LOOKUP)
    for _ in range(2):
        assert [demand.note(DOMAIN) for _ in range(100)] == [False] * 99 + [True]
        demand.served(DOMAIN)


def test_an_edit_makes_it_cost_the_same_again() -> None:
    demand = Demand()
    demand.found(DOMAIN, math.inf)
    assert not any(demand.note(DOMAIN) for _ in range(1000))
    demand.edited(DOMAIN)
    assert [demand.note(DOMAIN) for _ in range(FIRST)] == [False] * (FIRST - 1) + [True]


def test_the_memory_for_counting_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole, "_MAX_DOMAINS", 10)
    demand = Demand()
    for number in range(FIRST * 20):
        demand.note(f"{number}.example")
    assert len(demand._asked) <= 11
    assert any(demand.note(DOMAIN) for _ in range(2 * FIRST))
