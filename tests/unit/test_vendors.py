"""Addresses that were given to one vendor: who writes there is counted, and may be refused."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from aliasmilter.forwarding.authentication import Client as MailClient
from aliasmilter.forwarding.outbound import Keyring
from aliasmilter.forwarding.results import DkimResult, Identity, Results, SpfResult, Verdict
from aliasmilter.mail.address import Address
from aliasmilter.mail.message import Message
from aliasmilter.mta.transaction import Verdict as Ending
from aliasmilter.mta.vendors import Vendors
from tests.harness.signing import our_sealer
from tests.unit.fakes import Listener, Scene, Store, sealing

RULES = {
    "example.com": {
        "bob": "bob@example.com",
        "hub": "bob@example.com vendor=hub.example",
        "shop": "bob@example.com vendor=shop.co.uk strict",
        "two": "bob@example.com vendor=two.example strict",
        "chain": "shop@example.com",
        "away": "me@gmail.example vendor=hub.example",


        "past": "bob@example.com vendor=past.example strict expires=2020-01-31",
        "shut": "bob@example.com vendor=shut.example strict block=bank.example",
        "both": "carol@example.com past@example.com shut@example.com",
        "hub-*": "bob@example.com vendor=hub.example",
        "list": "bob@example.com block=spam.example;eve@bank.example",
        "srs0-list": "list@example.com",
        "team": "list@example.com bob@example.com",
        "carol": "carol@example.com",
    }
}
PASS = Results(dkim=(DkimResult(Verdict.PASS, "mail.hub.example"),))


@dataclass
class Examiner:
    """Says of each message what it was told to."""

    results: Results = PASS
    bodies: list[bytes] = field(default_factory=list)
    senders: list[str] = field(default_factory=list)

    def examine(self, message: Message, client: MailClient, mail_from: str) -> Results:
        self.bodies.append(message.body)
        self.senders.append(mail_from)
        return self.results


class Watched:
    """A session whose vendors are watched over."""

    def __init__(self, results: Results = PASS, listener: Listener | None = None) -> None:
        self.scene = Scene(Store(RULES), listener=listener)
        self.examiner = Examiner(results)
        self.seen: list[tuple[str, str]] = []
        self.scene.session._service = replace(
            self.scene.session._service,
            examiner=self.examiner,  # type: ignore[arg-type]
            vendors=Vendors(self.record),
        )

    def record(self, address: Address, domain: str) -> None:
        self.seen.append((str(address), domain))

    def send(
        self, *recipients: str, login: str = "", sender: bytes = b"<alice@bank.example>"
    ) -> Ending:
        self.scene.session.mail(sender, [], login)
        assert self.scene.rcpt(*recipients) == [""] * len(recipients)
        if self.scene.session.wants_body:
            self.scene.session.body(b"a body\r\n")
        return self.scene.end(("From", b" alice@bank.example"))


def dkim(domain: str, verdict: Verdict = Verdict.PASS) -> DkimResult:
    return DkimResult(verdict, domain)


def spf(
    domain: str, verdict: Verdict = Verdict.PASS, who: Identity = Identity.MAIL_FROM
) -> SpfResult:
    return SpfResult(verdict, domain, who)


@pytest.mark.parametrize(
    ("results", "counted"),
    [
        (Results(dkim=(dkim("mail.hub.example"),)), "hub.example"),
        (Results(dkim=(dkim("esp.example"), dkim("hub.example"))), "hub.example"),
        (Results(spf=spf("bounce.hub.example"), dkim=(dkim("esp.example"),)), "hub.example"),
        (Results(spf=spf("other.example")), "other.example"),
        (Results(spf=spf("hub.example", who=Identity.HELO)), "unauthenticated"),
        (Results(spf=spf("hub.example", Verdict.SOFTFAIL)), "unauthenticated"),
        (Results(dkim=(dkim("hub.example", Verdict.FAIL),)), "unauthenticated"),
        (Results(), "unauthenticated"),
    ],
)
def test_the_organization_that_has_proved_to_write_is_counted(
    results: Results, counted: str
) -> None:
    watched = Watched(results)
    assert watched.send("<hub@example.com>").reply is None
    assert watched.seen == [("hub@example.com", counted)]


def test_a_message_to_other_addresses_is_not_looked_at() -> None:
    watched = Watched()
    assert watched.send("<bob@example.com>").reply is None
    assert watched.examiner.bodies == []
    assert watched.seen == []


def test_what_is_examined_for_a_vendor_and_stays_is_not_sealed() -> None:
    watched = Watched()
    sealing(watched.scene, Keyring(our_sealer(), {}))
    for recipient, is_sealed in (("<hub@example.com>", False), ("<away@example.com>", True)):
        headers = watched.send(recipient).edits.headers
        assert ("ARC-Seal" in [name for name, _ in headers]) is is_sealed


def test_the_body_is_there_to_be_examined() -> None:
    watched = Watched()
    watched.scene.session.mail(b"<alice@bank.example>", [])
    watched.scene.rcpt("<bob@example.com>")
    assert not watched.scene.session.wants_body
    watched.send("<hub@example.com>")
    assert watched.examiner.bodies == [b"a body\r\n"]


@pytest.mark.parametrize(
    ("sender", "examined"),
    [
        (b"<alice@bank.example>", "alice@bank.example"),
        (b"<>", ""),
        (b"", ""),
        (b"<" + b"x" * 300 + b"@bank.example>", "x" * 300 + "@bank.example"),
        (b"<a b@bank.example>", "a b@bank.example"),
    ],
)
def test_only_the_null_sender_is_examined_as_such(sender: bytes, examined: str) -> None:
    # RFC 7208 section 2.4: for any other HELO is not the MAIL FROM identity
    watched = Watched()
    watched.send("<hub@example.com>", sender=sender)
    assert watched.examiner.senders == [examined]


def test_a_strict_address_takes_mail_of_its_vendor_alone() -> None:
    own = Results(dkim=(dkim("news.shop.co.uk"),))
    assert Watched(own).send("<shop@example.com>").reply is None
    watched = Watched(Results(dkim=(dkim("other.co.uk"),)))
    assert str(watched.send("<shop@example.com>").reply).startswith("550 5.7.1")
    assert watched.seen == [("shop@example.com", "other.co.uk")], "that it was tried is the leak"


def test_a_strict_address_is_strict_by_whatever_alias_it_is_reached() -> None:
    assert str(Watched().send("<chain@example.com>").reply).startswith("550 5.7.1")


def test_an_address_that_is_left_out_is_neither_strict_nor_counted() -> None:
    watched = Watched()
    verdict = watched.send("<both@example.com>")
    assert verdict.reply is None
    assert [one.path for one in verdict.edits.recipients.add] == ["<carol@example.com>"]
    assert watched.seen == []


@pytest.mark.parametrize(
    ("recipient", "counted"),
    [("hub+fair@example.com", "hub@example.com"), ("hub-eu@example.com", "hub-*@example.com")],
)
def test_what_was_given_to_the_vendor_is_counted_whatever_was_added_to_it(
    recipient: str, counted: str
) -> None:
    watched = Watched()
    watched.send(f"<{recipient}>")
    assert watched.seen == [(counted, "hub.example")]


def test_a_vendor_that_dns_says_nothing_of_may_try_again() -> None:
    silent = Results(dkim=(dkim("shop.co.uk", Verdict.TEMPERROR),))
    assert str(Watched(silent).send("<shop@example.com>").reply).startswith("451 4.3.0")


def test_own_users_are_nobody_s_leak() -> None:
    watched = Watched()
    assert watched.send("<shop@example.com>", login="bob@example.com").reply is None
    assert watched.seen == []
    assert watched.examiner.bodies == [], "nor is their mail examined as that of strangers"


@pytest.mark.parametrize("listener", [None, Listener()])
@pytest.mark.parametrize("other", ["<bob@example.com>", "<two@example.com>"])
def test_a_strict_address_has_a_transaction_of_its_own(
    listener: Listener | None, other: str
) -> None:
    watched = Watched(listener=listener)
    for first, second in (("<shop@example.com>", other), (other, "<shop@example.com>")):
        watched.scene.session.mail(b"<alice@bank.example>", [])
        replies = watched.scene.rcpt(first, second, first)
        assert [reply[:9] for reply in replies] == ["", "452 4.5.3", ""]


def test_a_mail_program_need_not_part_what_is_never_refused_in_the_end() -> None:
    """It would show 452 to its user instead of coming again."""
    listener = Listener()
    scene = Watched(listener=listener).scene
    scene.session.mail(b"<bob@example.com>", [], login="bob@example.com")
    assert scene.rcpt("<carol@example.com>", "<shop@example.com>") == ["", ""]
    assert scene.end().reply is None
    assert [list(copy.recipients) for copy in listener.copies] == [["<bob@example.com>"]]


def test_a_mail_program_need_not_part_it_where_nothing_can_be_split_either() -> None:
    scene = Watched().scene
    scene.session.mail(b"<bob@example.com>", [], login="bob@example.com")
    assert scene.rcpt("<carol@example.com>", "<shop@example.com>", "<hub@example.com>") == [""] * 3
    edits = scene.end().edits
    assert [one.path for one in edits.recipients.add] == ["<bob@example.com>"]
    assert edits.sender is None


@pytest.mark.parametrize(
    ("sender", "reply"),
    [
        ("alice@bank.example", ""),
        ("eve@bank.example", "550 5.7.1"),
        ("EVE@Bank.example", "550 5.7.1"),
        ("x@spam.example", "550 5.7.1"),
        ("x@mail.spam.example", "550 5.7.1"),
        ("x@notspam.example", ""),
        ("", ""),
    ],
)
def test_a_blocked_sender_is_refused_at_rcpt(sender: str, reply: str) -> None:
    scene = Scene(Store(RULES))
    scene.session.mail(f"<{sender}>".encode(), [])
    (answer,) = scene.rcpt("<list@example.com>")
    assert answer[:9] == reply


def test_a_rule_blocks_whatever_its_address_looks_like() -> None:
    scene = Scene(Store(RULES))
    scene.session.mail(b"<x@spam.example>", [])
    (answer,) = scene.rcpt("<srs0-list@example.com>")
    assert answer.startswith("550 5.7.1 This address does not accept mail from you")
    scene.session.mail(b"<alice@bank.example>", [])
    assert scene.rcpt("<srs0-list@example.com>") == [""]


def test_who_is_blocked_by_one_target_still_reaches_the_others() -> None:
    scene = Scene(Store(RULES))
    scene.session.mail(b"<eve@bank.example>", [])
    assert scene.rcpt("<team@example.com>") == [""]
