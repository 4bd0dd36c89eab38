"""All methods together: results as values and as text, one deadline, and who is refused."""

import time

import pytest
from authres import AuthenticationResultsHeader
from authres.core import AuthenticationResult, AuthenticationResultProperty
from hypothesis import given
from hypothesis import strategies as st

from aliasmilter.forwarding.arc import Sealed, seal
from aliasmilter.forwarding.authentication import (
    Client,
    Limits,
    evaluate,
    is_refused,
    results_header,
)
from aliasmilter.forwarding.dns import Resolver
from aliasmilter.forwarding.results import (
    ArcResult,
    ArcSetResult,
    DkimResult,
    DmarcResult,
    Results,
    SpfResult,
    Verdict,
)
from aliasmilter.mail.message import HeaderField, Message
from tests.harness.dns import DnsServer, Fault, Zone, ZoneResolver
from tests.harness.signing import (
    AUTHSERV,
    NOW,
    PLAIN,
    key_zone,
    our_sealer,
    put_on,
    seal_by_dkimpy,
    sign_dkim,
    verify_by_dkimpy,
)

ZONE: Zone = {
    **key_zone("s.example.org", "arc.list.example", "arc.fwd.example"),
    "example.org": {"TXT": ["v=spf1 ip4:192.0.2.1 -all"]},
    "_dmarc.example.org": {"TXT": ["v=DMARC1; p=reject"]},
}
CLIENT = Client("192.0.2.1", "mx.example.org")
SENDER = "alice@example.org"


def check(message: Message, client: Client = CLIENT, sender: str = SENDER) -> Results:
    return evaluate(message, client, sender, ZoneResolver(ZONE).lookup(5), now=NOW)


def test_all_results_of_a_good_message() -> None:
    results = check(sign_dkim(PLAIN))
    assert results.spf == SpfResult(Verdict.PASS, "example.org")
    assert [each.verdict for each in results.dkim] == [Verdict.PASS]
    assert results.arc == ArcResult(Verdict.NONE)
    assert results.dmarc == DmarcResult(Verdict.PASS, "example.org", "reject")
    assert results.summary == {"spf": "pass", "dmarc": "pass", "arc": "none", "dkim": "pass"}


def test_the_text_is_what_authres_reads() -> None:
    results = check(sign_dkim(PLAIN), Client("2001:db8::1", "x"))
    text = results_header(results, AUTHSERV)
    assert text.startswith(b" mx.example.net;\n\tarc=none ")
    header = AuthenticationResultsHeader.parse_value(text.decode().replace("\n", ""))
    found = {result.method: result for result in header.results}
    assert header.authserv_id == AUTHSERV
    assert {name: result.result for name, result in found.items()} == {
        "arc": "none",
        "spf": "fail",
        "dkim": "pass",
        "dmarc": "pass",
    }
    assert found["spf"].smtp_mailfrom == "example.org"
    assert found["dkim"].header_d == "example.org"


WORDS = st.text(alphabet='ab.-_="\\\\ ();@', min_size=0, max_size=8)


@given(WORDS, WORDS, WORDS, st.sampled_from(Verdict))
def test_the_text_is_what_authres_writes(
    domain: str, selector: str, reason: str, verdict: Verdict
) -> None:
    domain, selector, reason = (word.replace("@", "") for word in (domain, selector, reason))
    properties = (("d", domain), ("s", selector), ("a", "rsa-sha256"), ("b", "ab+/cd=="))
    expected = AuthenticationResult(
        "dkim",
        result=verdict.value,
        reason=reason or None,
        properties=[
            AuthenticationResultProperty("header", name, value)
            for name, value in properties
            if value
        ],
    )
    result = DkimResult(verdict, domain, selector, "rsa-sha256", "ab+/cd==", reason)
    text = results_header(Results(dkim=(result,)), AUTHSERV).decode()
    assert text == f" {AUTHSERV};\n\t{expected}"


def test_no_results_are_none() -> None:
    assert results_header(Results(), AUTHSERV) == b" mx.example.net;\n\tnone"


