"""Decisions that were made before hold exactly as long as the store says the same."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from dataclasses import replace
from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aliasmilter.mail.address import Address, parse_address
from aliasmilter.mail.replies import Reason
from aliasmilter.routing import known as known_decisions
from aliasmilter.routing import resolver
from aliasmilter.routing.decision import Decision, Policy
from aliasmilter.routing.known import Known
from aliasmilter.routing.lookup import Answer, Found
from aliasmilter.routing.resolver import resolve
from tests.unit.fakes import Store

DAY = date(2026, 11, 1)
ALICE = parse_address("alice@bank.example")


class Keeping(Store):
    """Says the very same of an address until its domain is edited, as the store's memory does."""

    def __init__(self, rules: dict[str, dict[str, str]]) -> None:
        super().__init__(rules)
        self.edited = rules
        self.kept: dict[Address, Answer] = {}

    def __call__(self, addresses: Sequence[Address]) -> list[Answer]:
        fresh = super().__call__(addresses)
        return [self.kept.setdefault(a, new) for a, new in zip(addresses, fresh, strict=True)]

    def edit(self, domain: str, rules: dict[str, str] | None) -> None:
        if rules is None:
            self.edited.pop(domain, None)
        else:
            self.edited[domain] = rules
        self.kept = {a: answer for a, answer in self.kept.items() if a.domain != domain}


