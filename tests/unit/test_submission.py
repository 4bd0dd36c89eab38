"""Who may send as what, and answers that must not show the mailbox."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from aliasmilter.config import SubmissionSection
from aliasmilter.forwarding.arc import POSTFIX, SENDMAIL, Transport
from aliasmilter.forwarding.author import NoAuthorError, author_addresses
from aliasmilter.forwarding.identity import MAX_IDS, Keeper, Token, answered, message_id
from aliasmilter.mail.address import parse_address
from aliasmilter.mail.message import HeaderField, Message
from aliasmilter.mta.submission import (
    Answer,
    IdentityMode,
    Memory,
    Submission,
    disguised,
    make_submission,
)
from aliasmilter.mta.transaction import Client, Edits, Verdict
from aliasmilter.store.redis import AliasStore
from tests.unit.fakes import Scene, Store

RULES = {
    "example.com": {
        "bob": "bob@example.com",
        "carol": "carol@example.com",
        "sales": "bob@example.com",
        "press": "bob@example.com",
        "team": "bob@example.com carol@example.com",
        "out": "me@gmail.example",
        "gone": "disabled",
        "a": "b@example.com",
        "b": "a@example.com",
        "dave": "dave@example.com, copies@gmail.example",
        "desk": "dave@example.com",
        "info": "pat@pass.example",
        "office": "eve@local.example",
        "büro": "bob@example.com",
        "mixed": "bob@example.com guess@catch.example",
    },
    "catch.example": {"*": "quarantine"},
    "pass.example": {},
}
SETTINGS = {"pass.example": {"unknown": "pass"}}
BOB = "bob@example.com"


class Memories:
    """A store for what is remembered."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}

    def put(self, tokens: list[Token]) -> None:
        self.values.update((token.digest, token.value) for token in tokens)

    def get(self, digests: list[str]) -> list[bytes | None]:
        return [self.values.get(digest) for digest in digests]


def scene(identity: str = "off", **options: object) -> Scene:
    made = Scene(Store(RULES, SETTINGS))
    service = made.session._service
    policy = replace(service.decider.policy, local_domains=frozenset({"local.example"}))
    service = replace(service, decider=replace(service.decider, policy=policy))
    memories = Memories()
    memory = Memory(Keeper(["a secret"]), memories.get, memories.put)  # type: ignore[arg-type]
    settings: dict[str, object] = {
        "decider": service.decider,
        "owners_only": True,
        "logins": {"b.jones": [BOB]},
        "login_domain": "example.com",
        "identity": IdentityMode(identity),
        "memory": None if identity == "off" else memory,
    }
    submission = Submission(**settings | options)  # type: ignore[arg-type]
    made.session._service = replace(service, submission=submission)
    return made


def sent(
    made: Scene, login: str, sender: str, *headers: tuple[str, str], to: str = "x@else.example"
) -> str | Verdict:
    """The reply to RCPT when it is refused, else the verdict at the end."""
    made.session.mail(f"<{sender}>".encode(), [], login)
    (reply,) = made.rcpt(f"<{to}>")
    if reply:
        return reply
    fields = headers or (("From", f" {sender}"),)
    return made.end(*((name, value.encode()) for name, value in fields))


def edits(result: str | Verdict) -> Edits:
    assert isinstance(result, Verdict)
    assert result.reply is None
    return result.edits


OWN = [BOB, "bob+x@example.com", "BOB@example.com", "sales@example.com", "sales+x@example.com"]
OWN += ["team@example.com", "anybody@unmanaged.example", ""]


@pytest.mark.parametrize("sender", OWN)
@pytest.mark.parametrize("login", [BOB, "Bob@Example.com", "bob", "b.jones"])
def test_a_login_sends_as_its_mailboxes_and_the_aliases_that_lead_there(
    sender: str, login: str
) -> None:
    edits(sent(scene(), login, sender, ("From", f" {sender or BOB}")))


FOREIGN = ["carol@example.com", "nobody@example.com", "out@example.com", "gone@example.com"]
FOREIGN += ["guess@catch.example", "SRS0=ceo@example.com", "srs1-ceo@catch.example"]


@pytest.mark.parametrize("sender", FOREIGN)
def test_anything_else_in_a_managed_domain_is_refused_by_name(sender: str) -> None:
    reply = sent(scene(), BOB, sender)
    assert reply == f"553 5.7.1 <{sender}> is no address that {BOB} may send from"


