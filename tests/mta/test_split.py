"""[reinject]: every recipient of one transaction its own right handling, through a real MTA."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest

from aliasmilter.mail.message import Message
from tests.harness.lab import Lab
from tests.harness.obstacle import Obstacle
from tests.harness.smtp import OUTSIDE, Client, message
from tests.mta.sealing import bank_dns, signed, start_sealing, verdicts

MTAS = ("postfix", "sendmail")
ALICE = "alice@bank.example"
NOTE = "X-Alias-Milter-Quarantine"
RULES = (
    "HSET domain:example.com unknown reject",
    "HSET alias:example.com bob bob@example.com out me@gmail.example * quarantine",
    'HSET alias:example.com both "bob@example.com, me@gmail.example"',
    "HSET domain:example.net unknown reject srs_domain example.net",
    "HSET alias:example.net out you@gmail.example",
)
# One envelope that stays, and two that do not go with it nor with each other.
THREE = ("bob@example.com", "out@example.com", "out@example.net")


@pytest.fixture
def split(make_lab: Callable[..., Lab]) -> Lab:
    lab = make_lab(reinject=True)
    lab.rules(*RULES)
    return lab


def line_of(lab: Lab, queue_id: str) -> str:
    """The daemon's log line of a message."""
    (line,) = [line for line in lab.daemon.log.splitlines() if line.startswith(f"{queue_id}:")]
    return line


def got(lab: Lab) -> list[tuple[str, str]]:
    """Who got mail, and the beginning of its envelope sender, when all is done."""
    lab.settle()
    return sorted((d.recipient, d.sender[:5]) for d in lab.world.deliveries)


def test_who_stays_keeps_the_sender_and_who_leaves_gets_srs_in_one_transaction(split: Lab) -> None:
    outcome = split.send(ALICE, "bob@example.com", "out@example.com")
    assert [reply.code for reply in outcome.rcpts] == [250, 250]
    (stays,) = split.world.wait_for("bob@example.com")
    (leaves,) = split.world.wait_for("me@gmail.example")
    assert stays.sender == ALICE
    assert leaves.sender.startswith("SRS0=")
    split.settle()
    assert len(split.world.deliveries) == 2


def test_the_log_line_names_both_queue_ids(split: Lab) -> None:
    outcome = split.send(ALICE, "bob@example.com", "out@example.com")
    (leaves,) = split.world.wait_for("me@gmail.example")
    found = re.search(r"<me@gmail\.example> as (\w+)", line_of(split, outcome.queue_id))
    assert found
    ids = [re.search(r"\bid (\w+)", str(r)) for r in leaves.message.get_all("Received", [])]
    # From the top: the listener's, and ours, which tells of the transaction it came from.
    assert [i[1] for i in ids[:2] if i] == [found[1], outcome.queue_id]


def test_one_rule_with_targets_here_and_elsewhere_is_split_too(split: Lab) -> None:
    assert split.send(ALICE, "both@example.com").accepted
    assert got(split) == [("bob@example.com", "alice"), ("me@gmail.example", "SRS0=")]


def test_each_way_out_has_its_own_srs_domain_in_one_transaction(split: Lab) -> None:
    assert split.send(ALICE, *THREE).accepted
    (stays,) = split.world.wait_for("bob@example.com")
    (one,) = split.world.wait_for("me@gmail.example")
    (two,) = split.world.wait_for("you@gmail.example")
    assert stays.sender == ALICE
    assert one.sender.endswith("@srs.example.net")
    assert two.sender.endswith("@example.net")


def test_the_null_sender_stays_null_in_every_copy(split: Lab) -> None:
    assert split.send("", "bob@example.com", "out@example.com").accepted
    assert got(split) == [("bob@example.com", ""), ("me@gmail.example", "")]


def test_a_copy_has_the_same_body_and_the_senders_wishes(split: Lab) -> None:
    body = "dots\r\n.\r\n..two\r\n8-bit: \u00fc\r\n"
    split.send(
        ALICE,
        "bob@example.com",
        "out@example.com",
        content=message(body=body),
        mail_options=["BODY=8BITMIME", "RET=HDRS", "ENVID=QQ1"],
        rcpt_options=["NOTIFY=FAILURE", "ORCPT=rfc822;out@example.com"],
    )
    (stays,) = split.world.wait_for("bob@example.com")
    (leaves,) = split.world.wait_for("me@gmail.example")
    assert leaves.content.partition(b"\r\n\r\n")[2] == body.encode()
    assert stays.content.partition(b"\r\n\r\n")[2] == body.encode()
    for copy in (stays, leaves):
        assert {"BODY=8BITMIME", "RET=HDRS", "ENVID=QQ1"} <= set(copy.mail_options)
        assert set(copy.rcpt_options) == {"NOTIFY=FAILURE", "ORCPT=rfc822;out@example.com"}


