"""DMARC: the author domain out of any From field, tree walks, alignment, policy, DNS that fails."""

import re
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aliasmilter.forwarding import author, dmarc
from aliasmilter.forwarding.author import NoAuthorError, author_domain
from aliasmilter.forwarding.dns import Answer
from aliasmilter.forwarding.results import (
    DkimResult,
    DmarcResult,
    Identity,
    SpfResult,
    Verdict,
)
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
        (b" A <a@example.org> , B <b@example.org>\n , <c@example.org>\t", "example.org"),
        (b" Group: A <a@example.org> , b@example.org ;", "example.org"),
        (b" <a@example.org> (c) , (d) b@example.org", "example.org"),
        (b" Group: a@example.org;", "example.org"),
        (b" a@example.org.", "example.org"),
        ("\u00fc <a@b\u00fccher.example>".encode(), "xn--bcher-kva.example"),
        (b" " + b"(" * 3000 + b")" * 3000 + b" a@example.org", "example.org"),
        (b' "a \\" <x@bank.example>" <a@example.org>', "example.org"),
        (b" J\xf6rg <a@example.org>", "example.org"),
        (b' "J\xf6rg, \xff" <a@example.org>', "example.org"),
        (b" a@example.org (J\xf6rg)", "example.org"),
        (b" J\xf6rg: a@example.org;", "example.org"),
        (b" J\xf6rg <a@b\xc3\xbccher.example>", "xn--bcher-kva.example"),
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
        ([b" <a@example.org> , <b@example.com>"], "several domains in From"),
        ([b" <a@example.org> b , <b@example.org>"], "malformed address in From"),
        ([b" a@ex ample.org"], "malformed address in From"),
        ([b" a@[192.0.2.1]"], "malformed address in From"),
        ([b" (" * 3000 + b"a@example.org"], "malformed address in From"),
        ([b' "a <a@example.org>'], "malformed address in From"),
        ([b" \xff@example.org"], "From is not UTF-8"),
        ([b" <a\xff@example.org>"], "From is not UTF-8"),
        ([b" A <a@b\xfccher.example>"], "From is not UTF-8"),
        ([b' "\xf6"@example.org'], "From is not UTF-8"),
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
        ("p=reject", "mail.example.org", "bounce.mail.example.org", "pass"),
        ("p=reject", "mail.example.org", "example.org", "fail"),  # its record is elsewhere
    ],
)
def test_alignment(record: str, author: str, other: str, verdict: str) -> None:
    owner = "example.org" if author in {"a.example.org", "b.example.org"} else author
    zone = policy(f"v=DMARC1; {record}", owner)
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
    "version",
    ["v=DMARC1", "v=DMARC1\t", "v\t= DMARC1 ", " v=DMARC1", "V=DMARC1"],
)
def test_white_space_about_the_version_does_not_matter(version: str) -> None:
    assert evaluate(policy(f"{version}; p=reject")) == ("fail", "reject")
    assert evaluate(policy(f"{version};p=reject")) == ("fail", "reject")


@pytest.mark.parametrize("version", ["v=dmarc1", "v=D MARC1", "v=DMARC12", "p=none; v=DMARC1"])
def test_another_version_is_no_record(version: str) -> None:
    assert evaluate(policy(f"{version}; p=reject")) == ("none", "")


