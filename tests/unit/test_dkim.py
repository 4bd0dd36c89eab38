"""DKIM: signatures by dkimpy and samples of the RFCs; what is hostile gets its verdict."""

import base64
import time

import dkim as dkimpy
import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicNumbers
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from dkim.util import InvalidTagValueList, parse_tag_value
from hypothesis import given, settings
from hypothesis import strategies as st

from aliasmilter.forwarding import dkim, signature
from aliasmilter.forwarding.keys import key_record
from aliasmilter.forwarding.results import DkimResult, Verdict
from aliasmilter.forwarding.signature import parse_tags
from aliasmilter.mail.message import HeaderField, Message
from tests.harness.dns import Zone, ZoneResolver
from tests.harness.signing import NOW, PLAIN, dns_function, key, key_zone, pem, sign_dkim

ZONE = key_zone("s.example.org")
KEY_NAME = "s._domainkey.example.org"

# RFC 8463, appendix A: keys and a message signed with both algorithms.
ED25519_KEY = b"v=DKIM1; k=ed25519; p=11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="
RSA_KEY = (
    b"v=DKIM1; k=rsa; p=MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDkHlOQoBTzWR"
    b"iGs5V6NpP3idY6Wk08a5qhdR6wy5bdOKb2jLQiY/J16JYi0Qvx/byYzCNb3W91y3FutAC"
    b"DfzwQ/BC/e/8uBsCR+yz1Lxj+PL6lHvqMKrM3rG4hstT5QjvHO9PzoxZyVYLzBfO2EeC3"
    b"Ip3G+2kryOTIKT+l/K4w3QIDAQAB"
)
RFC_8463 = (
    b"DKIM-Signature: v=1; a=ed25519-sha256; c=relaxed/relaxed;\r\n"
    b" d=football.example.com; i=@football.example.com;\r\n"
    b" q=dns/txt; s=brisbane; t=1528637909; h=from : to :\r\n"
    b" subject : date : message-id : from : subject : date;\r\n"
    b" bh=2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=;\r\n"
    b" b=/gCrinpcQOoIfuHNQIbq4pgh9kyIK3AQUdt9OdqQehSwhEIug4D11Bus\r\n"
    b" Fa3bT3FY5OsU7ZbnKELq+eXdp1Q1Dw==\r\n"
    b"DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed;\r\n"
    b" d=football.example.com; i=@football.example.com;\r\n"
    b" q=dns/txt; s=test; t=1528637909; h=from : to : subject :\r\n"
    b" date : message-id : from : subject : date;\r\n"
    b" bh=2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=;\r\n"
    b" b=F45dVWDfMbQDGHJFlXUNB2HKfbCeLRyhDXgFpEL8GwpsRe0IeIixNTe3\r\n"
    b" DhCVlUrSjV4BwcVcOF6+FF3Zo9Rpo1tFOeS9mPYQTnGdaSGsgeefOsk2Jz\r\n"
    b" dA+L10TeYt9BgDfQNZtKdN1WO//KgIqXP7OdEFE4LjFYNcUxZQ4FADY+8=\r\n"
    b"From: Joe SixPack <joe@football.example.com>\r\n"
    b"To: Suzie Q <suzie@shopping.example.net>\r\n"
    b"Subject: Is dinner ready?\r\n"
    b"Date: Fri, 11 Jul 2003 21:00:37 -0700 (PDT)\r\n"
    b"Message-ID: <20030712040037.46341.5F8J@football.example.com>\r\n"
    b"\r\n"
    b"Hi.\r\n\r\nWe lost the game.  Are you hungry yet?\r\n\r\nJoe.\r\n"
)


def evaluate(message: Message, zone: Zone | None = None, **options: int) -> tuple[DkimResult, ...]:
    lookup = ZoneResolver(ZONE if zone is None else zone).lookup(5)
    return dkim.evaluate(message, lookup, NOW, **options)