def test_headers_of_a_copy_are_the_senders_byte_for_byte(split: Lab) -> None:
    """The listener takes us for a client of this host, whose headers MTAs like to tidy up."""
    content = (
        b"From: Alice <alice@bank.example>\r\nTo: undisclosed\r\nX-Fold: a\r\n\t b\r\n  c\r\n"
        b"X-Empty:\r\nSubject:no space\r\n\r\nhello\r\n"
    )
    split.send(ALICE, "bob@example.com", "out@example.com", content=content)
    (leaves,) = split.world.wait_for("me@gmail.example")
    added = (b"received", b"x-alias-milter-trace")
    kept = [f for f in Message.parse(leaves.content).headers if f.key not in added]
    if split.mta_name == "sendmail":  # which completes headers for everybody: RFC 6409 section 8
        kept = [f for f in kept if f.key not in (b"date", b"message-id", b"to")]
        content = content.replace(b"To: undisclosed\r\n", b"")
    assert Message(tuple(kept), b"hello\r\n").as_bytes() == content


def test_quarantined_copies_carry_their_header_alone(split: Lab) -> None:
    assert split.send(ALICE, "bob@example.com", "guess@example.com").accepted
    (mine,) = split.world.wait_for("bob@example.com")
    (hit,) = split.world.wait_for("quarantine@example.net")
    assert "X-Alias-Milter-Quarantine" not in mine.message
    assert "guess@example.com" in str(hit.message["X-Alias-Milter-Quarantine"])


def test_the_other_targets_of_a_rule_with_a_quarantined_one_get_copies_without_the_header(
    split: Lab,
) -> None:
    split.rules('HSET alias:example.com mix "guess@example.com bob@example.com out@example.com"')
    assert split.send(ALICE, "mix@example.com").accepted
    assert [who for who, _ in got(split)] == [
        "bob@example.com", "me@gmail.example", "quarantine@example.net",
    ]  # fmt: skip
    noted = [d.recipient for d in split.world.deliveries if NOTE in d.message]
    assert noted == ["quarantine@example.net"]


@pytest.mark.parametrize("others", [["bob@example.com"], ["bob@example.com", "out@example.com"]])
@pytest.mark.parametrize("hit", ["first", "last"])
def test_a_hold_never_holds_anybody_elses_copy(
    make_lab: Callable[..., Lab], others: list[str], hit: str
) -> None:
    lab = make_lab({"quarantine": {"action": "hold"}}, reinject=True)
    lab.rules(*RULES)
    held = ["guess@example.com"]
    assert lab.send(ALICE, *(held + others if hit == "first" else others + held)).accepted
    lab.world.wait_for_total(len(others))
    senders = {d.recipient: d.sender for d in lab.world.deliveries}
    assert senders["bob@example.com"] == ALICE
    assert ("me@gmail.example" in senders) == (len(others) == 2)
    (entry,) = [entry for entry in lab.mta.queue() if entry.queue == "hold"]
    assert (entry.sender, entry.recipients) == (ALICE, ("guess@example.com",))
    lab.mta.release(entry.id)
    (released,) = lab.world.wait_for("guess@example.com")
    assert released.message["X-Alias-Milter-Quarantine"]
    lab.settle()
    assert len(lab.world.deliveries) == len(others) + 1


def test_what_is_held_and_stays_is_not_held_under_the_sender_of_what_is_held_and_leaves(
    make_lab: Callable[..., Lab],
) -> None:
    """Only the MTA's own transaction can be held, and it has one sender."""
    lab = make_lab({"quarantine": {"action": "hold"}}, reinject=True)
    lab.rules(*RULES, "HSET alias:example.net * you@gmail.example")
    outcome = lab.send(ALICE, "bob@example.com", "guess@example.com", "guess@example.net")
    assert [reply.ok for reply in outcome.rcpts] == [True, True, False]
    assert str(outcome.rcpts[2]).startswith("452 4.5.3")
    assert lab.send(ALICE, "guess@example.net").accepted
    lab.world.wait_for("bob@example.com")
    found = [entry for entry in lab.mta.queue() if entry.queue == "hold"]
    held = {entry.recipients: entry.sender[:5] for entry in found}
    assert held == {("guess@example.com",): "alice", ("you@gmail.example",): "SRS0="}


