"""SPF: verdicts of RFC 7208 through our resolver, and records that want to hurt."""

import math
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aliasmilter.forwarding import spf
from aliasmilter.forwarding.dns import Answer, Resolver
from aliasmilter.forwarding.results import Identity, SpfResult, Verdict
from tests.harness.dns import DnsServer, Fault, Zone, ZoneResolver

IP = "192.0.2.1"


def check(
    record: str | bytes,
    zone: Zone | None = None,
    ip: str = IP,
    sender: str = "alice@example.org",
) -> str:
    everything: Zone = {"example.org": {"TXT": [record]}, **(zone or {})}
    lookup = ZoneResolver(everything).lookup(5)
    return spf.evaluate(ip, "mx.example.org", sender, lookup).verdict.value


@pytest.mark.parametrize(
    ("record", "verdict"),
    [
        ("v=spf1 ip4:192.0.2.0/24 -all", "pass"),
        ("v=spf1 ip4:198.51.100.1 -all", "fail"),
        ("v=spf1 ~all", "softfail"),
        ("v=spf1 ?all", "neutral"),
        ("v=spf1", "neutral"),
        ("v=spf10 +all", "none"),
        ("", "none"),
        ("v=spf1 a -all", "fail"),
        ("v=spf1 a:mail.example.org -all", "pass"),
        ("v=spf1 mx -all", "pass"),
        ("v=spf1 include:_spf.example.net -all", "pass"),
        ("v=spf1 redirect=_spf.example.net", "pass"),
        ("v=spf1 redirect=none.example", "permerror"),
        ("v=spf1 include:none.example -all", "permerror"),
        ("v=spf1 exists:%{ir}.%{l}.%{d} -all", "pass"),
        ("v=spf1 ptr -all", "pass"),
        ("v=spf1 ip4:192.0.2.0/33 -all", "permerror"),
        ("v=spf1 moo -all", "permerror"),
        ("v=spf1 include:example.org -all", "permerror"),
        ("v=spf1 exp=explain.example.org -all", "fail"),
    ],
)
def test_verdicts(record: str, verdict: str) -> None:
    zone: Zone = {
        "mail.example.org": {"A": [IP]},
        "_spf.example.net": {"TXT": ["v=spf1 ip4:192.0.2.1 -all"]},
        "1.2.0.192.alice.example.org": {"A": ["127.0.0.2"]},
        "1.2.0.192.in-addr.arpa": {"PTR": ["mail.example.org"]},
    }
    records: Zone = {"example.org": {"TXT": [record], "MX": ["10 mail.example.org"]}, **zone}
    lookup = ZoneResolver(records).lookup(5)
    assert spf.evaluate(IP, "x", "alice@example.org", lookup).verdict.value == verdict


@pytest.mark.parametrize(
    ("record", "verdict"),
    [
        ("v=spf1 -exists", "permerror"),  # 5.7: its domain has no default
        ("v=spf1 ~Exists +all", "permerror"),
        ("v=spf1 ?exists:nothing.example +all", "pass"),
        ("v=spf1 x=1 x=2 X=3 +all", "pass"),  # 6: unknown ones are ignored, however often
        ("v=spf1 x=1 x=%(d) +all", "permerror"),
        ("v=spf1 exp=a.example EXP=a.example +all", "permerror"),
        ("v=spf1 REDIRECT=soft.example", "softfail"),  # names have no case
        ("v=spf1 Redirect=soft.example redirect=soft.example", "permerror"),
        ("v=spf1 a:%{d0}.example +all", "permerror"),  # 7.3: the number must not be zero
        ("v=spf1 exists:%{D00R-}.example +all", "permerror"),
        ("v=spf1 redirect=%{d0}.example", "permerror"),
        ("v=spf1 x=%{d0} +all", "pass"),
        ("v=spf1 a:%{d10}.example a:%%{d0}.example +all", "pass"),
    ],
)
def test_what_rfc_7208_says_of_odd_terms(record: str, verdict: str) -> None:
    zone: Zone = {"soft.example": {"TXT": ["v=spf1 ~all"]}}
    assert check(record, zone) == verdict
    included: Zone = {**zone, "in.example": {"TXT": [record]}}
    outer = check("v=spf1 include:in.example ?all", included)
    assert outer == (verdict if verdict in {"pass", "permerror"} else "neutral")


