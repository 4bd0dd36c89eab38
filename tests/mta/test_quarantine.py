"""Catch-all hits through a real MTA: never in a real inbox."""

from __future__ import annotations

from collections.abc import Callable

from tests.harness.lab import Lab
from tests.harness.smtp import message
from tests.harness.wait import wait_until

MTAS = ("postfix", "sendmail")
RULES = (
    "HSET domain:example.com unknown reject",
    'HSET alias:example.com bob bob@example.com sales bob@example.com * "bob@example.com"',
)
HOLD = {"quarantine": {"action": "hold", "mailbox": "quarantine@example.net"}}
HEADER = "X-Alias-Milter-Quarantine"


def test_a_hit_goes_to_the_quarantine_mailbox_and_says_why(lab: Lab) -> None:
    lab.rules(*RULES)
    assert lab.send("alice@bank.example", "guess@example.com").accepted
    (got,) = lab.world.wait_for("quarantine@example.net")
    assert got.sender == "alice@bank.example"
    note = str(got.message[HEADER])
    assert "recipient=guess@example.com" in note
    assert "rule=*@example.com" in note
    assert "reason=catch-all" in note
    lab.settle()
    assert len(lab.world.deliveries) == 1
    wait_until(lambda: lab.redis.cli("HGET", "quarantined", "example.com") == '"1"', "it counts")


def test_the_domains_own_quarantine_mailbox_comes_first(lab: Lab) -> None:
    lab.rules(*RULES, "HSET domain:example.com quarantine junk@example.com")
    assert lab.send("alice@bank.example", "guess@example.com").accepted
    lab.world.wait_for("junk@example.com")


def test_only_the_hit_is_moved_and_a_bcc_is_not_betrayed(lab: Lab) -> None:
    lab.rules(*RULES)
    content = message(to="sales@example.com")
    outcome = lab.send("alice@bank.example", "sales@example.com", "hidden@example.com",
                       content=content)  # fmt: skip
    assert outcome.accepted
    (mine,) = lab.world.wait_for("bob@example.com")
    lab.world.wait_for("quarantine@example.net")
    assert b"hidden" not in mine.content


def test_hold_puts_the_message_into_the_hold_queue_and_releases_it_unchanged(
    make_lab: Callable[..., Lab],
) -> None:
    lab = make_lab(HOLD)
    lab.rules("HSET domain:example.com unknown reject", "HSET alias:example.com * quarantine",
              "HSET alias:example.com bob bob@example.com")  # fmt: skip
    outcome = lab.send("alice@bank.example", "guess@example.com")
    assert outcome.accepted
    (held,) = lab.mta.queue()
    assert held.queue == "hold"
    assert held.recipients == ("guess@example.com",)
    assert lab.world.deliveries == []
    lab.mta.release(held.id)
    (released,) = lab.world.wait_for("guess@example.com")
    assert released.message[HEADER]


def test_hold_never_holds_somebody_elses_copy(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(HOLD)
    lab.rules(*RULES)
    outcome = lab.send("alice@bank.example", "bob@example.com", "guess@example.com")
    assert outcome.rcpts[0].ok
    assert str(outcome.rcpts[1]).startswith("452 4.5.3")
    lab.world.wait_for("bob@example.com")
    lab.settle()
