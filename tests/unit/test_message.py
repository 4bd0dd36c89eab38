"""The message value: what goes in comes out byte for byte."""

from hypothesis import given
from hypothesis import strategies as st

from aliasmilter.mail.message import HeaderField, Message

SAMPLE = b"From: a@b.example\nSubject: one\n\ttwo\nX-Empty:\nsubject:three\n\nline one\nline two\n"


def test_folds_and_leading_space_are_kept() -> None:
    message = Message.parse(SAMPLE)
    assert message.headers[1] == HeaderField(b"Subject", b" one\n\ttwo")
    assert message.headers[2] == HeaderField(b"X-Empty", b"")
    assert message.headers[1].unfolded == b" one\ttwo"


def test_lf_and_crlf_files_are_the_same_message() -> None:
    assert Message.parse(SAMPLE) == Message.parse(SAMPLE.replace(b"\n", b"\r\n"))


def test_as_bytes_has_crlf_only() -> None:
    assert Message.parse(SAMPLE).as_bytes() == SAMPLE.replace(b"\n", b"\r\n")


def test_fields_are_found_in_any_case_from_the_top() -> None:
    message = Message.parse(SAMPLE)
    assert [field.value for field in message.fields("SUBJECT")] == [b" one\n\ttwo", b"three"]
    assert message.count("Subject") == 2
    assert message.count("To") == 0


def test_white_space_before_the_colon_belongs_to_no_other_name() -> None:
    message = Message.parse(b"Subject \t: x\n\n")
    assert message.count("subject") == 1
    assert message.as_bytes() == b"Subject \t: x\r\n\r\n"


def test_mbox_line_is_left_out() -> None:
    assert Message.parse(b"From a@b Thu\nTo: c\n\n").headers == (HeaderField(b"To", b" c"),)


def test_a_line_that_is_no_field_starts_the_body() -> None:
    message = Message.parse(b"To: c\nno field here\nX: y\n")
    assert message == Message((HeaderField(b"To", b" c"),), b"no field here\r\nX: y\r\n")


def test_a_message_may_have_no_header() -> None:
    assert Message.parse(b"\nhello\n") == Message((), b"hello\r\n")


def test_a_last_line_may_have_no_end() -> None:
    assert Message.parse(b"To: c") == Message((HeaderField(b"To", b" c"),))
    assert Message.parse(b"To: c\n\nhello").body == b"hello"


def test_a_first_line_that_is_no_field_is_not_lost() -> None:
    assert Message.parse(b" x\nX: y\n") == Message((), b" x\r\nX: y\r\n")
    assert Message.parse(b"no field\nX: y\n") == Message((), b"no field\r\nX: y\r\n")


def test_fields_on_top_stand_topmost_first() -> None:
    message = Message.parse(b"C: 3\n\n").with_fields_on_top(
        [HeaderField(b"A", b" 1"), HeaderField(b"B", b" 2")]
    )
    assert message.as_bytes() == b"A: 1\r\nB: 2\r\nC: 3\r\n\r\n"


def test_a_body_hash_goes_with_the_body() -> None:
    message = Message.parse(SAMPLE)
    message.digests["relaxed"] = b"known"
    above = message.with_fields_on_top([HeaderField(b"A", b" 1")])
    assert above.digests == {"relaxed": b"known"}
    above.digests["simple"] = b"new"
    assert message.digests["simple"] == b"new", "it is one body"


@given(st.binary(max_size=300))
def test_anything_can_be_parsed_and_then_parses_the_same(data: bytes) -> None:
    # Parse, never any error; what was read once is read the same again.
    message = Message.parse(data)
    again = Message.parse(message.as_bytes())
    assert again.headers == message.headers
    assert again.body == message.body
