"""One SMTP session: what is answered, and what the MTA is asked to change."""

from __future__ import annotations

import tracemalloc

import pytest

from aliasmilter.forwarding.srs import DAY
from aliasmilter.forwarding.trace import HEADER as TRACE
from aliasmilter.mail.address import parse_address
from aliasmilter.mail.message import Message
from aliasmilter.mta.admission import MAX_COPIES
from aliasmilter.mta.quarantine import HEADER as NOTE
from aliasmilter.mta.transaction import Client, Edits
from tests.unit.fakes import ALICE, SRS, Listener, Scene, Served, Store, sealing

RULES = {
    "example.com": {
        "bob": "bob@example.com",
        "carol": "carol@example.com",
        "sales": "bob@example.com",
        "support": "bob@example.com",
        "out": "me@gmail.example",
        "both": "bob@example.com me@gmail.example",
        "gone": "disabled Bob has left",
        "old": "bob@example.com expires=2026-10-31",
        "wait": "defer",
        "no": "reject 100% no",
        "drop": "discard",
        "a": "b@example.com",
        "b": "a@example.com",
        "dangling": "nobody@example.com",
        "broken": "nonsense",
        "utf8": "j\u00f6rg@gmail.example",
        "picky": "bob@example.com block=spam.example",
        "here": "j\u00f6rg@example.com",
        "j\u00f6rg": "j\u00f6rg@example.com",
    },
    "catch.example": {"*": "bob@example.com"},
    "catch2.example": {"*": "quarantine"},
    "catch3.example": {"*": "bob@example.com me@gmail.example"},
    "catch4.example": {"*": "sales@example.com"},
    "own.example": {"out": "you@gmail.example", "bob": "bob@own.example"},
    "pass.example": {},
    "pass2.example": {
        "bob": "bob@pass2.example",
        "no": "reject",
        "salse": "reject",
        "stra\u00dfe": "disabled",
        "strasse": "discard",
    },
}
SETTINGS = {
    "own.example": {"srs_domain": "srs.own.example"},
    "pass.example": {"unknown": "pass"},
    "pass2.example": {"unknown": "pass"},
    "catch2.example": {"quarantine": "q2@example.com"},
}


def start(*, hold: bool = False, listener: Listener | None = None) -> Scene:
    return Scene(Store(RULES, SETTINGS), hold=hold, listener=listener)


def added(edits: Edits) -> list[str]:
    return [addition.path for addition in edits.recipients.add]


def values(edits: Edits, name: str) -> list[str]:
    return [value for found, value in edits.headers if found == name]


ME_FIRST = "<y@catch3.example>"
REPLIES = [
    ("<nobody@example.com>", "550 5.1.1"),
    ("<gone@example.com>", "550 5.2.1 Bob has left"),
    ("<old@example.com>", "550 5.2.1"),
    ("<wait@example.com>", "450 4.2.1"),
    ("<no@example.com>", "550 5.7.1 100% no"),
    ("<a@example.com>", "451 4.4.6"),
    ("<broken@example.com>", "451 4.3.5"),
    ("<dangling@example.com>", "451 4.3.5"),
    ("<utf8@example.com>", "550 5.6.7"),
    ("<a@b@example.com>", "501 5.1.3"),
    ("<bob@example.com", "501 5.1.3"),
    ("<>", "501 5.1.3"),
    ("", "501 5.1.3"),
    ("<bob\x00@example.com>", "501 5.1.3"),
    ("<bob@example.com\r\nX: y>", "501 5.1.3"),
    ("<" + "x" * 10_000 + "@example.com>", "501 5.1.3"),
]
ACCEPTED = ["<bob@example.com>", "<sales@example.com>", "<out@example.com>", "<drop@example.com>"]
ACCEPTED += ["<x@elsewhere.example>", "<x@pass.example>", "<x@catch.example>", "<postmaster>"]
ACCEPTED += ["<here@example.com>"]


@pytest.mark.parametrize(("argument", "reply"), REPLIES)
def test_who_is_refused_and_how(argument: str, reply: str) -> None:
    scene = start()
    scene.session.mail(ALICE, [])
    (said,) = scene.rcpt(argument)
    assert said.startswith(reply)
    (line,) = scene.log
    assert (line["event"], line["queue_id"], line["reply"]) == ("refused", "NOQUEUE", said)


