"""Aliases through a real MTA: who is accepted, who gets the mail, from which sender."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.harness.lab import Lab
from tests.harness.smtp import Client, message, send

MTAS = ("postfix", "sendmail")
RULES = (
    "HSET domain:example.com unknown reject",
    "HSET domain:old.example alias_of example.com",
    "HSET alias:example.com bob bob@example.com carol carol@example.com",
    'HSET alias:example.com sales bob@example.com team "bob@example.com, carol@example.com"',
    'HSET alias:example.com gone "disabled Bob has left" slow defer no "reject 100% no, thanks"',
    "HSET alias:example.com drop discard broken nonsense a b@example.com b a@example.com",
    'HSET alias:example.com hub "sales@example.com vendor=hub.example note=CRM trial"',
    "HSET domain:second.example unknown reject",
    "HSET alias:second.example office hub@example.com * @example.com",
)


@pytest.fixture
def ruled(lab: Lab) -> Lab:
    lab.rules(*RULES)
    return lab


@pytest.mark.parametrize(
    ("alias", "mailbox"),
    [
        ("sales@example.com", "bob@example.com"),
        ("SALES@Example.COM", "bob@example.com"),
        ("sales+fair@example.com", "bob+fair@example.com"),
        ("sales@old.example", "bob@example.com"),
        ("bob@example.com", "bob@example.com"),
        ("hub+2027@example.com", "bob+2027@example.com"),  # a chain, with a vendor's subaddress
        ("office@second.example", "bob@example.com"),
        ("carol@second.example", "carol@example.com"),
    ],
)
def test_an_alias_reaches_its_mailbox_from_the_original_sender(
    ruled: Lab, alias: str, mailbox: str
) -> None:
    assert ruled.send("alice@bank.example", alias).accepted
    (got,) = ruled.world.wait_for(mailbox)
    assert got.sender == "alice@bank.example"
    assert got.message["To"] == alias
    assert b"ARC-Seal" not in got.content
    ruled.settle()
    assert len(ruled.world.deliveries) == 1


@pytest.mark.parametrize(
    ("address", "reply"),
    [
        ("nobody@example.com", "550 5.1.1"),
        ("gone@example.com", "550 5.2.1"),
        ("slow@example.com", "450 4.2.1"),
        ("no@example.com", "550 5.7.1"),
        ("broken@example.com", "451 4.3.5"),
        ("a@example.com", "451 4.4.6"),
    ],
)
def test_who_is_not_accepted_hears_it_at_rcpt(ruled: Lab, address: str, reply: str) -> None:
    assert str(ruled.send("alice@bank.example", address).rcpt).startswith(reply)


def test_a_rules_own_words_reach_the_sender_percent_sign_and_all(ruled: Lab) -> None:
    assert "100% no, thanks" in ruled.send("alice@bank.example", "no@example.com").rcpt.text


def test_each_person_gets_one_copy_however_they_are_named(ruled: Lab) -> None:
    outcome = ruled.send(
        "alice@bank.example",
        "team@example.com",
        "sales@example.com",
        "bob@example.com",
        "Bob@example.com",
        "bob@example.com",
    )
    assert outcome.accepted
    ruled.world.wait_for("bob@example.com")
    ruled.world.wait_for("carol@example.com")
    ruled.settle()
    got = sorted(delivery.recipient.lower() for delivery in ruled.world.deliveries)
    assert got == ["bob@example.com", "carol@example.com"]


def test_a_discarded_recipient_gets_nothing_and_the_others_do(ruled: Lab) -> None:
    assert ruled.send("alice@bank.example", "drop@example.com").accepted
    assert ruled.send("alice@bank.example", "drop@example.com", "carol@example.com").accepted
    ruled.world.wait_for("carol@example.com")
    ruled.settle()
    assert [d.recipient for d in ruled.world.deliveries] == ["carol@example.com"]


def test_an_edit_by_redis_cli_holds_from_the_next_rcpt_of_the_same_session(ruled: Lab) -> None:
    with Client(ruled.mta.port) as client:
        client.command("MAIL FROM:<alice@bank.example>")
        assert client.command("RCPT TO:<new@example.com>").code == 550
        ruled.rules("HSET alias:example.com new carol@example.com")
        assert client.command("RCPT TO:<new@example.com>").code == 250
        ruled.rules("HDEL alias:example.com new")
        assert client.command("RCPT TO:<new@example.com>").code == 550


def test_the_senders_dsn_wishes_go_along_to_the_mailbox(ruled: Lab) -> None:
    wishes = ("NOTIFY=SUCCESS,FAILURE", "ORCPT=rfc822;sales@example.com")
    assert ruled.send("alice@bank.example", "sales@example.com", rcpt_options=wishes).accepted
    (got,) = ruled.world.wait_for("bob@example.com")
    assert set(got.rcpt_options) == set(wishes)


def test_a_source_route_is_read_past(ruled: Lab) -> None:
    assert ruled.send("alice@bank.example", "<@relay.example:sales@example.com>").accepted
    ruled.world.wait_for("bob@example.com")
    ruled.settle()
    assert len(ruled.world.deliveries) == 1


def test_a_message_that_comes_back_to_its_alias_is_refused(ruled: Lab) -> None:
    ruled.send("alice@bank.example", "sales@example.com")
    (first,) = ruled.world.wait_for("bob@example.com")
    again = ruled.send("bob@example.com", "sales@example.com", content=first.content)
    assert again.data is not None
    assert str(again.data).startswith("554 5.4.6")
    # Another alias has not seen it.
    assert ruled.send("bob@example.com", "carol@example.com", content=first.content).accepted


def test_the_trace_does_not_tell_which_alias_nor_how_many(ruled: Lab) -> None:
    ruled.send("alice@bank.example", "sales@example.com", "team@example.com")
    (one, *_) = ruled.world.wait_for("bob@example.com")
    trace = str(one.message["X-Alias-Milter-Trace"])
    assert "sales" not in trace
    assert len(trace.split()) == 2 + 4
    ruled.world.clear()
    ruled.send("alice@bank.example", "sales@example.com")
    (two,) = ruled.world.wait_for("bob@example.com")
    assert not set(trace.split()[1:]) & set(str(two.message["X-Alias-Milter-Trace"]).split()[1:])


def test_too_many_received_fields_are_a_loop(ruled: Lab) -> None:
    hops = [("Received", f"from a by b; hop {n}") for n in range(51)]
    outcome = ruled.send("alice@bank.example", "sales@example.com", content=message(headers=hops))
    assert outcome.data is not None
    assert outcome.data.code == 554


def test_with_unknown_pass_an_address_without_a_rule_is_the_mtas_to_deliver(ruled: Lab) -> None:
    ruled.rules("HSET domain:example.com unknown pass")
    assert ruled.send("alice@bank.example", "nobody@example.com", "sales@example.com").accepted
    ruled.settle()
    got = {delivery.recipient for delivery in ruled.world.deliveries}
    assert got == {"nobody@example.com", "bob@example.com"}


def test_while_the_daemon_is_away_mail_waits_at_its_sender(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab()
    lab.rules(*RULES)
    with Client(lab.mta.port) as client:
        client.command("MAIL FROM:<alice@bank.example>")
        assert client.command("RCPT TO:<sales@example.com>").ok
        lab.daemon.kill()
        assert client.data(message()).code == 451
    assert lab.send("alice@bank.example", "sales@example.com").mail.code == 451
    assert lab.mta.queue() == []
    lab.daemon.start()
    assert lab.send("alice@bank.example", "sales@example.com").accepted
    lab.world.wait_for("bob@example.com")


def test_mail_for_other_peoples_domains_passes_untouched(lab: Lab) -> None:
    assert send(
        lab.mta.port,
        "alice@bank.example",
        ["Someone@example.org"],
        xclient={"ADDR": "192.0.2.10", "NAME": "client.example"},
    ).accepted
    (got,) = lab.world.wait_for("Someone@example.org")
    assert got.sender == "alice@bank.example"
    assert "X-Alias-Milter-Trace" not in got.message


def test_no_store_no_answer_but_a_451_and_work_goes_on_when_it_is_back(make_lab: object) -> None:
    lab: Lab = make_lab({"store": {"timeout": 0.5}})  # type: ignore[operator]
    lab.rules(*RULES)
    assert lab.send("alice@bank.example", "sales@example.com").accepted
    lab.redis.stop()
    assert str(lab.send("alice@bank.example", "sales@example.com").rcpt).startswith("451 4.3.0")
    assert str(lab.send("alice@bank.example", "nobody@example.com").rcpt).startswith("451 4.3.0")
    lab.redis.start()
    lab.rules(*RULES)
    assert lab.send("alice@bank.example", "sales@example.com").accepted
    lab.world.wait_for("bob@example.com", count=2)


def test_what_rcpt_decided_holds_when_the_store_dies_before_the_final_dot(
    make_lab: object,
) -> None:
    lab: Lab = make_lab()  # type: ignore[operator]
    lab.rules(*RULES)
    with Client(lab.mta.port) as client:
        client.command("MAIL FROM:<alice@bank.example>")
        assert client.command("RCPT TO:<sales@example.com>").ok
        lab.redis.stop()
        assert client.data(message()).ok
    lab.world.wait_for("bob@example.com")


def test_the_log_says_in_one_line_what_became_of_a_message(ruled: Lab) -> None:
    outcome = ruled.send("alice@bank.example", "sales@example.com")
    (line,) = [
        line for line in ruled.daemon.log.splitlines() if line.startswith(outcome.queue_id + ":")
    ]
    assert "accepted" in line
    assert "<sales@example.com> alias -> <bob@example.com>" in line
