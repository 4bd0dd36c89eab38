"""Log lines that nobody can forge."""

from __future__ import annotations

import ast
import json

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
    capsys: pytest.CaptureFixture[str],
) -> None:
    log.set_up("text", "info")
    log.get().info("accepted", queue_id="4Tz", sender='<a b"@x>\nNOQUEUE: forged')
    assert capsys.readouterr().err == ('4Tz: accepted sender="<a b\\"@x>\\nNOQUEUE: forged"\n')


def test_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    log.set_up("json", "warning")
    log.get().info("not shown")
    log.get().error("refused", queue_id="4Tz", recipient="<\u202e@x>")
    line = json.loads(capsys.readouterr().err)
    assert (line["event"], line["queue_id"]) == ("refused", "4Tz")


def test_a_traceback_says_on_each_line_where_it_belongs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log.set_up("text", "info")
    log.get().error("exception", queue_id="4Tz", exc_info=ValueError("two\nlines"))
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith("4Tz: ") for line in lines)
