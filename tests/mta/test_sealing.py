"""ARC through a real MTA: what leaves is sealed with what was true when it came in."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest

from aliasmilter.mail.message import Message
from tests.harness.dns import DnsServer, Fault
from tests.harness.lab import Lab
from tests.harness.signing import key, pem, seal_by_dkimpy
from tests.harness.smtp import message
from tests.mta.sealing import bank_dns, signed, start_sealing, verdicts

MTAS = ("postfix", "sendmail")
RULES = (
    "HSET domain:example.com unknown reject",
    "HSET alias:example.com bob bob@example.com out me@gmail.example",
)
OUTSIDE = {"ADDR": "192.0.2.10", "NAME": "client.example"}


@pytest.fixture
def dns() -> Iterator[DnsServer]:
    with bank_dns() as server:
        yield server


@pytest.fixture
def sealing(make_lab: Callable[..., Lab], dns: DnsServer) -> Lab:
    return start(make_lab, dns)


def start(make_lab: Callable[..., Lab], dns: DnsServer, **authentication: object) -> Lab:
    lab = start_sealing(make_lab, dns, {"authentication": authentication})
    lab.rules(*RULES)
    return lab


def test_what_leaves_verifies_with_dkimpy_and_with_perls_mail_dkim(
    sealing: Lab, dns: DnsServer
) -> None:
    assert sealing.send(
        "alice@bank.example", "out@example.com", content=signed(), xclient=OUTSIDE
    ).accepted
    (got,) = sealing.world.wait_for("me@gmail.example")
    assert verdicts(got.content, dns) == ("pass", "pass")
    results = re.sub(r"\s+", " ", str(got.message["ARC-Authentication-Results"]))
    assert results.startswith("i=1; mx.example.net;")
    for found in ("spf=pass", "dkim=pass", "dmarc=pass", "arc=none"):
        assert found in results
    names = [name.lower() for name, _ in got.message.items()]
    first = names.index("arc-seal")
    assert names[first : first + 3] == [
        "arc-seal",
        "arc-message-signature",
        "arc-authentication-results",
    ]
    assert got.message["DKIM-Signature"]


@pytest.mark.parametrize("sealers", [1, 2])
def test_a_chain_with_other_sealers_in_it_goes_on(
    sealing: Lab, dns: DnsServer, sealers: int
) -> None:
    chain = Message.parse(signed())
    for number in range(sealers):
        chain = seal_by_dkimpy(chain, "other.example", "pass" if number else "none")
    sealing.send("alice@bank.example", "out@example.com", content=chain.as_bytes(), xclient=OUTSIDE)
    (got,) = sealing.world.wait_for("me@gmail.example")
    assert str(got.message["ARC-Seal"]).startswith(f"i={sealers + 1};")
    assert verdicts(got.content, dns) == ("pass", "pass")


def test_mail_that_stays_gets_no_seal_and_asks_no_dns(sealing: Lab, dns: DnsServer) -> None:
    asked = dns.count()
    assert sealing.send("alice@bank.example", "bob@example.com", xclient=OUTSIDE).accepted
    (got,) = sealing.world.wait_for("bob@example.com")
    assert b"ARC-" not in got.content
    assert dns.count() == asked


FORGED = [
    ("Authentication-Results", "mx.example.net; spf=pass"),
    ("Authentication-Results", '"MX.example.NET" 1; dkim=pass'),
    ("authentication-results", "mx.example.net"),
    ("Authentication-Results", "\r\n (a comment) mx.example.net; dmarc=pass ((((("),
    ("Authentication-Results", "other.example; spf=pass"),
]


def test_row_13_forged_results_are_removed_and_others_stay(sealing: Lab, dns: DnsServer) -> None:
    content = message(to="out@example.com", headers=FORGED)
    sealing.send("alice@bank.example", "out@example.com", content=content, xclient=OUTSIDE)
    (got,) = sealing.world.wait_for("me@gmail.example")
    assert got.message.get_all("Authentication-Results") == ["other.example; spf=pass"]
    assert verdicts(got.content, dns) == ("pass", "pass")


@pytest.mark.parametrize(
    "content",
    [
        message(to="out@example.com", body=b"raw \xfc\xff 8-bit\r\n"),
        message(to="out@example.com", body="long " * 4000 + "\r\n"),
        message(to="out@example.com", body=""),
        message(to="a@example.com,b@example.com ; c", headers=[("Cc", "< out@example.com >")]),
        message(to="out@example.com", headers=[("X-Fold", "a\r\n\t b\r\n  c")]),
    ],
    ids=["8-bit", "long line", "no body", "odd addresses", "folds"],
)
def test_row_18_what_is_sealed_verifies_at_the_receiver(
    sealing: Lab, dns: DnsServer, content: bytes
) -> None:
    assert sealing.send(
        "alice@bank.example",
        "out@example.com",
        content=content,
        mail_options=["BODY=8BITMIME"],
        xclient=OUTSIDE,
    ).accepted
    (got,) = sealing.world.wait_for("me@gmail.example")
    if b"ARC-Seal" in got.content:
        assert verdicts(got.content, dns) == ("pass", "pass")
    else:
        assert "unsealed=" in sealing.daemon.log


@pytest.mark.parametrize("count", [0, 2])
def test_row_12_no_from_or_two_is_forwarded_without_a_seal(sealing: Lab, count: int) -> None:
    content = b"From: a@bank.example\r\n" * count + b"To: out@example.com\r\n\r\nhello\r\n"
    assert sealing.send(
        "alice@bank.example", "out@example.com", content=content, xclient=OUTSIDE
    ).accepted
    sealing.world.wait_for("me@gmail.example")


def test_dmarc_fail_reject_refuses_a_spoof_and_lets_the_genuine_pass(
    make_lab: Callable[..., Lab], dns: DnsServer
) -> None:
    lab = start(make_lab, dns, dmarc_fail="reject")
    spoof = lab.send(
        "mallory@evil.example",
        "out@example.com",
        content=message(to="out@example.com"),
        xclient={"ADDR": "198.51.100.1", "NAME": "evil.example"},
    )
    assert spoof.data is not None
    assert str(spoof.data).startswith("550 5.7.1")
    assert lab.send(
        "alice@bank.example", "out@example.com", content=signed(), xclient=OUTSIDE
    ).accepted
    (got,) = lab.world.wait_for("me@gmail.example")
    # An unsigned bounce "from" the bank itself goes back all the same.
    bounce = message(to=got.sender, sender="MAILER-DAEMON@bank.example")
    elsewhere = {"ADDR": "198.51.100.1", "NAME": "mx.gmail.example"}
    assert lab.send("", got.sender, content=bounce, xclient=elsewhere).accepted
    lab.world.wait_for("alice@bank.example")


def test_dmarc_fail_reject_costs_nobody_the_mail_who_would_have_kept_it(
    make_lab: Callable[..., Lab], dns: DnsServer
) -> None:
    """At the end of a message a refusal is for all of its recipients."""
    authentication = {"authentication": {"dmarc_fail": "reject"}}
    lab = start_sealing(make_lab, dns, authentication, reinject=True)
    lab.rules(*RULES)
    spoofer = {"ADDR": "198.51.100.1", "NAME": "evil.example"}
    spoof = lab.send("list@evil.example", "bob@example.com", "out@example.com", xclient=spoofer,
                     content=message())  # fmt: skip
    assert str(spoof.rcpts[1]).startswith("452 4.5.3")
    assert spoof.accepted
    lab.world.wait_for("bob@example.com")
    again = lab.send("list@evil.example", "out@example.com", xclient=spoofer, content=message())
    assert str(again.data).startswith("550 5.7.1")


def test_dns_that_is_silent_costs_a_temperror_and_no_mail(
    make_lab: Callable[..., Lab], dns: DnsServer
) -> None:
    lab = start(make_lab, dns)
    dns.faults["*"] = Fault.SILENCE
    assert lab.send(
        "alice@bank.example", "out@example.com", content=signed(), xclient=OUTSIDE
    ).accepted
    (got,) = lab.world.wait_for("me@gmail.example")
    assert "spf=temperror" in str(got.message["ARC-Authentication-Results"])


def test_a_domain_with_arc_settings_of_its_own_is_sealed_by_its_own_key(
    sealing: Lab, dns: DnsServer
) -> None:
    folder = sealing.daemon.folder / "other.example"
    folder.mkdir()
    (folder / "arc.pem").touch(0o600)
    (folder / "arc.pem").write_bytes(pem(key()))
    sealing.daemon.stop()
    sealing.daemon.start()
    sealing.rules("HSET domain:example.com arc_domain other.example")
    sealing.send("alice@bank.example", "out@example.com", content=signed(), xclient=OUTSIDE)
    (got,) = sealing.world.wait_for("me@gmail.example")
    assert "d=other.example" in str(got.message["ARC-Seal"])
    assert verdicts(got.content, dns) == ("pass", "pass")


def test_trust_mode_takes_the_results_of_the_milters_before_us_and_asks_no_dns(
    make_lab: Callable[..., Lab], dns: DnsServer
) -> None:
    lab = start(make_lab, dns, mode="trust")
    content = message(
        to="out@example.com",
        headers=[
            ("Authentication-Results", "mx.example.net; spf=pass smtp.mailfrom=bank.example"),
            ("Authentication-Results", "other.example; dmarc=pass header.from=bank.example"),
        ],
    )
    lab.send("alice@bank.example", "out@example.com", content=content, xclient=OUTSIDE)
    (got,) = lab.world.wait_for("me@gmail.example")
    sealed = " ".join(str(got.message["ARC-Authentication-Results"]).split())
    assert "spf=pass" in sealed
    assert "dmarc" not in sealed
    assert len(got.message.get_all("Authentication-Results", [])) == 2
    assert dns.count() == 0
