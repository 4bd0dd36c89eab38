"""The header by which a message recognises the aliases it has passed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aliasmilter.forwarding.trace import Tracer

ALIASES = st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=40, unique=True)


@given(ALIASES, st.text(min_size=21, max_size=30))
def test_a_message_knows_its_aliases_and_no_other(aliases: list[str], other: str) -> None:
    value = Tracer(["secret"]).stamp(aliases).encode()
    rotated = Tracer(["new secret", "secret"])
    for alias in aliases:
        assert rotated.passed([b"junk", value], ["x" * 50, alias]) == alias
    assert rotated.passed([value], [other]) is None
    assert Tracer(["another"]).passed([value], aliases) is None


@given(ALIASES)
def test_the_number_of_tokens_says_little(aliases: list[str]) -> None:
    tokens = len(Tracer(["secret"]).stamp(aliases).split()) - 2
    assert tokens >= 4
    assert tokens & (tokens - 1) == 0


@given(st.binary(max_size=200))
def test_any_octets_are_read_without_an_error(value: bytes) -> None:
    Tracer(["secret"]).passed([value, b"v1 " + value], ["alias"])