def verdicts(message: Message, zone: Zone | None = None) -> list[str]:
    return [result.verdict.value for result in evaluate(message, zone)]


def changed(message: Message, old: bytes, new: bytes) -> Message:
    """The message with its signature's text changed."""
    first, *others = message.headers
    assert old in first.value
    return Message((HeaderField(first.name, first.value.replace(old, new)), *others), message.body)


def test_the_sample_of_rfc_8463_verifies_with_both_algorithms() -> None:
    zone: Zone = {
        "brisbane._domainkey.football.example.com": {"TXT": [ED25519_KEY]},
        "test._domainkey.football.example.com": {"TXT": [RSA_KEY]},
    }
    results = evaluate(Message.parse(RFC_8463), zone)
    assert [result.verdict for result in results] == [Verdict.PASS, Verdict.PASS]
    assert [result.algorithm for result in results] == ["ed25519-sha256", "rsa-sha256"]
    assert [result.signature for result in results] == ["/gCrinpc", "F45dVWDf"]
    assert verdicts(Message.parse(RFC_8463.replace(b"hungry", b"thirsty")), zone) == ["fail"] * 2


@pytest.mark.parametrize("header", [b"simple", b"relaxed"])
@pytest.mark.parametrize("body", [b"simple", b"relaxed"])
def test_signatures_by_dkimpy_verify(header: bytes, body: bytes) -> None:
    (result,) = evaluate(sign_dkim(PLAIN, canonicalize=(header, body)))
    assert (result.verdict, result.domain, result.selector) == (Verdict.PASS, "example.org", "s")


def test_a_changed_body_or_header_fails() -> None:
    signed = sign_dkim(PLAIN)
    assert verdicts(Message(signed.headers, signed.body + b"more\r\n")) == ["fail"]
    other = tuple(
        HeaderField(f.name, b" another") if f.key == b"subject" else f for f in signed.headers
    )
    assert verdicts(Message(other, signed.body)) == ["fail"]


@given(
    st.lists(
        st.sampled_from(
            [b"a", b"b", b"B1", b"1", b"_", b"=", b"==", b";", b" ", b"\t", b"\xe9", b"x y"]
        )
    ).map(b"".join)
)
def test_tag_lists_are_read_as_dkimpy_reads_them(text: bytes) -> None:
    try:
        expected = dict(parse_tag_value(text))
    except InvalidTagValueList:
        expected = None
    assert parse_tags(text) == expected


def test_no_signature_is_none() -> None:
    assert verdicts(PLAIN) == ["none"]


@given(
    st.lists(
        st.tuples(
            st.sampled_from([b"To", b"Subject", b"X-Other", b"Cc", b"Received"]),
            st.binary(max_size=30).map(
                lambda value: bytes(
                    c for c in value if c not in b"\r\n\x0b\x0c\x1c\x1d\x1e\x1f\x85"
                )
            ),
        ),
        max_size=8,
    ),
    st.binary(max_size=60),
)
@settings(max_examples=40)
def test_we_agree_with_dkimpy_on_any_message(
    fields: list[tuple[bytes, bytes]], body: bytes
) -> None:
    headers = [HeaderField(name, b" " + value) for name, value in fields]
    message = Message.parse(
        Message((HeaderField(b"From", b" a@example.org"), *headers), body).as_bytes()
    )
    signed = sign_dkim(message)
    (result,) = evaluate(signed)
    assert (result.verdict is Verdict.PASS) == dkimpy.verify(
        signed.as_bytes(), dnsfunc=dns_function(ZONE)
    )


# Row 15: a bounded number, l= not trusted, odd domains not copied