@pytest.mark.parametrize("login", ["mallory", "x@other.example", "", "@", "b.jones@example.com"])
def test_a_login_without_a_mailbox_owns_nothing(login: str) -> None:
    made = scene()
    result = sent(made, login or "?", BOB)
    assert str(result).startswith("553 5.7.1")


@pytest.mark.parametrize(
    ("transport", "login"), [(SENDMAIL, "b+3Djones+2Bx"), (POSTFIX, "b=jones+x")]
)
def test_a_login_is_read_as_each_mta_writes_it(transport: Transport, login: str) -> None:
    made = scene(logins={"b=jones+x": [BOB]})
    made.session.connected(Client("client.example", "192.0.2.1", 4321), transport)
    edits(sent(made, login, BOB))
    reply = sent(made, login, "carol@example.com")
    assert str(reply).endswith("may send from")
    assert "that b=jones+x may" in str(reply)


def test_without_a_login_nobody_is_asked() -> None:
    edits(sent(scene(), "", "carol@example.com"))


def test_anyone_may_send_when_the_configuration_says_so() -> None:
    edits(sent(scene(owners_only=False), BOB, "carol@example.com"))


def test_rules_that_cannot_be_decided_and_a_store_that_is_away_are_temporary() -> None:
    made = scene()
    assert str(sent(made, BOB, "a@example.com")).startswith("451 4.4.6")
    made.store.down = True
    assert str(sent(made, BOB, BOB)).startswith("451 4.3.0")


@pytest.mark.parametrize(
    "author",
    [
        "carol@example.com",
        "Bob <carol@example.com>",
        "bob@example.com, carol@example.com",
        '"bob@example.com" <carol@example.com>',
        "bob@example.com (x) <carol@example.com>",
        "carol@example.com <bob@example.com",
        "a@b@example.com",
        '"carol"@example.com',
    ],
)
def test_the_from_field_must_be_the_login_s_too(author: str) -> None:
    result = sent(scene(), BOB, BOB, ("From", f" {author}"))
    assert isinstance(result, Verdict)
    assert str(result.reply).startswith("553 5.7.1")


@pytest.mark.parametrize(
    "author", ["Bob <bob @ example.com>", "Bob <bob@example.com> , <bob@example.com>"]
)
def test_white_space_where_it_may_stand_makes_no_other_author(author: str) -> None:
    edits(sent(scene(), BOB, BOB, ("From", f" {author}")))  # RFC 5322 section 3.4.1


def test_a_second_from_field_is_no_way_around() -> None:
    result = sent(scene(), BOB, BOB, ("From", f" {BOB}"), ("FROM", " carol@example.com"))
    assert isinstance(result, Verdict)
    assert str(result.reply).startswith("553 5.7.1 <carol@example.com>")


def test_a_message_without_from_goes_as_its_sender() -> None:
    edits(sent(scene(), BOB, BOB, ("To", " x@else.example")))


QUESTION = (("From", " alice@bank.example"), ("Message-ID", " <1@bank.example>"))
REPLY = ("In-Reply-To", " <1@bank.example>")


def asked(made: Scene, to: str = "sales@example.com") -> Scene:
    edits(sent(made, "", "alice@bank.example", *QUESTION, to=to))
    return made


def test_an_answer_shows_the_alias_instead_of_the_mailbox() -> None:
    made = asked(scene("rewrite"))
    answer = edits(
        sent(
            made, BOB, BOB,
            ("Subject", " Re: x"),
            ("From", ' "Bob, the one" <Bob@example.com>'),
            REPLY,
            ("Reply-To", " bob@example.com, carol@example.com"),
            ("Sender", " not-bob@example.com, bob@example.com.example"),
            ("Cc", " bob@example.com"),
        )
    )  # fmt: skip
    assert answer.sender == "<sales@example.com>"
    assert answer.change == (
        ("From", 1, ' "Bob, the one" <sales@example.com>'),
        ("Reply-To", 1, " sales@example.com, carol@example.com"),
    )