def test_a_discarded_recipient_costs_the_others_nothing(split: Lab) -> None:
    split.rules("HSET alias:example.com drop discard")
    assert split.send(ALICE, "drop@example.com", "bob@example.com", "out@example.com").accepted
    assert got(split) == [("bob@example.com", "alice"), ("me@gmail.example", "SRS0=")]


def test_a_copy_knows_the_aliases_it_has_passed(split: Lab) -> None:
    split.send(ALICE, "bob@example.com", "out@example.com")
    (leaves,) = split.world.wait_for("me@gmail.example")
    back = split.send("me@gmail.example", "out@example.com", content=leaves.content)
    assert str(back.data).startswith("554 5.4.6")


# ---- the listener fails


@pytest.fixture
def obstacle() -> Iterator[Obstacle]:
    with Obstacle() as between:
        yield between


@pytest.fixture
def behind(make_lab: Callable[..., Lab], obstacle: Obstacle) -> Lab:
    """A lab whose daemon reaches the listener only through the obstacle."""
    lab = make_lab({"reinject": {"server": obstacle.address, "timeout": 2.0}}, reinject=True)
    obstacle.target = lab.mta.reinject_port or 0
    lab.rules(*RULES)
    return lab


@pytest.mark.parametrize("behaviour", ["refuses", "refuses one", "hangs", "drops", "is down"])
def test_when_the_listener_fails_the_sender_keeps_the_whole_message(
    behind: Lab, obstacle: Obstacle, behaviour: str
) -> None:
    if behaviour == "hangs":
        obstacle.mute = True
    if behaviour == "refuses":
        obstacle.refusals["MAIL"] = "550 5.7.1 no"
    elif behaviour == "refuses one":
        obstacle.refusals["<me@gmail.example>"] = "550 5.1.1 no"
        behind.rules('HSET alias:example.com out "him@gmail.example me@gmail.example"')
    elif behaviour == "drops":
        obstacle.hang_up = "before"
    elif behaviour == "is down":
        obstacle.target = 1
    content = message()
    outcome = behind.send(ALICE, "bob@example.com", "out@example.com", content=content)
    assert str(outcome.data).startswith("451 4.3.0")
    assert got(behind) == []
    assert "[reinject] server: " in line_of(behind, queue_id_in(behind))
    # Once it is well again, nothing has been lost.
    obstacle.mute = False
    obstacle.hang_up = ""
    obstacle.refusals.clear()
    obstacle.target = behind.mta.reinject_port or 0
    assert behind.send(ALICE, "bob@example.com", "out@example.com", content=content).accepted
    behind.world.wait_for("bob@example.com")
    behind.world.wait_for("me@gmail.example")


def queue_id_in(lab: Lab) -> str:
    """Of the message that was refused at its end."""
    line = next(line for line in lab.daemon.log.splitlines() if "reinject-failed" in line)
    return line.partition(":")[0]


def test_a_connection_that_is_lost_after_the_final_dot_loses_no_copy(
    behind: Lab, obstacle: Obstacle
) -> None:
    """The listener has taken the copy, and nobody knows: one too many rather than one too few."""
    obstacle.hang_up = "after"
    content = message()
    outcome = behind.send(ALICE, "bob@example.com", "out@example.com", content=content)
    assert str(outcome.data).startswith("451 4.3.0")
    obstacle.hang_up = ""
    assert behind.send(ALICE, "bob@example.com", "out@example.com", content=content).accepted
    behind.world.wait_for("me@gmail.example", count=2)
    behind.settle()
    assert len(behind.world.wait_for("bob@example.com")) == 1


def test_a_retry_after_a_partial_success_reaches_everybody_once(
    behind: Lab, obstacle: Obstacle
) -> None:
    obstacle.refusals["<you@gmail.example>"] = "451 4.3.0 not now"
    content = message()
    assert str(behind.send(ALICE, *THREE, content=content).data).startswith("451 4.3.0")
    line = line_of(behind, queue_id_in(behind))
    assert "RCPT <you@gmail.example>: 451 4.3.0 not now" in line
    assert re.search(r"<me@gmail\.example> as \w+", line)
    obstacle.refusals.clear()
    again = behind.send(ALICE, *THREE, content=content)
    assert again.accepted
    everybody = [("bob@example.com", "alice"), ("me@gmail.example", "SRS0="),
                 ("you@gmail.example", "SRS0=")]  # fmt: skip
    assert got(behind) == everybody
    assert "<me@gmail.example> by an earlier try" in line_of(behind, again.queue_id)


