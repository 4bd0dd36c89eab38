"""Sealing: what we seal verifies with dkimpy and with Perl's Mail::DKIM; what cannot is left."""

import re
import time
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aliasmilter.forwarding import chain
from aliasmilter.forwarding.arc import (
    POSTFIX,
    SENDMAIL,
    SIGNED,
    Sealed,
    Transport,
    Unsealed,
    is_stable,
    is_too_long,
    seal,
    signable,
)
from aliasmilter.forwarding.results import (
    ArcResult,
    ArcSetResult,
    DkimResult,
    DmarcResult,
    Results,
    SpfResult,
    Verdict,
)
from aliasmilter.forwarding.signature import read_signature, verify
from aliasmilter.mail.message import HeaderField, Message
from tests.harness.dns import DnsServer, Zone, ZoneResolver
from tests.harness.signing import (
    AUTHSERV,
    NOW,
    PLAIN,
    key,
    key_zone,
    our_sealer,
    put_on,
    seal_by_dkimpy,
    sign_dkim,
    verify_by_dkimpy,
    verify_by_perl,
)

FIRST = Results(
    SpfResult(Verdict.PASS, "example.org"),
    (DkimResult(Verdict.PASS, "example.org", "s", "rsa-sha256", "abcdefgh"),),
    ArcResult(Verdict.NONE),
    DmarcResult(Verdict.PASS, "example.org", "reject"),
    "2001:db8::1",
)
ZONE: Zone = key_zone("arc.fwd.example", "arc.other.example", "arc.third.example", "s.example.org")


@pytest.fixture(scope="module")
def server() -> Iterator[DnsServer]:
    with DnsServer(ZONE) as running:
        yield running


def results(message: Message) -> Results:
    """What we say about a message: its chain is really evaluated."""
    return Results(
        FIRST.spf, FIRST.dkim, chain.evaluate(message, ZoneResolver(ZONE).lookup(5)), FIRST.dmarc
    )


def seal_ours(message: Message, domain: str = "fwd.example") -> Message:
    return put_on(message, seal(message, results(message), AUTHSERV, our_sealer(domain), now=NOW))


def field(message: Message, name: str) -> str:
    return message.fields(name)[0].unfolded.decode()


def test_the_set_stands_above_all_in_the_order_of_insertion() -> None:
    sealed = seal(PLAIN, FIRST, AUTHSERV, our_sealer(), now=NOW)
    assert isinstance(sealed, Sealed)
    assert [field.name for field in sealed.fields] == [
        b"ARC-Authentication-Results",
        b"ARC-Message-Signature",
        b"ARC-Seal",
    ]
    assert [field.name for field in put_on(PLAIN, sealed).headers[:4]] == [
        b"ARC-Seal",
        b"ARC-Message-Signature",
        b"ARC-Authentication-Results",
        b"Received",
    ]


@pytest.mark.parametrize("copies", [0, 30])
def test_values_are_as_a_milter_inserts_them(copies: int) -> None:
    message = PLAIN.with_fields_on_top([HeaderField(b"Cc", b" a@b")] * copies)
    sealed = seal(message, FIRST, AUTHSERV, our_sealer(), now=NOW)
    assert isinstance(sealed, Sealed)
    for each in sealed.fields:
        assert each.value.startswith(b" i=1; ")
        assert b"\r" not in each.value
        assert each.value.isascii()
        assert all(line[:1] == b"\t" for line in each.value.split(b"\n")[1:])
        assert all(len(line) < 100 for line in each.as_bytes().split(b"\r\n"))


def test_the_results_are_those_of_the_message_as_it_came_in() -> None:
    message = seal_ours(PLAIN)
    text = field(message, "ARC-Authentication-Results")
    assert text.startswith(f" i=1; {AUTHSERV};\tarc=none")
    assert "spf=pass smtp.mailfrom=example.org" in text
    assert "dkim=pass header.d=example.org header.s=s header.a=rsa-sha256 header.b=abc" in text
    assert "dmarc=pass header.from=example.org policy.dmarc=reject" in text


def test_what_we_seal_verifies(server: DnsServer) -> None:
    message = seal_ours(sign_dkim(PLAIN))
    assert verify_by_dkimpy(message, server) == ("pass", "success")
    ((result, detail),) = verify_by_perl([message], server)
    assert result == "pass", detail
    assert results(message).arc == ArcResult(
        Verdict.PASS,
        (
            ArcSetResult(
                1,
                "fwd.example",
                "arc",
                seal=Verdict.PASS,
                message_signature=Verdict.PASS,
                passed=frozenset({"spf", "dkim", "dmarc"}),
            ),
        ),
    )


