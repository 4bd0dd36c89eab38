"""A sendmail.mc is read as m4 reads it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aliasmilter.admin.sendmail.m4 import M4Error, Reading, read


def reading(text: str, **files: str) -> Reading:
    return read(text, "x.mc", files.get)


def calls(text: str, **files: str) -> list[tuple[str, ...]]:
    return [(call.name, *call.args) for call in reading(text, **files).calls]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("FEATURE(`x')dnl", [("FEATURE", "x")]),
        ("FEATURE(x, `a, b',  c)", [("FEATURE", "x", "a, b", "c")]),
        ("FEATURE(`x', , `skip')", [("FEATURE", "x", "", "skip")]),
        ("FEATURE(`a(b')", [("FEATURE", "a(b")]),
        ("FEATURE(a(b, c))", [("FEATURE", "a(b, c)")]),
        ("FEATURE(\n  `x',\n  `y')", [("FEATURE", "x", "y")]),
        ("FEATURE(`x',dnl it's (so\n`y')", [("FEATURE", "x", "y")]),
        # What is no call.
        ("dnl FEATURE(`x')\nFEATURE(`y')", [("FEATURE", "y")]),
        ("# FEATURE(`x')\nFEATURE(`y')", [("FEATURE", "y")]),
        ("dnl don't\nFEATURE(`y')", [("FEATURE", "y")]),
        ("`FEATURE(`x')'FEATURE(`y')", [("FEATURE", "y")]),
        ("MY_FEATURE(`x')", []),
        ("FEATURE (`x')", []),
        # What yields one.
        ("define(`S', `unix:/s')FEATURE(`S=S')", [("FEATURE", "unix:/s=unix:/s")]),
        ("define(`f', `FEATURE(`$1', `$2')')f(`a', b)", [("FEATURE", "a", "b")]),
        ("define(`x')ifdef(`x', `FEATURE(`a')', `FEATURE(`b')')", [("FEATURE", "a")]),
        ("ifdef(`x', `FEATURE(`a')', `FEATURE(`b')')", [("FEATURE", "b")]),
        ("define(`x')undefine(`x')ifdef(`x', `FEATURE(`a')')", []),
        ("ifelse(a, b, `FEATURE(`1')', a, a, `FEATURE(`2')', `FEATURE(`3')')", [("FEATURE", "2")]),
        # Diverted text is thrown away, but its macros act.
        ("divert(-1)\nFEATURE(`x')\ndivert(0)", [("FEATURE", "x")]),
        ("include(`other')FEATURE(`b')", [("FEATURE", "a"), ("FEATURE", "b")]),
        ("sinclude(`nowhere')FEATURE(`b')", [("FEATURE", "b")]),
    ],
)
def test_calls(text: str, found: list[tuple[str, ...]]) -> None:
    assert calls(text, other="FEATURE(`a')\n") == found


def test_a_call_says_where_it_stands() -> None:
    text = "dnl one\nFEATURE(`a')\ninclude(`other')\ndefine(`f', `FEATURE(`c')')\nf\n"
    found = reading(text, other="\n\nFEATURE(`b')\n").calls
    assert [call.where for call in found] == ["x.mc:2", "other:3", "x.mc:5"]


def test_sections_hold_the_lines_below_them() -> None:
    found = reading(
        "LOCAL_CONFIG\nC{SRS}a b\nLOCAL_RULE_0\nR$*\t$#x $: `$1'\nMAILER(`smtp')\nend\n"
    )
    assert found.sections["6"].strip() == "C{SRS}a b"
    # From "#" to the end of the line m4 leaves all as it is.
    assert found.sections["3"].strip().splitlines()[0] == "R$*\t$#x $: `$1'"
    assert "end" in found.sections["3"]


def test_filters_are_listed_in_their_order() -> None:
    filters = "INPUT_MAIL_FILTER(`a', `S=x')INPUT_MAIL_FILTER(`b', `S=y')MAIL_FILTER(`c', `S=z')"
    assert reading(filters).expand("confINPUT_MAIL_FILTERS") == "a, b"
    last = filters + "define(`confINPUT_MAIL_FILTERS', `b, a')"
    assert reading(last).expand("confINPUT_MAIL_FILTERS") == "b, a"


def test_a_missing_file_is_told() -> None:
    assert reading("include(`/etc/mail/gone.m4')").missing == ["/etc/mail/gone.m4"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("\nFEATURE(`x", "x.mc:2: the quote"),
        ("\n\nFEATURE(x", "x.mc:3: the parenthesis"),
        ("define(`a', `a')a", "a has no end"),
        ("define(`a', `a a')a", "a has no end"),
        ("include(`self')", "no end"),
    ],
)
def test_what_has_no_end_is_an_error_that_names_the_line(text: str, problem: str) -> None:
    with pytest.raises(M4Error, match=problem):
        reading(text, self="include(`self')")


@given(st.text(alphabet="`'(),#\n\t $19-=dnlFEATURExdefineifdivert(`", max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    """Invariant: a Reading, or M4Error; never another exception, never without end."""
    try:
        reading(text)
    except M4Error:
        return
