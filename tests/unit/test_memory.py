"""What is kept of the rules: bounded, and gone when told so."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from functools import partial

from aliasmilter.mail.address import Address
from aliasmilter.routing.lookup import Absent, Found, Unreadable
from aliasmilter.store.memory import MAX_AGE, MAX_AGE_OF_NAMES, MAX_ANSWER, MAX_OCTETS, Memory
from aliasmilter.store.names import Names
from aliasmilter.store.whole import Whole

BOB = Address("bob", "example.com")
FOUND = Found({b"unknown": b"reject"}, {"bob": b"bob@example.com"})


def test_an_answer_is_kept_for_the_address_however_it_is_written() -> None:
    memory = Memory()
    memory.put(BOB, FOUND, 0)
    assert memory.get(Address("BOB", "example.com")) is FOUND
    assert memory.get(Address("carol", "example.com")) is None
    assert memory.get(Address("bob", "example.net")) is None


def test_an_unmanaged_domain_is_kept_for_all_its_addresses() -> None:
    memory = Memory()
    memory.put(BOB, Absent(), 0)
    assert memory.get(Address("anybody", "example.com")) == Absent()


def test_a_domain_is_forgotten_as_a_whole_in_both_halves() -> None:
    memory = Memory()
    carol, away = Address("carol", "example.com"), Address("x", "away.example")
    memory.put(BOB, FOUND, 0)
    memory.put(away, Absent(), 0)
    memory.put(carol, FOUND, MAX_AGE + 1)
    assert memory.get(BOB)
    memory.forget("example.com")
    assert memory.get(BOB) is None
    assert memory.get(carol) is None
    assert memory.get(away)
    memory.clear()
    assert memory.get(away) is None


def test_a_whole_domain_answers_for_all_its_addresses_until_it_is_forgotten_or_too_old() -> None:
    memory = Memory()
    nobody = Address("nobody", "example.com")
    memory.put_whole("example.com", Whole(FOUND, 1000), 0)
    assert memory.get(nobody) is memory.get(BOB) is FOUND
    memory.age(MAX_AGE + 1)
    assert memory.get(nobody) is FOUND
    memory.forget("example.com")
    assert memory.get(nobody) is None
    memory.put_whole("example.com", Whole(FOUND, 1000), MAX_AGE + 2)
    memory.age(3 * MAX_AGE)
    memory.age(4 * MAX_AGE + 1)
    assert memory.get(nobody) is None


def test_the_names_of_a_large_domain_are_kept_longer_than_other_answers_but_not_for_ever() -> None:
    memory = Memory()
    nobody = Address("nobody", "example.com")
    memory.put_whole("example.com", Whole(FOUND, 1000, Names(10)), 0)
    now = 0.0
    while memory.get(nobody):
        now += MAX_AGE / 2
        memory.age(now)
    assert MAX_AGE_OF_NAMES <= now <= MAX_AGE_OF_NAMES + 3 * MAX_AGE


def test_the_names_of_a_large_domain_are_forgotten_when_it_is_edited_or_there_is_no_room() -> None:
    memory = Memory()
    nobody = Address("nobody", "example.com")

    def make_room() -> None:
        memory.age(200, room=MAX_OCTETS)
        memory.age(200, room=MAX_OCTETS)

    forget_it = partial(memory.forget, "example.com")
    ways: list[Callable[[], None]] = [forget_it, memory.clear, make_room]
    for forget in ways:
        memory.put_whole("example.com", Whole(FOUND, 1000, Names(10)), 0)
        memory.age(MAX_AGE + 1)
        assert memory.get(nobody)
        forget()
        assert memory.get(nobody) is None


def test_whole_domains_push_out_what_is_older_when_there_are_too_many() -> None:
    memory = Memory()
    for number in range(5):
        memory.put_whole(f"{number}.example", Whole(FOUND, MAX_OCTETS // 4), number)
    kept = [n for n in range(5) if memory.get(Address("bob", f"{n}.example"))]
    assert kept == [2, 3, 4], "two in the old half, and the last one"


def test_nothing_is_kept_for_longer_than_twice_the_age() -> None:
    memory = Memory()
    memory.put(BOB, FOUND, 100)
    memory.age(100 + MAX_AGE)
    assert memory.get(BOB)
    memory.age(100 + 1.5 * MAX_AGE)
    memory.age(100 + 2.6 * MAX_AGE)
    assert memory.get(BOB) is None


def test_what_cannot_be_read_and_what_is_huge_is_not_kept() -> None:
    memory = Memory()
    memory.put(BOB, Unreadable("alias:example.com", "x"), 0)
    assert memory.get(BOB) is None
    memory.put(BOB, Found({b"unknown": b"reject"}, {"bob": b"x" * MAX_ANSWER}), 0)
    assert memory.get(BOB) is None


def test_memory_is_bounded_whoever_tries_how_many_addresses() -> None:
    for domains in (1, 1000, 10**9):
        tracemalloc.start()
        memory = Memory()
        for n in range(60_000):
            address = Address(f"user{n}", f"d{n % domains}.example")
            fields = {b"unknown": b"%d" % n, b"quarantine": b"q@example.net"}
            rules = {f"user{n}": b"bob%d@example.com" % n, "*": b"quarantine"}
            answer = Absent() if n % 3 == 0 and domains > 10**6 else Found(fields, rules)
            memory.put(address, answer, 0)
        octets, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert memory.get(address) == answer
        assert octets < MAX_OCTETS
        assert octets > MAX_OCTETS / 8, "or the estimate is far too careful"