def test_row_15_nothing_of_a_hostile_signature_gets_into_the_text() -> None:
    value = (
        b' v=1; a=rsa-sha256; d=example.net(.example.com; s="; arc=pass; h=from; bh=AAAA; b=AAAA'
    )
    results = check(PLAIN.with_fields_on_top([HeaderField(b"DKIM-Signature", value)]))
    text = results_header(results, AUTHSERV)
    assert b"example.com" not in text.replace(b"dmarc", b"")
    assert b"(" not in text
    assert b"\tarc=pass" not in text


def test_row_15_nothing_of_a_hostile_sender_gets_into_the_text() -> None:
    for sender in ('"a b; dkim=pass header.d=bank.example"@example.org', "a@x;dkim=pass", "a@(b"):
        text = results_header(check(PLAIN, sender=sender), AUTHSERV)
        assert b"dkim=pass" not in text
        assert b"(" not in text


@pytest.mark.parametrize(
    "values",
    [
        [],
        [b" a@example.org", b" b@example.org"],
        [b" a@b@c"],
        [b" " + b"(" * 3000 + b")" * 3000],
        [b"\xff" * 1000],
        [b""],
    ],
)
def test_row_12_a_broken_from_is_a_permerror_and_no_more(values: list[bytes]) -> None:
    others = tuple(field for field in PLAIN.headers if field.key != b"from")
    message = Message(tuple(HeaderField(b"From", v) for v in values) + others, PLAIN.body)
    results = check(message)
    assert results.dmarc is not None
    assert results.dmarc.verdict is Verdict.PERMERROR
    assert b"dmarc=permerror" in results_header(results, AUTHSERV)
    assert not is_refused(results, ())
    seal(message, results, AUTHSERV, our_sealer(), now=NOW)


@pytest.mark.parametrize("value", [b" J\xf6rg <ceo@example.org>", b" ceo@example.org (J\xf6rg)"])
def test_an_octet_that_is_not_utf_8_does_not_turn_dmarc_off(value: bytes) -> None:
    spoof = Message((HeaderField(b"From", value),), PLAIN.body)
    results = check(spoof, sender="x@evil.example")
    assert results.dmarc == DmarcResult(Verdict.FAIL, "example.org", "reject")
    assert is_refused(results, ())


@pytest.mark.parametrize(
    "values",
    [
        [b" <ceo@example.org>, x@evil.example"],
        [b" <x@evil.example>, ceo@example.org"],
        [b" ceo@example.org", b" x@evil.example"],
        [b" Ceo <ceo@example.org> x"],
        [b' Mr. "X <ceo@example.org>'],
        [b" Ceo (sales <ceo@example.org>"],
        [b" <<ceo@example.org>>"],
        [b" \xff <ceo@example.org> x"],
        [b" x@evil.example@example.org"],
        [b" " + b"x@a%d.evil.example " * 9 % tuple(range(9)) + b"<ceo@example.org>> x"],
    ],
)
def test_a_from_that_names_several_or_cannot_be_read_does_not_turn_dmarc_off(
    values: list[bytes],
) -> None:
    spoof = Message(tuple(HeaderField(b"From", value) for value in values), PLAIN.body)
    results = check(spoof, sender="x@evil.example")
    assert results.dmarc is not None
    assert (results.dmarc.verdict, results.dmarc.domain) == (Verdict.FAIL, "example.org")
    assert results.dmarc.reason
    assert is_refused(results, ())
    genuine = check(spoof)
    assert genuine.dmarc is not None
    assert genuine.dmarc.verdict is Verdict.PERMERROR
    assert not is_refused(genuine, ())


@pytest.mark.parametrize(
    ("value", "refused"),
    [
        (b' "ceo@example.org" <x@evil.example>, y@other.example', False),
        (b" x@evil.example, y@other.example", False),
        (b" ceo@example, x@evil.example (", False),
        (b" ceo@exam\xffple.org", False),
        (b' "ceo@example.org <x@evil.example>', True),
    ],
)
def test_of_a_from_without_one_author_only_domains_count_that_may_be_authors(
    value: bytes, refused: bool
) -> None:
    spoof = Message((HeaderField(b"From", value),), PLAIN.body)
    assert is_refused(check(spoof, sender="x@evil.example"), ()) is refused


