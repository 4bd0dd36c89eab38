"""Canonical forms: the same bytes as dkimpy's, in linear time."""

import time
from hashlib import sha256

import pytest
from dkim.canonicalization import Relaxed, Simple
from hypothesis import assume, given
from hypothesis import strategies as st

from aliasmilter.forwarding import canonical
from aliasmilter.mail.message import HeaderField, Message

BODIES = st.lists(
    st.sampled_from([b"\r\n", b" ", b"\t", b"a", b"\r", b"\n", b"b c", b"\xff", b"."]), max_size=12
).map(lambda parts: b"".join(parts) + b"\r\n")


@given(BODIES)
def test_bodies_are_canonical_as_dkimpy_has_it(body: bytes) -> None:
    simple = sha256(Simple.canonicalize_body(body)).digest()
    relaxed = sha256(Relaxed.canonicalize_body(body)).digest()
    assert canonical.hash_body(body, relaxed=False) == simple
    assert canonical.hash_body(body, relaxed=True) == relaxed


NAMES = st.sampled_from([b"From", b"from ", b"X-A\t", b"a"])
VALUES = st.lists(
    st.sampled_from(
        [b" ", b"\t", b"\n", b"\r", b"\n\t", b"\r\n ", b"\v", b"\f", b"a", b"b:c", b"\xff", b"\0"]
    ),
    max_size=12,
).map(b"".join)


@given(NAMES, VALUES)
def test_fields_are_relaxed_as_dkimpy_has_it(name: bytes, value: bytes) -> None:
    assume(value.strip() == value.strip(b" \t\r\n"))  # the others: see the next test
    ((canonical_name, text),) = Relaxed.canonicalize_headers([(name, value)])
    made = canonical.header(HeaderField(name, value), relaxed=True)
    assert made == canonical_name + b":" + text


@pytest.mark.parametrize("odd", [b"\v", b"\f"])
def test_what_is_no_white_space_stays_at_the_ends_of_a_relaxed_field(odd: bytes) -> None:
    # RFC 6376, 2.8 and 3.4.2: WSP is SP and HTAB. dkimpy deletes it.
    value = b" " + odd + b" a" + odd + b"\t"
    made = canonical.header(HeaderField(b"X", value), relaxed=True)
    assert made == b"x:" + odd + b" a" + odd + b"\r\n"


@given(st.lists(st.tuples(NAMES, VALUES), max_size=4), st.booleans())
def test_several_fields_are_one_after_the_other_however_often_they_are_asked_for(
    given_fields: list[tuple[bytes, bytes]], relaxed: bool
) -> None:
    fields = tuple(HeaderField(*field) for field in given_fields)
    message = Message(fields)
    expected = b"".join(canonical.header(field, relaxed=relaxed) for field in fields)
    for each in (message, message, message.with_fields_on_top([HeaderField(b"X", b" 1")])):
        assert canonical.headers(each, fields, relaxed=relaxed) == expected


def test_a_field_in_the_place_of_another_is_not_taken_for_it() -> None:
    message = Message((HeaderField(b"A", b" 0"),))
    for number in range(1000):  # each in the memory that one before may have had
        message = message.with_changed_fields({0: HeaderField(b"A", b" %d" % number)})
        assert canonical.headers(message, message.headers, relaxed=True) == b"a:%d\r\n" % number


@given(st.lists(st.sampled_from([b" ", b"\t", b" " * 7, b"a", b"\r\n"]), max_size=40).map(b"".join))
def test_runs_of_white_space_of_any_length_are_one_space(body: bytes) -> None:
    expected = sha256(Relaxed.canonicalize_body(body + b"\r\n")).digest()
    assert canonical.hash_body(body + b"\r\n", relaxed=True) == expected


def test_an_empty_body_differs_in_the_two_forms() -> None:
    # RFC 6376, 3.4.3 and 3.4.4
    assert canonical.hash_body(b"", relaxed=False) == sha256(b"\r\n").digest()
    assert canonical.hash_body(b"", relaxed=True) == sha256(b"").digest()


def test_the_example_of_rfc_6376_3_4_5() -> None:
    fields = (HeaderField(b"A", b" X"), HeaderField(b"B ", b" Y\t\n\tZ  "))
    body = b" C \r\nD \t E\r\n\r\n\r\n"
    assert b"".join(canonical.header(field, relaxed=True) for field in fields) == (
        b"a:X\r\nb:Y Z\r\n"
    )
    assert b"".join(canonical.header(field, relaxed=False) for field in fields) == (
        b"A: X\r\nB : Y\t\r\n\tZ  \r\n"
    )
    assert canonical.hash_body(body, relaxed=True) == sha256(b" C\r\nD E\r\n").digest()
    assert canonical.hash_body(body, relaxed=False) == sha256(b" C \r\nD \t E\r\n").digest()


def test_row_18_a_body_of_several_pieces_hashes_as_one() -> None:
    line = b"some  text \t here \r\n"
    body = line * 200_000 + b"\r\n" * 700_000 + b"end\r\n\r\n"
    assert (
        canonical.hash_body(body, relaxed=True)
        == sha256(b"some text here\r\n" * 200_000 + b"\r\n" * 700_000 + b"end\r\n").digest()
    )


@pytest.mark.parametrize(
    "body",
    [b" " * 3_000_000 + b"x\r\n", b"\r\n" * 1_500_000, b"\r\n" * 500_000 + b"\r" * 500_000],
    ids=["spaces", "empty lines", "bare CR"],
)
def test_row_18_a_hostile_body_takes_linear_time(body: bytes) -> None:
    # dkimpy takes more than an hour for the first.
    started = time.process_time()
    canonical.hash_body(body, relaxed=True)
    canonical.hash_body(body, relaxed=False)
    assert time.process_time() - started < 2


def test_a_body_is_hashed_once() -> None:
    message = Message((), b"x\r\n")
    first = canonical.body_hash(message, relaxed=True)
    assert message.digests == {"relaxed": first}
    message.digests["relaxed"] = b"kept"
    assert canonical.body_hash(message, relaxed=True) == b"kept"
