"""The incoming ARC chain: hostile structures fail without DNS; good chains pass as with dkimpy."""

import re
import time
from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aliasmilter.forwarding import chain
from aliasmilter.forwarding.arc import seal
from aliasmilter.forwarding.keys import key_record
from aliasmilter.forwarding.results import ArcResult, Results, Verdict
from aliasmilter.mail.message import HeaderField, Message
from tests.harness.dns import Zone, ZoneResolver
from tests.harness.signing import NOW, PLAIN, key, key_zone, our_sealer, put_on, seal_by_dkimpy

ZONE: Zone = key_zone("arc.one.example", "arc.two.example", "arc.three.example")
ONE = seal_by_dkimpy(PLAIN, "one.example", "none")
TWO = seal_by_dkimpy(ONE, "two.example", "pass")
THREE = seal_by_dkimpy(TWO, "three.example", "pass")


def evaluate(message: Message, zone: Zone = ZONE) -> ArcResult:
    return chain.evaluate(message, ZoneResolver(zone).lookup(5))


def edited(message: Message, edit: Callable[[bytes], bytes]) -> Message:
    """The message with its ARC fields rewritten."""
    fields = [
        HeaderField(f.name, edit(f.value)) if f.key.startswith(b"arc-") else f
        for f in message.headers
    ]
    return Message(tuple(fields), message.body)


def sets(*instances: bytes) -> Message:
    """A message with a whole set for each instance, however that is written."""
    fields = []
    for instance in instances:
        tail = b"; a=rsa-sha256; cv=pass; d=x.example; s=s; h=from; bh=AAAA; b=AAAA"
        fields += [HeaderField(name.encode(), b" " + instance + tail) for name in chain.NAMES]
    return PLAIN.with_fields_on_top(fields)


@pytest.mark.parametrize(("message", "count"), [(ONE, 1), (TWO, 2), (THREE, 3)])
def test_chains_by_dkimpy_pass(message: Message, count: int) -> None:
    result = evaluate(message)
    assert result.verdict is Verdict.PASS
    assert result.sealers == ("one.example", "two.example", "three.example")[:count]
    assert [each.seal for each in result.sets] == [Verdict.PASS] * count
    # RFC 8617, 5.2, step 4: only the newest message signature counts.
    assert [each.message_signature for each in result.sets] == (
        [Verdict.NONE] * (count - 1) + [Verdict.PASS]
    )


@pytest.mark.parametrize(
    ("stated", "passed"),
    [
        ("dmarc=pass (p=none) header.from=a.example", {"dmarc"}),
        ("dmarc=pass; dmarc=fail; spf=pass", {"spf"}),
        ("dmarc=pass action=none; arc=pass (i=1)", {"dmarc"}),  # it says arc=none, too
        ("none", set()),
        ("dmarc=pass " + "x" * 20_000, set()),
    ],
)
def test_what_a_sealer_says_that_passed(stated: str, passed: set[str]) -> None:
    sealer = our_sealer("one.example")
    message = put_on(PLAIN, seal(PLAIN, Results(), f"mx; {stated}", sealer, now=NOW))
    assert [each.passed for each in evaluate(message).sets] == [passed]
    assert [each.passed for each in chain.named_sets(message)] == [passed]
    changed = Message(message.headers, b"changed\r\n")
    assert [each.passed for each in evaluate(changed).sets] == [set()]


def test_no_chain_is_none() -> None:
    assert evaluate(PLAIN) == ArcResult(Verdict.NONE)


def test_a_changed_message_says_which_set_failed() -> None:
    result = evaluate(Message(TWO.headers, b"changed\r\n"))
    assert result.verdict is Verdict.FAIL
    assert result.sets[1].message_signature is Verdict.FAIL
    assert result.sets[1].reason == result.reason == "body hash did not verify"


def test_a_forged_older_set_fails_at_its_seal() -> None:
    result = evaluate(edited(TWO, lambda value: value.replace(b"one.example;", b"two.example;", 1)))
    assert result.verdict is Verdict.FAIL
    result = evaluate(edited(THREE, lambda value: value.replace(b"i=1; one", b"i=1; other")))
    assert [each.seal for each in result.sets] == [Verdict.NONE, Verdict.NONE, Verdict.FAIL]
    assert result.sets[2].reason == result.reason != ""


def test_a_seal_that_may_not_be_as_it_is_failed_itself() -> None:
    result = evaluate(edited(TWO, lambda value: value.replace(b"cv=pass", b"cv=none")))
    assert [each.seal for each in result.sets] == [Verdict.NONE, Verdict.FAIL]
    assert result.sets[1].reason == result.reason == "a seal has the wrong cv="


