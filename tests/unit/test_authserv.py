"""Authentication-Results of others: forged ones are found, trusted ones are read, bounded."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aliasmilter.forwarding.authserv import MAX_FIELDS, claims, forged_results, trusted_results
from aliasmilter.forwarding.resinfo import quote_addresses
from aliasmilter.forwarding.results import (
    ArcResult,
    DkimResult,
    DmarcResult,
    Identity,
    Results,
    SpfResult,
    Verdict,
    results_header,
)
from aliasmilter.mail.message import HeaderField, Message
from tests.harness.signing import PLAIN, seal_by_dkimpy

OURS = "mx.example.net"


def field(value: bytes) -> HeaderField:
    return HeaderField(b"Authentication-Results", value)


def message(*values: bytes) -> Message:
    return Message((*map(field, values), *PLAIN.headers), PLAIN.body)


@pytest.mark.parametrize(
    "value",
    [
        b" mx.example.net; spf=pass",
        b"mx.example.net;spf=pass",
        b" MX.Example.NET; spf=pass",
        b' "mx.example.net"; spf=pass',
        b' "mx\\.example\\.net"; spf=pass',
        b'"MX.EXAMPLE.net',
        b"\n\tmx.example.net\n\t; spf=pass",
        b" mx.example.net 1; spf=pass",
        b" mx.example.net/1; spf=pass",
        b" mx.example.net(comment); spf=pass",
        b" (a (nested) \\) comment) mx.example.net; spf=pass",
        b" " + b"(" * 3000 + b")" * 3000 + b"mx.example.net; x",
        b" mx.example.net",
        b" mx.example.net; spf=pass (unclosed",
        b' mx.example.net; "',
        b" mx.example.net; \xff\xfe\x00",
        b" mx.example.net.; spf=pass",
        b" \x00mx.example.net; spf=pass",
        b" mx.exam\x00ple.net; spf=pass",
        b": mx.example.net; spf=pass",
        b" mx.example.net; " + b"x" * 100_000,
        b"\xa0mx.example.net; spf=pass",
        " \u2003mx.example.net; spf=pass".encode(),
        b" \x00 mx.example.net; spf=pass",
    ],
)
def test_row_13_a_claim_is_seen_however_it_is_written(value: bytes) -> None:
    assert claims(field(value), OURS)
    assert claims(field(value), OURS.upper())


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b" other.example; spf=pass",
        b" xmx.example.net; spf=pass",
        b" mx.example.net.evil.example; spf=pass",
        b" other.example (mx.example.net); spf=pass",
        b" other.example; x=mx.example.net",
        b' "mx.example.net.evil"; spf=pass',
        b" (mx.example.net; spf=pass",
        b" ; mx.example.net",
    ],
)
def test_other_fields_are_left_alone(value: bytes) -> None:
    assert not claims(field(value), OURS)


def test_an_internationalized_name_is_ours_in_both_forms() -> None:
    assert claims(field(" mx.b\u00fccher.example; spf=pass".encode()), "mx.xn--bcher-kva.example")
    assert claims(field(b" mx.xn--bcher-kva.example; spf=pass"), "mx.b\u00fccher.example")


def test_row_13_all_forged_fields_are_found_from_the_highest_index_down() -> None:
    forged = message(
        b" mx.example.net; spf=pass",
        b" other.example; none",
        b' "MX.example.net"; x',
        b" mx.example.net",
    )
    assert forged_results(forged, OURS) == [4, 3, 1]
    assert forged_results(PLAIN, OURS) == []


def test_row_13_fields_of_odd_names_count() -> None:
    fields = (
        HeaderField(b"AUTHENTICATION-RESULTS", b" a.example; none"),
        HeaderField(b"authentication-results ", b" mx.example.net; none"),
    )
    assert forged_results(Message(fields), OURS) == [2]


def test_row_13_many_large_forged_fields_take_no_time() -> None:
    values = [b" " + b"(" * 20_000 + b")" * 20_000 + b" mx.example.net; x"] * 10
    started = time.process_time()
    assert forged_results(message(*values), OURS) == list(range(10, 0, -1))
    assert time.process_time() - started < 1


@given(st.text(alphabet='mx.example.net; ()"\\\t1/', max_size=30))
def test_any_field_is_judged(text: str) -> None:
    # True or False, never an error; what authres would read as ours is always True.
    assert claims(field(b" " + text.encode()), OURS) in {True, False}
    assert claims(field(b" mx.example.net;" + text.encode()), OURS)


# Trusted results

GOOD = (
    b" mx.example.net;\n\tspf=pass smtp.mailfrom=alice@example.org;\n\t"
    b'dkim=pass (2048-bit key) header.d=example.org header.s=s header.b="abc/defg";\n\t'
    b"dkim=fail reason=bad header.i=@list.example;\n\tarc=none;\n\t"
    b"dmarc=pass (p=reject) header.from=example.org policy.dmarc=reject"
)


def test_results_of_our_own_name_are_read() -> None:
    results = trusted_results(message(GOOD), OURS, "192.0.2.1")
    assert results == Results(
        SpfResult(Verdict.PASS, "example.org"),
        (
            DkimResult(Verdict.PASS, "example.org", "s", "", "abc/defg"),
            DkimResult(Verdict.FAIL, "list.example"),
        ),
        ArcResult(Verdict.NONE),
        DmarcResult(Verdict.PASS, "example.org", "reject"),
        "192.0.2.1",
    )


def test_results_of_another_name_are_not() -> None:
    assert trusted_results(message(GOOD.replace(b"mx.", b"mx2.")), OURS) == Results()


def test_results_of_several_milters_come_together() -> None:
    results = trusted_results(
        message(b" mx.example.net; dmarc=pass", b" mx.example.net; spf=fail smtp.helo=a.example"),
        OURS,
    )
    assert results.dmarc == DmarcResult(Verdict.PASS)
    assert results.spf == SpfResult(Verdict.FAIL, "a.example", Identity.HELO)


def test_the_topmost_field_wins() -> None:
    results = trusted_results(
        message(b" mx.example.net; spf=fail", b" mx.example.net; spf=pass"), OURS
    )
    assert results.spf is not None
    assert results.spf.verdict is Verdict.FAIL


@pytest.mark.parametrize(
    ("tail", "policy"),
    [
        (b" (p=reject dis=none) header.from=bank.example", "reject"),  # OpenDMARC
        (b' reason="no" header.from=bank.example (policy=reject)', "reject"),  # rspamd
        (b" (p=QUARANTINE sp=REJECT dis=NONE) header.from=bank.example", "quarantine"),
        (b" (sp=reject) header.from=bank.example", ""),
        (b" (p=rejected) header.from=bank.example", ""),
        (b' reason="(p=reject)" header.from=bank.example', ""),
        (b" header.from=bank.example; spf=fail (p=reject)", ""),
        (b" (p=reject) header.from=bank.example policy.dmarc=none", "none"),
    ],
)
def test_the_policy_is_read_from_the_comment_where_no_property_says_it(
    tail: bytes, policy: str
) -> None:
    for field in (b"dmarc=fail" + tail, b"spf=none (p=none); dmarc=fail" + tail):
        results = trusted_results(message(b" mx.example.net; " + field), OURS)
        assert results.dmarc == DmarcResult(Verdict.FAIL, "bank.example", policy)


@pytest.mark.parametrize(
    "address", [b"2001:db8::1", b"::1", b"::ffff:192.0.2.1", b"IPv6:2001:DB8::"]
)
@pytest.mark.parametrize("after", [b"", b"; dkim=none", b" (c); dkim=none", b" x.y=z"])
def test_an_ipv6_address_may_stand_without_quotes(address: bytes, after: bytes) -> None:
    value = b" mx.example.net; spf=pass smtp.mailfrom=a.example smtp.remote-ip=" + address + after
    assert trusted_results(message(value), OURS).spf == SpfResult(Verdict.PASS, "a.example")


def test_comments_one_after_the_other_are_no_nesting() -> None:
    value = b" mx.example.net; dkim=pass" + b" (good) header.d=a.example" * 20
    assert trusted_results(message(value), OURS).dkim == (DkimResult(Verdict.PASS, "a.example"),)


def test_row_13_no_more_fields_are_read_than_so_many() -> None:
    many = message(*[b" mx.example.net; dkim=pass header.d=a.example"] * (MAX_FIELDS + 1))
    assert len(trusted_results(many, OURS).dkim) == MAX_FIELDS


def test_what_is_quoted_or_a_comment_keeps_its_addresses_as_they_are() -> None:
    text = 'mx; spf=pass (ip=::1 "(x)) reason="ip=::1 \\" ip=::2" smtp.x=a::b (ip=::3'
    quoted = text.replace("a::b", '"a::b"')
    assert quote_addresses(text) == quote_addresses(quoted) == quoted


def test_sealers_of_a_chain_that_passed_are_named() -> None:
    sealed = seal_by_dkimpy(PLAIN, "list.example", "none").with_fields_on_top(
        [field(b" mx.example.net; arc=pass")]
    )
    arc = trusted_results(sealed, OURS).arc
    assert arc is not None
    assert arc.verdict is Verdict.PASS
    assert arc.sealers == ("list.example",)
    failed = sealed.with_fields_on_top([field(b" mx.example.net; arc=fail")])
    arc = trusted_results(failed, OURS).arc
    assert arc == ArcResult(Verdict.FAIL)


@pytest.mark.parametrize(
    "value",
    [
        b" mx.example.net; spf=pass " + b"(" * 3000 + b")" * 3000,
        b" mx.example.net; spf=pass " + b"(" * 1900 + b")" * 1900,
        b" mx.example.net; spf=pass reason=" + b"x" * 5000,
        b" mx.example.net; spf=p\xffss",
        b" mx.example.net; spf",
        b" mx.example.net 9; spf=pass",
        b" mx.example.net",
        b" mx.example.net; none",
        b" mx.example.net; spf=unheardof",
        b' mx.example.net; spf=pass reason="unclosed',
        b" mx.example.net; spf=pass (",
    ],
)
def test_row_13_what_cannot_be_read_counts_as_absent(value: bytes) -> None:
    assert trusted_results(message(value), OURS) == Results()


@pytest.mark.parametrize(
    "sender",
    [
        '"j\u00fcrgen@evil.example"',  # rspamd quotes what is no token
        "j\u00fcrgen@evil.example",
        '"\\"(((((((((x)))))))))\\"@evil.example"',
        "x:y@evil.example",
        "<>",
        "[192.0.2.1]",
    ],
)
def test_a_sender_cannot_hide_the_other_results_of_the_field(sender: str) -> None:
    value = (
        f" mx.example.net;\n\tdkim=none;\n\tspf=none (mx.example.net: domain of {sender} has no"
        f" SPF policy when checking 192.0.2.1) smtp.mailfrom={sender};\n\tdmarc=fail"
        ' reason="No valid SPF, No valid DKIM" header.from=bank.example (policy=reject)'
    )
    results = trusted_results(message(value.encode()), OURS)
    assert results.dmarc == DmarcResult(Verdict.FAIL, "bank.example", "reject")
    assert results.dkim == (DkimResult(Verdict.NONE),)


def test_a_result_that_cannot_be_read_and_a_semicolon_too_many_leave_the_others() -> None:
    value = b" mx.example.net; dkim; spf=pass (;) smtp.mailfrom=a.example;; dmarc=pass (p=none);"
    assert trusted_results(message(value), OURS) == Results(
        spf=SpfResult(Verdict.PASS, "a.example"), dmarc=DmarcResult(Verdict.PASS, "", "none")
    )


@pytest.mark.parametrize(
    ("address", "domain"),
    [
        ("j\u00fcrgen@a.example", "a.example"),
        ("b\u00fccher.example", "xn--bcher-kva.example"),
        ('"j\u00fcrgen b"@b\u00fccher.example', "xn--bcher-kva.example"),
        ("a\uff0eexample", "a.example"),
        ("bad\u2028.example", ""),
    ],
)
def test_addresses_may_stand_in_utf_8(address: str, domain: str) -> None:
    # RFC 8601, 2.2, in internationalized mail
    value = f" mx.example.net; spf=pass (\u00fc) smtp.mailfrom={address}; dkim=none".encode()
    results = trusted_results(message(value), OURS)
    assert results.dkim == (DkimResult(Verdict.NONE),)
    assert results.spf is not None
    assert (results.spf.verdict, results.spf.domain) == (Verdict.PASS, domain)


def test_odd_values_are_not_taken_over() -> None:
    value = (
        b' mx.example.net; spf=pass smtp.mailfrom="a b; dkim=pass"@evil.example; '
        b'dkim=pass header.d="x; arc=pass" header.s="(" header.b="; x" header.a="<>"; '
        b'dmarc=fail policy.dmarc="x y" header.from="a b"'
    )
    results = trusted_results(message(value), OURS)
    assert results.dkim == (DkimResult(Verdict.PASS),)
    text = results_header(results, OURS)
    assert b'"' not in text
    assert b"\tarc=" not in text


PIECES = (
    '; = ( ) " \\ . @ / 1 spf dkim pass reason smtp header mailfrom d a.example none arc dmarc \x00'
)


@given(st.lists(st.sampled_from([" ", "\n\t", *PIECES.split(" ")]), max_size=25).map("".join))
@settings(max_examples=300)
def test_any_field_of_ours_is_read_or_left(text: str) -> None:
    # Results, never an error; what is read can be written again, and is the same.
    results = trusted_results(message(f" {OURS}; {text}".encode()), OURS)
    again = trusted_results(message(results_header(results, OURS)), OURS)
    assert again == Results(results.spf, results.dkim, results.arc, results.dmarc)


@pytest.mark.parametrize("first", ["spf", "dmarc"])
def test_a_pass_that_a_sender_wrote_into_a_comment_counts_for_nothing(first: str) -> None:
    """rspamd 3.4 copies MAIL FROM into a comment as it is."""
    sender = '"x) ; dmarc=pass header.from=bank.example ("@evil.example'
    parts = [
        f" spf=none (mx: domain of {sender} has no SPF policy) smtp.mailfrom=x@evil.example",
        ' dmarc=fail reason="no" header.from=bank.example (policy=reject)',
    ]
    if first == "dmarc":
        parts.reverse()
    results = trusted_results(message(f" mx.example.net;{';'.join(parts)}".encode()), OURS)
    assert results.dmarc is not None
    assert (results.dmarc.verdict, results.dmarc.policy) == (Verdict.FAIL, "reject")