def test_of_several_fields_those_that_show_the_mailbox_are_changed() -> None:
    fields = [("Reply-To", f" {who}@example.com") for who in ("carol", "bob", "carol", "bob")]
    answer = edits(sent(asked(scene("rewrite")), BOB, BOB, ("From", f" {BOB}"), *fields, REPLY))
    assert [(name, number) for name, number, _ in answer.change] == [
        ("From", 1), ("Reply-To", 2), ("Reply-To", 4),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "field",
    [
        ("From", ' "bob"@example.com'),
        ("From", " bob(x)@example.com"),
        ("From", " Bob < bob @ example.com >"),
        ("Reply-To", " bob+later@example.com"),
        ("Reply-To", " X <x@else.example> , bob @example.com"),
        ("To", " alice@bank.example"),  # the MTA writes From, when it is Sendmail
    ],
)
def test_an_answer_that_would_still_show_the_mailbox_is_refused(field: tuple[str, str]) -> None:
    fields = [("From", f" {BOB}"), field] if field[0] == "Reply-To" else [field]
    result = sent(asked(scene("rewrite")), BOB, BOB, *fields, REPLY)
    assert isinstance(result, Verdict)
    assert str(result.reply).startswith("550 5.7.1 This answers mail to <sales@example.com>")


def test_a_from_of_very_many_addresses_is_refused_and_few_of_them_looked_up() -> None:
    made = scene()
    many = ", ".join(f"{n}@d{n}.example" for n in range(3000))
    result = sent(made, BOB, BOB, ("From", f" {BOB}, {many}"))
    assert isinstance(result, Verdict)
    assert str(result.reply) == f"553 5.7.1 too many addresses in From: {BOB} may not send that"
    assert sum(map(len, made.store.calls)) < 150


@pytest.mark.parametrize(
    "fields", [[", ".join([BOB] * 150)], [BOB] * 150, [", ".join(["x@y.z"] * 150)]]
)
def test_an_answer_that_shows_the_mailbox_very_often_is_refused_and_few_are_looked_up(
    fields: list[str],
) -> None:
    made = asked(scene("rewrite"))
    made.store.calls.clear()
    replies = [("Reply-To", f" {text}") for text in fields]
    result = sent(made, BOB, BOB, ("From", f" {BOB}"), *replies, REPLY)
    assert isinstance(result, Verdict)
    assert str(result.reply).startswith("550 5.7.1 This answers mail to <sales@example.com>")
    assert len(made.store.calls) < 10


def test_a_field_that_cannot_be_read_shows_nobody() -> None:
    fields = (("From", f" {BOB}"), ("Reply-To", " nobody at all"), REPLY)
    answer = edits(sent(asked(scene("rewrite")), BOB, BOB, *fields))
    assert answer.change == (("From", 1, " sales@example.com"),)


def test_an_answer_from_a_subaddress_shows_the_alias_in_the_envelope_too() -> None:
    made = asked(scene("rewrite"))
    answer = edits(sent(made, BOB, "bob+x@example.com", ("From", f" {BOB}"), REPLY))
    assert answer.sender == "<sales@example.com>"


def test_an_answer_that_we_forward_shows_the_alias_in_its_return_address() -> None:
    made = asked(scene("rewrite"))
    answer = edits(sent(made, BOB, BOB, ("From", f" {BOB}"), REPLY, to="out@example.com"))
    assert str(answer.sender).endswith("=example.com=sales@srs.example.net>")
    assert made.log[-1]["sender"] == "<sales@example.com>"


@pytest.mark.parametrize(
    ("alias", "mailbox"),
    [
        ("desk@example.com", "dave@example.com"),  # somebody gets copies of what dave gets
        ("info@example.com", "pat@pass.example"),  # known to the MTA alone
        ("office@example.com", "eve@local.example"),
    ],
)
@pytest.mark.parametrize("subaddress", ["", "+x"])
def test_a_mailbox_is_not_shown_whatever_makes_it_one(
    alias: str, mailbox: str, subaddress: str
) -> None:
    made = asked(scene("rewrite"), alias)
    author = mailbox.replace("@", f"{subaddress}@")
    answer = edits(sent(made, mailbox, mailbox, ("From", f" {author}"), REPLY))
    assert answer.sender == f"<{alias}>"
    assert answer.change == (("From", 1, f" {alias}"),)


