"""Addresses that an MTA takes for others than are written: the rules hold for those."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.harness.lab import Lab

MTAS = ("postfix", "sendmail")
RULES = (
    "HSET domain:example.com unknown reject",
    "HSET alias:example.com bob bob@example.com gone disabled sales bob@example.com",
    "HSET alias:example.com picky 'bob@example.com block=spam.example'",
    "HSET domain:second.example unknown reject",
    "HSET alias:second.example * quarantine",
)


@pytest.fixture
def ruled(lab: Lab) -> Lab:
    lab.rules(*RULES)
    return lab


@pytest.mark.parametrize(
    ("argument", "reply"),
    [
        ("<gone%example.com>", "550 5.2.1"),
        ("<example.com!gone>", "550 5.2.1"),
        ("<gone%example.com@[127.0.0.1]>", "550 5.2.1"),
        ("<nobody%example.com>", "550 5.1.1"),
    ],
)
def test_a_route_leads_nobody_past_the_rules(ruled: Lab, argument: str, reply: str) -> None:
    assert str(ruled.send("alice@bank.example", argument).rcpt).startswith(reply)


@pytest.mark.parametrize(
    ("argument", "reached"),
    [
        ("<sales%example.com>", "bob@example.com"),
        ("<guess%second.example>", "quarantine@example.net"),
    ],
)
def test_who_is_named_by_a_route_gets_what_the_rules_say_and_nobody_else(
    ruled: Lab, argument: str, reached: str
) -> None:
    assert ruled.send("alice@bank.example", argument).accepted
    ruled.world.wait_for(reached)
    ruled.settle()
    assert [delivery.recipient for delivery in ruled.world.deliveries] == [reached]


@pytest.mark.parametrize("sender", ["<eve%spam.example>", "<eve@spam.example.>"])
def test_a_blocked_sender_is_blocked_however_it_is_spelt(ruled: Lab, sender: str) -> None:
    assert str(ruled.send(sender, "picky@example.com").rcpt).startswith("550 5.7.1")
    assert ruled.send(sender, "bob@example.com").accepted


def test_an_address_without_a_domain_is_one_of_the_domain_that_postfix_adds(
    make_lab: Callable[..., Lab], mta: str
) -> None:
    if mta != "postfix":
        pytest.skip("Sendmail does not tell the domain of its own users")
    lab = make_lab(main={"myorigin": "example.com"})
    lab.rules(*RULES)
    assert str(lab.send("alice@bank.example", "<gone>").rcpt).startswith("550 5.2.1")
    assert str(lab.send("alice@bank.example", "<nobody>").rcpt).startswith("550 5.1.1")
    assert lab.send("alice@bank.example", "<sales>").accepted
    lab.world.wait_for("bob@example.com")
    # RFC 5321 section 4.5.1: every host takes that.
    assert lab.send("alice@bank.example", "<postmaster>").accepted
    lab.world.wait_for("postmaster@example.com")
    lab.settle()
    assert len(lab.world.deliveries) == 2


@pytest.mark.parametrize("sender", ["<ceo%example.com>", "<ceo@example.com.>", "<ceo>"])
def test_a_login_sends_as_nobody_else_by_another_spelling(
    make_lab: Callable[..., Lab], mta: str, sender: str
) -> None:
    if mta != "postfix":
        pytest.skip("Sendmail takes no login out of XCLIENT")
    lab = make_lab(
        {"submission": {"login_domain": "example.com"}}, main={"myorigin": "example.com"}
    )
    lab.rules(*RULES)
    client = {"ADDR": "192.0.2.20", "NAME": "laptop.example", "LOGIN": "bob"}
    reply = lab.send(sender, "bob@example.com", xclient=client).rcpt
    assert str(reply).startswith("553 5.7.1")
