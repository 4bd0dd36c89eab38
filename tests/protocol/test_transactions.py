"""What follows one transaction, or a broken one, on the same connection or another."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from tests.harness.daemon import Daemon
from tests.harness.mta_client import ACTIONS, STEPS, Mta, dial, drain, packet
from tests.harness.redis import RedisServer

Connect = Callable[..., Mta]


def edited(mta: Mta, recipient: str = "<sales@example.com>") -> list[tuple[str, ...]]:
    """The recipients added to a whole new message."""
    mta.mail()
    assert mta.rcpt(recipient).kind == "continue"
    ending = mta.message()
    assert ending.answer.kind == "continue"
    return ending.of("addrcpt")


def test_an_edit_by_redis_cli_holds_for_the_next_rcpt_on_the_same_connection(
    mta: Mta, redis: RedisServer
) -> None:
    assert mta.rcpt("<new@example.com>").text.startswith("550 5.1.1")
    redis.cli("HSET", "alias:example.com", "new", "carol@example.com")
    assert mta.rcpt("<new@example.com>").kind == "continue"
    redis.cli("HSET", "alias:example.com", "new", "reject gone again")
    assert mta.rcpt("<New@example.com>").text == "550 5.7.1 gone again"
    # A removal is believed when another domain that was seen is there still.
    redis.cli("HSET", "domain:other.example", "unknown", "reject")
    assert mta.rcpt("<nobody@other.example>").text.startswith("550 5.1.1")
    redis.cli("DEL", "domain:example.com")
    assert mta.rcpt("<nobody@example.com>").kind == "continue"
    assert mta.message().of("addrcpt") == [("<carol@example.com>",)]


def test_an_edit_after_rcpt_no_longer_changes_that_recipient(mta: Mta, redis: RedisServer) -> None:
    mta.rcpt("<sales@example.com>")
    redis.cli("HSET", "alias:example.com", "sales", "carol@example.com")
    assert mta.message().of("addrcpt") == [("<bob@example.com>",)]


def test_messages_on_one_connection_do_not_know_of_each_other(mta: Mta) -> None:
    mta.rcpt("<out@example.com>")
    first = mta.message(queue_id="FIRST")
    assert first.of("addrcpt") == [("<me@gmail.example>",)]
    for _ in range(3):
        mta.mail("<other@bank.example>")
        assert mta.rcpt("<sales@example.com>").kind == "continue"
        later = mta.message(queue_id="LATER")
        assert later.of("addrcpt") == [("<bob@example.com>",)]
        assert later.of("delrcpt") == [("<sales@example.com>",)]
        assert later.of("chgfrom") == []


def test_a_refused_recipient_leaves_nothing_behind(mta: Mta) -> None:
    mta.rcpt("<out@example.com>")
    assert mta.rcpt("<nobody@example.com>").text.startswith("550")
    assert mta.rcpt("<bob@example.com>").text.startswith("452 4.5.3")
    ending = mta.message()
    assert ending.of("delrcpt") == [("<out@example.com>",)]
    assert ending.of("addrcpt") == [("<me@gmail.example>",)]


@pytest.mark.parametrize("stage", ["mail", "rcpt", "headers", "body"])
def test_a_transaction_that_ends_at_any_stage_leaves_nothing_for_the_next(
    splitting_daemon: Daemon, stage: str
) -> None:
    with Mta(splitting_daemon.socket) as mta:
        mta.mail("<eve@evil.example>", "SMTPUTF8")
        if stage != "mail":
            mta.rcpt("<out@example.com>")
        if stage in ("headers", "body"):
            mta.content([("Received", " loop")] * 60, "x" * 1000 if stage == "body" else "")
        mta.abort()
        mta.mail()
        # SMTPUTF8 was the other message's.
        assert mta.rcpt("<bob@example.com>").kind == "continue"
        assert mta.message().edits == []


def test_mail_again_without_an_abort_starts_anew(mta: Mta) -> None:
    mta.rcpt("<out@example.com>")
    mta.mail("<second@bank.example>")
    assert mta.rcpt("<bob@example.com>").kind == "continue"
    assert mta.message().edits == []


def test_a_client_that_disappears_in_the_middle_of_a_message_harms_nobody(
    connect: Connect, daemon: Daemon
) -> None:
    for _ in range(20):
        with connect() as gone:
            gone.mail()
            gone.rcpt("<sales@example.com>")
            gone.content([("Subject", " half a mess")])
    with connect() as mta:
        assert edited(mta) == [("<bob@example.com>",)]


def test_sessions_at_the_same_time_do_not_mix(connect: Connect) -> None:
    with connect() as first, connect() as second, connect() as third:
        for mta, sender in ((first, "<a@a.example>"), (second, "<b@b.example>"), (third, "<>")):
            mta.mail(sender)
        assert first.rcpt("<out@example.com>").kind == "continue"
        assert second.rcpt("<sales@example.com>").kind == "continue"
        assert third.rcpt("<out@example.com>").kind == "continue"
        assert third.message().of("chgfrom") == []
        assert second.message().of("addrcpt") == [("<bob@example.com>",)]
        ((sender,),) = first.message().of("chgfrom")
        assert sender.endswith("=a.example=a@srs.example.net>")


def test_a_second_smtp_session_on_a_kept_milter_connection_is_served(mta: Mta) -> None:
    mta.rcpt("<out@example.com>")
    mta.send("K", b"")
    mta.step("C", hostname="next.example", family="4", port=2525, address="192.0.2.99")
    mta.step("H", helo="next.example")
    assert edited(mta) == [("<bob@example.com>",)]


# Garbage

GARBAGE = {
    "smtp": b"EHLO client.example\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x5a" * 200,
    "http": b"GET / HTTP/1.0\r\n\r\n",
    "huge length": b"\xff\xff\xff\xff" + b"O" + b"x" * 1000,
    "length of nothing": b"\x00\x00\x00\x00" * 100,
    "unknown command": packet("?", b"x"),
    "short negotiation": packet("O", b"\x00"),
    "ancient version": packet("O", struct.pack("!LLL", 1, ACTIONS, STEPS)),
    "rcpt before all": packet("R", b"<bob@example.com>\0"),
    "end before all": packet("E"),
}


@pytest.mark.parametrize("garbage", GARBAGE)
def test_garbage_ends_its_connection_and_the_service_goes_on(
    connect: Connect, daemon: Daemon, garbage: str
) -> None:
    workers = daemon.workers
    with dial(daemon.socket) as raw:
        raw.sendall(GARBAGE[garbage])
        drain(raw)
    with connect() as mta:
        assert edited(mta) == [("<bob@example.com>",)]
    assert daemon.workers == workers


@pytest.mark.parametrize(
    "broken",
    [
        packet("C", b"client.example\x00"), packet("C", b"no end"), packet("M", b""),
        packet("R", b"no end"), packet("R", b""), packet("D", b"M"), packet("D", b"Mi\x00"),
        packet("L", b"Subject\x00"), packet("L", b""), packet("O", b"again"), packet("Z"),
    ],
)  # fmt: skip
def test_a_broken_command_within_a_session_harms_that_session_alone(
    connect: Connect, daemon: Daemon, broken: bytes
) -> None:
    workers = daemon.workers
    with connect() as fine:
        fine.mail()
        with connect() as mta:
            mta.mail()
            mta.rcpt("<sales@example.com>")
            mta.socket.sendall(broken)
            drain(mta.socket)
        assert fine.rcpt("<sales@example.com>").kind == "continue"
        assert fine.message().of("addrcpt") == [("<bob@example.com>",)]
    assert daemon.workers == workers


def test_a_message_for_nobody_that_was_accepted_is_kept_by_its_sender(mta: Mta) -> None:
    mta.mail()
    assert mta.rcpt("<nobody@example.com>").kind != "continue"
    assert mta.message().answer.text.startswith("451 4.3.0")