class Asker:
    """Decides with a memory, and counts what had to be worked out."""

    def __init__(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store = store
        self.known = Known()
        self.worked_out = 0
        real = resolver._Search.run

        def run(search: resolver._Search, *args: object, **more: object) -> Decision:
            self.worked_out += 1
            return real(search, *args, **more)  # type: ignore[arg-type]

        monkeypatch.setattr(resolver._Search, "run", run)

    def ask(self, address: str, *, sender: Address | None = None, day: date = DAY) -> Decision:
        return resolve(
            parse_address(address), self.store, Policy(), day, sender=sender, known=self.known
        )


@pytest.fixture
def asker(monkeypatch: pytest.MonkeyPatch) -> Asker:
    rules = {
        "example.com": {
            "bob": "bob@example.com",
            "sales": "bob@example.com, me@away.example",
            "out": "me@away.example",
            "old": "bob@example.com expires=2026-11-01",
            "picky": "bob@example.com block=bank.example",
        },
    }
    return Asker(Keeping(rules), monkeypatch)


def edit(asker: Asker, domain: str, rules: dict[str, str] | None) -> None:
    assert isinstance(asker.store, Keeping)
    asker.store.edit(domain, rules)


@pytest.mark.parametrize("address", ["bob@example.com", "sales@example.com", "x@away.example"])
def test_a_decision_is_worked_out_once(asker: Asker, address: str) -> None:
    first = asker.ask(address)
    assert asker.ask(address, sender=ALICE) is first
    assert asker.worked_out == 1


def test_the_store_is_asked_each_time_for_all_levels_at_once(asker: Asker) -> None:
    asker.ask("sales@example.com")
    levels = list(asker.store.calls)
    assert len(levels) == 2
    asker.ask("sales@example.com")
    assert asker.store.calls == [*levels, levels[0] + levels[1]]


@pytest.mark.parametrize(
    ("domain", "rules", "reason"),
    [
        ("example.com", {"sales": "discard"}, Reason.DISCARDED),
        ("example.com", {}, Reason.UNKNOWN),
        ("example.com", None, Reason.UNMANAGED),
        ("away.example", {"me": "disabled"}, Reason.ALIAS),
    ],
)
def test_an_edit_at_any_level_holds_at_once(
    asker: Asker, domain: str, rules: dict[str, str] | None, reason: Reason
) -> None:
    before = asker.ask("sales@example.com")
    edit(asker, domain, rules)
    after = asker.ask("sales@example.com")
    assert after.reason is reason
    assert after != before


def test_after_an_edit_the_address_itself_is_not_asked_for_twice(asker: Asker) -> None:
    asker.ask("bob@example.com")
    edit(asker, "example.com", {"bob": "discard"})
    asker.store.calls.clear()
    asker.ask("bob@example.com")
    assert len(asker.store.calls) == 1


def test_a_store_that_keeps_nothing_is_not_asked_more_often(asker: Asker) -> None:
    asker.store = Store(asker.store.rules)
    for _ in range(3):
        asker.ask("sales@example.com")
    assert len(asker.store.calls) == 6
    assert asker.worked_out == 3


def test_the_sender_is_asked_about_each_time_where_a_rule_blocks(asker: Asker) -> None:
    assert asker.ask("picky@example.com").reason is Reason.ALIAS
    assert asker.ask("picky@example.com", sender=ALICE).reason is Reason.BLOCKED
    assert asker.ask("picky@example.com").reason is Reason.ALIAS


def test_what_a_domain_says_of_a_sender_is_not_kept(asker: Asker) -> None:
    address = parse_address("bob@example.com")
    (found,) = asker.store([address])
    assert isinstance(found, Found)
    assert isinstance(asker.store, Keeping)
    asker.store.kept[address] = replace(found, has_blocks=True)
    asker.ask("bob@example.com")
    asker.ask("bob@example.com")
    assert asker.worked_out == 2


def test_a_rule_expires_although_nobody_edits_it(asker: Asker) -> None:
    assert asker.ask("old@example.com").reason is Reason.ALIAS
    assert asker.ask("old@example.com", day=DAY + timedelta(days=1)).reason is Reason.EXPIRED


def test_refusals_are_not_kept_as_there_is_no_end_of_them(asker: Asker) -> None:
    for _ in range(2):
        assert asker.ask("nobody@example.com").reason is Reason.UNKNOWN
    assert asker.worked_out == 2


def test_a_reversed_return_address_and_a_recipient_are_two_questions(asker: Asker) -> None:
    address = parse_address("x@away.example")
    ours, theirs = (
        resolve(address, asker.store, Policy(), DAY, is_target=is_target, known=asker.known)
        for is_target in (True, False)
    )
    assert [final.leaves for final in (*ours.finals, *theirs.finals)] == [True, False]


def test_the_rules_of_a_domain_are_not_held_in_memory_by_its_decisions(asker: Asker) -> None:
    address = parse_address("bob@example.com")
    (answer,) = asker.store([address])
    assert isinstance(answer, Found)
    rules = weakref.ref(answer)
    assert asker.ask("bob@example.com") is asker.ask("bob@example.com")
    del answer
    edit(asker, "example.com", {})
    gc.collect()
    assert rules() is None


def test_there_are_so_many_decisions_and_no_more(
    asker: Asker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_decisions, "MAX_DECISIONS", 10)
    for number in range(25):
        asker.ask(f"x{number}@away.example")
    assert len(asker.known._entries) <= 10


def test_long_lists_leave_room_for_fewer_decisions(
    asker: Asker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_decisions, "MAX_ALL_ANSWERS", 50)
    away = " ".join(f"m{number}@away.example" for number in range(9))
    edit(asker, "example.com", {f"list{number}": away for number in range(20)})
    kept = []
    for number in range(20):
        asker.ask(f"list{number}@example.com")
        kept.append(len(asker.known._entries))
    assert kept == [1, 2, 3, 4, 5] * 4


def test_a_long_subaddress_is_not_kept(asker: Asker) -> None:
    for _ in range(2):
        assert asker.ask(f"bob+{'x' * 200}@example.com").finals
    assert not asker.known._entries


def test_a_store_that_keeps_nothing_has_no_decisions_kept_for_it(asker: Asker) -> None:
    asker.store = Store(asker.store.rules)
    for number in range(20):
        asker.ask(f"bob+{number}@example.com")
    assert len(asker.known._entries) <= 1, "the first one, of which that is not known yet"


@pytest.mark.parametrize(("targets", "worked_out"), [(5, 1), (100, 2)])
def test_what_a_long_list_comes_to_is_not_kept(
    asker: Asker, targets: int, worked_out: int
) -> None:
    dropped = {f"drop{number}": "discard" for number in range(targets)}
    everybody = " ".join(["bob@example.com", *(f"{name}@example.com" for name in dropped)])
    edit(asker, "example.com", {"bob": "bob@example.com", "list": everybody, **dropped})
    asker.ask("list@example.com")
    asker.ask("list@example.com")
    assert asker.worked_out == worked_out


NAMES = ["a", "b", "c", "d"]
TARGETS = [*(f"{name}@example.com" for name in NAMES), "a@example.net", "z@away.example"]
WORDS = st.lists(st.sampled_from(TARGETS), min_size=1, max_size=3).map(" ".join)
RULE = st.one_of(WORDS, st.sampled_from(["discard", "disabled", "defer"]),
                 st.tuples(WORDS, st.sampled_from([" block=bank.example", " expires=2026-11-01"]))
                 .map("".join))  # fmt: skip
DOMAIN = st.none() | st.dictionaries(st.sampled_from(NAMES), RULE)
EDIT = st.tuples(st.sampled_from(["example.com", "example.net", "away.example"]), DOMAIN)
QUESTION = st.tuples(st.sampled_from(NAMES), st.sampled_from([None, ALICE]), st.integers(0, 1))


@given(st.lists(st.one_of(EDIT, QUESTION, QUESTION), max_size=30))
def test_whatever_is_edited_the_decision_is_the_one_that_is_worked_out(
    events: list[tuple[str, dict[str, str] | None] | tuple[str, Address | None, int]],
) -> None:
    store, known = Keeping({"example.com": {}}), Known()
    for event in events:
        if len(event) == 2:
            store.edit(*event)
            continue
        local, sender, days = event
        address, day = Address(local, "example.com"), DAY + timedelta(days=days)
        for _ in range(2):
            remembered = resolve(address, store, Policy(), day, sender=sender, known=known)
            assert remembered == resolve(address, store, Policy(), day, sender=sender)