@pytest.mark.parametrize(
    ("instances", "reason"),
    [
        ([b"i=%d" % number for number in range(1, 52)], "more than 50 ARC sets"),
        ([b"i=%d" % number for number in range(1, 201)], "more than 50 ARC sets"),
        ([b"i=1"] * 10_000, "more than 50 ARC sets"),
        ([b"i=1", b"i=3"], "an ARC set is not whole"),
        ([b"i=2"], "an ARC set is not whole"),
        ([b"i=1", b"i=1"], "an ARC instance stands twice"),
        ([b"i=1", b"i=2", b"i=2"], "an ARC instance stands twice"),
        ([b"i=0"], "an ARC field has no instance from 1 to 50"),
        ([b"i=-1"], "an ARC field has no instance from 1 to 50"),
        ([b"i=51"], "an ARC field has no instance from 1 to 50"),
        ([b"i=99999999999999999999"], "an ARC field has no instance from 1 to 50"),
        ([b"i=" + b"9" * 5000], "an ARC field has no instance from 1 to 50"),
        ([b"i=1", b"i=x"], "an ARC field has no instance from 1 to 50"),
        ([b"i="], "an ARC field has no instance from 1 to 50"),
        ([b""], "an ARC field has no instance from 1 to 50"),
        ([b"i = 1"], "a seal has h="),
        ([b"i = 1", b"i=1"], "an ARC instance stands twice"),
    ],
)
def test_row_14_a_hostile_structure_fails_without_dns(instances: list[bytes], reason: str) -> None:
    resolver = ZoneResolver(ZONE)
    started = time.process_time()
    result = chain.evaluate(sets(*instances), resolver.lookup(5))
    assert (result.verdict, result.reason) == (Verdict.FAIL, reason)
    assert resolver.asked == []
    assert time.process_time() - started < 0.5


def test_row_14_spaces_that_nobody_signed_fail() -> None:
    spaced = edited(ONE, lambda value: value.replace(b"i=1", b"i = 1"))
    assert evaluate(spaced).verdict is Verdict.FAIL


def test_a_key_that_is_not_for_subdomains_is_good_for_arc() -> None:
    # t=s is about the identity in i=, which in ARC is the instance.
    zone: Zone = {"arc._domainkey.one.example": {"TXT": [key_record(key()) + b"; t=s"]}}
    assert evaluate(ONE, zone).verdict is Verdict.PASS


@pytest.mark.parametrize(
    "name", ["arc-seal", "arc-message-signature", "arc-authentication-results"]
)
def test_a_set_that_is_not_whole_fails(name: str) -> None:
    fields = [f for f in TWO.headers if not (f.key == name.encode() and b"i=1" in f.value)]
    result = evaluate(Message(tuple(fields), TWO.body))
    assert (result.verdict, result.reason) == (Verdict.FAIL, "an ARC set is not whole")


def test_an_ended_chain_fails_without_dns() -> None:
    ended = seal_by_dkimpy(Message(ONE.headers, b"changed\r\n"), "two.example", "fail")
    resolver = ZoneResolver(ZONE)
    result = chain.evaluate(ended, resolver.lookup(5))
    assert result.verdict is Verdict.FAIL
    assert "earlier hop" in result.reason
    assert resolver.asked == []
    assert chain.has_ended(ended)
    assert not chain.has_ended(TWO)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b"cv=none", b"cv=pass", "a seal has the wrong cv="),
        (b"cv=none; ", b"", "a seal has the wrong cv="),
        (b"cv=none", b"h=from; cv=none", "a seal has h="),
        (b"h=from", b"h=arc-seal : from", "ARC-Seal is signed by ARC-Message-Signature"),
        (b"d=one.example", b"d=o(ne.example", "malformed d="),
        (b"a=rsa-sha256", b"a=rsa-sha1", "rsa-sha1 is not accepted"),
        (b" b=", b" b=!", "malformed base64"),
        (b"s=arc", b"s=none", "no key"),
    ],
)
def test_broken_sets_fail_with_a_reason(old: bytes, new: bytes, reason: str) -> None:
    result = evaluate(edited(ONE, lambda value: value.replace(old, new, 1)))
    assert (result.verdict, result.reason) == (Verdict.FAIL, reason)


@pytest.mark.parametrize(
    ("tag", "reason"),
    [
        (b"x=%d" % (NOW - 1), "expired"),
        (b"x=soon", "malformed x="),
        (b"x=" + b"9" * 5000, "malformed x="),
        (b"q=carrier/pigeon", "unknown query method"),
        (b"l=-1", "malformed l="),
        # What is in order gets as far as the signature, which does not know of it.
        (b"x=%d" % (NOW + 1), "signature did not verify"),
        (b"q=dns/txt", "signature did not verify"),
        (b"v=2", "signature did not verify"),  # RFC 8617, 4.1.2: v= is ignored
    ],
)
def test_the_tags_of_a_message_signature_mean_what_they_mean_in_dkim(
    tag: bytes, reason: str
) -> None:
    message = edited(ONE, lambda value: value.replace(b"h=from", tag + b"; h=from"))
    result = chain.evaluate(message, ZoneResolver(ZONE).lookup(5), now=NOW)
    assert (result.verdict, result.reason) == (Verdict.FAIL, reason)
    assert result.sets[0].message_signature is Verdict.FAIL