@pytest.mark.parametrize("ip", ["2001:db8::1", "IPv6:2001:db8::1", "2001:0DB8:0:0::1"])
def test_ipv6(ip: str) -> None:
    assert check("v=spf1 ip6:2001:db8::/32 -all", ip=ip) == "pass"
    assert check("v=spf1 ip6:2001:dead::/32 -all", ip=ip) == "fail"


def test_the_scope_of_an_address_is_not_looked_at() -> None:
    assert check("v=spf1 ip6:fe80::/10 -all", ip="fe80::1%eth0") == "pass"
    assert check("v=spf1 ip6:fe80::/10 -all", ip="IPv6:fe80::1%2") == "pass"


def test_a_mapped_address_is_ipv4() -> None:
    assert check("v=spf1 ip4:192.0.2.1 -all", ip="::ffff:192.0.2.1") == "pass"


def test_several_records_are_a_permerror() -> None:
    zone: Zone = {"example.org": {"TXT": ["v=spf1 +all", "v=spf1 -all"]}}
    result = spf.evaluate(IP, "x", "a@example.org", ZoneResolver(zone).lookup(5))
    assert result.verdict is Verdict.PERMERROR


HELO_PASSES: Zone = {"mx.example.org": {"TXT": ["v=spf1 ip4:192.0.2.1 -all"]}}


def test_the_null_sender_is_checked_by_helo() -> None:
    result = spf.evaluate(IP, "mx.example.org", "", ZoneResolver(HELO_PASSES).lookup(5))
    assert result == SpfResult(Verdict.PASS, "mx.example.org", Identity.HELO)


def test_a_helo_that_passes_is_never_a_pass_for_mail_from() -> None:
    resolver = ZoneResolver(HELO_PASSES)
    result = spf.evaluate(IP, "mx.example.org", "a@other.example", resolver.lookup(5))
    assert result == SpfResult(Verdict.NONE, "other.example", Identity.MAIL_FROM)
    assert ("mx.example.org", "TXT") not in resolver.asked


@pytest.mark.parametrize(
    "helo", ["[192.0.2.1]", "localhost", "", "a b", "x" * 300, "\udcff.example"]
)
def test_a_helo_that_is_no_domain_gives_none(helo: str) -> None:
    result = spf.evaluate(IP, helo, "", ZoneResolver(HELO_PASSES).lookup(5))
    assert (result.verdict, result.domain) == (Verdict.NONE, "")


def test_macros_tell_whom_the_null_sender_is_checked_as() -> None:
    zone: Zone = {
        "mx.example.org": {"TXT": ["v=spf1 exists:%{l}.%{o}.sender.example -all"]},
        "postmaster.mx.example.org.sender.example": {"A": ["127.0.0.2"]},
    }
    result = spf.evaluate(IP, "mx.example.org", "", ZoneResolver(zone).lookup(5))
    assert result.verdict is Verdict.PASS


@pytest.mark.parametrize("ip", ["", "local", "300.1.1.1", "192.0.2.1/24"])
def test_without_an_address_there_is_nothing_to_check(ip: str) -> None:
    assert check("v=spf1 +all", ip=ip) == "none"


def test_an_address_with_a_quoted_at_is_split_at_its_last() -> None:
    sender = '"a@evil.example"@example.org'
    assert check("v=spf1 +all", sender=sender) == "pass"
    zone: Zone = {"example.org.sender.example": {"A": ["127.0.0.2"]}}
    assert check("v=spf1 exists:%{o}.sender.example -all", zone, sender=sender) == "pass"


def test_an_internationalized_sender_is_looked_up_as_a_labels() -> None:
    zone: Zone = {"xn--bcher-kva.example": {"TXT": ["v=spf1 +all"]}}
    result = spf.evaluate(IP, "x", "a@b\u00fccher.example", ZoneResolver(zone).lookup(5))
    assert result == SpfResult(Verdict.PASS, "xn--bcher-kva.example")


# Bounds


def test_more_than_ten_lookups_are_a_permerror() -> None:
    terms = " ".join(f"exists:{n}.example.org" for n in range(11))
    zone: Zone = {f"{n}.example.org": {"A": ["127.0.0.2"]} for n in range(11)}
    del zone["9.example.org"]
    assert check("v=spf1 " + terms.replace("exists:", "a:") + " -all", zone) == "permerror"


def test_more_than_two_void_lookups_are_a_permerror() -> None:
    assert check("v=spf1 a:1.example.org a:2.example.org -all") == "fail"
    assert check("v=spf1 a:1.example.org a:2.example.org a:3.example.org -all") == "permerror"