@pytest.mark.parametrize(
    ("sender", "fields", "changed"),
    [
        (BOB, [("From", " sales@example.com")], ()),
        (
            "sales@example.com",
            [("From", " sales@example.com"), ("Sender", " Bob <bob@example.com>")],
            (("Sender", 1, " Bob <sales@example.com>"),),
        ),
        (
            "",
            [("From", " sales@example.com"), ("Reply-To", " bob+x@example.com")],
            (("Reply-To", 1, " sales@example.com"),),
        ),
    ],
)
def test_an_answer_from_an_alias_shows_the_mailbox_nowhere_else(
    sender: str, fields: list[tuple[str, str]], changed: tuple[tuple[str, int, str], ...]
) -> None:
    answer = edits(sent(asked(scene("rewrite")), BOB, sender, *fields, REPLY))
    assert answer.sender == ("<sales@example.com>" if sender == BOB else None)
    assert answer.change == changed


@pytest.mark.parametrize("identity", ["reject", "rewrite"])
def test_a_message_of_somebody_else_that_is_handed_on_is_no_answer(identity: str) -> None:
    made = asked(scene(identity))
    fields = [("From", " alice@bank.example"), ("Sender", f" {BOB}"), REPLY]
    handed_on = edits(sent(made, BOB, BOB, *fields, ("Resent-From", f" {BOB}")))
    assert (handed_on.sender, handed_on.change) == (None, ())


def test_an_answer_can_be_refused_with_the_alias_to_use() -> None:
    result = sent(asked(scene("reject")), BOB, BOB, ("From", f" {BOB}"), REPLY)
    assert isinstance(result, Verdict)
    assert str(result.reply) == (
        "550 5.7.1 This answers mail to <sales@example.com>: send it from there, not "
        "<bob@example.com>"
    )


def test_the_subaddress_of_the_alias_comes_back_too() -> None:
    made = asked(scene("rewrite"), "sales+fair@example.com")
    assert edits(sent(made, BOB, BOB, ("From", f" {BOB}"), REPLY)).sender == (
        "<sales+fair@example.com>"
    )


def test_in_a_thread_with_several_aliases_the_nearest_message_decides() -> None:
    made = asked(scene("rewrite"))
    second = (("From", " alice@bank.example"), ("Message-ID", " <2@bank.example>"))
    edits(sent(made, "", "alice@bank.example", *second, to="press@example.com"))
    thread = ("References", " <1@bank.example> <2@bank.example>")
    assert edits(sent(made, BOB, BOB, ("From", f" {BOB}"), thread)).sender == "<press@example.com>"
    answer = sent(made, BOB, BOB, ("From", f" {BOB}"), thread, REPLY)
    assert edits(answer).sender == "<sales@example.com>"


@pytest.mark.parametrize(
    ("login", "sender", "reply_to"),
    [
        (BOB, "sales@example.com", "<1@bank.example>"),
        (BOB, "press@example.com", "<1@bank.example>"),
        (BOB, BOB, "<other@bank.example>"),
        ("carol@example.com", "carol@example.com", "<1@bank.example>"),
    ],
)
def test_what_shows_no_mailbox_or_answers_nothing_stays(
    login: str, sender: str, reply_to: str
) -> None:
    made = asked(scene("rewrite"))
    answer = edits(sent(made, login, sender, ("From", f" {sender}"), ("In-Reply-To", reply_to)))
    assert (answer.sender, answer.change) == (None, ())


@pytest.mark.parametrize("to", [BOB, "bob+x@example.com"])
def test_mail_to_the_mailbox_itself_is_not_remembered(to: str) -> None:
    made = asked(scene("rewrite"), to)
    assert edits(sent(made, BOB, BOB, ("From", f" {BOB}"), REPLY)).sender is None


def test_what_a_milter_cannot_write_is_refused_rather_than_shown() -> None:
    made = asked(scene("rewrite"))
    made.session.mail(f"<{BOB}>".encode(), [], BOB)
    assert made.rcpt("<x@else.example>") == [""]
    latin = (("Reply-To", b' "J\xf6rg" <bob@example.com>'), ("From", b" bob@example.com"))
    verdict = made.end(*latin, ("In-Reply-To", b" <1@bank.example>"))
    assert str(verdict.reply).startswith("550 5.7.1 This answers mail to <sales@example.com>")


