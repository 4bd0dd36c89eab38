"""Spellings of which Postfix alone tells what it makes of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.harness.lab import Lab
from tests.mta.test_spellings import RULES


def test_an_address_without_a_domain_is_one_of_the_domain_that_postfix_adds(
    make_lab: Callable[..., Lab],
) -> None:
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


@pytest.mark.parametrize(
    ("rule", "reached"),
    [
        ("postmaster bob@example.com", "bob@example.com"),
        ("postmaster disabled", "postmaster@example.com"),
        ("* quarantine", "postmaster@example.com"),
    ],
)
def test_a_bare_postmaster_goes_where_his_own_rule_says_and_is_never_refused(
    make_lab: Callable[..., Lab], rule: str, reached: str
) -> None:
    lab = make_lab(main={"myorigin": "example.com"})
    lab.rules(*RULES, f"HSET alias:example.com {rule}")
    assert lab.send("alice@bank.example", "<Postmaster>").accepted
    lab.settle()
    assert [delivery.recipient.lower() for delivery in lab.world.deliveries] == [reached]


@pytest.mark.parametrize(
    ("argument", "outcome"),
    [
        ("<gone%example.com@second.example>", "550 5.2.1"),
        ('<"gone@example.com"@second.example>', "550 5.2.1"),
        ("<gone%second.example@second.example>", "550 5.2.1"),
        ("<bob+x%example.com@second.example>", "bob+x@example.com"),
        ("<sales+x%example.org@second.example>", "quarantine@example.net"),
    ],
)
def test_a_route_through_a_managed_domain_that_postfix_delivers_is_one_of_the_address_it_ends_at(
    make_lab: Callable[..., Lab], argument: str, outcome: str
) -> None:
    local = {"mydestination": "second.example", "local_recipient_maps": ""}
    lab = make_lab(main=local)
    lab.rules(
        *RULES[:2],
        "HSET domain:second.example unknown pass",
        "HSET alias:second.example bob bob@second.example gone disabled sales bob@second.example",
        "HSET domain:example.org unknown reject",
        "HSET alias:example.org * quarantine",
    )
    sent = lab.send("alice@bank.example", argument)
    if "@" not in outcome:
        assert str(sent.rcpt).startswith(outcome)
        return
    assert sent.accepted
    lab.world.wait_for(outcome)
    lab.settle()
    assert [delivery.recipient for delivery in lab.world.deliveries] == [outcome]


@pytest.mark.parametrize("sender", ["<ceo%example.com>", "<ceo@example.com.>", "<ceo>"])
def test_a_login_sends_as_nobody_else_by_another_spelling(
    make_lab: Callable[..., Lab], sender: str
) -> None:
    lab = make_lab(
        {"submission": {"login_domain": "example.com"}}, main={"myorigin": "example.com"}
    )
    lab.rules(*RULES)
    client = {"ADDR": "192.0.2.20", "NAME": "laptop.example", "LOGIN": "bob"}
    reply = lab.send(sender, "bob@example.com", xclient=client).rcpt
    assert str(reply).startswith("553 5.7.1")