@pytest.mark.parametrize(
    "who",
    [
        ("us", "other.example"),
        ("other.example", "us"),
        ("us", "us"),
        ("us", "other.example", "us"),
        ("other.example", "us", "third.example"),
        ("other.example", "third.example", "us"),
    ],
)
def test_chains_of_several_sealers_verify(server: DnsServer, who: tuple[str, ...]) -> None:
    message = PLAIN
    for number, sealer in enumerate(who):
        if sealer == "us":
            message = seal_ours(message)
        else:
            message = seal_by_dkimpy(message, sealer, "pass" if number else "none")
    assert verify_by_dkimpy(message, server) == ("pass", "success")
    ((result, detail),) = verify_by_perl([message], server)
    assert result == "pass", detail
    arc = results(message).arc
    assert arc is not None
    assert arc.verdict is Verdict.PASS
    assert arc.sealers == tuple("fwd.example" if sealer == "us" else sealer for sealer in who)


def test_a_list_that_changes_the_body_reseals_and_the_chain_verifies(server: DnsServer) -> None:
    first = seal_ours(sign_dkim(PLAIN))
    changed = Message(first.headers, first.body + b"-- \r\nlist footer\r\n")
    second = seal_by_dkimpy(changed, "other.example", "pass")
    third = seal_ours(second)
    assert verify_by_dkimpy(third, server) == ("pass", "success")
    assert verify_by_perl([third], server)[0][0] == "pass"


def test_no_dkim_signature_is_broken() -> None:
    signed = sign_dkim(PLAIN)
    assert seal_ours(signed).headers[3:] == signed.headers


def test_what_is_signed() -> None:
    above = [
        HeaderField(b"Return-Path", b" <a@example.org>"),
        HeaderField(b"Authentication-Results", b" x; none"),
        HeaderField(b"DKIM-Signature", b" v=1"),
        HeaderField(b"DKIM-Signature", b" v=1"),
    ]
    names = signable(PLAIN.with_fields_on_top(above), POSTFIX)
    assert isinstance(names, list)
    assert names.count(b"from") == 2  # once more than it stands there
    assert names.count(b"dkim-signature") == 2  # RFC 8617, 4.1.2
    assert names.count(b"subject") == 1
    assert not {b"received", b"return-path", b"authentication-results", b"cc"} & set(names)
    assert not any(name.startswith("arc-") for name in SIGNED)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"Subject: an order", b"Subject: another order"),
        (b"From: Alice", b"From: Mallory"),
        (b"Hello", b"Goodbye"),
        (b"cv=none", b"cv=pass"),
        (b"arc=none", b"arc=pass"),
        (b"spf=pass", b"spf=fail"),
        (b"From: Alice", b"From: Mallory <m@example.org>\r\nFrom: Alice"),
        (b"i=1; mx", b"i=2; mx"),
    ],
)
def test_a_change_after_sealing_is_seen(server: DnsServer, old: bytes, new: bytes) -> None:
    data = seal_ours(PLAIN).as_bytes()
    assert old in data
    message = Message.parse(data.replace(old, new, 1))
    assert chain.evaluate(message, ZoneResolver(ZONE).lookup(5)).verdict is Verdict.FAIL
    assert verify_by_dkimpy(message, server)[0] == "fail"


def test_fields_that_a_hop_adds_do_not_matter(server: DnsServer) -> None:
    message = seal_ours(PLAIN).with_fields_on_top(
        [
            HeaderField(b"Return-Path", b" <a@b.example>"),
            HeaderField(b"Received", b" from x by y; z"),
            HeaderField(b"Authentication-Results", b" x; arc=pass"),
        ]
    )
    assert verify_by_dkimpy(message, server)[0] == "pass"
    assert verify_by_perl([message], server)[0][0] == "pass"


# Chains that fail


def broken(message: Message) -> Message:
    return Message(message.headers, message.body + b"changed\r\n")


def test_a_chain_that_fails_here_is_sealed_with_cv_fail() -> None:
    message = broken(seal_ours(PLAIN))
    sealed = seal(message, results(message), AUTHSERV, our_sealer(), now=NOW)
    assert isinstance(sealed, Sealed)
    assert (sealed.instance, sealed.cv) == (2, Verdict.FAIL)
    assert b" cv=fail;" in sealed.fields[2].value
    assert b"arc=fail" in sealed.fields[0].value