def test_row_15_of_200_signatures_a_bounded_number_is_verified() -> None:
    signed = sign_dkim(PLAIN)
    many = Message(signed.headers[:1] * 200 + signed.headers[1:], signed.body)
    resolver = ZoneResolver(ZONE)
    results = dkim.evaluate(many, resolver.lookup(5), NOW, max_signatures=10)
    assert len(results) == 10
    different = Message(
        tuple(
            HeaderField(f.name, f.value.replace(b"s=s;", b"s=s%d;" % number))
            for number, f in enumerate(signed.headers[:1] * 200)
        )
        + signed.headers[1:],
        signed.body,
    )
    dkim.evaluate(different, resolver.lookup(5), NOW, max_signatures=10)
    assert len(resolver.asked) == 11


def test_row_15_text_after_the_signed_length_fails() -> None:
    signed = sign_dkim(PLAIN, length=True)
    assert b"l=" in signed.headers[0].value
    assert verdicts(signed) == ["pass"]  # all of the body is covered
    longer = Message(signed.headers, signed.body.rstrip() + b"\r\nBuy this!\r\n")
    assert dkimpy.verify(longer.as_bytes(), dnsfunc=dns_function(ZONE)) is not None
    assert verdicts(longer) == ["fail"]


def test_row_15_a_signature_over_nothing_of_the_body_fails() -> None:
    signed = changed(sign_dkim(PLAIN), b"; q=dns/txt", b"; l=0; q=dns/txt")
    assert verdicts(signed) == ["fail"]


@pytest.mark.parametrize(
    "domain",
    [
        b"example.net(.example.com",
        b'"example.org"',
        b"example.org\n\t; x",
        b"a b.example",
        b"\xc3.example",
        b"..",
        b"x" * 300,
        b"",
        b"example.org,example.com",
        b"(" * 3000,
    ],
)
def test_row_15_an_odd_domain_is_not_copied(domain: bytes) -> None:
    odd = changed(sign_dkim(PLAIN), b"d=example.org;", b"d=" + domain + b";")
    (result,) = evaluate(odd)
    assert result.verdict in {Verdict.NEUTRAL, Verdict.PERMERROR}
    assert result.domain in {"", "example.org"}


@pytest.mark.parametrize(
    ("old", "new", "verdict"),
    [
        (b"v=1", b"v=2", "neutral"),
        (b"v=1; ", b"", "neutral"),
        (b"a=rsa-sha256", b"a=rsa-sha1", "policy"),  # RFC 8301, 3.1
        (b"a=rsa-sha256", b"a=rsa-md5", "neutral"),
        (b"a=rsa-sha256", b"a=ed25519-sha256", "permerror"),
        (b"c=relaxed/simple", b"c=strict", "neutral"),
        (b"c=relaxed/simple", b"c=", "neutral"),
        (b"i=@example.org", b"i=example.org", "neutral"),  # dkimpy raises IndexError
        (b"i=@example.org", b"i=", "neutral"),
        (b"i=@example.org", b"i=@example.com", "permerror"),
        (b"i=@example.org", b"i=@notexample.org", "permerror"),
        (b"q=dns/txt", b"q=carrier/pigeon", "neutral"),
        (b"q=dns/txt", b"x=1", "fail"),
        (b"q=dns/txt", b"x=" + b"9" * 5000, "neutral"),
        (b" t=", b" t=soon", "neutral"),
        (b" t=", b" t=; z=", "neutral"),
        (b"q=dns/txt", b"l=-1", "neutral"),
        (b"q=dns/txt", b"l=" + b"1" * 5000, "neutral"),
        (b"q=dns/txt", b"v=1", "neutral"),
        (b"h=from", b"h=fro", "permerror"),
        (b"bh=", b"bh=!", "neutral"),
        (b" b=", b" b=!", "neutral"),
        (b" b=", b" c=", "neutral"),
        (b"s=s;", b"s=;", "neutral"),
        (b"s=s;", b"s=unknown;", "permerror"),
    ],
)
def test_broken_signatures_get_their_verdict(old: bytes, new: bytes, verdict: str) -> None:
    signed = changed(sign_dkim(PLAIN), old, new)
    if old == b"h=from":  # dkimpy lists From twice
        signed = changed(signed, b": from;", b";")
    assert verdicts(signed) == [verdict]


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b";" * 100,
        b" " * 100_000,
        b" v=1; b=" + b" \n " * 20_000 + b"!",
        b" v=1; h=" + b"a" + b" " * 60_000 + b"x",
        b"\x00\xff",
        b"=;=",
    ],
)
def test_row_15_garbage_takes_no_time(value: bytes) -> None:
    started = time.process_time()
    message = Message((HeaderField(b"DKIM-Signature", value), *PLAIN.headers), PLAIN.body)
    assert verdicts(message) == ["neutral"]
    assert time.process_time() - started < 0.5


