"""What the daemon answers and asks for over the milter protocol."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from miltertest import constants

from tests.harness.daemon import Daemon
from tests.harness.mta_client import ACTIONS, STEPS, Mta
from tests.harness.redis import RedisServer


def test_only_rcpt_and_the_end_of_the_message_are_answered(mta: Mta) -> None:
    for step in ("NR_CONN", "NR_MAIL", "NR_HDR", "NODATA", "NOEOH", "NOUNKNOWN", "SKIP"):
        assert mta.steps & getattr(constants, f"SMFIP_{step}"), step
    assert mta.steps & constants.SMFIP_HDR_LEADSPC
    assert not mta.steps & (constants.SMFIP_NR_RCPT | constants.SMFIP_NORCPT)


@pytest.mark.parametrize(
    ("recipient", "reply"),
    [
        ("<nobody@example.com>", "550 5.1.1"),
        ("<gone@example.com>", "550 5.2.1 Bob has left"),
        ("<slow@example.com>", "450 4.2.1"),
        ("<no@example.com>", "550 5.7.1 100%% no"),
        ("<broken@example.com>", "451 4.3.5"),
        ("<a@example.com>", "451 4.4.6"),
        ("<a@b@example.com>", "501 5.1.3"),
        ("<bob@example.com", "501 5.1.3"),
        ("<bob@example.com.>", "501 5.1.3"),
        ("<bob @example.com>", "501 5.1.3"),
        ("<@example.com>", "501 5.1.3"),
        ("<>", "501 5.1.3"),
        ("<" + "x" * 10_000 + "@example.com>", "501 5.1.3"),
        ("<SRS0=aaaa=AA=bank.example=alice@srs.example.net>", "550 5.7.1"),
        ("<me@gmail.example>", "continue"),
        ("<postmaster>", "continue"),
        ("<bob@[192.0.2.1]>", "continue"),
        ('<"bob"@example.com>', "continue"),
        ("<bob@example.com>", "continue"),
    ],
)
def test_rcpt_gets_its_reply(mta: Mta, recipient: str, reply: str) -> None:
    assert str(mta.rcpt(recipient)).startswith(reply)


def test_a_rules_text_beyond_ascii_or_too_long_stays_a_5xx(mta: Mta, redis: RedisServer) -> None:
    redis.cli("HSET", "alias:example.com", "long", "reject " + "x" * 5000)
    redis.cli("HSET", "alias:example.com", "utf8", "reject Grüße %s %n")
    assert str(mta.rcpt("<long@example.com>")).startswith("550 5.7.1 xxx")
    assert str(mta.rcpt("<utf8@example.com>")) == "550 5.7.1 Gr??e %%s %%n"


def test_row_4_a_rule_that_is_no_text_or_too_big_harms_itself_alone(
    mta: Mta, redis: RedisServer
) -> None:
    redis.cli("-x", "HSET", "alias:example.com", "big", stdin="x" * 1_000_000)
    redis.cli("SET", "alias:shop.example", "a string")
    redis.cli("HSET", "domain:shop.example", "unknown", "reject")
    redis.cli("HSET", "domain:typo.example", "unkown", "pass")
    for recipient in ("<big@example.com>", "<x@shop.example>", "<x@typo.example>"):
        assert str(mta.rcpt(recipient)).startswith("451 4.3.5"), recipient
    assert mta.rcpt("<bob@example.com>").kind == "continue"


def test_row_5_chains_and_fan_outs_end_in_bounded_time(mta: Mta, redis: RedisServer) -> None:
    chain = [x for n in range(1000) for x in (f"c{n}", f"c{n + 1}@example.com")]
    redis.cli("HSET", "alias:example.com", *chain)
    for level in range(20):
        targets = f"d{level + 1}a@example.com d{level + 1}b@example.com"
        redis.cli("HSET", "alias:example.com", f"d{level}a", targets, f"d{level}b", targets)
    assert str(mta.rcpt("<c0@example.com>")).startswith("451 4.4.6")
    assert str(mta.rcpt("<d0a@example.com>")).startswith("451 4.4.6")


def test_row_7_recipients_past_the_limit_are_deferred_and_the_others_fine(mta: Mta) -> None:
    answers = [mta.rcpt(f"<bob+{n}@example.com>") for n in range(1001)]
    assert {answer.kind for answer in answers[:1000]} == {"continue"}
    assert str(answers[1000]).startswith("452 4.5.3")


def test_the_edits_of_an_alias(mta: Mta) -> None:
    mta.rcpt("<Sales@Example.com>", "NOTIFY=FAILURE", "ORCPT=rfc822;x", "FOO=bar")
    ending = mta.message()
    assert ending.answer.kind == "continue"
    assert ending.of("delrcpt") == [("<Sales@Example.com>",)]
    assert ending.of("addrcpt") == [("<bob@example.com>", "NOTIFY=FAILURE ORCPT=rfc822;x")]
    assert ending.of("chgfrom") == []
    ((index, name, value),) = ending.of("insheader")
    assert (index, name) == ("0", "X-Alias-Milter-Trace")
    assert value.startswith(" v1 ")


def test_the_edits_of_a_forward(mta: Mta) -> None:
    mta.rcpt("<out@example.com>")
    ending = mta.message()
    ((sender,),) = ending.of("chgfrom")
    assert sender.endswith("=bank.example=alice@srs.example.net>")
    assert ending.of("addrcpt") == [("<me@gmail.example>",)]


def test_a_mailbox_and_a_foreign_recipient_cause_no_edits(mta: Mta) -> None:
    mta.rcpt("<bob@example.com>")
    mta.rcpt("<me@gmail.example>")
    assert mta.message().edits == []


def test_discard_alone_and_with_others(connect: Callable[..., Mta]) -> None:
    with connect() as mta:
        mta.mail()
        mta.rcpt("<drop@example.com>")
        assert mta.message().answer.kind == "discard"
        mta.mail()
        mta.rcpt("<drop@example.com>")
        mta.rcpt("<bob@example.com>")
        ending = mta.message()
        assert ending.answer.kind == "continue"
        assert ending.of("delrcpt") == [("<drop@example.com>",)]


def test_row_8_the_null_sender_is_never_rewritten(connect: Callable[..., Mta]) -> None:
    with connect() as mta:
        mta.mail("<>")
        mta.rcpt("<out@example.com>")
        assert mta.message().of("chgfrom") == []


def test_row_19_nothing_of_a_transaction_is_left_for_the_next(
    connect: Callable[..., Mta],
) -> None:
    with connect() as mta:
        mta.mail("<eve@evil.example>")
        mta.rcpt("<out@example.com>")
        mta.abort()
        mta.mail()
        assert mta.rcpt("<bob@example.com>").kind == "continue"
        assert mta.message().edits == []
        # After a message, without an abort
        mta.mail("<eve@evil.example>")
        mta.rcpt("<sales@example.com>")
        assert mta.message().of("chgfrom") == []


def test_row_11_each_person_gets_one_copy(mta: Mta) -> None:
    for recipient in ("<team@example.com>", "<bob@example.com>", "<BOB@example.com>"):
        mta.rcpt(recipient)
    ending = mta.message()
    deleted = {edit[0] for edit in ending.of("delrcpt")}
    assert deleted == {"<team@example.com>", "<bob@example.com>", "<BOB@example.com>"}
    added = [edit[0].lower() for edit in ending.of("addrcpt")]
    assert sorted(added) == ["<bob@example.com>", "<carol@example.com>"]


def test_row_20_an_mta_that_offers_too_little_is_told_so(
    connect: Callable[..., Mta], daemon: Daemon
) -> None:
    with connect(actions=ACTIONS & ~constants.SMFIF_CHGFROM) as mta:
        mta.mail()
        assert str(mta.rcpt("<bob@example.com>")).startswith("451 4.3.5")
    assert "change the sender" in daemon.log


def test_an_mta_that_wants_every_answer_gets_it(connect: Callable[..., Mta]) -> None:
    with connect(steps=constants.SMFIP_NOCONNECT) as mta:
        assert mta.mail().kind == "continue"
        assert mta.rcpt("<sales@example.com>").kind == "continue"
        ending = mta.message([("From", "alice@bank.example")])
        assert ending.of("addrcpt") == [("<bob@example.com>",)]
        assert ending.of("insheader")[0][2].startswith("v1 ")


def test_row_10_nothing_a_sender_writes_can_forge_a_log_line(
    connect: Callable[..., Mta], daemon: Daemon
) -> None:
    with connect(steps=STEPS) as mta:
        mta.mail('<"x\x1b[31m\u202e"@bank.example>')
        mta.rcpt('<"a\tb"@example.com>')
    lines = daemon.log
    assert "\x1b" not in lines
    assert "\u202e" not in lines


def test_handed_in_on_this_host_nobody_is_refused(connect: Callable[..., Mta]) -> None:
    with connect(client=("localhost", "127.0.0.1", 0)) as mta:
        mta.mail()
        assert mta.rcpt("nobody@example.com").kind == "continue"
        assert mta.rcpt("sales@example.com").kind == "continue"
        ending = mta.message()
        assert ending.of("delrcpt") == [("sales@example.com",)]
        mta.mail()
        assert mta.rcpt("broken@example.com").kind == "continue"
        assert str(mta.message().answer).startswith("451")