@pytest.mark.parametrize("argument", ACCEPTED)
def test_who_is_accepted(argument: str) -> None:
    scene = start()
    scene.session.mail(ALICE, [])
    assert scene.rcpt(argument) == [""]


def test_a_malformed_address_is_refused_without_a_lookup() -> None:
    scene = start()
    scene.session.mail(ALICE, [])
    scene.rcpt("<a..b@example.com>", "<bob@example.com.>", "<@example.com>")
    assert scene.store.calls == []


@pytest.mark.parametrize(
    ("sender", "resolved"),
    [
        (b"<" + b"e" * 257 + b"@spam.example>", ""),
        (b'<""@spam.example>', '""@spam.example'),
        (b"<eve;x@Spam.Example.>", "eve;x@Spam.Example."),
        (b"<\xff@spam.example>", ""),
        (b"<@spam.example>", "@spam.example"),
    ],
)
def test_a_blocked_domain_is_blocked_though_the_sender_is_no_address(
    sender: bytes, resolved: str
) -> None:
    scene = start()
    scene.session.mail(sender, [], resolved=lambda: resolved)
    assert scene.rcpt("<picky@example.com>")[0].startswith("550 5.7.1")
    assert scene.rcpt("<bob@example.com>") == [""]


@pytest.mark.parametrize(
    ("argument", "resolved", "reply"),
    [
        ("<gone%example.com@pass.example>", "gone@example.com", "550 5.2.1"),
        ("<\u017false@pass2.example>", "\u017false@pass2.example", "550 5.7.1"),
        ("<stra\u00dfe@pass2.example>", "stra\u00dfe@pass2.example", "550 5.2.1"),
        ("<\u00fcmit@pass2.example>", "\u00fcmit@pass2.example", ""),
        ("<no%pass2.example@pass2.example>", "no@pass2.example", "550 5.7.1"),
        ("<bob+x%example.com@pass2.example>", "bob+x@example.com", ""),
        ("<bob+x%catch2.example@pass2.example>", "bob+x@catch2.example", ""),
        ("<bob+x%pass.example@pass2.example>", "bob+x%pass.example@pass2.example", ""),
        ("<nobody%example.com@example.com>", "bob@example.com", "550 5.1.1"),
    ],
)
def test_a_route_through_a_managed_domain_leads_nobody_past_the_rules(
    argument: str, resolved: str, reply: str
) -> None:
    scene = start()
    scene.session.mail(ALICE, [])
    said = scene.session.rcpt(argument.encode(), [], resolved=lambda: resolved)
    assert str(said or "").startswith(reply)
    if "catch2" in resolved:
        assert added(scene.end().edits) == ["<q2@example.com>"]


def test_what_only_looks_like_a_blocked_domain_is_not_taken_for_it() -> None:
    scene = start()
    for sender, resolved in (
        (b"<a(b@spam.example>", "a@mx.example.net"),
        (b"<x>", ""),
        (b"<>", ""),
    ):
        scene.session.mail(sender, [], resolved=lambda resolved=resolved: resolved)  # type: ignore[misc]
        assert scene.rcpt("<picky@example.com>") == [""]


def test_a_store_that_is_away_is_a_451_and_what_rcpt_decided_holds() -> None:
    scene = start()
    scene.session.mail(ALICE, [])
    assert scene.rcpt("<sales@example.com>") == [""]
    scene.store.down = True
    (reply,) = scene.rcpt("<carol@example.com>")
    assert reply.startswith("451 4.3.0")
    assert scene.log[-1]["problem"] == "switched off"
    assert added(scene.end().edits) == ["<bob@example.com>"]


def test_what_the_recipients_of_one_message_lead_to_is_bounded_and_the_others_wait() -> None:
    people = {f"m{n}": f"m{n}@example.com" for n in range(400)}
    scene = Scene(Store({"example.com": {"list": " ".join(people.values()), **people}}))
    scene.session.mail(ALICE, [])
    replies = scene.rcpt(*(f"<list+{n}@example.com>" for n in range(27)), "<m1@example.com>")
    assert replies[:25] == [""] * 25
    assert set(replies[25:]) == {"452 4.5.3 Too many recipients"}
    assert len(scene.end().edits.recipients.add) == MAX_COPIES
    assert scene.local().rcpt(*(f"<list+{n}@example.com>" for n in range(27))) == [""] * 27