def test_a_message_does_not_wait_until_it_is_remembered() -> None:
    with closing(AliasStore("redis://127.0.0.1:1/0", 1.0)) as store, capture_logs() as log:
        decider = scene().session._service.decider
        made = make_submission(SubmissionSection(identity="reject"), ["a"], decider, store)
        assert made
        assert made.memory
        made.memory.put([Token("0" * 40, b"x")])
    (line,) = log
    assert (line["log_level"], "127.0.0.1:1" in line["problem"]) == ("warning", True)


def test_who_gets_an_alias_besides_the_quarantine_owns_and_shows_it() -> None:
    made = asked(scene("rewrite"), "mixed@example.com")
    edits(sent(made, BOB, "mixed@example.com"))
    answer = edits(sent(made, BOB, BOB, ("From", f" {BOB}"), REPLY))
    assert answer.sender == "<mixed@example.com>"


def test_an_alias_beyond_ascii_is_shown_where_smtputf8_was_asked_for_and_not_elsewhere() -> None:
    made = asked(scene("rewrite"), "büro@example.com")
    refused = sent(made, BOB, BOB, ("From", f" {BOB}"), REPLY)
    assert isinstance(refused, Verdict)
    assert str(refused.reply).startswith("550 5.7.1 This answers mail to <b?ro@example.com>")
    made.session.mail(f"<{BOB}>".encode(), [b"SMTPUTF8"], BOB)
    assert made.rcpt("<x@else.example>") == [""]
    answer = edits(made.end(("From", BOB.encode()), ("In-Reply-To", REPLY[1].encode())))
    assert answer.sender == "<büro@example.com>"


def test_nothing_that_is_kept_shows_an_address() -> None:
    keeper, sales = Keeper(["a secret"]), parse_address("sales@example.com")
    token = keeper.token(b"<1@bank.example>", parse_address(BOB), sales)
    kept = token.digest.encode() + token.value
    assert not [word for word in (b"sales", b"bob", b"bank", b"example") if word in kept]
    assert keeper.alias(token) == sales
    assert keeper.alias(replace(token, digest="0" * 40)) is None
    assert Keeper(["another"]).alias(token) is None
    assert Keeper(["another", "a secret"]).alias(token) == sales


@given(st.binary(max_size=200))
def test_an_alias_is_read_from_what_we_wrote_alone(octets: bytes) -> None:
    assert Keeper(["a secret"]).alias(Token("0" * 40, octets)) is None


def message(*fields: tuple[bytes, bytes]) -> Message:
    return Message(tuple(HeaderField(*field) for field in fields))


@given(st.binary(max_size=300))
def test_message_ids_are_found_in_anything(octets: bytes) -> None:
    names = (b"References", b"In-Reply-To", b"Message-ID")
    fields = message(*((name, octets * 20) for name in names))
    assert len(answered(fields)) <= MAX_IDS
    message_id(fields)


def test_the_addresses_of_from_may_stand_beside_names_of_any_octets() -> None:
    (author,) = author_addresses(message((b"From", b' "J\xf6rg" <bob@example.com>')))
    assert str(author) == "bob@example.com"
    with pytest.raises(NoAuthorError):
        author_addresses(message((b"From", b" <b\xf6b@example.com>")))


@given(st.text(max_size=80))
def test_the_addresses_of_from_are_found_or_it_is_refused(text: str) -> None:
    try:
        author_addresses(message((b"From", text.encode("utf-8", "replace"))))
    except NoAuthorError as error:
        assert str(error)


@pytest.mark.parametrize("name", ["bob@example.com", "'bob@example.com'", "Bob [bob@example.com]"])
def test_a_name_that_is_the_address_is_disguised_as_well(name: str) -> None:
    answer = Answer(parse_address(BOB), parse_address("sales@example.com"))
    before = f' "{name}" <{BOB}>'
    (after,) = disguised(message((b"Reply-To", before.encode())), answer).values()
    assert after.value.decode() == before.replace("bob@", "sales@")


def test_disguised_leaves_other_addresses_alone() -> None:
    answer = Answer(parse_address(BOB), parse_address("sales@example.com"))
    others = ["x.bob@example.com", "x-bob@example.com", "bob@example.com.example", "bob@example.co"]
    others += ["'bob@example.com", "x'bob@example.com'"]
    before = " " + ", ".join(others)
    assert disguised(message((b"From", before.encode())), answer) == {}