def test_the_seal_of_a_failed_chain_covers_its_own_set_alone() -> None:
    # RFC 8617, 5.1.2. No verifier checks it, so it is checked here.
    message = broken(seal_ours(PLAIN))
    sealed = seal(message, results(message), AUTHSERV, our_sealer(), now=NOW)
    assert isinstance(sealed, Sealed)
    own = chain.ArcSet(2, *sealed.fields)
    signature = read_signature(own.seal)
    verify(key().public_key(), signature, b"".join(chain.seal_input(own)))


def test_an_ended_chain_is_not_continued(server: DnsServer) -> None:
    message = seal_ours(broken(seal_ours(PLAIN)))
    assert verify_by_dkimpy(message, server)[0] is None  # ended
    assert verify_by_perl([message], server)[0][0] == "fail"
    assert seal(message, results(message), AUTHSERV, our_sealer(), now=NOW) is Unsealed.ENDED


def with_sets(count: int) -> Message:
    """A message with so many sets, none of them valid."""
    fields = [
        HeaderField(name.encode(), b" i=%d; a=rsa-sha256; cv=pass; d=x.example; b=AAAA" % number)
        for number in range(count, 0, -1)
        for name in ("ARC-Seal", "ARC-Message-Signature", "ARC-Authentication-Results")
    ]
    return PLAIN.with_fields_on_top(fields)


def test_row_14_fifty_sets_are_the_most() -> None:
    message = with_sets(49)
    sealed = seal(message, results(message), AUTHSERV, our_sealer(), now=NOW)
    assert isinstance(sealed, Sealed)
    assert (sealed.instance, sealed.cv) == (50, Verdict.FAIL)
    for count in (50, 51, 200):
        message = with_sets(count)
        assert seal(message, results(message), AUTHSERV, our_sealer(), now=NOW) is Unsealed.FULL


def test_row_14_a_chain_past_the_limit_is_neither_checked_nor_ended() -> None:
    resolver = ZoneResolver(ZONE)
    message = seal_ours(seal_ours(PLAIN))
    arc = chain.evaluate(message, resolver.lookup(5), 1)
    assert (arc.verdict, arc.reason) == (Verdict.FAIL, "more than 1 ARC sets")
    assert resolver.asked == []
    for count in (1, 2):
        found = seal(message, Results(arc=arc), AUTHSERV, our_sealer(), now=NOW, max_sets=count)
        assert found is Unsealed.FULL
    found = seal(message, results(message), AUTHSERV, our_sealer(), now=NOW, max_sets=3)
    assert isinstance(found, Sealed)
    assert (found.instance, found.cv) == (3, Verdict.PASS)


def test_row_16_a_chain_that_could_not_be_checked_is_left_alone() -> None:
    message = seal_ours(PLAIN)
    resolver = ZoneResolver(ZONE)
    resolver.down.add("*")
    arc = chain.evaluate(message, resolver.lookup(5))
    assert arc.verdict is Verdict.TEMPERROR
    found = seal(message, Results(arc=arc), AUTHSERV, our_sealer(), now=NOW)
    assert found is Unsealed.UNKNOWN
    assert seal(message, Results(), AUTHSERV, our_sealer(), now=NOW) is Unsealed.UNKNOWN


def test_results_cannot_make_a_chain_where_there_is_none() -> None:
    sealed = seal(PLAIN, Results(arc=ArcResult(Verdict.PASS)), AUTHSERV, our_sealer(), now=NOW)
    assert isinstance(sealed, Sealed)
    assert (sealed.instance, sealed.cv) == (1, Verdict.NONE)
    assert b"arc=none" in sealed.fields[0].value


def test_results_cannot_mend_a_chain_that_has_no_structure() -> None:
    message = with_sets(2).with_fields_on_top([HeaderField(b"ARC-Seal", b" i=2; cv=pass")])
    sealed = seal(message, Results(arc=ArcResult(Verdict.PASS)), AUTHSERV, our_sealer(), now=NOW)
    assert isinstance(sealed, Sealed)
    assert (sealed.instance, sealed.cv) == (3, Verdict.FAIL)
    assert b"arc=fail" in sealed.fields[0].value


# What cannot be sealed, or not wholly


def without(name: str) -> Message:
    key = name.encode()
    return Message(tuple(f for f in PLAIN.headers if f.key != key), PLAIN.body)