@pytest.mark.parametrize("argument", ["<bob@example.com>", "<x@elsewhere.example>", "<postmaster>"])
def test_who_goes_nowhere_else_causes_no_edits(argument: str) -> None:
    assert start().send(argument) == Edits()


def test_an_alias_is_replaced_by_its_target_and_the_sender_stays() -> None:
    edits = start().send("<Sales+X@EXAMPLE.com>")
    assert edits.recipients.delete == ("<Sales+X@EXAMPLE.com>",)
    assert added(edits) == ["<bob+X@example.com>"]
    assert edits.sender is None
    assert [name for name, _ in edits.headers] == [TRACE]


@pytest.mark.parametrize(
    ("arguments", "deleted", "add"),
    [
        (["<bob@example.com>"] * 2, [], []),
        (["<sales@example.com>"] * 2, ["<sales@example.com>"], ["<bob@example.com>"]),
        (["<sales@example.com>", "<support@example.com>"],
         ["<sales@example.com>", "<support@example.com>"], ["<bob@example.com>"]),
        (["<sales@example.com>", "<bob@example.com>"], ["<sales@example.com>"], []),
        (["<BOB@example.com>", "<sales@example.com>"], ["<sales@example.com>"], []),
        (["<bob@example.com>", "<Bob@example.com>"],
         ["<bob@example.com>", "<Bob@example.com>"], ["<bob@example.com>"]),
        (["<@a.example:sales@example.com>"],
         ["<@a.example:sales@example.com>", "<sales@example.com>"], ["<bob@example.com>"]),
        (["<x@elsewhere.example>", "<X@elsewhere.example>"], [], []),
    ],
)  # fmt: skip
def test_row_11_each_person_gets_one_copy(
    arguments: list[str], deleted: list[str], add: list[str]
) -> None:
    edits = start().send(*arguments)
    assert list(edits.recipients.delete) == deleted
    assert added(edits) == add


def test_the_senders_dsn_wishes_go_along_and_nothing_else_does() -> None:
    scene = start()
    scene.session.mail(ALICE, [])
    given = [b"notify=SUCCESS,FAILURE", b"ORCPT=rfc822;sales@example.com", b"FOO=bar"]
    scene.rcpt("<sales@example.com>", parameters=[*given, b"NOTIFY=ALWAYS", b"ORCPT=rfc822;a b"])
    (addition,) = scene.end().edits.recipients.add
    assert addition.parameters == "notify=SUCCESS,FAILURE ORCPT=rfc822;sales@example.com"


def test_mail_that_leaves_gets_an_srs_sender_that_leads_back() -> None:
    scene = start()
    sender = scene.send("<out@example.com>").sender
    assert sender is not None
    assert sender.endswith(f"=bank.example=alice@{SRS}>")
    assert added(scene.send(sender, sender=b"<>")) == ["<alice@bank.example>"]
    assert added(scene.send(sender.lower(), sender=b"<>")) == ["<alice@bank.example>"]


def test_a_domain_of_its_own_srs_domain_uses_that_and_the_bounce_comes_back() -> None:
    scene = start()
    sender = scene.send("<out@own.example>").sender
    assert sender is not None
    assert sender.endswith("=alice@srs.own.example>")
    assert added(scene.send(sender, sender=b"<>")) == ["<alice@bank.example>"]


@pytest.mark.parametrize(
    ("sender", "kept"),
    [
        (b"<>", True),
        (b"", True),
        (b"<" + b"x" * 60 + b"@bank.example>", True),
        (b"<not an address>", True),
        (b"<MAILER-DAEMON>", True),
        (b"<already@srs.example.net>", True),
        (b"<a..b.@bank.example>", False),
        (b'<"a b"@bank.example>', False),
        (b"<bob@example.com>", False),
    ],
)
def test_which_senders_are_kept(sender: bytes, *, kept: bool) -> None:
    assert (start().send("<out@example.com>", sender=sender).sender is None) == kept