@pytest.mark.parametrize(
    ("record", "domain", "found"),
    [
        ("p=reject", "example.org", "reject"),
        ("p=reject", "sub.example.org", "reject"),
        ("p=reject; sp=quarantine", "sub.example.org", "quarantine"),
        ("p=reject; sp=quarantine", "example.org", "reject"),
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


@pytest.mark.parametrize("tags", ["sp=bogus", "np=bogus", "sp=", "sp=none; np=reject+"])
@pytest.mark.parametrize("domain", ["example.org", "sub.example.org"])
def test_a_policy_for_subdomains_that_is_none_spoils_the_record(tags: str, domain: str) -> None:
    # RFC 9989, 4.10.1 (and RFC 7489, 6.6.3): as p=none, or no DMARC when nobody wants reports
    record = f"v=DMARC1; p=reject; {tags}"
    assert evaluate(policy(f"{record}; rua=mailto:a@b.example"), domain) == ("fail", "none")
    assert evaluate(policy(record), domain) == ("none", "")


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


def test_the_policy_for_domains_that_do_not_exist_is_not_asked_about_when_mail_passes() -> None:
    resolver = ZoneResolver({"_dmarc.example.org": {"TXT": ["v=DMARC1; p=none; np=reject"]}})
    found = dmarc.evaluate(
        message(b" a@a.example.org"), NO_SPF, signed("a.example.org"), resolver.lookup(5)
    )
    assert found.verdict is Verdict.PASS
    assert ("a.example.org", "A") not in resolver.asked


@pytest.mark.parametrize(
    ("domain", "names"),
    [
        ("org", ["org"]),
        ("a.mail.example.com", ["a.mail.example.com", "mail.example.com", "example.com", "com"]),
        (
            "1.2.3.4.5.6.7.8",
            [
                "1.2.3.4.5.6.7.8",
                "2.3.4.5.6.7.8",
                "3.4.5.6.7.8",
                "4.5.6.7.8",
                "5.6.7.8",
                "6.7.8",
                "7.8",
                "8",
            ],
        ),
        (
            "a.b.c.d.e.f.g.h.i.j.mail.example.com",
            [
                "a.b.c.d.e.f.g.h.i.j.mail.example.com",
                "g.h.i.j.mail.example.com",
                "h.i.j.mail.example.com",
                "i.j.mail.example.com",
                "j.mail.example.com",
                "mail.example.com",
                "example.com",
                "com",
            ],
        ),
    ],
)
def test_a_walk_asks_about_the_names_of_rfc_9989_section_4_10(
    domain: str, names: list[str]
) -> None:
    resolver = ZoneResolver()
    dmarc.walk(domain, resolver.lookup(5))
    assert resolver.asked == [(f"_dmarc.{name}", "TXT") for name in names]


def test_a_walk_from_any_name_takes_eight_queries_at_most() -> None:
    for labels in range(1, 127):
        resolver = ZoneResolver()
        dmarc.walk(".".join("a" * labels), resolver.lookup(5))
        assert len(resolver.asked) == min(labels, 8)


@pytest.mark.parametrize(
    ("records", "domain", "organizational", "owner"),
    [
        ({}, "a.example.com", "a.example.com", None),
        ({"example.com": ""}, "a.b.example.com", "example.com", "example.com"),
        ({"b.example.com": ""}, "a.b.example.com", "b.example.com", "b.example.com"),
        (
            {"b.example.com": "", "example.com": ""},
            "a.b.example.com",
            "example.com",
            "example.com",
        ),
        (
            {"a.b.example.com": "", "example.com": ""},
            "a.b.example.com",
            "example.com",
            "a.b.example.com",
        ),
        ({"b.example.com": "psd=n", "example.com": ""}, "a.b.example.com", *["b.example.com"] * 2),
        ({"example.com": "psd=u"}, "a.example.com", "example.com", "example.com"),
        ({"example.com": "psd=bogus"}, "a.example.com", "example.com", "example.com"),
        # Beside the record of a public suffix domain that of the organization counts alone.
        ({"com": "psd=y"}, "a.mail.example.com", "example.com", "com"),
        ({"com": "psd=y", "example.com": ""}, "a.example.com", "example.com", "example.com"),
        ({"com": "psd=y", "a.example.com": ""}, "b.a.example.com", "example.com", "com"),
        # A public suffix domain that sends mail is its own organization; a shorter one is not.
        ({"gov.example": "psd=y"}, "gov.example", "gov.example", "gov.example"),
        ({"gov.example": "psd=y", "example": ""}, "x.gov.example", "x.gov.example", "gov.example"),
        # What the walk skips is not found.
        ({"c.d.e.f.g.h.i.com": ""}, "a.b.c.d.e.f.g.h.i.com", "a.b.c.d.e.f.g.h.i.com", None),
    ],
)
def test_the_organizational_domain_and_whose_policy_applies(
    records: dict[str, str], domain: str, organizational: str, owner: str | None
) -> None:
    zone: Zone = {
        f"_dmarc.{name}": {"TXT": [f"v=DMARC1; p=reject; {tags}"]} for name, tags in records.items()
    }
    lookup = ZoneResolver(zone).lookup(5)
    walk = dmarc.walk(domain, lookup)
    assert walk.organizational_domain == organizational
    assert (walk.owner if walk.record else None) == owner
    record, found = dmarc.find_record(domain, lookup)
    assert (found if record else None) == owner


def test_the_policy_of_a_public_suffix_domain_protects_names_below_it() -> None:
    zone = policy("v=DMARC1; p=reject; psd=y", "bank")
    assert evaluate(zone, "nonexistent.bank") == ("fail", "reject")
    zone = policy("v=DMARC1; p=none; sp=quarantine; psd=y", "bank")
    assert evaluate(zone, "a.giant.bank") == ("fail", "quarantine")


def test_a_zone_cut_with_psd_n_keeps_its_siblings_out() -> None:
    zone = {
        **policy("v=DMARC1; p=reject; psd=n", "dept.univ.example"),
        **policy("v=DMARC1; p=none", "univ.example"),
    }
    assert evaluate(zone, "dept.univ.example", dkim=signed("other.univ.example"))[0] == "fail"
    assert evaluate(zone, "dept.univ.example", dkim=signed("univ.example"))[0] == "fail"
    assert evaluate(zone, "univ.example", dkim=signed("dept.univ.example"))[0] == "fail"
    assert evaluate(zone, "dept.univ.example", dkim=signed("a.dept.univ.example"))[0] == "pass"
    assert evaluate(zone, "sub.dept.univ.example") == ("fail", "reject")


def test_a_record_without_a_policy_still_says_where_the_organization_begins() -> None:
    zone = {
        **policy("v=DMARC1; psd=n", "dept.univ.example"),
        **policy("v=DMARC1; p=reject", "univ.example"),
    }
    assert evaluate(zone, "univ.example", dkim=signed("dept.univ.example"))[0] == "fail"
    assert evaluate(zone, "dept.univ.example") == ("none", "")


def test_the_alignment_of_rfc_9989_appendix_b_with_a_public_suffix_domain() -> None:
    zone = {
        **policy("v=DMARC1; p=none; psd=y", "bank.example"),
        **policy("v=DMARC1; p=reject", "giant.bank.example"),
    }
    author = "giant.bank.example"
    assert evaluate(zone, author, dkim=signed("mail.giant.bank.example"))[0] == "pass"
    assert evaluate(zone, author, dkim=signed("mail.mega.bank.example")) == ("fail", "reject")
    assert evaluate(zone, author, dkim=signed("bank.example"))[0] == "fail"


def asked_about(
    record: str, dkim: tuple[DkimResult, ...], down: str = "", author: str = "example.org"
) -> tuple[str, list[str]]:
    """The verdict, and the names that were asked about."""
    resolver = ZoneResolver({"_dmarc.example.org": {"TXT": [f"v=DMARC1; p=reject; {record}"]}})
    resolver.down.add(f"_dmarc.{down}")
    found = dmarc.evaluate(message(b" a@" + author.encode()), NO_SPF, dkim, resolver.lookup(5))
    return found.verdict.value, [name for name, _ in resolver.asked]


def test_the_author_domain_itself_takes_no_walk() -> None:
    both = (*signed("bounce.example.org"), *signed("example.org"))
    assert asked_about("", both, down="org") == ("pass", ["_dmarc.example.org"])
    # Its record is then asked for where it is, not its alignment.
    found = asked_about("", signed("a.example.org"), author="a.example.org")
    assert found == ("pass", ["_dmarc.a.example.org", "_dmarc.example.org", "_dmarc.org"])


def test_strict_alignment_takes_no_walk() -> None:
    found = asked_about("adkim=s", signed("mail.example.org"), down="org")
    assert found == ("fail", ["_dmarc.example.org"])


def test_domains_that_cannot_be_of_one_organization_take_no_walk() -> None:
    assert asked_about("", signed("a.example"), down="org") == ("fail", ["_dmarc.example.org"])
    # Whoever signs beside the author's organization decides nothing by failing DNS.
    assert asked_about("", signed("evil.org"), down="evil.org")[0] == "fail"


@pytest.mark.parametrize("down", ["a.b.example.org", "b.example.org", "example.org", "org"])
def test_row_16_a_walk_without_an_answer_is_a_temporary_error(down: str) -> None:
    other = signed("c.example.org")
    assert asked_about("", (), down, author="a.b.example.org")[0] == "temperror"
    assert asked_about("", other, down, author="a.b.example.org")[0] == "temperror"


@pytest.mark.parametrize("down", ["a.b.example.org", "b.example.org", "org"])
def test_row_16_alignment_that_dns_does_not_tell_is_a_temporary_error(down: str) -> None:
    assert asked_about("", signed("a.b.example.org"), down)[0] == "temperror"
    assert asked_about("", signed("a.b.example.org", Verdict.TEMPERROR), down)[0] == "temperror"
    # A signature that has failed decides nothing, and another one may pass all the same.
    assert asked_about("", signed("a.b.example.org", Verdict.FAIL), down)[0] == "fail"
    if down != "org":
        both = (*signed("a.b.example.org"), *signed("mail.example.org"))
        assert asked_about("", both, down)[0] == "pass"


def test_a_walk_beyond_the_number_of_queries_is_a_temporary_error() -> None:
    resolver = ZoneResolver({"_dmarc.example.org": {"TXT": ["v=DMARC1; p=reject"]}})
    for queries, verdict in ((3, "temperror"), (4, "pass")):
        lookup = resolver.lookup(5, max_queries=queries)
        found = dmarc.evaluate(
            message(b" a@example.org"), NO_SPF, signed("a.b.example.org"), lookup
        )
        assert found.verdict.value == verdict


def test_mail_by_way_of_a_provider_takes_few_queries() -> None:
    resolver = ZoneResolver({"_dmarc.example.org": {"TXT": ["v=DMARC1; p=reject"]}})
    found = dmarc.evaluate(
        message(b" a@news.mail.example.org"),
        SpfResult(Verdict.PASS, "bounces.mail.example.org"),
        (*signed("provider.example"), *signed("send.provider.org"), *signed("k1.example.org")),
        resolver.lookup(5),
    )
    assert found.verdict is Verdict.PASS
    assert len(resolver.asked) <= 6


class TimedResolver(ZoneResolver):
    """Answers hold for a minute, or for as long as `ttl` says."""

    def __init__(self, zone: Zone) -> None:
        self.now = 1000.0
        self.ttl: dict[str, float] = {}
        super().__init__(zone, clock=lambda: self.now)

    def ask(self, name: str, rdtype: str, deadline: float) -> Answer:
        answer = super().ask(name, rdtype, deadline)
        return replace(answer, expires=self.now + self.ttl.get(name, 60))


@pytest.mark.parametrize("shortest", ["a.example.org", "example.org", "org"])
def test_a_walk_is_kept_as_long_as_all_its_answers_hold(shortest: str) -> None:
    resolver = TimedResolver({"_dmarc.example.org": {"TXT": ["v=DMARC1; p=reject"]}})
    resolver.ttl[f"_dmarc.{shortest}"] = 10
    first = dmarc.walk("a.example.org", resolver.lookup(5))
    resolver.zone["_dmarc.org"] = {"TXT": ["v=DMARC1; p=none"]}
    resolver.now += 9
    assert dmarc.walk("a.example.org", resolver.lookup(5)) == first
    assert len(resolver.asked) == 3
    resolver.now += 1
    assert dmarc.walk("a.example.org", resolver.lookup(5)).owner == "org"


def test_a_walk_without_an_answer_is_not_kept() -> None:
    resolver = TimedResolver({"_dmarc.example.org": {"TXT": ["v=DMARC1; p=reject"]}})
    resolver.down.add("_dmarc.org")
    author = message(b" a@a.example.org")
    assert dmarc.evaluate(author, NO_SPF, (), resolver.lookup(5)).verdict is Verdict.TEMPERROR
    resolver.down.clear()
    assert dmarc.evaluate(author, NO_SPF, (), resolver.lookup(5)).verdict is Verdict.FAIL
