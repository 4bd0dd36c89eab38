"""The quick way through many rules says what the resolver says, and takes few detours."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aliasmilter.admin import validation
from aliasmilter.admin.formats import redis_script
from aliasmilter.admin.formats.ruleset import RuleSet
from aliasmilter.admin.report import Severity
from aliasmilter.admin.validation import MISTAKES, PROBE, validate
from aliasmilter.mail.address import Address, parse_address
from aliasmilter.routing.decision import Policy
from aliasmilter.routing.resolver import resolve
from aliasmilter.store.audit import Change, Subject
from aliasmilter.store.schema import alias_key
from aliasmilter.store.snapshot import Snapshot

DAY = date(2026, 11, 1)
POLICY = Policy(quarantine=parse_address("q@example.net"), local_domains=frozenset({"here.net"}))
DOMAINS = ("a.example", "b.example")
NAMES = ("x", "y", "z", "x+d", "*")

TARGETS = st.one_of(
    st.builds("{}@{}".format, st.sampled_from(["x", "Y", "z", "x+d"]), st.sampled_from(DOMAINS)),
    st.sampled_from(["@b.example", "@a.example", "me@far.example", "me@here.net", '"z"@a.example']),
)
RULES = st.one_of(
    st.lists(TARGETS, min_size=1, max_size=3).map(" ".join),
    TARGETS.map("{} expires=2020-01-01".format),
    st.sampled_from(["quarantine", "disabled", "discard", "defer", "nonsense"]),
)
STORES = st.dictionaries(
    st.tuples(st.sampled_from(DOMAINS), st.sampled_from(NAMES)), RULES, max_size=8
)
SETTINGS = st.sampled_from(
    [{b"unknown": b"reject"}, {b"unknown": b"pass"}, {b"alias_of": b"a.example"},
     {b"delimiter": b""}, {b"delimiter": b"-"}]
)  # fmt: skip


def snapshot(rules: dict[tuple[str, str], str], second: dict[bytes, bytes]) -> Snapshot:
    found = Snapshot(settings={"a.example": {b"unknown": b"reject"}, "b.example": second})
    for (domain, name), text in rules.items():
        found.rules.setdefault(domain, {})[name] = text.encode()
    return found


def broken(store: Snapshot) -> set[str]:
    """What means nothing, and what the resolver itself calls a mistake, rule by rule."""
    found = set()
    for domain, rules in store.rules.items():
        for name, raw in rules.items():
            if raw == b"nonsense":
                found.add(f"{alias_key(domain)} {name}")
            address = Address(PROBE if name == "*" else name, domain)
            if resolve(address, store.lookup, POLICY, DAY).reason in MISTAKES:
                found.add(f"{alias_key(domain)} {name}")
    return found


def errors(store: Snapshot, changes: Sequence[Change]) -> set[str]:
    def place(change: Change) -> str:
        return f"{change.key} {change.name}"

    findings = validate(store, changes, POLICY, DAY, place=place)
    return {each.where for each in findings if each.severity is Severity.ERROR}


@settings(max_examples=400, deadline=None)
@given(before=STORES, changed=STORES, removed=st.sets(st.sampled_from(NAMES)), second=SETTINGS)
def test_a_change_is_wrong_exactly_when_the_resolver_says_so(
    before: dict[tuple[str, str], str],
    changed: dict[tuple[str, str], str],
    removed: set[str],
    second: dict[bytes, bytes],
) -> None:
    gone = {("a.example", name) for name in removed} & before.keys() - changed.keys()
    after = {k: v for k, v in (before | changed).items() if k not in gone}
    changes = [
        Change(*owner, _octets(before.get(owner)), _octets(after.get(owner)))
        for owner in changed.keys() | gone
        if before.get(owner) != after.get(owner)
    ]
    then, now = broken(snapshot(before, second)), snapshot(after, second)
    touched = {f"{alias_key(c.domain)} {c.name}" for c in changes}
    expected = {where for where in broken(now) if where in touched or where not in then}
    if b"alias_of" in second:
        # The rules of a second domain are never used.
        expected = {each for each in expected if each in touched or "b.example" not in each}
    assert errors(now, changes) == expected


@settings(deadline=None)
@given(rules=STORES, second=SETTINGS, was=SETTINGS)
def test_a_changed_setting_is_wrong_for_the_rules_that_it_breaks(
    rules: dict[tuple[str, str], str], second: dict[bytes, bytes], was: dict[bytes, bytes]
) -> None:
    names = sorted(second.keys() | was.keys())
    changes = [
        Change("b.example", n.decode(), was.get(n), second.get(n), Subject.SETTING) for n in names
    ]
    changes = [change for change in changes if change.before != change.after]
    now = snapshot(rules, second)
    newly = broken(now) - broken(snapshot(rules, was))
    # A rule of the domain itself may be reached in another way now; nobody leads to it by that.
    own = {where for where in newly if where.startswith("alias:b.example ")}
    assert newly - own <= errors(now, changes)


def _octets(text: str | None) -> bytes | None:
    return None if text is None else text.encode()


def test_many_plain_rules_are_proven_without_the_resolver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "resolve", lambda *_: pytest.fail("asked the resolver"))
    rules = {("a.example", f"u{n}"): f"u{n}@a.example" for n in range(2000)}
    rules |= {("b.example", f"l{n}"): f"u{n}@a.example me@far.example note=x" for n in range(2000)}
    rules |= {("a.example", f"m{n}"): f"l{n}@b.example, l0@b.example" for n in range(2000)}
    store = snapshot(rules, {b"unknown": b"reject"})
    changes = [Change(*owner, None, text.encode()) for owner, text in rules.items()]
    assert errors(store, changes) == set()


def test_one_change_among_many_rules_looks_at_those_that_name_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rules = {("a.example", f"u{n}"): f"u{n}@a.example" for n in range(5000)}
    rules["b.example", "team"] = '"U7"@a.example'
    store = snapshot(rules, {b"unknown": b"reject"})
    del store.rules["a.example"]["u7"]
    asked = []

    def counted(address: Address, *rest: object) -> object:
        asked.append(address)
        return resolve(address, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(validation, "resolve", counted)
    change = Change("a.example", "u7", b"u7@a.example", None)
    assert errors(store, [change]) == {"alias:b.example team"}
    assert {str(address) for address in asked} == {"team@b.example"}


@pytest.mark.parametrize(
    "rest",
    [
        "HSET domain:b.example alias_of c.example",
        "HSET domain:b.example unknown reject\nHSET alias:b.example * @c.example",
        "HSET domain:b.example unknown reject\nHSET alias:b.example x* @c.example",
    ],
    ids=["second", "catch-all", "pattern"],
)
def test_what_is_reached_by_other_names_of_its_domain_is_not_removed(rest: str) -> None:
    # Twice the company has changed its name: a.example is now b.example, and that c.example.
    rules = RuleSet()
    script = f"HSET domain:a.example alias_of b.example\n{rest}\n"
    script += "HSET domain:c.example unknown reject\nHSET alias:c.example team x@a.example\n"
    redis_script.read(script.splitlines(), rules)
    store = Snapshot(settings=rules.settings)
    for domain, own in rules.rules.items():
        store.rules[domain] = {name: given.raw for name, given in own.items()}
    change = Change("c.example", "x", b"x@c.example", None)
    assert errors(store, [change]) == {"alias:c.example team"}


@pytest.mark.parametrize("was", [{}, {b"alias_of": b"a.example"}], ids=["unmanaged", "second"])
def test_rules_that_stood_in_a_domain_before_it_was_managed_are_looked_at(
    was: dict[bytes, bytes],
) -> None:
    rules = {("b.example", "old"): "nonsense", ("b.example", "lost"): "x@a.example"}
    rules |= {("b.example", "good"): "me@far.example", ("b.example", "*"): "@b.example"}
    store = snapshot(rules, {b"unknown": b"reject"})
    names = sorted({*was, b"unknown"})
    changes = [
        Change("b.example", n.decode(), was.get(n), {b"unknown": b"reject"}.get(n), Subject.SETTING)
        for n in names
    ]
    expected = {f"alias:b.example {name}" for name in ("old", "lost", "*")}
    assert errors(store, changes) == expected