def test_a_u_label_is_looked_up_and_written_as_a_label() -> None:
    # RFC 8616, 4
    signed = changed(sign_dkim(PLAIN), b"i=@example.org;", b"")
    signed = changed(signed, b"d=example.org;", "d=b\u00fccher.example;".encode())
    (result,) = evaluate(changed(signed, b" q=dns", b"q=dns"))
    assert (result.domain, result.reason) == ("xn--bcher-kva.example", "no key")


def test_an_expired_signature_fails() -> None:
    (result,) = evaluate(changed(sign_dkim(PLAIN), b"q=dns/txt", b"x=%d" % (NOW - 1)))
    assert (result.verdict, result.reason) == (Verdict.FAIL, "expired")
    (result,) = evaluate(changed(sign_dkim(PLAIN), b"q=dns/txt", b"x=%d" % (NOW + 1)))
    assert result.reason == "signature did not verify"  # as x= was put in by hand


def test_row_18_a_signature_field_of_more_than_16_kb_is_not_read() -> None:
    long = changed(sign_dkim(PLAIN), b"h=from", b"h=" + b"x:" * 8200 + b"from")
    (result,) = evaluate(long)
    assert (result.verdict, result.reason) == (Verdict.NEUTRAL, "field too long")


def test_row_18_a_signature_of_many_names_over_many_headers_takes_linear_time() -> None:
    names = b":".join([b"x"] * 5000)
    signed = changed(sign_dkim(PLAIN), b"h=from", b"h=" + names + b":from")
    headers = signed.headers + (HeaderField(b"X", b" y"),) * 10_000
    started = time.process_time()
    assert verdicts(Message(headers, signed.body)) == ["fail"]
    assert time.process_time() - started < 1


def test_row_12_a_second_from_makes_the_signature_fail() -> None:
    signed = sign_dkim(PLAIN)
    twice = signed.with_fields_on_top([HeaderField(b"From", b" boss@example.org")])
    assert verdicts(twice) == ["fail"]
    # h= without oversigning: the added field is above the signed one, which still verifies.
    once = sign_dkim(PLAIN, include_headers=[b"from", b"subject"])
    assert verdicts(once) == ["pass"]
    assert verdicts(once.with_fields_on_top([HeaderField(b"From", b" boss@x.example")])) == ["fail"]


# Keys in DNS


def with_key(record: bytes) -> Zone:
    return {KEY_NAME: {"TXT": [record]}}


GOOD = key_record(key())


@pytest.mark.parametrize(
    ("record", "verdict"),
    [
        (GOOD, "pass"),
        (GOOD.removeprefix(b"v=DKIM1; k=rsa; "), "pass"),
        (GOOD + b"; t=y", "pass"),
        (GOOD + b"; t=s", "pass"),
        (GOOD + b"; h=sha1:sha256; s=*", "pass"),
        (GOOD + b"; h=sha1", "permerror"),
        (GOOD + b"; s=tlsrpt", "permerror"),
        (GOOD.replace(b"DKIM1", b"DKIM2"), "permerror"),
        (b"v=DKIM1; k=rsa; p=", "permerror"),
        (b"v=DKIM1; k=rsa", "permerror"),
        (b"v=DKIM1; k=dsa; p=AAAA", "permerror"),
        (b"v=DKIM1; p=!!!", "permerror"),
        (b"v=spf1 -all", "permerror"),
        (b"", "permerror"),
        (b"\xff\x00", "permerror"),
        (ED25519_KEY, "permerror"),
        (b"v=DKIM1; k=ed25519; p=AAAA", "permerror"),
        (GOOD + b";" + b" " * 65_000, "permerror"),
        (key_record(key(bits=1024)), "fail"),
    ],
)
def test_key_records(record: bytes, verdict: str) -> None:
    assert verdicts(sign_dkim(PLAIN), with_key(record)) == [verdict]


