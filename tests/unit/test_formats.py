"""Files of rules: what was written is read again, and anything can be read without a crash."""

from __future__ import annotations

import io
import subprocess

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aliasmilter.admin.formats import FORMATS, format_of
from aliasmilter.admin.formats.redis_script import quote, split
from aliasmilter.admin.formats.ruleset import RuleSet, parse_owner
from aliasmilter.mail.address import AddressError, local_key
from aliasmilter.routing.rules import RuleError, parse_rule
from aliasmilter.store.snapshot import Snapshot
from tests.harness.redis import RedisServer

LOCALS = st.one_of(
    st.from_regex(r"[a-z0-9]+([.+_-][a-z0-9]+)*", fullmatch=True),
    st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), min_size=1, max_size=12),
)
WORDS = st.sampled_from(
    ["bob@example.com", '"b, \\" c"@example.com', "@x.example", "me@gmail.example"]
)
OPTIONS = st.sampled_from(["", " vendor=hub.example", " note=a 'b' \"c\", \\n d", " note=#"])


def is_local(text: str) -> bool:
    try:
        shown = parse_owner(f"{quoted(text)}@example.com")
    except AddressError:
        return False
    return shown == ("example.com", text)


def quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def is_rule(text: str) -> bool:
    try:
        parse_rule(text.encode())
    except RuleError:
        return False
    return True


NAMES = st.one_of(st.just("*"), LOCALS.map(local_key).filter(is_local))
RULES = st.one_of(
    st.tuples(st.lists(WORDS, min_size=1, max_size=4), OPTIONS).map(
        lambda parts: ", ".join(parts[0]) + parts[1]
    ),
    st.text(max_size=30).map(lambda text: f"disabled {text}"),
).filter(is_rule)
DOMAINS = st.dictionaries(NAMES, RULES.map(str.encode), min_size=1, max_size=8)
SNAPSHOTS = st.dictionaries(
    st.sampled_from(["example.com", "xn--bcher-kva.example", "a.b"]), DOMAINS, min_size=1
)
SLOW = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def through(name: str, rules: dict[str, dict[str, bytes]]) -> RuleSet:
    """Written, and read again as a file is."""
    text = "".join(FORMATS[name].write(Snapshot(rules=rules), RuleSet()))
    data = io.BytesIO(text.encode("utf-8", "surrogateescape"))
    found = RuleSet()
    lines = io.TextIOWrapper(data, "utf-8-sig", "surrogateescape", newline="")
    FORMATS[name].read(lines, found)
    return found


@pytest.mark.parametrize("name", ["redis", "csv"])
@SLOW
@given(rules=SNAPSHOTS)
def test_what_is_exported_is_imported_to_the_octet(
    name: str, rules: dict[str, dict[str, bytes]]
) -> None:
    found = through(name, rules)
    assert found.problems == []
    assert {d: {n: g.raw for n, g in r.items()} for d, r in found.rules.items()} == rules


@SLOW
@given(rules=SNAPSHOTS)
def test_a_virtual_table_keeps_the_targets_and_tells_what_it_leaves_out(
    rules: dict[str, dict[str, bytes]],
) -> None:
    said = RuleSet()
    list(FORMATS["virtual"].write(Snapshot(rules=rules), said))
    found = through("virtual", rules)
    assert found.problems == []
    assert found.size + len(said.left_out) == sum(len(each) for each in rules.values())
    for domain, given_rules in found.rules.items():
        for name, (raw, _) in given_rules.items():
            assert parse_rule(raw).targets == parse_rule(rules[domain][name]).targets


@pytest.mark.parametrize("name", sorted(FORMATS))
@given(lines=st.lists(st.text(max_size=60)))
def test_anything_can_be_read_without_another_error_than_a_finding(
    name: str, lines: list[str]
) -> None:
    FORMATS[name].read(lines, RuleSet())


@given(words=st.lists(st.binary(max_size=20), max_size=5))
def test_a_quoted_word_is_read_again(words: list[bytes]) -> None:
    line = " ".join(quote(word) for word in words)
    assert split(line.encode("utf-8", "surrogateescape")) == words


def test_words_are_taken_apart_as_redis_cli_does(redis: RedisServer) -> None:
    lines = [
        rb"""ECHO "a\x41\n\t\"\\ \q'" """,
        rb"""ECHO 'a\n\'b"c'""",
        rb"ECHO plain\x41",
        "ECHO \"b\u00fccher\"".encode(),
        rb"""ECHO '' """,
    ]  # fmt: skip
    for line in lines:
        command = ["redis-cli", "-s", str(redis.socket), "--raw"]
        said = subprocess.run(command, input=line + b"\n", capture_output=True, check=True)
        assert said.stdout == split(line)[1] + b"\n", line


@pytest.mark.parametrize("line", ['HSET "a', "HSET 'a", 'HSET "a"b c', "HSET a'"])
def test_a_quote_that_is_not_closed_is_a_mistake(line: str) -> None:
    found = RuleSet(source="file")
    FORMATS["redis"].read([line], found)
    assert len(found.problems) == 1
    assert found.problems[0].where == "file:1"


@pytest.mark.parametrize(
    "line",
    ["DEL alias:example.com", "HSET alias:example.com bob", "HSET other:x a b", "FLUSHALL",
     "HSET alias:a..b x y", "SADD block:example.com", "SADD alias:example.com bob"],
)  # fmt: skip
def test_a_script_may_set_rules_settings_and_blocked_senders_and_nothing_else(line: str) -> None:
    found = RuleSet()
    FORMATS["redis"].read([line], found)
    assert found.problems
    assert not found.rules.get("example.com")


def test_a_format_is_known_by_the_name_of_the_file() -> None:
    names = {"rules/demo.redis": "redis", "a.CSV": "csv", "/etc/postfix/virtual": "virtual"}
    assert {name: format_of(name) for name in names} == names
    assert format_of("-") is None
