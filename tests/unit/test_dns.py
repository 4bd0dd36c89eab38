"""DNS: three outcomes, one deadline, a bounded cache; against a real server on loopback."""

import time
from collections.abc import Iterator

import pytest

from aliasmilter.endpoints import parse_nameserver
from aliasmilter.forwarding.dns import (
    Answer,
    Cache,
    Conclusions,
    Resolver,
    UnavailableError,
)
from tests.harness.dns import Delay, DnsServer, Fault, Zone

ZONE: Zone = {
    "example.com": {
        "TXT": ["v=spf1 -all", b"\xff binary"],
        "MX": ["10 mx.example.com", "5 Backup.example.com"],
        "A": ["192.0.2.1"],
        "AAAA": ["2001:db8::1"],
    },
    "www.example.com": {"CNAME": ["example.com"]},
    "loop.example.com": {"CNAME": ["loop.example.com"]},
    "1.2.0.192.in-addr.arpa": {"PTR": ["mx.example.com"]},
    "long.example.com": {"TXT": ["x" * 600]},
    "huge.example.com": {"TXT": ["y" * 65_000]},
}


@pytest.fixture
def server() -> Iterator[DnsServer]:
    with DnsServer({name: dict(node) for name, node in ZONE.items()}) as running:
        yield running


@pytest.fixture
def resolver(server: DnsServer) -> Resolver:
    return Resolver([server.address])


def test_records_of_each_type_are_read(resolver: Resolver) -> None:
    lookup = resolver.lookup(5)
    assert set(lookup.txt("example.com")) == {b"v=spf1 -all", b"\xff binary"}
    assert set(lookup.mx("example.com")) == {(10, "mx.example.com"), (5, "Backup.example.com")}
    assert lookup.text("example.com", "A") == ("192.0.2.1",)
    assert lookup.text("example.com", "AAAA") == ("2001:db8::1",)
    assert lookup.text("1.2.0.192.in-addr.arpa", "PTR") == ("mx.example.com",)


def test_strings_of_a_txt_record_are_joined(resolver: Resolver) -> None:
    assert resolver.lookup(5).txt("long.example.com") == (b"x" * 600,)


def test_cnames_are_followed(resolver: Resolver) -> None:
    assert resolver.lookup(5).text("WWW.example.com.", "A") == ("192.0.2.1",)


def test_absent_is_no_error(resolver: Resolver) -> None:
    lookup = resolver.lookup(5)
    assert lookup.query("nothing.example.com", "TXT") == Answer((), exists=False)
    assert lookup.query("www.example.com", "MX").records
    assert lookup.query("long.example.com", "A") == Answer((), exists=True)


@pytest.mark.parametrize("name", ["", "a..b", "x" * 64 + ".example", "y." * 200, "\u00fc.example"])
def test_a_name_that_cannot_be_in_dns_is_absent(resolver: Resolver, name: str) -> None:
    assert resolver.lookup(5).txt(name) == ()


@pytest.mark.parametrize(
    "fault", [Fault.SERVFAIL, Fault.REFUSED, Fault.SILENCE, Fault.GARBAGE, Fault.CUT]
)
def test_row_16_trouble_is_never_absence(
    server: DnsServer, resolver: Resolver, fault: Fault
) -> None:
    server.faults["example.com"] = fault
    started = time.monotonic()
    with pytest.raises(UnavailableError):
        resolver.lookup(0.3).txt("example.com")
    assert time.monotonic() - started < 0.6


def test_row_16_a_cname_loop_is_trouble(resolver: Resolver) -> None:
    with pytest.raises(UnavailableError):
        resolver.lookup(0.5).text("loop.example.com", "A")


def test_row_16_64_kb_of_txt_come_by_tcp(server: DnsServer, resolver: Resolver) -> None:
    assert resolver.lookup(5).txt("huge.example.com") == (b"y" * 65_000,)
    assert {transport for _, _, transport in server.queries} == {"udp", "tcp"}


def test_a_truncated_answer_is_asked_for_by_tcp(server: DnsServer, resolver: Resolver) -> None:
    server.faults["example.com"] = Fault.TRUNCATED
    assert resolver.lookup(5).text("example.com", "A") == ("192.0.2.1",)
    assert server.queries[-1] == ("example.com", "A", "tcp")


def test_a_lost_packet_is_sent_again(server: DnsServer, resolver: Resolver) -> None:
    server.faults["example.com"] = Fault.LOST
    assert resolver.lookup(0.5).text("example.com", "A") == ("192.0.2.1",)
    assert server.count("example.com") == 2


def test_a_slow_server_is_waited_for(server: DnsServer, resolver: Resolver) -> None:
    server.faults["example.com"] = Delay(0.2)  # longer than the first try waits
    assert resolver.lookup(1).text("example.com", "A") == ("192.0.2.1",)


def test_nobody_listening_is_trouble_within_the_deadline() -> None:
    with DnsServer() as server:
        address = server.address
    started = time.monotonic()
    with pytest.raises(UnavailableError):
        Resolver([address]).lookup(0.2).txt("example.com")
    assert time.monotonic() - started < 0.5


