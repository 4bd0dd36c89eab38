"""Log lines that nobody can forge, and that nobody can make long."""

from __future__ import annotations

import ast
import json
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aliasmilter import log


@given(st.text())
def test_escaped_text_prints_on_one_line_and_can_be_read_back(text: str) -> None:
    escaped = log.escape(text)
    assert escaped.isprintable()
    assert ast.literal_eval(f'"{escaped}"') == text


def test_the_queue_id_comes_first_and_fields_cannot_end_early(
    capfd: pytest.CaptureFixture[str],
) -> None:
    log.set_up("text", "info")
    log.get().info("accepted", queue_id="4Tz", sender='<a b"@x>\nNOQUEUE: forged')
    assert capfd.readouterr().err == ('4Tz: accepted sender="<a b\\"@x>\\nNOQUEUE: forged"\n')


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("a", "a"),
        ("a b", '"a b"'),
        ("a=b", '"a=b"'),
        ("", '""'),
        ('"', '\\"'),
        (["a", "b c"], '"a, b c"'),
        ([], '""'),
        (7, "7"),
        (None, "None"),
        ("\u00e4", "\u00e4"),
        ("\u202e", "\\u202e"),
    ],
)
def test_a_field_stands_in_quotes_where_it_could_be_taken_for_two(
    value: object, shown: str
) -> None:
    line = log._text(None, "info", {"queue_id": "4Tz", "event": "accepted", "f": value, "g": 1})
    assert line == f"4Tz: accepted f={shown} g=1"


def test_json_lines(capfd: pytest.CaptureFixture[str]) -> None:
    log.set_up("json", "warning")
    log.get().info("not shown")
    log.get().error("refused", queue_id="4Tz", recipient="<\u202e@x>")
    line = json.loads(capfd.readouterr().err)
    assert (line["event"], line["queue_id"]) == ("refused", "4Tz")


def test_a_traceback_says_on_each_line_where_it_belongs(
    capfd: pytest.CaptureFixture[str],
) -> None:
    log.set_up("text", "info")
    log.get().error("exception", queue_id="4Tz", exc_info=ValueError("two\nlines"))
    lines = capfd.readouterr().err.splitlines()
    assert all(line.startswith("4Tz: ") for line in lines)


def test_a_traceback_shows_quotes_as_they_are_and_still_no_control_characters(
    capfd: pytest.CaptureFixture[str],
) -> None:
    log.set_up("text", "info")
    log.get().error("exception", exc_info=ValueError('say "hi" \x1b[2J\u202e'))
    text = capfd.readouterr().err
    assert 'ValueError: say "hi" \\x1b[2J\\u202e' in text


TEXTS = st.text() | st.text(alphabet='"\\\x1b\n\u202e\U000e0041', min_size=300, max_size=2000)
VALUES = TEXTS | st.integers() | st.lists(TEXTS, max_size=5) | st.binary() | st.none()


@given(st.dictionaries(st.from_regex(r"[a-z_]{1,20}", fullmatch=True), VALUES, max_size=5))
def test_whatever_is_logged_is_one_bounded_line_in_either_format(fields: dict[str, object]) -> None:
    event = {**fields, "event": "accepted", "level": "info"}
    for key in ("exception", "exc_info", "stack_info"):
        event.pop(key, None)
    # A character takes ten at most where it has to be escaped.
    most = 200 + 5 * 5 * 11 * (log.MAX_TEXT + 20)
    line = log._json(None, "info", dict(event))
    assert json.loads(line)["event"] == "accepted"
    assert line.isprintable()
    text = log._text(None, "info", dict(event))
    assert text.isprintable()
    assert max(len(line), len(text)) < most


def test_a_long_text_is_cut_and_says_how_long_it_was(capfd: pytest.CaptureFixture[str]) -> None:
    log.set_up("text", "info")
    log.get().info("refused", queue_id="Q" * 1000, recipient="<" + "x" * 50_000 + ">", n=10**30)
    queue_id, _, rest = capfd.readouterr().err.partition(": ")
    assert queue_id == "Q" * log.MAX_TEXT + "...[1000]"
    assert rest == f"refused recipient=<{'x' * (log.MAX_TEXT - 1)}...[50002] n={10**30}\n"


@pytest.mark.parametrize("style", ["text", "json"])
def test_a_long_list_is_cut_and_says_how_long_it_was(
    capfd: pytest.CaptureFixture[str], style: Literal["text", "json"]
) -> None:
    log.set_up(style, "info")
    log.get().info("accepted", recipients=[f"<{'x' * 50}{n}@example.com>" for n in range(1000)])
    line = capfd.readouterr().err
    assert log.MAX_LIST < len(line) < log.MAX_LIST * 1.2
    assert "...[1000]" in line
    assert line.count("\n") == 1


def test_a_list_of_a_hundred_recipients_is_whole(capfd: pytest.CaptureFixture[str]) -> None:
    log.set_up("json", "info")
    recipients = [f"<somebody-with-quite-a-long-name-{n}@example.com> alias" for n in range(100)]
    log.get().info("accepted", recipients=recipients)
    assert json.loads(capfd.readouterr().err)["recipients"] == recipients


@pytest.mark.parametrize("style", ["text", "json"])
def test_a_long_traceback_keeps_its_end_in_a_bounded_number_of_lines(
    capfd: pytest.CaptureFixture[str], style: Literal["text", "json"]
) -> None:
    log.set_up(style, "info")
    error = ValueError("first " + "line\n" * 50_000 + "y" * 50_000)
    log.get().error("exception", queue_id="4Tz", exc_info=error)
    out = capfd.readouterr().err
    assert len(out) < 10_000
    assert "ValueError: first" in out
    assert "...[50001 lines]" in out.replace("50002", "50001")
    assert "yyyy...[50000]" in out
    if style == "json":
        assert json.loads(out)["queue_id"] == "4Tz"
