"""Addresses that an MTA takes for others than are written: the rules hold for those."""

from __future__ import annotations

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


@pytest.mark.parametrize(
    "sender", ["<eve%spam.example>", "<eve@spam.example.>", '<""@spam.example>']
)
def test_a_blocked_sender_is_blocked_however_it_is_spelt(ruled: Lab, sender: str) -> None:
    assert str(ruled.send(sender, "picky@example.com").rcpt).startswith("550 5.7.1")
    assert ruled.send(sender, "bob@example.com").accepted
