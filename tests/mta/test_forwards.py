"""Mail that leaves through a real MTA, and the bounces that come back."""

from __future__ import annotations

import hashlib
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aliasmilter.forwarding.srs import Rewriter
from aliasmilter.mail.address import parse_address
from tests.harness.lab import Lab
from tests.harness.ports import accepts, reserved_port
from tests.harness.wait import wait_until

MTAS = ("postfix", "sendmail")
RULES = (
    "HSET domain:example.com unknown reject",
    "HSET domain:example.net unknown reject srs_domain example.net",
    "HSET alias:example.com bob bob@example.com out me@gmail.example",
    'HSET alias:example.com both "bob@example.com, me@gmail.example"',
    "HSET alias:example.net out me@gmail.example",
)


@pytest.fixture
def ruled(lab: Lab) -> Lab:
    lab.rules(*RULES)
    return lab


def test_mail_that_leaves_gets_an_srs_sender_and_keeps_its_to(ruled: Lab) -> None:
    assert ruled.send("alice@bank.example", "out@example.com").accepted
    (got,) = ruled.world.wait_for("me@gmail.example")
    assert got.sender.startswith("SRS0=")
    assert got.sender.endswith("=bank.example=alice@srs.example.net")
    assert got.message["To"] == "out@example.com"


def test_a_domain_forwards_under_its_own_srs_domain(ruled: Lab) -> None:
    ruled.send("alice@bank.example", "out@example.net")
    (got,) = ruled.world.wait_for("me@gmail.example")
    assert got.sender.endswith("=bank.example=alice@example.net")
    ruled.world.clear()
    assert ruled.send("", got.sender).accepted
    ruled.world.wait_for("alice@bank.example")


def test_a_bounce_of_mail_that_two_domains_of_ours_have_forwarded_finds_its_way_back(
    ruled: Lab,
) -> None:
    """The SRS domain of each is a managed one, as it should be."""
    ruled.rules("HSET domain:example.com srs_domain example.com")
    assert ruled.send("alice@bank.example", "out@example.com").accepted
    (once,) = ruled.world.wait_for("me@gmail.example")
    assert ruled.send(once.sender, "out@example.net").accepted
    (_, twice) = ruled.world.wait_for("me@gmail.example", count=2)
    assert twice.sender.startswith("SRS1=")
    assert twice.sender.endswith("@example.net")
    assert ruled.send("", twice.sender).accepted
    ruled.world.wait_for("alice@bank.example")


def test_the_null_sender_stays_null(ruled: Lab) -> None:
    assert ruled.send("", "out@example.com").accepted
    (got,) = ruled.world.wait_for("me@gmail.example")
    assert got.sender == ""


def test_a_sender_too_long_for_srs_stays_as_it_is(ruled: Lab) -> None:
    long = "x" * 60 + "@bank.example"
    assert ruled.send(long, "out@example.com").accepted
    (got,) = ruled.world.wait_for("me@gmail.example")
    assert got.sender == long


@pytest.mark.parametrize("change", [str, str.lower, str.upper])
def test_a_bounce_from_outside_finds_its_way_back(ruled: Lab, change: type[str]) -> None:
    ruled.send("alice@bank.example", "out@example.com")
    (forwarded,) = ruled.world.wait_for("me@gmail.example")
    assert ruled.send("", change(forwarded.sender)).accepted
    (bounce,) = (
        d for d in ruled.world.wait_for_total(2) if d.recipient.lower() == "alice@bank.example"
    )
    assert bounce.sender == ""


def test_a_bounce_that_the_mta_makes_itself_finds_its_way_back(ruled: Lab) -> None:
    ruled.world.refuse("550 5.1.1 no such user", recipient="me@gmail.example")
    assert ruled.send("alice@bank.example", "out@example.com").accepted
    (bounce,) = ruled.world.wait_for("alice@bank.example", timeout=20)
    assert bounce.sender == ""
    assert "no such user" in bounce.content.decode()


def test_in_a_managed_srs_domain_return_addresses_are_good_and_all_others_refused(
    ruled: Lab,
) -> None:
    ruled.rules("HSET domain:srs.example.net unknown reject")
    assert str(ruled.send("eve@evil.example", "info@srs.example.net").rcpt).startswith("550 5.1.1")
    ruled.world.refuse("550 5.1.1 no such user", recipient="me@gmail.example")
    assert ruled.send("alice@bank.example", "out@example.com").accepted
    ruled.world.wait_for("alice@bank.example", timeout=20)