@pytest.mark.parametrize(
    "written", [b"<bob>", b"<x%example.com@mx.example.net>", b"<@example.com:>", b"<a@b@c>"]
)
def test_a_sender_is_who_the_mta_takes_it_for(written: bytes) -> None:
    scene = start()
    scene.session.mail(written, [], resolved=lambda: "carol@bank.example")
    assert scene.rcpt("<out@example.com>") == [""]
    assert str(scene.end().edits.sender).endswith(f"=bank.example=carol@{SRS}>")
    assert "sender_unchanged" not in scene.log[-1]


def test_a_return_address_forged_expired_or_somebody_elses() -> None:
    scene = start()
    genuine = scene.rewriter.forward(parse_address("alice@bank.example"), SRS)
    foreign = "<SRS0=aaaa=AA=bank.example=alice@other.example>"
    forged = f"<SRS0=aaaa=AA=bank.example=alice@{SRS}>"
    managed = "<SRS0=aaaa=AA=bank.example=alice@example.com>"
    assert scene.send(foreign) == Edits()
    scene.session.mail(b"<>", [])
    for argument in (forged, managed, f"<SRS0=x@{SRS}>"):
        assert scene.rcpt(argument)[0].startswith("550 5.7.1")
    (said,) = scene.rcpt(forged)
    scene.now += 22 * DAY
    (expired,) = scene.rcpt(genuine.path)
    assert expired.startswith("550 5.7.1")
    assert expired != said


def test_without_a_listener_the_recipient_of_another_kind_comes_again() -> None:
    scene = start()
    for first, second in (("bob", "out"), ("out", "bob"), ("both", "bob")):
        scene.session.mail(ALICE, [])
        replies = scene.rcpt(f"<{first}@example.com>", f"<{second}@example.com>")
        assert replies[0] == ""
        assert replies[1].startswith("452 4.5.3")
    scene.session.mail(ALICE, [])
    assert scene.rcpt("<drop@example.com>", "<out@example.com>") == ["", ""]
    assert scene.rcpt("<out@own.example>")[0].startswith("452 4.5.3")


def test_a_single_rule_with_both_kinds_is_accepted_with_srs_on_every_copy() -> None:
    edits = start().send("<both@example.com>")
    assert added(edits) == ["<bob@example.com>", "<me@gmail.example>"]
    assert edits.sender is not None


def test_with_a_listener_each_copy_has_its_own_sender() -> None:
    listener = Listener()
    edits = start(listener=listener).send("<both@example.com>", "<out@own.example>")
    assert added(edits) == ["<bob@example.com>"]
    assert edits.sender is None
    senders = {next(iter(copy.recipients)): copy.sender for copy in listener.copies}
    assert senders["<me@gmail.example>"].endswith(f"@{SRS}>")
    assert senders["<you@gmail.example>"].endswith("@srs.own.example>")


def test_mail_that_stays_asks_nobody_who_was_served() -> None:
    listener = Listener()
    start(listener=listener).send("<sales@example.com>", "<carol@example.com>")
    assert isinstance(listener.memory, Served)
    assert listener.memory.calls == 0


def test_the_body_of_mail_that_leaves_is_looked_at_where_it_is_examined() -> None:
    session = sealing(start()).session
    for recipient, wanted in ((b"<sales@example.com>", False), (b"<out@example.com>", True)):
        session.mail(ALICE, [])
        session.rcpt(recipient, [])
        assert session.wants_body is wanted


def test_results_that_claim_to_be_ours_are_in_no_copy() -> None:
    scene = sealing(start(listener=Listener()))
    scene.session.mail(ALICE, [])
    scene.rcpt("<both@example.com>")
    texts = (b" mx.example.net; spf=pass", b" other.example; spf=pass", b" MX.example.net; none")
    verdict = scene.end(*[("Authentication-Results", text) for text in texts])
    assert verdict.edits.remove == (("Authentication-Results", 3), ("Authentication-Results", 1))
    assert scene.listener
    (copy,) = scene.listener.copies
    left = Message.parse(copy.content).fields("Authentication-Results")
    assert [field.value for field in left] == [b" other.example; spf=pass"]