def test_row_12_no_from_and_several_are_not_sealed() -> None:
    none = without("from")
    two = PLAIN.with_fields_on_top([HeaderField(b"From", b" b@example.org")])
    assert seal(none, FIRST, AUTHSERV, our_sealer(), now=NOW) is Unsealed.NO_FROM
    assert seal(two, FIRST, AUTHSERV, our_sealer(), now=NOW) is Unsealed.SEVERAL_FROM


def test_row_12_an_odd_from_is_sealed_as_it_is(server: DnsServer) -> None:
    odd = [b" a@b@c", b" " + b"(" * 3000 + b")" * 3000 + b"a@b.example", b"", b" \xff\xfe", b"x"]
    messages = []
    for value in odd:
        others = [f for f in PLAIN.headers if f.key != b"from"]
        made = Message((HeaderField(b"From", value), *others), PLAIN.body)
        sealed = seal(made, FIRST, AUTHSERV, our_sealer(), now=NOW, transport=Transport(0, False))
        messages.append(put_on(made, sealed))
    assert {verify_by_dkimpy(message, server)[0] for message in messages} == {"pass"}
    assert {result for result, _ in verify_by_perl(messages, server)} == {"pass"}


@pytest.mark.parametrize(("length", "sealed"), [(998, True), (999, False)])
def test_row_18_a_body_line_that_postfix_breaks_is_not_sealed(length: int, sealed: bool) -> None:
    message = Message(PLAIN.headers, b"short\r\n" + b"x" * length + b"\r\nshort\r\n")
    found = seal(message, FIRST, AUTHSERV, our_sealer(), now=NOW)
    assert isinstance(found, Sealed) is sealed
    if not sealed:
        assert found is Unsealed.LONG_LINE
    unlimited = Transport(line_limit=0, rewrites_addresses=False)
    assert isinstance(
        seal(message, FIRST, AUTHSERV, our_sealer(), now=NOW, transport=unlimited), Sealed
    )


@given(st.lists(st.integers(0, 30), max_size=8), st.booleans())
def test_long_lines_are_found_wherever_they_are(lengths: list[int], ended: bool) -> None:
    text = b"\r\n".join(b"x" * length for length in lengths) + (b"\r\n" if ended else b"")
    assert is_too_long(text, 20) == any(length > 20 for length in lengths)


def test_a_header_line_that_the_mta_breaks_is_not_signed() -> None:
    message = PLAIN.with_fields_on_top([HeaderField(b"References", b" " + b"<a@b> " * 300)])
    names = signable(message, POSTFIX)
    assert isinstance(names, list)
    assert b"references" not in names
    folded = PLAIN.with_fields_on_top([HeaderField(b"References", b"\n <a@b>" * 300)])
    names = signable(folded, POSTFIX)
    assert isinstance(names, list)
    assert b"references" in names


def test_what_verifiers_strip_in_different_ways_is_not_signed() -> None:
    for value in (b" x\x0c", b" x\x0b", b"\x1fx", b" a\x00b", b": x", b" a\rb"):
        assert not is_stable(HeaderField(b"Subject", value), POSTFIX)


def test_row_18_a_field_that_stands_very_often_is_not_signed() -> None:
    def names_with(count: int) -> list[bytes]:
        names = signable(PLAIN.with_fields_on_top([HeaderField(b"Cc", b" a@b")] * count), POSTFIX)
        assert isinstance(names, list)
        return names

    assert names_with(30).count(b"cc") == 30
    assert names_with(31).count(b"cc") == 0


def test_row_18_ten_thousand_headers_seal_and_verify(server: DnsServer) -> None:
    many = [HeaderField(b"X-%d" % (n % 7), b" " + b"y" * 15) for n in range(9_000)]
    many += [HeaderField(b"DKIM-Signature", b" v=1")] * 500 + [HeaderField(b"To", b" a@b")] * 500
    message = PLAIN.with_fields_on_top(many)
    started = time.process_time()
    sealed = seal_ours(message)
    assert time.process_time() - started < 0.5
    assert verify_by_dkimpy(sealed, server)[0] == "pass"
    assert verify_by_perl([sealed], server)[0][0] == "pass"


def test_row_18_raw_8_bit_seals_and_verifies(server: DnsServer) -> None:
    message = Message(
        (
            HeaderField(b"From", " J\u00fcrgen <a@example.org>".encode()),
            HeaderField(b"Subject", b" latin-1 \xfc \xff\xfe"),
            HeaderField(b"To", "\n\t\u4e2d\u6587 <b@example.com>,\n <c@example.com>".encode()),
        ),
        b"\x80\xff caf\xe9\r\n" * 3,
    )
    sealed = seal_ours(message)
    assert verify_by_dkimpy(sealed, server)[0] == "pass"
    assert verify_by_perl([sealed], server)[0][0] == "pass"