def test_a_second_server_answers_when_the_first_does_not(server: DnsServer) -> None:
    with DnsServer() as dead:
        dead.faults["*"] = Fault.SERVFAIL
        resolver = Resolver([dead.address, server.address])
        assert resolver.lookup(5).text("example.com", "A") == ("192.0.2.1",)


def test_row_16_one_deadline_holds_for_all_queries_of_a_message(
    server: DnsServer, resolver: Resolver
) -> None:
    server.faults["*"] = Fault.SILENCE
    lookup = resolver.lookup(0.5)
    started = time.monotonic()
    for number in range(20):
        with pytest.raises(UnavailableError):
            lookup.txt(f"{number}.example.com")
    assert time.monotonic() - started < 0.8


def test_one_silent_zone_leaves_time_for_others(server: DnsServer, resolver: Resolver) -> None:
    server.faults["silent.example.com"] = Fault.SILENCE
    lookup = resolver.lookup(1)
    with pytest.raises(UnavailableError):
        lookup.txt("silent.example.com")
    assert lookup.text("example.com", "A") == ("192.0.2.1",)


def test_the_number_of_queries_is_bounded(server: DnsServer, resolver: Resolver) -> None:
    lookup = resolver.lookup(5, max_queries=3)
    for number in range(3):
        assert lookup.txt(f"{number}.example.com") == ()
    with pytest.raises(UnavailableError):
        lookup.txt("3.example.com")
    assert server.count() == 3


def test_a_message_asks_each_question_once(server: DnsServer, resolver: Resolver) -> None:
    server.faults["example.com"] = Fault.SERVFAIL
    lookup = resolver.lookup(5)
    for _ in range(3):
        with pytest.raises(UnavailableError):
            lookup.txt("example.com")
    assert server.count("example.com") == 1


def test_messages_share_answers_and_absence_but_not_trouble(
    server: DnsServer, resolver: Resolver
) -> None:
    for _ in range(3):
        resolver.lookup(5).text("example.com", "A")
        resolver.lookup(5).txt("nothing.example.com")
    assert server.count() == 2
    server.faults["broken.example.com"] = Fault.SERVFAIL
    with pytest.raises(UnavailableError):
        resolver.lookup(5).txt("broken.example.com")
    del server.faults["broken.example.com"]
    assert resolver.lookup(5).txt("broken.example.com") == ()


def test_answers_expire_with_their_ttl(server: DnsServer) -> None:
    now = [1000.0]
    resolver = Resolver([server.address], clock=lambda: now[0])
    resolver.lookup(5).text("example.com", "A")
    now[0] += server.ttl - 1
    resolver.lookup(5).text("example.com", "A")
    assert server.count() == 1
    now[0] += 2
    resolver.lookup(5).text("example.com", "A")
    assert server.count() == 2


def test_the_cache_is_bounded_in_number_and_octets() -> None:
    cache = Cache(lambda: 0.0, max_entries=100, max_octets=100_000)
    for number in range(1000):
        cache.put((str(number), "TXT"), Answer((b"x" * 10,)), 60)
    assert len(cache) == 100
    for number in range(50):
        cache.put((str(number), "TXT"), Answer((b"x" * 60_000,)), 60)
        assert cache.octets <= 100_000
    assert cache.get(("49", "TXT")) is not None
    assert cache.get(("48", "TXT")) is None


def test_what_was_used_last_stays_in_the_cache() -> None:
    cache = Cache(lambda: 0.0, max_entries=2)
    cache.put(("a", "A"), Answer(()), 60)
    cache.put(("b", "A"), Answer(()), 60)
    cache.get(("a", "A"))
    cache.put(("c", "A"), Answer(()), 60)
    assert cache.get(("a", "A"))
    assert cache.get(("b", "A")) is None


@pytest.mark.parametrize(
    ("text", "server"),
    [
        ("192.0.2.1", ("192.0.2.1", 53)),
        ("127.0.0.1:5353", ("127.0.0.1", 5353)),
        ("2001:db8::1", ("2001:db8::1", 53)),
        ("[2001:db8::1]:5353", ("2001:db8::1", 5353)),
        ("[::1]", ("::1", 53)),
    ],
)
def test_name_servers_are_read(text: str, server: tuple[str, int]) -> None:
    assert parse_nameserver(text) == server


@pytest.mark.parametrize(
    "text", ["", "dns.example", "192.0.2.1:x", "192.0.2.1:0", "192.0.2.1:65536", "[::1", "[::1]53"]
)
def test_other_name_servers_are_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_nameserver(text)


def test_conclusions_are_bounded_and_end() -> None:
    now = [0.0]
    kept = Conclusions(lambda: now[0], max_entries=2)
    for number in range(3):
        kept.put(number, f"conclusion {number}", expires=10)
    assert [kept.get(number) for number in range(3)] == [None, "conclusion 1", "conclusion 2"]
    now[0] = 10.0
    assert kept.get(2) is None
