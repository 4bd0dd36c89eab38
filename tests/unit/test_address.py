"""Addresses: what is one, and what two of them have in common."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aliasmilter.mail.address import (
    Address,
    AddressError,
    parse_address,
    parse_path,
    readings,
    split_subaddress,
)

ODD = st.text(alphabet='ab.@<>"\\ +:[]\x00\r\n\u00e4\u202e-', max_size=40)


@given(st.one_of(ODD, st.text()))
def test_any_text_is_an_address_or_an_address_error(text: str) -> None:
    try:
        address = parse_address(text)
    except AddressError:
        return
    assert parse_address(str(address)) == address
    assert not set(str(address)) & set("\r\n\x00")


@given(st.one_of(st.binary(max_size=60), ODD.map(lambda t: t.encode("utf-8", "replace"))))
def test_any_octets_are_a_path_or_an_address_error(octets: bytes) -> None:
    try:
        address = parse_path(octets)
    except AddressError:
        return
    if address and address.domain:
        assert parse_path(address.path.encode()) == address


@pytest.mark.parametrize(
    ("text", "local", "domain"),
    [
        ("bob@example.com", "bob", "example.com"),
        ("Bob@EXAMPLE.com", "Bob", "example.com"),
        ('"john doe"@example.com', "john doe", "example.com"),
        ('"a@b"@example.com', "a@b", "example.com"),
        (r'"a\"b"@example.com', 'a"b', "example.com"),
        ('"bob"@example.com', "bob", "example.com"),
        ("bob@b\u00fccher.example", "bob", "xn--bcher-kva.example"),
        ("j\u00f6rg@example.com", "j\u00f6rg", "example.com"),
        ("bob@[192.0.2.1]", "bob", "[192.0.2.1]"),
        ("bob@[IPv6:2001:db8::1]", "bob", "[IPv6:2001:db8::1]"),
        ("bob@localhost", "bob", "localhost"),
        ("a+b@example.com", "a+b", "example.com"),
        ("a@" + "x" * 63, "a", "x" * 63),
        ("x" * 256 + "@example.com", "x" * 256, "example.com"),
    ],
)
def test_what_is_an_address(text: str, local: str, domain: str) -> None:
    assert parse_address(text) == Address(local, domain)


@pytest.mark.parametrize(
    "text",
    [
        *["bob", "bob@", "@example.com", "a@b@c.example", "a..b@example.com", ".a@example.com"],
        *["a.@example.com", "bob@example..com", "bob@-x.example", "bob@x-.example", "bob@x_.-y"],
        *["bob@example.com.", "bob@[1.2.3]", "bob@[192.0.2.1"],
        "",
        "a b@example.com",
        "x" * 257 + "@example.com",
        "bob@" + "x" * 64 + ".example",
        "bob@_" + "x" * 63 + ".example",
        "bob@" + ".".join(["x" * 60] * 5),
        '""@example.com',
        "b\x00b@example.com",
        "b\x85b@example.com",
        "bob@-\u00fc.example",
        "b\u2028b@example.com",
        "b\ufdd0b@example.com",
    ],
)
def test_what_is_none(text: str) -> None:
    with pytest.raises(AddressError):
        parse_address(text)


@pytest.mark.parametrize(
    ("path", "address"),
    [
        (b"<>", None),
        (b"", None),
        (b"<@a.example,@b.example:bob@example.com>", Address("bob", "example.com")),
        (b"bob@example.com", Address("bob", "example.com")),
        (b"<postmaster>", Address("postmaster", "")),
    ],
)
def test_paths(path: bytes, address: Address | None) -> None:
    assert parse_path(path) == address


def test_a_path_is_refused_for_its_length_whatever_is_in_it() -> None:
    for routes, is_taken in ((80, True), (120, False)):
        path = b"<@a.example" + b",@a.example" * routes + b":bob@example.com>"
        with nullcontext() if is_taken else pytest.raises(AddressError, match="too long"):
            assert parse_path(path) == Address("bob", "example.com")


def test_a_sender_may_have_dots_where_a_recipient_may_not() -> None:
    assert str(parse_path(b"<a..b.@example.com>", any_dots=True)) == "a..b.@example.com"
    with pytest.raises(AddressError):
        parse_path(b"<a..b.@example.com>")


def test_case_and_unicode_form_do_not_tell_two_people_apart() -> None:
    assert parse_address("BOB@Example.com").key == parse_address("bob@example.COM").key
    assert parse_address("j\u00f6@x.example").key == parse_address("jo\u0308@x.example").key
    # Unicode composes the small letter with its mark, and not the capital.
    assert parse_address("\u01f0@x.example").key == parse_address("J\u030c@x.example").key


@pytest.mark.parametrize("text", ["bob", '"bob"', '"b@b"', '"b@b"xa.example', "", "."])
def test_what_has_no_domain_is_said_to_have_none(text: str) -> None:
    with pytest.raises(AddressError, match="no domain"):
        parse_address(text)


def test_a_subaddress_begins_at_the_first_delimiter() -> None:
    assert split_subaddress("sales+a+b", "+") == ("sales", "a+b")
    assert split_subaddress("+a", "+") is None
    assert split_subaddress("sales+a", "") is None
    assert split_subaddress("sales", "+") is None


@pytest.mark.parametrize(
    ("written", "seen", "others"),
    [
        ("bob@example.com", "bob@example.com", []),
        ("bob%example.com@mx.example", "bob@example.com", ["bob@example.com"]),
        ("bob%example.com@mx.example", "bob%example.com@mx.example", []),
        ("bob%example.com@example.com", "bob@example.com", ["bob@example.com"]),
        ("Bob@example.com", "bob@Example.com", []),
        ("bob", "bob@Example.com", ["bob@example.com"]),
        ("bob", "a..b@example.com", ["a..b@example.com"]),
        ("bob", "a b@example.com", []),
        ("bob", "", []),
        ("bob%example.com", "bob", ["bob@example.com"]),
        ("example.com!bob", "", ["bob@example.com"]),
        ('"bob@example.com"@mx.example', "", ["bob@example.com"]),
        ("bob%example.com.%", "", ["bob@example.com"]),
        ("bob%", "", []),
    ],
)
def test_what_an_mta_may_take_an_address_for(written: str, seen: str, others: list[str]) -> None:
    address = parse_path(f"<{written}>".encode())
    assert address is not None
    assert [str(other) for other in readings(address, seen)] == others