@pytest.mark.parametrize(
    ("helo", "said"), [("mail.bank.example", "mail.bank.example"), ("", "unknown")]
)
def test_a_copy_says_who_handed_the_message_in(helo: str, said: str) -> None:
    scene = start(listener=Listener())
    scene.session.helo(helo)
    scene.send("<both@example.com>")
    assert scene.listener
    (copy,) = scene.listener.copies
    assert f"\r\nReceived: from {said} (client.example [192.0.2.1])\r\n".encode() in copy.content
    assert b"\tby mx.example.net (alias-milter) with ESMTP id 4Tz;" in copy.content


def test_when_the_listener_fails_the_whole_message_waits() -> None:
    listener = Listener()
    scene = start(listener=listener)
    listener.fails = True
    scene.session.mail(ALICE, [])
    scene.rcpt("<both@example.com>")
    assert str(scene.end().reply).startswith("451 4.3.0")


def test_our_own_submission_is_recognised_when_it_comes_back() -> None:
    scene = start(listener=Listener())
    scene.session.helo("Alias-Milter.mx.example.net")
    scene.session.mail(ALICE, [])
    assert scene.rcpt("<bob@example.com>")[0].startswith("451 4.3.5")
    assert "leads back to this milter" in str(scene.log[-1]["problem"])


def test_discard_alone_and_with_others() -> None:
    scene = start()
    scene.session.mail(ALICE, [])
    assert scene.rcpt("<drop@example.com>") == [""]
    assert scene.end().discard
    assert scene.log[-1]["event"] == "discarded"
    edits = scene.send("<drop@example.com>", "<bob@example.com>")
    assert edits.recipients.delete == ("<drop@example.com>",)
    assert added(edits) == []


def test_a_catch_all_hit_goes_to_quarantine_and_its_copy_says_why() -> None:
    edits = start().send("<Guess@catch.example>")
    assert added(edits) == ["<q@example.net>"]
    (note,) = values(edits, NOTE)
    assert note == " recipient=Guess@catch.example;\n\trule=*@catch.example; reason=catch-all"


@pytest.mark.parametrize(
    ("to", "notes"),
    [
        (b" bob@example.com", []),
        (b" Guess@catch.example", [
            " recipient=guess@catch.example;\n\trule=*@catch.example; reason=catch-all"
        ]),
        (b" myguess@catch.example", []),
        (b" guess@catch.example.net, guess@catch.example-x", []),
        (b" A <a@b.example>,G\xc3\xbcnther\n\t<GUESS@catch.example.>;", [
            " recipient=guess@catch.example;\n\trule=*@catch.example; reason=catch-all"
        ]),
    ],
)  # fmt: skip
def test_other_recipients_learn_nothing_of_a_hidden_one_from_the_note(
    to: bytes, notes: list[str]
) -> None:
    scene = start()
    scene.session.mail(ALICE, [])
    scene.rcpt("<guess@catch.example>", "<bob@example.com>")
    assert values(scene.end(("To", to)).edits, NOTE) == notes


@pytest.mark.parametrize("listener", [None, Listener()])
def test_the_reader_of_one_quarantine_learns_nothing_of_who_is_hidden_in_another(
    listener: Listener | None,
) -> None:
    scene = start(listener=listener)
    scene.session.mail(ALICE, [])
    scene.rcpt("<seen@catch.example>", "<hidden@catch2.example>")
    notes = values(scene.end(("To", b" seen@catch.example")).edits, NOTE)
    assert notes == [
        " recipient=seen@catch.example;\n\trule=*@catch.example; reason=catch-all",
        " recipient=undisclosed; reason=catch-all",
    ]


@pytest.mark.parametrize("arguments", [["<x@catch3.example>"], ["<x@catch3.example>", ME_FIRST]])
def test_what_is_held_is_held_for_all_its_targets_and_nothing_of_it_is_submitted(
    arguments: list[str],
) -> None:
    listener = Listener()
    scene = start(hold=True, listener=listener)
    edits = scene.send(*arguments)
    assert edits.quarantine
    assert sorted(added(edits))[:2] == ["<bob@example.com>", "<me@gmail.example>"]
    assert not listener.copies