def test_an_old_message_out_of_a_file_has_not_expired() -> None:
    message = edited(ONE, lambda value: value.replace(b"h=from", b"x=1; h=from"))
    assert evaluate(message).reason == "signature did not verify"


def test_row_14_fifty_sets_ask_a_bounded_number_of_questions() -> None:
    fields = []
    for number in range(50, 0, -1):
        for name in (b"ARC-Seal", b"ARC-Message-Signature", b"ARC-Authentication-Results"):
            cv = b"none" if number == 1 else b"pass"
            fields.append(
                HeaderField(
                    name,
                    b" i=%d; a=rsa-sha256; cv=%b; d=d%d.example; s=s; bh=AAAA; b=AAAA"
                    % (number, cv, number)
                    + (b"; h=from" if name == b"ARC-Message-Signature" else b""),
                )
            )
    resolver = ZoneResolver(ZONE)
    result = chain.evaluate(PLAIN.with_fields_on_top(fields), resolver.lookup(5))
    assert result.verdict is Verdict.FAIL
    assert len(resolver.asked) == 1  # the newest message signature failed


def test_a_real_chain_of_fifty_sets_passes() -> None:
    message = PLAIN
    for number in range(50):
        message = seal_by_dkimpy(message, "one.example", "pass" if number else "none")
    started = time.process_time()
    assert evaluate(message).verdict is Verdict.PASS
    assert time.process_time() - started < 0.5


def test_row_16_no_answer_from_dns_is_a_temporary_error() -> None:
    resolver = ZoneResolver(ZONE)
    resolver.down.add("arc._domainkey.one.example")
    result = chain.evaluate(TWO, resolver.lookup(5))
    assert result.verdict is Verdict.TEMPERROR
    assert [each.seal for each in result.sets] == [Verdict.TEMPERROR, Verdict.PASS]


def test_a_small_key_fails() -> None:
    zone: Zone = {"arc._domainkey.one.example": {"TXT": [key_record(key(bits=1024))]}}
    assert evaluate(ONE, zone).verdict is Verdict.FAIL


def test_sets_are_named_without_dns() -> None:
    named = chain.named_sets(TWO)
    assert [(each.instance, each.domain, each.selector) for each in named] == [
        (1, "one.example", "arc"),
        (2, "two.example", "arc"),
    ]
    assert [each.passed for each in named] == [{"spf"}, {"spf", "arc"}]
    assert chain.named_sets(sets(b"i=2")) == ()
    assert chain.named_sets(PLAIN) == ()


FRAGMENTS = st.lists(
    st.sampled_from(
        b"i=1|i=2|i=50|;| |=|cv=none|cv=pass|a=rsa-sha256|d=one.example|s=arc|b=AAAA|bh=AAAA|"
        b"h=from|\n\t|\xff|c=/".split(b"|")
    ),
    max_size=14,
).map(b";".join)
FIELDS = st.tuples(st.sampled_from(chain.NAMES), FRAGMENTS)


@given(st.lists(FIELDS, max_size=7))
@settings(max_examples=300)
def test_whatever_stands_in_arc_fields_gets_a_verdict(fields: list[tuple[str, bytes]]) -> None:
    # None, or fail: never an error, never pass for what nobody signed.
    message = PLAIN.with_fields_on_top(HeaderField(name.encode(), v) for name, v in fields)
    verdict = evaluate(message).verdict
    assert verdict is (Verdict.FAIL if fields else Verdict.NONE)


def _read(fields: bytes) -> bytes:
    """Without what may be free to change: white space, case, the bits that base64 leaves over."""
    return re.sub(rb"\w(?===)", b"", re.sub(rb"\s+", b"", fields)).lower()


@given(st.integers(0, 5000), st.binary(min_size=1, max_size=1))
@example(435, b"h")
@settings(max_examples=100)
def test_no_changed_octet_of_a_chain_passes(position: int, octet: bytes) -> None:
    data = THREE.as_bytes()
    end = data.index(b"Received:")
    position %= end
    changed = data[:position] + octet + data[position + 1 :]
    if _read(changed[:end]) == _read(data[:end]):
        return
    assert evaluate(Message.parse(changed)).verdict in {Verdict.FAIL, Verdict.NONE}
