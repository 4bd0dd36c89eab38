"""DMARC: the author domain out of any From field, alignment, policy, and no answer from DNS."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aliasmilter.forwarding import author, dmarc
from aliasmilter.forwarding.author import NoAuthorError, author_domain
from aliasmilter.forwarding.results import (
    DkimResult,
    DmarcResult,
    Identity,
    SpfResult,
    Verdict,
)
from aliasmilter.forwarding.suffixes import registrable_domain
from aliasmilter.mail.message import HeaderField, Message
from tests.harness.dns import Zone, ZoneResolver

NO_SPF = SpfResult(Verdict.NONE)


def message(*values: bytes) -> Message:
    return Message(tuple(HeaderField(b"From", value) for value in values))


@pytest.mark.parametrize(
    ("value", "domain"),
    [
        (b" alice@example.org", "example.org"),
        (b" Alice <alice@Example.ORG>", "example.org"),
        (b"Alice\n\t<alice@example.org>", "example.org"),
        (b' "evil@bank.example" <a@example.org>', "example.org"),
        (b' "a <x@bank.example>, b" <a@example.org>', "example.org"),
        (b" (x@bank.example) a@example.org (y)", "example.org"),
        (b' "a@b"@example.org', "example.org"),
        (b" a@example.org, B <b@example.org>", "example.org"),
        (b" Group: a@example.org;", "example.org"),
        (b" a@example.org.", "example.org"),
        ("\u00fc <a@b\u00fccher.example>".encode(), "xn--bcher-kva.example"),
        (b" " + b"(" * 3000 + b")" * 3000 + b" a@example.org", "example.org"),
        (b' "a \\" <x@bank.example>" <a@example.org>', "example.org"),
    ],
)
def test_the_author_domain(value: bytes, domain: str) -> None:
    assert author_domain(message(value)) == domain


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([], "no From field"),
        ([b" a@example.org", b" a@example.org"], "several From fields"),
        ([b""], "no address in From"),
        ([b" undisclosed:;"], "no address in From"),
        ([b" a@b@c"], "malformed address in From"),
        ([b" <a@b@c.example>"], "malformed address in From"),
        ([b" alice"], "malformed address in From"),
        ([b" @example.org"], "malformed address in From"),
        ([b" <a@example.org"], "malformed address in From"),
        ([b" <a@example.org> <b@bank.example>"], "malformed address in From"),
        ([b" <a@example.org> b@bank.example"], "malformed address in From"),
        ([b" a@example.org, b@example.com"], "several domains in From"),
        ([b" a@ex ample.org"], "malformed address in From"),
        ([b" a@[192.0.2.1]"], "malformed address in From"),
        ([b" (" * 3000 + b"a@example.org"], "malformed address in From"),
        ([b' "a <a@example.org>'], "malformed address in From"),
        ([b" \xff@example.org"], "From is not UTF-8"),
        ([b" a@\x00example.org"], "malformed address in From"),
    ],
)
def test_row_12_other_from_fields_are_a_permerror(values: list[bytes], reason: str) -> None:
    result = dmarc.evaluate(message(*values), NO_SPF, (), ZoneResolver().lookup(5))
    assert result == DmarcResult(Verdict.PERMERROR, reason=reason)


def test_row_12_a_from_of_a_megabyte_is_read_in_good_time() -> None:
    started = time.process_time()
    with pytest.raises(NoAuthorError):
        author_domain(message(b"a@b.example, x <" * 60_000))
    assert time.process_time() - started < 3


@given(st.text(alphabet='ab.@<>(),;:"\\ \t', max_size=40))
def test_any_from_has_one_domain_or_none(text: str) -> None:
    # A domain, or NoAuthorError: never any other error.
    try:
        assert author_domain(message(text.encode()))
    except NoAuthorError as error:
        assert str(error)


@given(
    st.lists(
        st.sampled_from(
            [
                "Al",
                " ",
                "\t",
                '"',
                "Doe, J",
                "\\",
                "(c)",
                "<",
                "a@b.example",
                ">",
                ",",
                ":",
                "@",
                "\xe9",
            ]
        ),
        max_size=8,
    ).map("".join)
)
def test_the_usual_form_of_from_means_what_the_grammar_says(text: str) -> None:
    found = []
    for pattern in (author._COMMON, re.compile("(?!)")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(author, "_COMMON", pattern)
            try:
                found.append(author_domain(message(text.encode())))
            except NoAuthorError as error:
                found.append(f"{error}")
    assert found[0] == found[1]


def evaluate(
    zone: Zone,
    domain: str = "example.org",
    spf: SpfResult = NO_SPF,
    dkim: tuple[DkimResult, ...] = (),
) -> tuple[str, str]:
    resolver = ZoneResolver({f"_dmarc.{name}": {"TXT": [text]} for name, text in zone_items(zone)})
    resolver.zone.update({domain: {"A": ["192.0.2.1"]}})
    result = dmarc.evaluate(message(b" a@" + domain.encode()), spf, dkim, resolver.lookup(5))
    return result.verdict.value, result.policy


def zone_items(zone: Zone) -> list[tuple[str, str]]:
    return [(name, str(node["TXT"][0])) for name, node in zone.items()]


def policy(text: str, owner: str = "example.org") -> Zone:
    return {owner: {"TXT": [text]}}


def signed(domain: str, verdict: Verdict = Verdict.PASS) -> tuple[DkimResult, ...]:
    return (DkimResult(Verdict.FAIL, domain), DkimResult(verdict, domain))


REJECT = policy("v=DMARC1; p=reject")


@pytest.mark.parametrize(
    ("record", "author", "other", "verdict"),
    [
        ("p=reject", "example.org", "example.org", "pass"),
        ("p=reject", "example.org", "mail.example.org", "pass"),
        ("p=reject", "a.example.org", "b.example.org", "pass"),
        ("p=reject", "example.org", "example.com", "fail"),
        ("p=reject", "example.org", "notexample.org", "fail"),
        ("p=reject", "example.org", "org", "fail"),
        ("p=reject; adkim=s; aspf=s", "example.org", "example.org", "pass"),
        ("p=reject; adkim=s; aspf=s", "example.org", "mail.example.org", "fail"),
        ("p=reject", "example.co.uk", "co.uk", "fail"),  # the dmarc package says pass
        ("p=reject", "example.co.uk", "other.co.uk", "fail"),
    ],
)
def test_alignment(record: str, author: str, other: str, verdict: str) -> None:
    zone = policy(f"v=DMARC1; {record}", registrable_domain(author))
    assert evaluate(zone, author, dkim=signed(other))[0] == verdict
    assert evaluate(zone, author, spf=SpfResult(Verdict.PASS, other))[0] == verdict


def test_what_failed_is_not_aligned() -> None:
    assert evaluate(REJECT, dkim=signed("example.org", Verdict.FAIL))[0] == "fail"
    assert evaluate(REJECT, dkim=signed("example.org", Verdict.POLICY))[0] == "fail"
    assert evaluate(REJECT, spf=SpfResult(Verdict.SOFTFAIL, "example.org"))[0] == "fail"


def test_the_helo_of_a_null_sender_is_its_mail_from() -> None:
    # RFC 7208, 2.4; RFC 9989, 4.4.2
    bounce = SpfResult(Verdict.PASS, "mx.example.org", Identity.HELO)
    assert evaluate(REJECT, spf=bounce) == ("pass", "reject")


def test_without_a_record_there_is_no_dmarc() -> None:
    assert evaluate({}) == ("none", "")
    assert evaluate(policy("v=spf1 -all")) == ("none", "")
    assert evaluate(policy("v=DMARC1; foo")) == ("none", "")
    assert evaluate(policy("v=DMARC1; p=" + "x" * 9000 + "; rua=mailto:a@b")) == ("none", "")


def test_several_records_are_none() -> None:
    resolver = ZoneResolver({"_dmarc.example.org": {"TXT": ["v=DMARC1; p=reject"] * 2}})
    result = dmarc.evaluate(message(b" a@example.org"), NO_SPF, (), resolver.lookup(5))
    assert result.verdict is Verdict.NONE


@pytest.mark.parametrize(
    ("record", "domain", "found"),
    [
        ("p=reject", "example.org", "reject"),
        ("p=reject", "sub.example.org", "reject"),
        ("p=reject; sp=quarantine", "sub.example.org", "quarantine"),
        ("p=reject; sp=quarantine", "example.org", "reject"),
        ("p=none; sp=bogus", "sub.example.org", "none"),
        ("P = Reject", "example.org", "reject"),
        ("p=reject; t=y", "example.org", "quarantine"),
        ("p=quarantine; t=y", "example.org", "none"),
        ("p=reject; pct=0", "example.org", "quarantine"),
        ("p=reject; pct=50", "example.org", "reject"),
        ("p=reject; adkim=x; ri=soon; fo==", "example.org", "reject"),
        ("p=bogus; rua=mailto:a@b.example", "example.org", "none"),
        ("p=none; np=reject", "sub.example.org", "none"),
    ],
)
def test_policies(record: str, domain: str, found: str) -> None:
    assert evaluate(policy(f"v=DMARC1; {record}"), domain) == ("fail", found)


def test_the_policy_for_domains_that_do_not_exist() -> None:
    resolver = ZoneResolver({"_dmarc.example.org": {"TXT": ["v=DMARC1; p=none; np=reject"]}})
    result = dmarc.evaluate(message(b" a@no.example.org"), NO_SPF, (), resolver.lookup(5))
    assert (result.verdict, result.policy) == (Verdict.FAIL, "reject")


def test_a_record_of_its_own_comes_before_that_of_the_organization() -> None:
    zone = {
        **policy("v=DMARC1; p=reject"),
        **policy("v=DMARC1; p=none", "sub.example.org"),
    }
    assert evaluate(zone, "sub.example.org") == ("fail", "none")


def test_row_16_no_answer_about_the_policy_is_a_temporary_error() -> None:
    resolver = ZoneResolver()
    resolver.down.add("_dmarc.example.org")
    result = dmarc.evaluate(message(b" a@example.org"), NO_SPF, (), resolver.lookup(5))
    assert result.verdict is Verdict.TEMPERROR


def test_row_16_what_might_have_passed_is_not_a_failure() -> None:
    temporary = Verdict.TEMPERROR
    assert evaluate(REJECT, dkim=signed("example.org", temporary))[0] == "temperror"
    assert evaluate(REJECT, spf=SpfResult(temporary, "example.org"))[0] == "temperror"
    assert evaluate(REJECT, dkim=signed("other.example", temporary))[0] == "fail"
    assert evaluate(
        REJECT, spf=SpfResult(temporary, "example.org"), dkim=signed("example.org")
    ) == ("pass", "reject")