def test_what_is_held_stays_held_when_its_targets_are_aliases() -> None:
    scene = start(hold=True)
    edits = scene.send("<x@catch4.example>")
    assert added(edits) == ["<bob@example.com>"]
    assert edits.quarantine == "catch-all: x@catch4.example"


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("listener", [None, Listener()])
def test_somebody_who_is_named_directly_too_is_not_held(
    listener: Listener | None, *, reverse: bool
) -> None:
    scene = start(hold=True, listener=listener).local()
    arguments = ["<x@catch.example>", "<bob@example.com>"]
    edits = scene.send(*(reversed(arguments) if reverse else arguments))
    assert not edits.quarantine


def test_a_retry_for_fewer_recipients_serves_nobody_a_second_time() -> None:
    listener = Listener()
    scene = start(listener=listener)
    identified = ("Message-ID", b" <1@bank.example>")
    scene.session.mail(ALICE, [])
    scene.rcpt("<bob@example.com>", "<out@example.com>", "<out@own.example>")
    listener.fails_for = "<you@gmail.example>"
    assert str(scene.end(identified).reply).startswith("451")
    scene.session.mail(ALICE, [])
    scene.rcpt("<out@example.com>")
    verdict = scene.end(identified)
    assert (verdict.reply, verdict.discard) == (None, True)
    scene.session.mail(ALICE, [])
    scene.rcpt("<out@example.com>", "<out@own.example>")
    listener.fails_for = ""
    assert scene.end(identified).discard
    assert [list(copy.recipients) for copy in listener.copies] == [
        ["<me@gmail.example>"], ["<you@gmail.example>"],
    ]  # fmt: skip


def test_a_body_is_let_go_of_when_the_message_is_answered() -> None:
    scene = start()
    scene.session.mail(ALICE, [])
    scene.rcpt("<out@example.com>")
    tracemalloc.start()
    scene.session.body(bytes(1_000_000))
    scene.end()
    octets, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert octets < 100_000


def test_mail_handed_in_on_this_host_may_have_any_number_of_recipients() -> None:
    scene = start().local()
    scene.session.mail(b"root@mx.example.net", [])
    many = [f"u{number}@elsewhere.example" for number in range(2000)]
    assert set(scene.rcpt(*many)) == {""}
    assert scene.end().reply is None


def test_a_hold_is_for_the_whole_message_so_others_come_again() -> None:
    scene = start(hold=True)
    edits = scene.send("<guess@catch.example>")
    assert edits.quarantine == "catch-all: guess@catch.example"
    assert added(edits) == ["<bob@example.com>"]
    for arguments in (["<guess@catch.example>", "<carol@example.com>"],
                      ["<carol@example.com>", "<guess@catch.example>"]):  # fmt: skip
        scene.session.mail(ALICE, [])
        assert [reply[:9] for reply in scene.rcpt(*arguments)] == ["", "452 4.5.3"]


def test_a_message_that_passed_this_alias_before_is_a_loop_and_another_alias_is_none() -> None:
    scene = start()
    (stamp,) = values(scene.send("<sales@example.com>"), TRACE)
    scene.session.mail(ALICE, [])
    scene.rcpt("<support@example.com>")
    assert scene.end((TRACE, stamp.encode())).reply is None
    scene.session.mail(ALICE, [])
    scene.rcpt("<SALES@example.com>")
    assert str(scene.end((TRACE, stamp.encode())).reply).startswith("554 5.4.6")
    assert (scene.log[-1]["event"], scene.log[-1]["reason"]) == ("refused", "loop")


def test_a_copy_passes_only_the_aliases_that_lead_to_its_own_recipients() -> None:
    listener = Listener()
    scene = start(listener=listener)
    scene.send("<sales@example.com>", "<out@example.com>")
    (copy,) = listener.copies
    (trace,) = Message.parse(copy.content).fields(TRACE)
    scene.session.mail(ALICE, [])
    scene.rcpt("<sales@example.com>")
    assert scene.end((TRACE, trace.value)).reply is None
    scene.session.mail(ALICE, [])
    scene.rcpt("<out@example.com>")
    assert str(scene.end((TRACE, trace.value)).reply).startswith("554 5.4.6")


@pytest.mark.parametrize(("hops", "reply"), [(5, ""), (6, "554 5.4.6")])
def test_too_many_hops_are_a_loop(hops: int, reply: str) -> None:
    scene = start()
    scene.session.mail(ALICE, [])
    scene.rcpt("<bob@example.com>")
    verdict = scene.end(*[("received", b" from x")] * hops)
    assert str(verdict.reply or "")[:9] == reply


