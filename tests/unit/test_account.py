"""The account of `make soak` itself: each thing that must not be is found."""

from __future__ import annotations

import pytest

from aliasmilter.mail.address import parse_address
from tests.harness.daemon import SRS_DOMAIN
from tests.harness.smtp import CLOSED, Reply
from tests.soak.account import Account, Problem
from tests.soak.mail import Arrival, Composer, Posting, rewriter
from tests.soak.stream import Answer, Attempt

OK = Reply(250, "2.1.5 Ok")
UNKNOWN = Reply(550, "5.1.1 No such address here")
LATER = Reply(451, "4.3.0 Address lookup is not possible now")
BOB, ME = "bob@example.com", "me@gmail.example"


def posting(kind: str = "alias") -> Posting:
    return Composer(1).make(1, kind)


def attempt(mail: Posting, rcpt: Reply = OK, data: Reply | None = OK, at: float = 0.0) -> Attempt:
    """A transaction in which all recipients got the same answer."""
    answers = {recipient: Answer(rcpt, at, at + 1) for recipient in mail.fates}
    return Attempt(1, answers, data)


def copy(recipient: str = BOB, sender: str = "alice@bank1.example", seals: int = 0) -> Arrival:
    return Arrival(1, recipient, sender, seals, whole=True)


def forwarded(sender: str = "alice@bank1.example") -> str:
    return str(rewriter().forward(parse_address(sender), SRS_DOMAIN))


def problems(mail: Posting, attempts: list[Attempt], copies: list[Arrival]) -> list[Problem]:
    return [entry.problem for entry in Account({1: mail}, attempts, copies).entries]


def test_a_message_that_was_accepted_and_arrived_once_balances() -> None:
    mail = posting()
    assert problems(mail, [attempt(mail)], [copy()]) == []
    mail = posting("split")
    copies = [copy("carol@example.com"), copy(ME, forwarded(), 1)]
    assert problems(mail, [attempt(mail)], copies) == []


def test_a_message_that_was_deferred_and_then_accepted_balances() -> None:
    mail = posting()
    attempts = [attempt(mail, LATER, None), attempt(mail)]
    assert problems(mail, attempts, [copy()]) == []


def test_what_was_accepted_and_did_not_arrive_is_lost() -> None:
    mail = posting("team")
    assert problems(mail, [attempt(mail)], [copy()]) == [Problem.LOST]


def test_a_second_copy_is_explained_by_a_transaction_without_answer_and_by_nothing_else() -> None:
    mail = posting()
    for data in (CLOSED, LATER):
        account = Account({1: mail}, [attempt(mail, data=data), attempt(mail)], [copy(), copy()])
        assert account.balances
        assert account.total.explained == 1
    assert problems(mail, [attempt(mail)], [copy(), copy()]) == [Problem.TWICE]
    attempts = [attempt(mail, LATER, None), attempt(mail)]
    assert problems(mail, attempts, [copy(), copy()]) == [Problem.TWICE]


@pytest.mark.parametrize("reply", [UNKNOWN, Reply(550, "5.7.1 No"), Reply(554, "5.4.6 Loop")])
def test_a_good_address_is_never_refused_for_good(reply: Reply) -> None:
    mail = posting()
    assert problems(mail, [attempt(mail, reply, None)], []) == [Problem.WRONGLY_REFUSED]
    assert problems(mail, [attempt(mail, data=reply)], []) == [Problem.WRONGLY_REFUSED]


def test_an_unknown_address_is_refused_in_the_right_way_and_never_accepted() -> None:
    mail = posting("unknown")
    assert problems(mail, [attempt(mail, UNKNOWN, None)], []) == []
    other = Reply(550, "5.7.1 No")
    assert problems(mail, [attempt(mail, other, None)], []) == [Problem.WRONGLY_REFUSED]
    found = problems(mail, [attempt(mail)], [copy("nobody1@example.com")])
    assert found == [Problem.WRONGLY_ACCEPTED, Problem.ASTRAY]


def test_an_alias_that_goes_on_unexpanded_is_astray_and_the_person_has_lost_it() -> None:
    mail = posting()
    found = problems(mail, [attempt(mail)], [copy("slaes@example.com")])
    assert sorted(found) == sorted([Problem.LOST, Problem.ASTRAY])


def test_mail_that_nobody_sent_is_astray() -> None:
    stray = Arrival(None, "alice@bank1.example", "", 0, whole=False)
    mail = posting()
    assert problems(mail, [attempt(mail)], [copy(), stray]) == [Problem.ASTRAY]


@pytest.mark.parametrize(
    "wrong",
    [
        copy(ME),
        copy(ME, forwarded()),
        copy(ME, forwarded("mallory@bank1.example"), 1),
        copy(ME, forwarded(), 2),
        Arrival(1, ME, forwarded(), 1, whole=False),
    ],
)
def test_a_copy_that_leaves_has_an_srs_sender_one_seal_and_all_of_its_body(wrong: Arrival) -> None:
    mail = posting("forward")
    assert problems(mail, [attempt(mail)], [wrong]) == [Problem.ALTERED]


def test_who_stays_never_sees_an_srs_sender() -> None:
    mail = posting()
    assert problems(mail, [attempt(mail)], [copy(BOB, forwarded())]) == [Problem.ALTERED]


def test_a_message_that_is_never_done_with_is_open() -> None:
    mail = posting()
    assert problems(mail, [attempt(mail, LATER, None)], []) == [Problem.OPEN]
    assert problems(mail, [], []) == [Problem.OPEN]


@pytest.mark.parametrize(("kind", "reply"), [("alias", OK), ("unknown", UNKNOWN)])
def test_what_is_said_while_nobody_can_be_asked_is_invented(kind: str, reply: Reply) -> None:
    mail = posting(kind)
    end = OK if reply.ok else None
    copies = [copy()] if reply.ok else []
    for blind, expected in (((-1.0, 2.0), [Problem.INVENTED]), ((0.5, 2.0), [])):
        account = Account({1: mail}, [attempt(mail, reply, end)], copies, [blind])
        assert [entry.problem for entry in account.entries] == expected


def test_further_complaints_count() -> None:
    assert not Account({}, [], [], others=["the daemon did not end"]).balances