def test_row_18_a_large_body_is_sealed_in_little_memory() -> None:
    body = b"0123456789 0123456789  \t 0123456789\r\n" * 300_000
    message = Message(PLAIN.headers, body)
    tracemalloc.start()
    sealed = seal(message, FIRST, AUTHSERV, our_sealer(), now=NOW)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert isinstance(sealed, Sealed)
    assert len(body) > 10_000_000
    assert peak < 5_000_000


SHAPES = st.lists(
    st.tuples(
        st.sampled_from(
            [b"To", b"Cc", b"Subject", b"SUBJECT", b"X-A", b"Date", b"List-Id", b"Reply-To"]
        ),
        st.lists(
            st.sampled_from(
                [b" ", b"\t", b"\n ", b"\n\t", b"a", b"b,c", b"<x@y.example>", b"\xfc", b";", b":"]
            ),
            max_size=8,
        ).map(b"".join),
    ),
    max_size=6,
)
TEXTS = st.lists(
    st.sampled_from([b"a", b" ", b"\t", b"\r\n", b"\xff", b"= ", b".", b"word"]), max_size=12
).map(lambda parts: b"".join(parts) + b"\r\n")


@given(st.lists(st.tuples(SHAPES, TEXTS), min_size=1, max_size=6))
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_whatever_is_sealed_verifies_with_both(
    server: DnsServer, shapes: list[tuple[list[tuple[bytes, bytes]], bytes]]
) -> None:
    messages = []
    for fields, body in shapes:
        others = [
            HeaderField(name, b" " + re.sub(rb"\n\s*(?=\n|\Z)", b"", value))
            for name, value in fields
        ]
        message = Message((HeaderField(b"From", b" a@example.org"), *others), body)
        messages.append(seal_ours(seal_ours(message)))
    assert {verify_by_dkimpy(message, server) for message in messages} == {("pass", "success")}
    assert {result for result, _ in verify_by_perl(messages, server)} == {"pass"}
    for message in messages:
        assert chain.evaluate(message, ZoneResolver(ZONE).lookup(5)).verdict is Verdict.PASS


def test_threads_share_a_sealer() -> None:
    sealer = our_sealer()
    messages = [Message(PLAIN.headers, b"%d\r\n" % number) for number in range(40)]
    with ThreadPoolExecutor(8) as pool:
        made = list(
            pool.map(lambda m: put_on(m, seal(m, FIRST, AUTHSERV, sealer, now=NOW)), messages)
        )
    for message in made:
        assert chain.evaluate(message, ZoneResolver(ZONE).lookup(5)).verdict is Verdict.PASS


# Sendmail


@pytest.mark.parametrize(
    "value",
    [
        b" a@b.example",
        b" <a@b.example>",
        b" A B <a@b.example>",
        b' "B, A" <a@b.example>',
        b" a@b.example, C <c@d.example>",
        b" a@b.example,\n\tC <c@d.example>",
    ],
)
def test_sendmail_leaves_its_own_form_alone(value: bytes) -> None:
    assert is_stable(HeaderField(b"To", value), SENDMAIL)


@pytest.mark.parametrize(
    "value",
    [
        b" a@b.example,c@d.example",
        b" a@b.example,",
        b" a@b.example; c@d.example",
        b" < a@b.example >",
        b" bob",
        b" <@relay.example:a@b.example>",
        b" undisclosed-recipients:;",
        b" a@b.example (A B)",
        b" a @ b.example",
        b' "A \\" B" <a@b.example>',
        b" =?utf-8?q?x?= <a@b>, ,c@d",
        b"",
    ],
)
def test_what_sendmail_rewrites_is_not_signed(value: bytes) -> None:
    assert not is_stable(HeaderField(b"To", value), SENDMAIL)
    assert is_stable(HeaderField(b"To", value), POSTFIX)
    assert is_stable(HeaderField(b"Subject", value), SENDMAIL)


def test_a_from_that_sendmail_rewrites_is_not_sealed() -> None:
    others = [f for f in PLAIN.headers if f.key != b"from"]
    message = Message((HeaderField(b"From", b" bob"), *others), PLAIN.body)
    found = seal(message, FIRST, AUTHSERV, our_sealer(), now=NOW, transport=SENDMAIL)
    assert found is Unsealed.FROM_CHANGES