def test_handed_in_on_this_host_nobody_is_refused_for_good_and_what_must_wait_waits() -> None:
    scene = start().local()
    scene.session.mail(b"root@mx.example.net", [])
    assert set(scene.rcpt("nobody@example.com", "gone@example.com", "a@b@c", "both@example.com",
                          "bob@example.com")) == {""}  # fmt: skip
    edits = scene.end().edits
    assert edits.recipients.delete == ("both@example.com",)
    scene.session.mail(b"root@mx.example.net", [])
    assert scene.rcpt("broken@example.com") == [""]
    assert str(scene.end().reply).startswith("451 4.3.5")


def test_after_a_lost_event_nothing_is_accepted_until_the_next_transaction() -> None:
    scene = start()
    scene.session.mail(ALICE, [])
    scene.rcpt("<bob@example.com>")
    scene.session.broke(for_good=False)
    assert scene.rcpt("<carol@example.com>")[0].startswith("451 4.3.0")
    assert str(scene.end().reply).startswith("451 4.3.0")
    assert scene.send("<bob@example.com>") == Edits()
    scene.session.broke(for_good=True)
    scene.session.broke(for_good=False)
    scene.session.mail(ALICE, [])
    assert scene.rcpt("<bob@example.com>")[0].startswith("451 4.3.0")


@pytest.mark.parametrize("reverse", [False, True])
def test_what_cannot_be_split_is_held_for_all_when_it_is_for_one(*, reverse: bool) -> None:
    arguments = ["<guess@catch.example>", "<carol@example.com>"]
    edits = start(hold=True).local().send(*(reversed(arguments) if reverse else arguments))
    assert edits.quarantine == "catch-all: guess@catch.example"


@pytest.mark.parametrize("aborted", [True, False])
def test_row_19_nothing_of_a_transaction_is_left_for_the_next(*, aborted: bool) -> None:
    scene = start(hold=True)
    scene.session.mail(ALICE, [b"SMTPUTF8"], "alice")
    scene.rcpt("<guess@catch.example>")
    scene.session.header("Received", b" from x")
    scene.session.body(b"secret")
    if aborted:
        scene.session.abort()
    assert scene.send("<carol@example.com>") == Edits()
    assert "guess" not in str(scene.log[-1])


def test_a_body_is_looked_at_only_when_copies_are_made_and_not_after_an_abort() -> None:
    scene = start(listener=Listener())
    session = scene.session
    session.mail(ALICE, [])
    wanted = []
    for step in (lambda: scene.rcpt("<sales@example.com>"),
                 lambda: scene.rcpt("<both@example.com>"), session.abort):  # fmt: skip
        step()
        wanted.append(session.wants_body)
    assert wanted == [False, True, False]


def test_smtputf8_lets_a_recipient_beyond_ascii_leave() -> None:
    scene = start()
    scene.session.mail(ALICE, [b"BODY=8BITMIME", b"SMTPUTF8"])
    assert scene.rcpt("<utf8@example.com>") == [""]
    assert added(scene.end().edits) == ["<j\u00f6rg@gmail.example>"]


def test_row_7_past_the_limit_recipients_are_deferred() -> None:
    scene = start()
    scene.session.mail(ALICE, [])
    replies = scene.rcpt(*(f"<bob+{n}@example.com>" for n in range(1001)))
    assert set(replies[:1000]) == {""}
    assert replies[1000].startswith("452 4.5.3")


def test_a_client_without_an_address_is_local_in_the_log() -> None:
    scene = start()
    scene.session.connected(Client("localhost", None, None))
    scene.session.mail(ALICE, [])
    scene.rcpt("<nobody@example.com>", "<bob@example.com>")
    scene.end()
    assert [line["client"] for line in scene.log] == ["local", "local"]


def test_one_line_a_message_with_queue_id_and_verdicts() -> None:
    scene = start()
    scene.send("<sales@example.com>", "<drop@example.com>")
    (line,) = scene.log
    assert line["queue_id"] == "4Tz"
    assert line["recipients"] == [
        "<sales@example.com> alias -> <bob@example.com>",
        "<drop@example.com> discarded",
    ]