def test_a_from_of_many_domains_asks_a_bounded_number_of_questions() -> None:
    resolver = ZoneResolver(ZONE)
    value = b", ".join(b"x@d%d.example" % number for number in range(1000))
    spoof = Message((HeaderField(b"From", value),), PLAIN.body)
    evaluate(spoof, CLIENT, "", resolver.lookup(5), now=NOW)
    assert sum(name.startswith("_dmarc.") for name, _ in resolver.asked) <= 15


def test_row_16_a_policy_without_an_answer_may_refuse_one_of_several_authors() -> None:
    resolver = ZoneResolver(ZONE)
    resolver.down.add("_dmarc.example.org")
    spoof = Message((HeaderField(b"From", b" a@other.example, ceo@example.org"),), PLAIN.body)
    results = evaluate(spoof, CLIENT, "x@evil.example", resolver.lookup(5), now=NOW)
    assert results.dmarc is not None
    assert results.dmarc.verdict is Verdict.TEMPERROR


def test_the_number_of_signatures_is_a_setting() -> None:
    signed = sign_dkim(PLAIN)
    many = Message(signed.headers[:1] * 20 + signed.headers[1:], signed.body)
    lookup = ZoneResolver(ZONE).lookup(5)
    results = evaluate(many, CLIENT, SENDER, lookup, now=NOW, limits=Limits(signatures=3))
    assert len(results.dkim) == 3


@pytest.mark.parametrize("fault", [Fault.SERVFAIL, Fault.SILENCE])
def test_row_16_all_of_it_ends_within_one_deadline(fault: Fault) -> None:
    message = seal_by_dkimpy(sign_dkim(PLAIN), "list.example", "none")
    with DnsServer(ZONE) as server:
        server.faults["*"] = fault
        started = time.monotonic()
        lookup = Resolver([server.address]).lookup(0.4)
        results = evaluate(message, CLIENT, SENDER, lookup, now=NOW)
        assert time.monotonic() - started < 0.7
    assert results.spf is not None
    assert results.arc is not None
    assert results.dmarc is not None
    assert results.spf.verdict is Verdict.TEMPERROR
    assert [each.verdict for each in results.dkim] == [Verdict.TEMPERROR]
    assert results.arc.verdict is Verdict.TEMPERROR
    assert results.dmarc.verdict is Verdict.TEMPERROR
    assert not is_refused(results, ())


def test_a_message_is_evaluated_sealed_and_evaluated_at_the_next_hop() -> None:
    with DnsServer(ZONE) as server:
        resolver = Resolver([server.address])
        first = seal_by_dkimpy(sign_dkim(PLAIN), "list.example", "none")
        results = evaluate(first, CLIENT, SENDER, resolver.lookup(5), now=NOW)
        second = put_on(first, seal(first, results, AUTHSERV, our_sealer(), now=NOW))
        assert verify_by_dkimpy(second, server)[0] == "pass"
        results = evaluate(second, CLIENT, SENDER, resolver.lookup(5), now=NOW)
        assert results.arc is not None
        assert results.arc.sealers == ("list.example", "fwd.example")


def test_the_body_is_hashed_once_for_all() -> None:
    message = sign_dkim(PLAIN, canonicalize=(b"relaxed", b"relaxed"))
    results = check(message)
    assert set(message.digests) == {"relaxed"}
    message.digests["relaxed"] = b"kept"
    sealed = seal(message, results, AUTHSERV, our_sealer(), now=NOW)
    assert isinstance(sealed, Sealed)
    assert b"bh=a2VwdA==" in sealed.fields[1].value


# Mail that fails DMARC


def failing(policy: str = "reject", arc: ArcResult | None = None) -> Results:
    return Results(arc=arc, dmarc=DmarcResult(Verdict.FAIL, "example.org", policy))