def test_a_forged_return_address_is_refused(ruled: Lab) -> None:
    ruled.send("alice@bank.example", "out@example.com")
    (forwarded,) = ruled.world.wait_for("me@gmail.example")
    forged = forwarded.sender.replace("=alice@", "=mallory@")
    assert str(ruled.send("", forged).rcpt).startswith("550 5.7.1")
    assert str(ruled.send("", "SRS0=aaaa=AA=bank.example=alice@example.com").rcpt).startswith(
        "550 5.7.1"
    )


def test_an_expired_return_address_is_refused_in_other_words(ruled: Lab) -> None:
    old = Rewriter(
        ["a secret of the tests"],
        max_age_days=21,
        hash_length=4,
        clock=lambda: time.time() - 30 * 86_400,
    ).forward(parse_address("alice@bank.example"), "srs.example.net")
    reply = ruled.send("", str(old)).rcpt
    assert str(reply).startswith("550 5.7.1")
    assert "expired" in reply.text


def test_somebody_elses_srs_address_passes_untouched(ruled: Lab) -> None:
    foreign = "SRS0=aaaa=AA=bank.example=alice@example.org"
    assert ruled.send("", foreign).accepted
    ruled.world.wait_for(foreign)


def test_one_transaction_one_handling_the_other_recipient_comes_again(ruled: Lab) -> None:
    outcome = ruled.send("alice@bank.example", "out@example.com", "bob@example.com")
    assert outcome.rcpts[0].ok
    assert str(outcome.rcpts[1]).startswith("452 4.5.3")
    ruled.world.wait_for("me@gmail.example")
    assert ruled.send("alice@bank.example", "bob@example.com").accepted
    (local,) = ruled.world.wait_for("bob@example.com")
    assert local.sender == "alice@bank.example"


def test_one_rule_with_targets_here_and_elsewhere_is_accepted_with_srs_for_all(
    ruled: Lab,
) -> None:
    assert ruled.send("alice@bank.example", "both@example.com").accepted
    for who in ("bob@example.com", "me@gmail.example"):
        (got,) = ruled.world.wait_for(who)
        assert got.sender.startswith("SRS0=")


SECRET = "shared with the peer"


@pytest.fixture(scope="module")
def postsrsd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int]]:
    """Debian's PostSRSd: the ports of its forward and reverse tables."""
    folder = tmp_path_factory.mktemp("postsrsd")
    secret = Path(folder) / "secret"
    secret.write_text(SECRET + "\n")
    with reserved_port() as forward, reserved_port() as reverse:
        process = subprocess.Popen(
            f"postsrsd -4 -f{forward} -r{reverse} -dfwd.example.net -s{secret} -l127.0.0.1".split(),
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_until(lambda: accepts(forward) and accepts(reverse), "PostSRSd")
            yield forward, reverse
        finally:
            process.terminate()
            process.wait(10)


def ask(port: int, key: str) -> str:
    """Look a key up in a tcp_table(5)."""
    with socket.create_connection(("127.0.0.1", port), 5) as connection:
        connection.sendall(f"get {key}\n".encode())
        code, _, value = connection.recv(4096).decode().strip().partition(" ")
    assert code == "200", value
    return value


def test_postsrsd_and_we_undo_what_the_other_made(postsrsd: tuple[int, int]) -> None:
    forward, reverse = postsrsd
    ours = Rewriter([SECRET], max_age_days=21, hash_length=4, clock=time.time)
    for number in range(300):
        name = hashlib.sha256(str(number).encode()).hexdigest()[:12]
        sender = parse_address(f"{name}@bank.example")
        assert ask(reverse, str(ours.forward(sender, "fwd.example.net"))) == str(sender)
        assert ours.reverse(parse_address(ask(forward, str(sender)))) == sender
    # SRS1, of an address that somebody else made
    other = parse_address("SRS0=abcd=EF=bank.example=alice@other.example")
    assert ours.reverse(parse_address(ask(forward, str(other)))) == other