IPV4_HOSTS: Zone = {f"mx{n}.example.org": {"A": [f"192.0.2.{n}"]} for n in (1, 2, 3)}


def test_mx_hosts_without_an_address_of_the_clients_family_are_no_void_lookups() -> None:
    record: Zone = {
        "example.org": {
            "TXT": ["v=spf1 mx ip6:2001:db8::/32 -all"],
            "MX": ["10 mx1.example.org", "10 mx2.example.org", "20 mx3.example.org"],
        }
    }

    def verdict(zone: Zone) -> str:
        lookup = ZoneResolver({**record, **zone}).lookup(5)
        return spf.evaluate("2001:db8::5", "x", "a@example.org", lookup).verdict.value

    assert verdict(IPV4_HOSTS) == "pass"
    assert verdict({}) == "permerror"  # none of them exists


def test_names_of_the_client_that_lead_nowhere_are_no_void_lookups() -> None:
    names = [f"gone{n}.isp.example" for n in range(4)]
    zone: Zone = {"1.2.0.192.in-addr.arpa": {"PTR": list(names)}}
    assert check(f"v=spf1 ptr ip4:{IP} -all", zone) == "pass"


def test_hosts_that_take_no_mail_are_void_lookups() -> None:
    zone: Zone = {f"h{number}.example": {"A": ["192.0.2.9"]} for number in range(3)}
    assert check("v=spf1 mx:h0.example mx:h1.example -all", zone) == "fail"
    assert check("v=spf1 mx:h0.example mx:h1.example mx:h2.example -all", zone) == "permerror"


def test_a_term_of_more_than_512_octets_is_a_permerror() -> None:
    assert check("v=spf1 a:" + "a.b." * 120 + "example -all") == "fail"
    assert check("v=spf1 a:" + "a.b." * 130 + "example -all") == "permerror"


class LastingResolver(ZoneResolver):
    """Its answers hold for ever; it keeps none of them, only what was concluded."""

    def ask(self, name: str, rdtype: str, deadline: float) -> Answer:
        return replace(super().ask(name, rdtype, deadline), expires=math.inf)


@pytest.mark.parametrize(
    ("record", "down", "asked"),
    [
        ("v=spf1 a:mail.example.org -all", (), 2),
        ("v=spf1 exists:%{l}.example.org -all", (), 4),  # the next sender is another one
        ("v=spf1 a:mail.example.org -all", ("mail.example.org",), 4),
    ],
)
def test_a_verdict_is_kept_unless_it_has_macros_or_there_was_no_answer(
    record: str, down: tuple[str, ...], asked: int
) -> None:
    zone: Zone = {"example.org": {"TXT": [record]}, "mail.example.org": {"A": [IP]}}
    resolver = LastingResolver(zone)
    resolver.down.update(down)
    for sender in ("alice@example.org", "bob@example.org"):
        spf.evaluate(IP, "x", sender, resolver.lookup(5))
    assert len(resolver.asked) == asked


def test_no_explanation_is_fetched() -> None:
    resolver = ZoneResolver({"example.org": {"TXT": ["v=spf1 -all exp=explain.example.org"]}})
    spf.evaluate(IP, "x", "a@example.org", resolver.lookup(5))
    assert resolver.asked == [("example.org", "TXT")]


@pytest.mark.parametrize(
    "record",
    [
        "v=spf1 " + "ip4:192.0.2.9 " * 5000,
        "v=spf1 a:" + "0" * 60_000 + "!",
        "v=spf1 " + " ".join(f"m{n}=x" for n in range(8000)),
        "v=spf1 exists:" + "%{l}" * 10_000,
        "v=spf1 exists:%{d999999999999999999999}.example.org",
        "v=spf1 " + "a" * 65_000,
    ],
)
def test_row_16_64_kb_of_record_take_no_time(record: str) -> None:
    started = time.process_time()
    assert check(record) in {"permerror", "fail", "neutral"}
    assert time.process_time() - started < 0.5


@pytest.mark.parametrize("name", ["1.2.0.192.in-addr.arpa", "mail.example.org"])
def test_no_answer_about_the_client_is_no_match(name: str) -> None:
    # RFC 7208, 5.5
    resolver = ZoneResolver(
        {
            "example.org": {"TXT": ["v=spf1 ptr -all"]},
            "1.2.0.192.in-addr.arpa": {"PTR": ["mail.example.org"]},
            "mail.example.org": {"A": [IP]},
        }
    )
    assert spf.evaluate(IP, "x", "a@example.org", resolver.lookup(5)).verdict is Verdict.PASS
    resolver.down.add(name)
    assert spf.evaluate(IP, "x", "a@example.org", resolver.lookup(5)).verdict is Verdict.FAIL


