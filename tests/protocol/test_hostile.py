"""What a sender can do to a daemon that splits messages or seals them: nothing that lasts."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.harness.daemon import Config, Daemon
from tests.harness.dns import DnsServer, Fault
from tests.harness.mta_client import Mta
from tests.harness.redis import RedisServer
from tests.harness.signing import key, pem
from tests.harness.world import World
from tests.protocol.conftest import load_rules

Start = Callable[..., Daemon]


@pytest.fixture
def splitting(start: Start, redis: RedisServer, world: World) -> Daemon:
    """A daemon whose copies go to the world."""
    redis.cli("HSET", "alias:example.com", "both", "bob@example.com me@gmail.example")
    return start({"reinject": {"server": f"127.0.0.1:{world.port}"}})


@pytest.mark.parametrize(
    "sender",
    [
        b"<al\xefce@bank.example>", "<al\u00efce@bank.example>".encode(), b"<\xff\xfe@\xff>",
        b"<a..b@bank.example>", b"<no address>", b"<MAILER-DAEMON>",
    ],
)  # fmt: skip
def test_row_10_the_copies_of_a_message_go_out_whatever_octets_its_sender_has(
    splitting: Daemon, world: World, sender: bytes
) -> None:
    with Mta(splitting.socket) as mta:
        mta.send("M", sender + b"\0")
        # The copy that is submitted is the one that leaves; it may keep its sender.
        assert mta.rcpt("<both@example.com>").kind == "continue"
        ending = mta.message()
        assert ending.answer.kind == "continue"
        assert ending.of("addrcpt") == [("<bob@example.com>",)]
    (leaves,) = world.wait_for("me@gmail.example")
    if not leaves.sender.startswith("SRS0="):
        assert leaves.sender.encode("utf-8", "surrogateescape") == sender[1:-1]


@pytest.mark.parametrize("sender", [b"<a\rRCPT TO:<x@y>@b.example>", b"<a\r\nDATA\r\n@b.example>"])
def test_row_10_a_line_end_in_a_sender_reaches_no_other_server_and_is_refused_for_good(
    splitting: Daemon, world: World, sender: bytes
) -> None:
    with Mta(splitting.socket) as mta:
        mta.send("M", sender + b"\0")
        assert mta.rcpt("<both@example.com>").kind == "continue"
        assert mta.message().answer.text == "553 5.1.7 Malformed sender address"
        # Where no copy is needed it is no reason to refuse anything.
        mta.send("M", sender + b"\0")
        assert mta.rcpt("<sales@example.com>").kind == "continue"
        assert mta.message().answer.kind == "continue"
    assert world.deliveries == []
    assert "Traceback" not in splitting.log


def test_row_10_a_clients_names_end_no_line_of_a_copy(splitting: Daemon, world: World) -> None:
    odd = "x\r\nX-Injected: yes\r\n\r\n\x1b[2J"
    with Mta(splitting.socket, helo=odd, client=(odd, "192.0.2.10", 34567)) as mta:
        mta.mail()
        assert mta.rcpt("<both@example.com>").kind == "continue"
        assert mta.message().answer.kind == "continue"
    (copy,) = world.wait_for("me@gmail.example")
    assert "X-Injected" not in copy.message
    assert b"\x1b" not in copy.content
    assert b"Received: from x??X-Injected: yes????" in copy.content


def test_row_10_odd_parameters_of_mail_do_not_stop_a_copy(splitting: Daemon, world: World) -> None:
    with Mta(splitting.socket) as mta:
        mta.send("M", b"<a@bank.example>\0ENVID=\xff\0RET=HDRS\0BODY=8BITMIME\rX\0")
        assert mta.rcpt("<both@example.com>").kind == "continue"
        assert mta.message().answer.kind == "continue"
    (leaves,) = world.wait_for("me@gmail.example")
    assert leaves.mail_options == ("RET=HDRS",)


@pytest.mark.parametrize("text", ["%" * 600, "%s%n%d" * 80, "%", "100%"])
def test_row_10_percent_signs_in_a_rules_text_stay_a_5xx(
    mta: Mta, redis: RedisServer, text: str
) -> None:
    redis.cli("HSET", "alias:example.com", "percent", f"reject {text}")
    answer = mta.rcpt("<percent@example.com>").text
    assert answer.startswith("550 5.7.1 %") or answer == "550 5.7.1 100%%"


def test_a_client_whose_name_is_no_text_gets_in_nowhere(daemon: Daemon, mta: Mta) -> None:
    mta.send("K", b"")
    mta.send("C", b"\xff\xfe.evil.example\x004\x00\x19192.0.2.66\0")
    mta.send("H", b"\xff\0")
    mta.send("M", b"<eve@evil.example>\0")
    mta.send("R", b"<nobody@example.com>\0")
    assert mta.read().text.startswith("550 5.1.1")
    with Mta(daemon.socket) as other:
        other.mail()
        assert other.rcpt("<bob@example.com>").kind == "continue"


@pytest.fixture(scope="module")
def dns() -> Iterator[DnsServer]:
    with DnsServer({}) as server:
        yield server


@pytest.fixture(scope="module")
def shared_sealing(shared_redis: RedisServer, dns: DnsServer) -> Iterator[Daemon]:
    arc = {"enabled": True, "domain": "example.net", "selector": "arc", "key_file": "arc.pem"}
    config: Config = {
        "milter": {"workers": 1},
        "arc": arc,
        "dns": {"nameservers": [dns.address], "timeout": 2.0},
        "limits": {"dns_queries": 20},
    }
    files = {"arc.pem": pem(key()).decode()}
    with Daemon(shared_redis.url, config, files=files) as daemon:
        yield daemon


@pytest.fixture
def sealing(shared_sealing: Daemon, redis: RedisServer) -> Daemon:
    load_rules(redis)
    return shared_sealing


def arc_sets(count: int, domain: str = "d{}.example") -> list[tuple[str, str]]:
    tags = " i={0}; a=rsa-sha256; cv={1}; d={2}; s=s; bh=AAAA; b=AAAA"
    return [
        (name, tags.format(n, "pass" if n > 1 else "none", domain.format(n)) + more)
        for n in range(count, 0, -1)
        for name, more in (
            ("ARC-Seal", ""), ("ARC-Message-Signature", "; h=from"),
            ("ARC-Authentication-Results", ""),
        )
    ]  # fmt: skip


SIGNATURE = " v=1; a=rsa-sha256; c=relaxed/relaxed; d=d{0}.example; s=s; h=from; bh=AAAA; b=AAAA"
HEADERS: dict[str, list[tuple[str, str]]] = {
    "12 no from": [],
    "12 several from": [("From", " a@a.example"), ("From", " b@b.example")],
    "12 two at signs": [("From", " a@b@c")],
    "12 deep comments": [("From", " " + "(" * 3000 + ")" * 3000 + " a@a.example")],
    "12 open comments": [("From", " " + "(" * 3000)],
    "13 forged results": [("Authentication-Results", f" mx.example.net; {x}") for x in "ab" * 50],
    "13 large": [("Authentication-Results", " mx.example.net; x=" + "y" * 50_000)],
    "13 nested": [("Authentication-Results", " " + "(" * 3000 + "mx.example.net")],
    "14 51 sets": arc_sets(51),
    "14 200 sets": arc_sets(200),
    "14 50 sets": arc_sets(50),
    "14 gap": arc_sets(5)[:3] + arc_sets(3),
    "14 twice": arc_sets(3) * 2,
    "14 odd instances": [
        (name, f" i{sign}; a=rsa-sha256; cv=none; d=x.example; s=s; b=AAAA")
        for sign in ("=0", "=-1", "=99999999999999999999", " = 1", "=\u0661", "=")
        for name in ("ARC-Seal", "ARC-Message-Signature", "ARC-Authentication-Results")
    ],
    "15 200 signatures": [("DKIM-Signature", SIGNATURE.format(n)) for n in range(200)],
    "15 l=": [("DKIM-Signature", SIGNATURE.format(1) + "; l=99999999999999999999")],
    "15 odd d=": [("DKIM-Signature", " d=example.net(.example.com; s=s; a=rsa-sha256; b=AAAA")],
    "18 long line": [("Subject", " " + "x" * 60_000)],
    "18 8-bit": [("Subject", " \u00fc" * 500)],
    "trace": [("X-Alias-Milter-Trace", " v1 " + "A" * 60_000)] * 15,
    "a colon": [("Subject", ":")],
}


@pytest.mark.parametrize("fault", [None, Fault.SERVFAIL])
@pytest.mark.parametrize("case", HEADERS)
def test_rows_12_to_16_any_header_is_forwarded_once_with_few_questions_and_no_exception(
    sealing: Daemon, dns: DnsServer, case: str, fault: Fault | None
) -> None:
    dns.faults = {"*": fault} if fault else {}
    dns.queries.clear()
    # Names of its own, which no earlier case has left in the cache.
    mine = f".n{len(case)}{case[:2].strip()}{bool(fault):d}.example"
    headers = [(name, value.replace(".example;", f"{mine};")) for name, value in HEADERS[case]]
    if not case.startswith("12"):
        headers = [("From", " alice@bank.example"), *headers]
    with Mta(sealing.socket) as mta:
        mta.mail()
        assert mta.rcpt("<out@example.com>").kind == "continue"
        ending = mta.message(headers)
        assert ending.answer.kind == "continue"
        assert ending.of("addrcpt") == [("<me@gmail.example>",)]
        removed = [int(index) for index, *_ in ending.of("chgheader")]
        # From the highest index down: each removal shifts those below it.
        forged = {"13 forged results": 100, "13 large": 1}.get(case, 0)
        assert removed == list(range(forged, 0, -1))
    assert len({(name, rdtype) for name, rdtype, _ in dns.queries}) <= 20
    if case == "15 200 signatures":
        asked = {name for name, _, _ in dns.queries if "_domainkey" in name}
        assert len(asked) == 10
    assert "Traceback" not in sealing.log
