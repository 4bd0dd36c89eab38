"""docs/business.md through a real Postfix: who may send as what, answers, vendors, guesses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from aliasmilter.mail.message import Message
from tests.harness.dns import DnsServer
from tests.harness.lab import Lab
from tests.harness.signing import key_zone, sign_dkim
from tests.harness.smtp import OUTSIDE, Outcome, message
from tests.harness.wait import wait_until

BOB = "bob@example.com"
ALICE = "alice@bank.example"
CUSTOMER = "alice@example.org"  # a domain that Postfix relays for and no rule manages
RULES = (
    "HSET domain:example.com unknown reject",
    "HSET alias:example.com bob bob@example.com carol carol@example.com sales bob@example.com",
    'HSET alias:example.com hub "bob@example.com vendor=bank.example"',
    'HSET alias:example.com shop "bob@example.com vendor=bank.example strict"',
    'HSET alias:example.com list "bob@example.com block=spam.example"',
    'HSET alias:example.com "sales-*" bob@example.com',
    "HSET domain:new.example unknown reject",
    "HSET alias:new.example info bob@example.com * quarantine",
    "SADD block:new.example bank.example",
)


@pytest.fixture(scope="module")
def shared_business() -> Iterator[Lab]:
    zone = key_zone("s.bank.example", "s.other.example")
    zone["other.example"] = {"TXT": ["v=spf1 ip4:192.0.2.10 -all"]}
    with ExitStack() as stack:
        dns = stack.enter_context(DnsServer(zone))
        yield stack.enter_context(
            Lab(
                {
                    "dns": {"nameservers": [dns.address]},
                    "submission": {"identity": "rewrite", "login_domain": "example.com"},
                    "harvest": {"limit": 5, "window": 600},
                    "suggest": {"remember_days": 30},
                }
            )
        )


@pytest.fixture
def business(shared_business: Lab) -> Lab:
    shared_business.reset()
    shared_business.rules(*RULES)
    return shared_business


def as_user(
    lab: Lab, login: str, sender: str, recipient: str, content: bytes | None = None
) -> Outcome:
    """A message of an own user, who has logged in."""
    client = {"ADDR": "192.0.2.20", "NAME": "laptop.example", "LOGIN": login}
    text = message(sender=sender) if content is None else content
    return lab.send(sender, recipient, content=text, xclient=client)


@pytest.mark.parametrize("login", ["bob", BOB])
@pytest.mark.parametrize("sender", [BOB, "bob+x@example.com", "sales@example.com"])
def test_an_own_user_sends_as_what_is_his(business: Lab, login: str, sender: str) -> None:
    assert as_user(business, login, sender, CUSTOMER).accepted
    (got,) = business.world.wait_for(CUSTOMER)
    assert got.sender == sender


def test_an_own_user_sends_as_nobody_else(business: Lab) -> None:
    reply = as_user(business, BOB, "carol@example.com", CUSTOMER).rcpt
    assert str(reply) == f"553 5.7.1 <carol@example.com> is no address that {BOB} may send from"
    forged = message(sender="carol@example.com")
    data = as_user(business, BOB, BOB, CUSTOMER, forged).data
    assert str(data).startswith("553 5.7.1 <carol@example.com>")
    business.settle()
    assert business.world.deliveries == []


def test_an_answer_goes_out_under_the_alias_that_was_written_to(business: Lab) -> None:
    business.send(ALICE, "sales@example.com", xclient=OUTSIDE)
    (question,) = business.world.wait_for(BOB)
    answer = message(
        sender='"Bob Jones" <bob@example.com>',
        headers=[
            ("In-Reply-To", question.message["Message-ID"]),
            ("Reply-To", "bob@example.com"),
        ],
    )
    assert as_user(business, BOB, BOB, CUSTOMER, answer).accepted
    (got,) = business.world.wait_for(CUSTOMER)
    assert got.sender == "sales@example.com"
    assert b'\r\nFrom: "Bob Jones" <sales@example.com>\r\n' in got.content
    assert got.message["Reply-To"] == "sales@example.com"
    assert BOB.encode() not in got.content


def signed(domain: str) -> bytes:
    text = message(sender=f"news@{domain}")
    return sign_dkim(Message.parse(text), domain).as_bytes()


def test_who_writes_to_a_vendor_s_address_is_listed_and_a_strict_one_takes_its_vendor_alone(
    business: Lab,
) -> None:
    for domain in ("bank.example", "other.example"):
        assert business.send(
            f"news@{domain}", "hub@example.com", content=signed(domain), xclient=OUTSIDE
        ).accepted
    bank, other = (
        business.send(
            f"news@{domain}", "shop@example.com", content=signed(domain), xclient=OUTSIDE
        ).data
        for domain in ("bank.example", "other.example")
    )
    assert bank is not None
    assert bank.ok
    assert str(other).startswith("550 5.7.1")

    def leaks() -> list[str]:
        return business.daemon.run("leaks", "--csv").stdout.splitlines()[1:]

    wait_until(lambda: len(leaks()) == 2, "both are written down")
    assert [line.split(",")[:4] for line in leaks()] == [
        ["hub@example.com", "bank.example", "other.example", "1"],
        ["shop@example.com", "bank.example", "other.example", "1"],
    ]


def test_blocked_senders_are_refused_and_patterns_match(business: Lab) -> None:
    assert business.send("x@mail.spam.example", "list@example.com").rcpt.code == 550
    assert business.send(ALICE, "info@new.example").rcpt.code == 550
    assert business.send("x@other.example", "info@new.example").accepted
    assert business.send("x@mail.spam.example", "sales-eu@example.com").accepted


def test_a_catch_all_is_no_reward_for_guessing(business: Lab) -> None:
    guesser = {"ADDR": "192.0.2.66", "NAME": "guesser.example"}

    def code(recipient: str, client: dict[str, str]) -> int:
        return business.send("x@other.example", recipient, xclient=client).rcpt.code

    assert [code(f"a{n}@new.example", guesser) for n in range(7)] == [250] * 5 + [550] * 2
    assert code("info@new.example", guesser) == 250
    assert code("a9@new.example", OUTSIDE) == 250
    assert "a client guesses addresses client=192.0.2.66" in business.daemon.log


def test_a_typo_is_suggested_and_added(business: Lab) -> None:
    for _ in range(2):
        business.send("x@other.example", "slaes@example.com", xclient=OUTSIDE)

    def suggestions() -> str:
        return business.daemon.run("suggest", "example.com").stdout

    wait_until(lambda: "slaes" in suggestions(), "it is written down")
    assert "HSET alias:example.com slaes sales@example.com" in suggestions()
    business.daemon.run("suggest", "example.com", "--apply", stdin="y\n")
    assert business.send("x@other.example", "slaes@example.com").accepted
    assert "slaes" not in suggestions()