@pytest.mark.parametrize("fault", [Fault.SERVFAIL, Fault.SILENCE])
def test_row_16_trouble_with_dns_is_a_temporary_error_within_the_deadline(fault: Fault) -> None:
    with DnsServer({"example.org": {"TXT": ["v=spf1 a:x.example a:y.example -all"]}}) as server:
        server.faults = {"x.example": fault, "y.example": fault}
        started = time.monotonic()
        lookup = Resolver([server.address]).lookup(0.3)
        result = spf.evaluate(IP, "x", "a@example.org", lookup)
        assert result.verdict is Verdict.TEMPERROR
        assert time.monotonic() - started < 0.6


PIECES = (
    "a mx ptr all include: redirect= exists: ip4: ip6: exp= %{ example.org %{i} %{p} %{s1r-} % /24 "
    "//64 - ~ + : = 192.0.2.1 ::1 \u00fc _ .. %{d0} %{v} 1.2.3.4.5"
)
TERMS = st.lists(st.sampled_from([" ", *PIECES.split()]), max_size=14).map("".join)


@given(TERMS, st.sampled_from(["a@example.org", "", '"x y"@example.org', "@example.org", "a@b@c"]))
@settings(max_examples=300)
def test_any_record_gets_a_verdict(terms: str, sender: str) -> None:
    # A verdict, never an error, whatever the record says.
    zone: Zone = {"example.org": {"TXT": [f"v=spf1 {terms}".encode()], "MX": ["1 mx.example"]}}
    result = spf.evaluate(IP, "example.org", sender, ZoneResolver(zone).lookup(5))
    assert isinstance(result.verdict, Verdict)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def ask(resolver: Resolver, sender: str = "alice@example.org", ip: str = IP) -> str:
    return spf.evaluate(ip, "mx.example.org", sender, resolver.lookup(5)).verdict.value


def test_a_verdict_is_kept_until_the_first_of_its_records_expires() -> None:
    zone: Zone = {
        "example.org": {"TXT": ["v=spf1 include:_spf.example.org -all"]},
        "_spf.example.org": {"TXT": [f"v=spf1 ip4:{IP} -all"]},
    }
    clock = Clock()
    with DnsServer(zone, ttl=60) as server:
        resolver = Resolver([server.address], clock=clock)
        assert ask(resolver) == "pass"
        zone["_spf.example.org"] = {"TXT": ["v=spf1 -all"]}
        clock.now += 59
        assert ask(resolver, "bob@example.org") == "pass"
        assert ask(resolver, ip="192.0.2.2") == "fail"
        clock.now += 2
        assert ask(resolver) == "fail"


def test_a_verdict_that_depends_on_the_sender_is_not_kept() -> None:
    zone: Zone = {
        "example.org": {"TXT": ["v=spf1 exists:%{l}.users.example.org -all"]},
        "alice.users.example.org": {"A": ["127.0.0.2"]},
    }
    with DnsServer(zone) as server:
        resolver = Resolver([server.address])
        assert ask(resolver, "alice@example.org") == "pass"
        assert ask(resolver, "mallory@example.org") == "fail"
        assert ask(resolver, "alice@example.org") == "pass"


def test_no_answer_is_not_kept() -> None:
    zone: Zone = {"example.org": {"TXT": [f"v=spf1 ip4:{IP} -all"]}}
    with DnsServer(zone) as server:
        resolver = Resolver([server.address])
        server.faults["example.org"] = Fault.SERVFAIL
        assert ask(resolver) == "temperror"
        del server.faults["example.org"]
        assert ask(resolver) == "pass"


@pytest.mark.parametrize("name", ["1.2.0.192.in-addr.arpa", "mail.example.org"])
def test_a_verdict_that_rests_on_no_answer_is_not_kept(name: str) -> None:
    zone: Zone = {
        "example.org": {"TXT": ["v=spf1 ptr -all"]},
        "1.2.0.192.in-addr.arpa": {"PTR": ["mail.example.org"]},
        "mail.example.org": {"A": [IP]},
    }
    with DnsServer(zone) as server:
        resolver = Resolver([server.address])
        server.faults[name] = Fault.SERVFAIL
        assert ask(resolver) == "fail"
        del server.faults[name]
        assert ask(resolver) == "pass"