def chain_by(*domains: str, verdict: Verdict = Verdict.PASS) -> ArcResult:
    return chain_of(*((domain, "dmarc") for domain in domains), verdict=verdict)


def chain_of(*sealers: tuple[str, str], verdict: Verdict = Verdict.PASS) -> ArcResult:
    """A chain by these domains, each with the methods that passed as it says."""
    sets = (
        ArcSetResult(number, domain, passed=frozenset(methods.split()))
        for number, (domain, methods) in enumerate(sealers, 1)
    )
    return ArcResult(verdict, tuple(sets))


def test_mail_that_fails_under_reject_is_refused() -> None:
    assert is_refused(failing(), ())
    assert not is_refused(failing("quarantine"), ())
    assert not is_refused(failing("none"), ())


@pytest.mark.parametrize("verdict", [v for v in Verdict if v is not Verdict.FAIL])
def test_nothing_else_is_refused(verdict: Verdict) -> None:
    assert not is_refused(Results(dmarc=DmarcResult(verdict, "example.org", "reject")), ())
    assert not is_refused(Results(dkim=(DkimResult(verdict),)), ())


def test_a_trusted_sealer_vouches() -> None:
    assert not is_refused(failing(arc=chain_by("list.example")), ["List.Example"])
    assert not is_refused(failing(arc=chain_by("x.example", "list.example")), ["list.example"])


def test_nobody_else_does() -> None:
    assert is_refused(failing(arc=chain_by("list.example")), ["other.example"])
    assert is_refused(failing(arc=chain_by("list.example", verdict=Verdict.FAIL)), ["list.example"])
    assert is_refused(failing(arc=ArcResult(Verdict.PASS)), ["list.example"])
    # The last sealer could have taken the trusted set from another message.
    assert is_refused(failing(arc=chain_by("list.example", "evil.example")), ["list.example"])


TRUSTED = ["list.example", "other.example"]


@pytest.mark.parametrize(
    "sealers",
    [
        (("list.example", "dmarc"),),
        (("evil.example", "dmarc"), ("list.example", "spf dmarc")),
        (("list.example", "dmarc"), ("other.example", "arc")),
        (("list.example", "dmarc"), ("other.example", "arc spf"), ("list.example", "arc")),
    ],
)
def test_a_trusted_sealer_vouches_for_what_it_found_to_pass(
    sealers: tuple[tuple[str, str], ...],
) -> None:
    assert not is_refused(failing(arc=chain_of(*sealers)), TRUSTED)


@pytest.mark.parametrize(
    "sealers",
    [
        (("list.example", ""),),
        (("list.example", "spf dkim"),),
        (("list.example", "arc"),),
        (("evil.example", "dmarc"), ("list.example", "arc")),
        (("list.example", "dmarc"), ("other.example", "spf")),
        (("list.example", "dmarc"), ("evil.example", "arc dmarc"), ("list.example", "arc")),
    ],
)
def test_a_trusted_sealer_does_not_vouch_for_what_failed_at_its_own_door(
    sealers: tuple[tuple[str, str], ...],
) -> None:
    assert is_refused(failing(arc=chain_of(*sealers)), TRUSTED)


def test_a_spoof_that_a_trusted_sealer_forwarded_is_refused_and_a_genuine_message_is_not() -> None:
    for first, client, refused in (
        (sign_dkim(PLAIN), CLIENT, False),
        (PLAIN, Client("192.0.2.66", "evil.example"), True),
    ):
        at_the_list = check(first, client, "x@evil.example")
        changed = Message(first.headers, first.body + b"-- \r\nthe list\r\n")
        sealed = put_on(changed, seal(changed, at_the_list, AUTHSERV, our_sealer(), now=NOW))
        found = check(sealed, Client("192.0.2.77", "mx.fwd.example"), "x@fwd.example")
        assert found.arc is not None
        assert found.arc.verdict is Verdict.PASS
        assert is_refused(found, ())
        assert is_refused(found, ["fwd.example"]) is refused
