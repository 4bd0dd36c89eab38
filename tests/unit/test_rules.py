"""The grammar of rules and settings."""

from __future__ import annotations

from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aliasmilter.mail.address import Address, parse_address
from aliasmilter.routing.rules import (
    Action,
    Rule,
    RuleError,
    SameLocalPart,
    parse_rule,
    parse_settings,
)

BOB, CAROL = parse_address("bob@example.com"), parse_address("carol@example.com")
WORDS = st.sampled_from(
    [
        "bob@example.com",
        "@x.example",
        "quarantine",
        "reject",
        "no",
        "vendor=x.example",
        ",",
        "expires=2027-01-31",
        "note=a b",
        "foo",
        "a=b",
        '"x y"@z.example',
        '"',
        "disabled",
        "\t",
    ]
)


@given(st.one_of(st.binary(max_size=80), st.lists(WORDS).map(lambda w: " ".join(w).encode())))
def test_any_text_is_a_rule_or_a_rule_error(raw: bytes) -> None:
    try:
        rule = parse_rule(raw)
    except RuleError:
        return
    assert bool(rule.targets) != bool(rule.action)


@given(st.dictionaries(st.binary(max_size=12), st.binary(max_size=20), max_size=4))
def test_any_hash_is_settings_or_a_rule_error(fields: dict[bytes, bytes]) -> None:
    try:
        parse_settings(fields)
    except RuleError as error:
        assert str(error)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("bob@example.com", Rule((BOB,))),
        ("bob@example.com, carol@example.com", Rule((BOB, CAROL))),
        ("bob@example.com carol@example.com,bob@example.com", Rule((BOB, CAROL))),
        ("@new.example", Rule((SameLocalPart("new.example"),))),
        ("quarantine", Rule(action=Action.QUARANTINE)),
        ("Discard note=spam", Rule(action=Action.DISCARD, note="spam")),
        ("disabled", Rule(action=Action.DISABLED)),
        ("reject Go away, a@b = c", Rule(action=Action.REJECT, text="Go away, a@b = c")),
        ("reject Go note=secret", Rule(action=Action.REJECT, text="Go", note="secret")),
        ("bob@example.com vendor=Hub.example", Rule((BOB,), vendor="hub.example")),
        ("bob@example.com expires=2027-01-31", Rule((BOB,), expires=date(2027, 1, 31))),
        ("bob@example.com note=any = thing @all", Rule((BOB,), note="any = thing @all")),
        ("bob@example.com,note=a, b", Rule((BOB,), note="a, b")),
        ('"john doe"@example.com', Rule((Address("john doe", "example.com"),))),
        (" bob@example.com\n", Rule((BOB,))),
    ],
)
def test_what_rules_mean(text: str, rule: Rule) -> None:
    assert parse_rule(text.encode()) == rule


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "empty"),
        ("bob", "unknown word 'bob'"),
        ("bob@example.com foo=bar", "unknown option foo="),
        ("bob@@example.com", "target bob@@example.com"),
        ("bob@example.com quarantine", "either targets or one action"),
        ("quarantine discard", "either targets or one action"),
        ("vendor=x.example", "either targets or one action"),
        ("bob@example.com expires=31.1.2027", "not a day"),
        ("bob@example.com expires=20270131", "not a day"),
        ("bob@example.com vendor=a..b", "vendor=a..b"),
        ("bob@example.com vendor=a.example vendor=b.example", "given twice"),
        ("bob@example.com strict", "strict goes with vendor="),
        ("bob@example.com\ncarol@example.com", "control characters"),
        ("reject no\x1b[31m", "control characters"),
        ("x" * 70_000, "octets long"),
    ],
)
def test_what_makes_a_rule_invalid(text: str, why: str) -> None:
    with pytest.raises(RuleError, match=why.replace("[", r"\[")):
        parse_rule(text.encode())


def test_octets_that_are_no_utf_8_make_a_rule_invalid() -> None:
    with pytest.raises(RuleError, match="not UTF-8"):
        parse_rule(b"disabled \xff")


def test_settings() -> None:
    found = parse_settings(
        {b"unknown": b"pass", b"delimiter": b"", b"quarantine": b"q@x.example", b"note": b"hm"}
    )
    assert found.unknown_passes
    assert found.delimiter == ""
    assert str(found.quarantine) == "q@x.example"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("unkown", "pass"),
        ("unknown", "maybe"),
        ("delimiter", "++"),
        ("delimiter", "a"),
        ("alias_of", "a b"),
        ("quarantine", "q"),
        ("srs_domain", ""),
        ("arc_selector", "a b"),
    ],
)
def test_a_setting_that_means_nothing_is_named(field: str, value: str) -> None:
    with pytest.raises(RuleError, match=f"field {field}"):
        parse_settings({field.encode(): value.encode()})