@pytest.mark.parametrize(
    ("first", "again"),
    [
        (THREE, "out@example.com"),
        (("guess@example.com", "bob@example.com", "out@example.net"), "bob@example.com"),
        (("bob@example.com", "guess@example.com", "out@example.net"), "guess@example.com"),
    ],
)
def test_who_comes_again_alone_after_a_partial_success_is_served_once(
    behind: Lab, obstacle: Obstacle, first: tuple[str, ...], again: str
) -> None:
    obstacle.refusals["<you@gmail.example>"] = "451 4.3.0 not now"
    content = message()
    assert str(behind.send(ALICE, *first, content=content).data).startswith("451 4.3.0")
    assert behind.send(ALICE, again, content=content).accepted
    people = {"out@example.com": "me@gmail.example", "guess@example.com": "quarantine@example.net"}
    person = people.get(again, again)
    assert [who for who, _ in got(behind)].count(person) == 1


def test_a_client_that_did_not_hear_the_answer_gets_nobody_a_second_forwarded_copy(
    split: Lab,
) -> None:
    content = message()
    client = Client(split.mta.port)
    client.command(f"MAIL FROM:<{ALICE}>")
    for recipient in ("bob@example.com", "out@example.com"):
        client.command(f"RCPT TO:<{recipient}>")
    client.data(content)
    client.close()
    split.world.wait_for("me@gmail.example")
    assert split.send(ALICE, "bob@example.com", "out@example.com", content=content).accepted
    split.world.wait_for("bob@example.com", count=2)
    split.settle()
    assert len(split.world.wait_for("me@gmail.example")) == 1


def test_another_message_with_the_same_message_id_is_another_message(split: Lab) -> None:
    for body in ("one\r\n", "two\r\n"):
        assert split.send(ALICE, *THREE, content=message(body=body)).accepted
    assert len(split.world.wait_for("me@gmail.example", count=2)) == 2


def test_without_redis_at_the_end_of_the_message_the_copies_go_out_all_the_same(
    split: Lab,
) -> None:
    with Client(split.mta.port) as client:
        client.command(f"MAIL FROM:<{ALICE}>")
        for recipient in ("bob@example.com", "out@example.com"):
            assert client.command(f"RCPT TO:<{recipient}>").ok
        split.redis.stop()
        assert client.data(message()).ok
    assert got(split) == [("bob@example.com", "alice"), ("me@gmail.example", "SRS0=")]
    assert "not_remembered=" in split.daemon.log


def test_a_reinject_server_that_leads_back_here_is_recognised(
    make_lab: Callable[..., Lab], obstacle: Obstacle
) -> None:
    reinject = {"server": obstacle.address}
    lab = make_lab({"reinject": reinject}, main={"mynetworks": "127.0.0.0/8"})
    lab.rules(*RULES)
    # The listener for bounces has the milter.
    obstacle.target = lab.mta.srs_port or 0
    outcome = lab.send(ALICE, "bob@example.com", "out@example.com")
    assert str(outcome.data).startswith("451 4.3.0")
    assert "leads back to this milter" in lab.daemon.log
    assert got(lab) == []


# ---- ARC


def test_who_leaves_gets_a_seal_that_verifies_and_who_stays_gets_none(
    make_lab: Callable[..., Lab],
) -> None:
    with bank_dns() as dns:
        lab = start_sealing(make_lab, dns, reinject=True)
        lab.rules(*RULES)
        assert lab.send(ALICE, *THREE, content=signed(), xclient=OUTSIDE).accepted
        copies = {delivery.recipient: delivery for delivery in lab.world.wait_for_total(3)}
        for who in ("me@gmail.example", "you@gmail.example"):
            assert verdicts(copies[who].content, dns) == ("pass", "pass")
            assert "dkim=pass" in str(copies[who].message["ARC-Authentication-Results"])
        stays = copies["bob@example.com"]
        assert stays.sender == ALICE
        assert b"\r\nARC-" not in b"\r\n" + stays.content


def test_what_leaves_in_the_mtas_own_transaction_is_sealed_too(
    make_lab: Callable[..., Lab],
) -> None:
    """Nobody stays: one way out goes on, the other is submitted."""
    with bank_dns() as dns:
        lab = start_sealing(make_lab, dns, reinject=True)
        lab.rules(*RULES)
        assert lab.send(ALICE, *THREE[1:], content=signed(), xclient=OUTSIDE).accepted
        for delivery in lab.world.wait_for_total(2):
            assert verdicts(delivery.content, dns) == ("pass", "pass")
            assert delivery.sender.startswith("SRS0=")