def test_a_key_that_is_not_for_subdomains() -> None:
    signed = sign_dkim(PLAIN, identity=b"@sub.example.org")
    assert verdicts(signed, with_key(GOOD)) == ["pass"]
    assert verdicts(signed, with_key(GOOD + b"; t=s")) == ["permerror"]


def test_a_key_of_1024_bits_is_the_least() -> None:
    small = dkimpy.sign(PLAIN.as_bytes(), b"s", b"example.org", pem(key(bits=1024)))
    message = Message.parse(small + PLAIN.as_bytes())
    assert verdicts(message, with_key(key_record(key(bits=1024)))) == ["pass"]


def test_a_key_of_512_bits_is_not_accepted() -> None:
    # RFC 8301, 3.2
    numbers = RSAPublicNumbers(65537, (1 << 511) + 12345)
    der = numbers.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    (result,) = evaluate(sign_dkim(PLAIN), with_key(b"p=" + base64.b64encode(der)))
    assert (result.verdict, result.reason) == (Verdict.POLICY, "a key of 512 bits is not accepted")


def test_a_key_whose_exponent_makes_it_slow_is_not_accepted() -> None:
    numbers = RSAPublicNumbers((1 << 3000) + 1, (1 << 3071) + 12345)
    der = numbers.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    (result,) = evaluate(sign_dkim(PLAIN), with_key(b"p=" + base64.b64encode(der)))
    assert (result.verdict, result.reason) == (Verdict.POLICY, "the key's exponent is too long")


def test_a_key_of_another_kind_is_not_even_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    # X9.42 Diffie-Hellman: OpenSSL checks q, and the public key against it, when it is loaded.
    number = b"\x02\x82\x04\x01\x00" + b"\xff" * 1024
    parameters = b"\x30\x82\x08\x0d" + number + b"\x02\x01\x02" + number
    algorithm = b"\x06\x07\x2a\x86\x48\xce\x3e\x02\x01" + parameters
    fields = b"\x30\x82\x08\x1a" + algorithm + b"\x03\x82\x04\x06\x00" + number
    der = b"\x30\x82\x0c\x28" + fields
    loaded: list[bytes] = []
    monkeypatch.setattr(signature, "load_der_public_key", loaded.append)
    (result,) = evaluate(sign_dkim(PLAIN), with_key(b"p=" + base64.b64encode(der)))
    assert (result.verdict, result.reason) == (Verdict.PERMERROR, "unknown kind of key")
    assert loaded == []


def test_a_key_may_stand_as_pkcs_1() -> None:
    # RFC 6376, 3.6.1 shows an RSAPublicKey, its erratum 3017 a SubjectPublicKeyInfo.
    der = key().public_key().public_bytes(Encoding.DER, PublicFormat.PKCS1)
    assert verdicts(sign_dkim(PLAIN), with_key(b"p=" + base64.b64encode(der))) == ["pass"]


def test_row_16_no_answer_from_dns_is_a_temporary_error() -> None:
    resolver = ZoneResolver(ZONE)
    resolver.down.add(KEY_NAME)
    (result,) = dkim.evaluate(sign_dkim(PLAIN), resolver.lookup(5), NOW)
    assert (result.verdict, result.domain) == (Verdict.TEMPERROR, "example.org")
