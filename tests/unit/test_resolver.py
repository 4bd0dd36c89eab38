"""Where a recipient goes."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterable
from dataclasses import replace
from datetime import date

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aliasmilter.mail.address import Address, parse_address
from aliasmilter.mail.replies import Reason
from aliasmilter.routing.decision import Decision, Policy
from aliasmilter.routing.lookup import (
    MAX_INNER_PATTERNS,
    Unavailable,
    fields_for,
    is_usable_pattern,
    patterns_for,
)
from aliasmilter.routing.resolver import MAX_ADDRESSES, MAX_DEPTH, MAX_FINALS, resolve
from tests.unit.fakes import Store

DAY = date(2026, 11, 1)
POLICY = Policy(
    local_domains=frozenset({"local.example"}), quarantine=parse_address("q@example.net")
)
RULES = {
    "example.com": {
        "bob": "bob@example.com",
        "carol": "carol@example.com, dan@example.com",
        "dan": "dan@example.com, carol@example.com",
        "sales": "bob@example.com",
        "team": "bob@example.com sales@example.com carol@example.com",
        "out": "me@gmail.example",
        "both": "bob@example.com me@gmail.example",
        "local": "x@local.example",
        "same": "@new.example",
        "dash": "bob@dash.example",
        "nodetail": "bob@none.example",
        "mixed": "guess@catch.example sales@example.com",
        "own": "@example.com",
        "gone": "disabled",
        "old": "bob@example.com expires=2026-10-31",
        "today": "bob@example.com expires=2026-11-01",
        "drop": "discard",
        "some": "gone@example.com bob@example.com drop@example.com",
        "none": "gone@example.com drop@example.com",
        "wait": "bob@example.com later@example.com",
        "later": "defer",
        "dangling": "nobody@example.com",
        "invalid": "nonsense",
        "toinvalid": "bob@example.com invalid@example.com",
        "a": "b@example.com",
        "b": "c@example.com",
        "c": "a@example.com",
        "spam": "quarantine",
    },
    "new.example": {"same": "same@new.example", "*": "quarantine"},
    "catch.example": {"*": "bob@example.com"},
    "catch-local.example": {"*": "x@local.example"},
    "catch-passed.example": {"*": "x@pass.example"},
    "move.example": {"*": "@example.com"},
    "circle.example": {"*": "@circle.example"},
    "old.example": {},
    "lost.example": {},
    "dash.example": {"bob": "bob@dash.example"},
    "none.example": {"bob": "bob@none.example"},
    "pass.example": {},
    "second.example": {},
    "third.example": {"*": "@local.example"},
    "fourth.example": {"*": "@pass.example"},
    "fifth.example": {"sub": "@local.example"},
    "bad.example": {"x": "x@bad.example"},
}
SETTINGS = {
    "old.example": {"alias_of": "example.com"},
    "lost.example": {"alias_of": "elsewhere.example"},
    "dash.example": {"delimiter": "-"},
    "none.example": {"delimiter": ""},
    "pass.example": {"unknown": "pass"},
    "second.example": {"alias_of": "pass.example"},
    "bad.example": {"unkown": "pass"},
}


def decide(address: str, policy: Policy = POLICY) -> Decision:
    return resolve(parse_address(address), Store(RULES, SETTINGS), policy, DAY)


def finals(decision: Decision) -> list[str]:
    marks = [("!" if f.leaves else "") + ("~" if f.held else "") for f in decision.finals]
    return [f"{f.address}{m}" for f, m in zip(decision.finals, marks, strict=True)]


@pytest.mark.parametrize(
    ("address", "reason", "reached"),
    [
        ("bob@example.com", "mailbox", ["bob@example.com"]),
        ("BOB@example.com", "mailbox", ["BOB@example.com"]),
        ("bob+x@example.com", "mailbox", ["bob+x@example.com"]),
        ("sales@example.com", "alias", ["bob@example.com"]),
        ("sales+x@example.com", "alias", ["bob+x@example.com"]),
        ("team@example.com", "alias", ["bob@example.com", "carol@example.com", "dan@example.com"]),
        ("carol@example.com", "alias", ["carol@example.com", "dan@example.com"]),
        ("out+x@example.com", "alias", ["me@gmail.example!"]),
        ("both@example.com", "alias", ["bob@example.com", "me@gmail.example!"]),
        ("local+x@example.com", "alias", ["x+x@local.example"]),
        ("same+x@example.com", "alias", ["same+x@new.example"]),
        ("dash+x@example.com", "alias", ["bob-x@dash.example"]),
        ("own@example.com", "mailbox", ["own@example.com"]),
        ("nodetail+x@example.com", "alias", ["bob@none.example"]),
        ("today@example.com", "alias", ["bob@example.com"]),
        ("some@example.com", "alias", ["bob@example.com"]),
        ("sales+x@old.example", "alias", ["bob+x@example.com"]),
        ("sales@move.example", "alias", ["bob@example.com"]),
        ("me@gmail.example", "unmanaged", ["me@gmail.example"]),
        ("x@pass.example", "passed", ["x@pass.example"]),
        ("guess@new.example", "catch-all", ["q@example.net"]),
        ("guess@catch.example", "catch-all", ["q@example.net"]),
        ("spam@example.com", "quarantined", ["q@example.net"]),
        ("none@example.com", "discarded", []),
        ("drop@example.com", "discarded", []),
        ("nobody@example.com", "unknown", []),
        ("nobody@old.example", "unknown", []),
        ("nobody@move.example", "unknown", []),
        ("gone@example.com", "disabled", []),
        ("old@example.com", "expired", []),
        ("wait@example.com", "deferred", []),
        ("dangling@example.com", "dangling", []),
        ("invalid@example.com", "invalid-rule", []),
        ("toinvalid@example.com", "invalid-rule", []),
        ("a@example.com", "cycle", []),
        ("x@bad.example", "invalid-rule", []),
        ("x@circle.example", "invalid-rule", []),
        ("x@lost.example", "invalid-rule", []),
        ("*@example.com", "unknown", []),
    ],
)
def test_where_addresses_go(address: str, reason: str, reached: list[str]) -> None:
    decision = decide(address)
    assert (decision.reason.value, finals(decision)) == (reason, reached)


def test_hold_leaves_the_address_or_takes_the_targets_of_the_rule() -> None:
    hold = Policy(hold=True)
    assert finals(decide("guess@new.example", hold)) == ["guess@new.example~"]
    assert finals(decide("guess@catch.example", hold)) == ["bob@example.com~"]
    for address in ("guess@new.example", "guess@catch.example"):
        assert decide(address, hold).reason is Reason.CATCH_ALL


def test_what_is_held_is_held_wherever_it_is_delivered() -> None:
    hold = replace(POLICY, hold=True)
    assert finals(decide("guess@catch-local.example", hold)) == ["x@local.example~"]
    assert finals(decide("guess@catch-passed.example", hold)) == ["x@pass.example~"]


def test_who_is_reached_by_another_way_too_is_not_held() -> None:
    assert finals(decide("mixed@example.com", replace(POLICY, hold=True))) == ["bob@example.com"]


def test_a_quarantine_without_a_mailbox_waits() -> None:
    assert decide("guess@new.example", Policy()).reason is Reason.INVALID_RULE


def test_a_mistake_names_key_and_field() -> None:
    assert decide("invalid@example.com").problem.startswith("alias:example.com invalid: ")
    assert decide("x@bad.example").problem.startswith("domain:bad.example: field unkown")
    assert decide("dangling@example.com").problem == (
        "alias:example.com dangling: its target nobody@example.com has no rule"
    )
    assert decide("a@example.com").problem == (
        "a@example.com -> b@example.com -> c@example.com -> a@example.com"
    )


@pytest.mark.parametrize(("length", "reason"), [(MAX_DEPTH, "alias"), (MAX_DEPTH + 1, "too-deep")])
def test_ten_levels_and_no_more(length: int, reason: str) -> None:
    chain = {f"c{n}": f"c{n + 1}@example.com" for n in range(length)}
    chain[f"c{length}"] = f"c{length}@example.com"
    decision = resolve(parse_address("c0@example.com"), Store({"example.com": chain}), POLICY, DAY)
    assert decision.reason.value == reason


def test_an_address_that_several_rules_lead_to_is_asked_about_once() -> None:
    store = Store({"example.com": {"all": "b@example.com c@example.com", "b": "c@example.com"}})
    resolve(parse_address("all@example.com"), store, POLICY, DAY)
    assert [[address.local for address in call] for call in store.calls] == [["all"], ["b", "c"]]


def test_a_fan_out_is_bounded() -> None:
    wide = {"w": " ".join(f"x{n}@gmail.example" for n in range(501))}
    decision = resolve(parse_address("w@example.com"), Store({"example.com": wide}), POLICY, DAY)
    assert decision.reason is Reason.TOO_WIDE


def test_five_hundred_people_are_reached_by_ten_levels_of_their_own_each() -> None:
    people = range(MAX_FINALS)
    rules = {"all": " ".join(f"p{n}.1@example.com" for n in people)}
    for level in range(1, MAX_DEPTH):
        rules |= {f"p{n}.{level}": f"p{n}.{level + 1}@example.com" for n in people}
    rules |= {f"p{n}.{MAX_DEPTH}": f"p{n}.{MAX_DEPTH}@example.com" for n in people}
    decision = resolve(parse_address("all@example.com"), Store({"example.com": rules}), POLICY, DAY)
    assert decision.reason is Reason.ALIAS
    assert len(decision.finals) == MAX_FINALS


def test_a_store_that_is_away_is_not_an_unknown_address() -> None:
    store = Store(RULES)
    store.down = True
    with pytest.raises(Unavailable):
        resolve(parse_address("bob@example.com"), store, POLICY, DAY)


NAMES = [f"n{i}" for i in range(8)]
GRAPH = st.dictionaries(
    st.sampled_from(NAMES),
    st.lists(st.sampled_from([f"{n}@example.com" for n in NAMES] + ["z@gmail.example"]),
             min_size=1, max_size=4).map(" ".join),
)  # fmt: skip


@settings(max_examples=300)
@given(GRAPH, st.sampled_from(NAMES))
def test_any_rules_end_in_bounded_work_and_with_people_at_the_end(
    graph: dict[str, str], start: str
) -> None:
    store = Store({"example.com": graph})
    decision = resolve(parse_address(f"{start}@example.com"), store, POLICY, DAY)
    asked = [address.key for call in store.calls for address in call]
    assert len(asked) == len(set(asked)) <= MAX_ADDRESSES
    assert len(store.calls) <= MAX_DEPTH + 1
    for final in decision.finals:
        local = final.address.local
        assert final.leaves or f"{local}@example.com" in graph[local].split()
    assert bool(decision.finals) == (decision.reply is None)


PATTERNS = {
    "example.com": {
        "bob": "bob@example.com",
        "sales-*": "bob+pattern@example.com",
        "sales-eu-*": "eu@mail.example",
        "*-list": "list@mail.example",
        "bounce-*-eu": "inner@mail.example",
        "a*z": "never@mail.example",
        "sales": "bob@example.com",
        "*": "quarantine",
    }
}


@pytest.mark.parametrize(
    ("address", "reached"),
    [
        ("local+y%example.com@example.com", ["x@local.example"]),
        ("sales+example.com!y@example.com", ["bob@example.com"]),
        ('"local+y@example.com"@example.com', ["x@local.example"]),
        ("sub+y%example.com@fifth.example", ["sub@local.example"]),
        ("sub+y@fifth.example", ["sub+y@local.example"]),
        ("gone%example.com@third.example", []),
        ("gone%example.com@fourth.example", []),
        ("gone%example.com@second.example", []),
        ("gone=example.com@third.example", ["gone=example.com@local.example"]),
        ("x@second.example", ["x@pass.example"]),
        # What the MTA makes of the recipient itself, it is asked.
        ("gone%example.com@pass.example", ["gone%example.com@pass.example"]),
        ("bob+y%example.com@example.com", ["bob+y%example.com@example.com"]),
    ],
)
def test_what_a_client_gave_is_handed_on_as_no_route(address: str, reached: list[str]) -> None:
    decision = decide(address)
    assert finals(decision) == reached
    assert reached or decision.reason is Reason.UNKNOWN


@pytest.mark.parametrize(
    ("local", "goes"),
    [
        ("sales-x", "bob+pattern@example.com"),
        ("Sales-X", "bob+pattern@example.com"),
        ("sales-", "bob+pattern@example.com"),
        ("sales-eu-x", "eu@mail.example"),
        ("my-list", "list@mail.example"),
        ("sales-list", "bob+pattern@example.com"),
        ("bounce-1-2-eu", "inner@mail.example"),
        ("sales+x", "bob+x@example.com"),
        ("abz", "q@example.com"),
        ("other", "q@example.com"),
        ("sales-" + "x" * 60, "q@example.com"),
    ],
)
def test_a_pattern_comes_after_the_subaddress_and_before_the_catch_all(
    local: str, goes: str
) -> None:
    policy = Policy(
        local_domains=frozenset({"mail.example"}), quarantine=parse_address("q@example.com")
    )
    decision = resolve(Address(local, "example.com"), Store(PATTERNS), policy, date(2026, 1, 1))
    assert [str(final.address) for final in decision.finals] == [goes]


@pytest.mark.parametrize(
    ("field", "usable"),
    [
        ("sales-*", True),
        ("*sales", True),
        ("sales-*-eu", True),
        ("sales*-eu", False),
        ("sales-*eu", False),
        ("sales*eu", False),
        ("a-*-*", False),
        ("sales", False),
        ("x" * 64 + "*", True),
        ("x" * 65 + "*", False),
    ],
)
def test_what_a_pattern_may_be(field: str, usable: bool) -> None:
    assert is_usable_pattern(field) is usable
    assert usable <= (field in patterns_for(field.replace("*", "")))


def octets_kept(local_parts: Iterable[str]) -> int:
    """What the process takes more after all of them have been asked for."""
    tracemalloc.start()
    try:
        for local in local_parts:
            fields_for(local)
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


def test_local_parts_that_a_stranger_makes_up_take_little_memory() -> None:
    many_marks = ("-".join(f"{number:032b}") for number in range(1500))
    assert octets_kept(many_marks) < 5 * 2**20
    ordinary = (f"{number:020d}" for number in range(3000))
    assert octets_kept(ordinary) < 10 * 2**20


def test_the_fields_of_an_ordinary_local_part_are_worked_out_once() -> None:
    local = "firstname.lastname"
    assert fields_for(local) is fields_for(local)
    assert patterns_for(local) is patterns_for(local)


@given(st.from_regex(r"[a-z0-9._-]{1,64}", fullmatch=True))
def test_patterns_match_what_they_were_made_for_and_are_few(local: str) -> None:
    found = patterns_for(local)
    for pattern in found:
        before, _, after = pattern.partition("*")
        assert is_usable_pattern(pattern)
        assert local.startswith(before)
        assert local[len(before) :].endswith(after)
    assert len(found) <= 2 * len(local) + MAX_INNER_PATTERNS
    literal = [len(pattern) for pattern in found]
    assert literal == sorted(literal, reverse=True)
