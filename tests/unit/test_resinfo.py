"""Results in the text of others: read whatever else stands there, in linear time."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aliasmilter.forwarding.resinfo import Result, quote_addresses, read_results


@pytest.mark.parametrize(
    ("text", "results"),
    [
        (" mx.example.net; none", []),
        (" mx.example.net 1; DMARC = Pass", [Result("dmarc", "pass")]),
        (
            " i=1; mx; dmarc/1 = (x) pass (p=none (y)) a.b=c",
            [Result("dmarc", "pass", "(x)(p=none (y))")],
        ),
        (' "a; dmarc=pass"; spf=fail reason="; arc=pass"', [Result("spf", "fail")]),
        (" mx; (; dmarc=pass) spf=fail", [Result("spf", "fail", "(; dmarc=pass)")]),
        (
            " mx; dmarc=passing; dmarc=pass.x; dmarc=pass=x; =pass; dmarc=",
            [Result("dmarc", "passing")],
        ),
        (" mx; spf=pass (a; dmarc=pass", [Result("spf", "pass", "(a; dmarc=pass")]),
        (' mx; spf=pass "a; dmarc=pass', [Result("spf", "pass")]),
        # Microsoft: a property without a type
        (
            " i=1; mx.microsoft.com 1; dmarc=pass action=none header.from=a.example;arc=none (0)",
            [Result("dmarc", "pass"), Result("arc", "none", "(0)")],
        ),
    ],
)
def test_results_are_read_past_comments_and_quoted_strings(
    text: str, results: list[Result]
) -> None:
    assert read_results(text) == results


@given(st.text(alphabet='dmarc=ps;:0 ()"\\\n/', max_size=60))
def test_any_text_is_read(text: str) -> None:
    # Results, never an error; nothing but quotes is added.
    assert all(each.method and each.verdict for each in read_results(text))
    assert quote_addresses(text).replace('"', "") == text.replace('"', "")


@pytest.mark.parametrize("part", ['"', '\\"', "(", "()", '"\\', ";", "a=b;", "=::", "\\", "x"])
def test_long_texts_take_linear_time(part: str) -> None:
    started = time.process_time()
    read_results(part * 50_000)
    quote_addresses(part * 50_000)
    assert time.process_time() - started < 1
