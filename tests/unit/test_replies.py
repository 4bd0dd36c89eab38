"""One table of replies, and its pinned codes."""

from __future__ import annotations

import pytest

from aliasmilter.mail.replies import MAX_TEXT, REPLIES, Reason, fit_text

PINNED = {
    Reason.UNKNOWN: "550 5.1.1",
    Reason.DISABLED: "550 5.2.1",
    Reason.EXPIRED: "550 5.2.1",
    Reason.DEFERRED: "450 4.2.1",
    Reason.REJECTED: "550 5.7.1",
    Reason.CYCLE: "451 4.4.6",
    Reason.TOO_DEEP: "451 4.4.6",
    Reason.LOOP: "554 5.4.6",
    Reason.TOO_MANY_HOPS: "554 5.4.6",
    Reason.SRS_FORGED: "550 5.7.1",
    Reason.SRS_EXPIRED: "550 5.7.1",
    Reason.MALFORMED: "501 5.1.3",
    Reason.STORE_UNAVAILABLE: "451 4.3.0",
    Reason.INVALID_RULE: "451 4.3.5",
    Reason.OTHER_HANDLING: "452 4.5.3",
    Reason.INTERNAL_ERROR: "451 4.3.0",
}


@pytest.mark.parametrize("reason", PINNED)
def test_the_codes_people_rely_on(reason: Reason) -> None:
    assert str(REPLIES[reason]).startswith(PINNED[reason])


@pytest.mark.parametrize("reason", REPLIES)
def test_code_and_enhanced_code_agree_and_the_text_fits(reason: Reason) -> None:
    reply = REPLIES[reason]
    assert str(reply.code)[0] == reply.enhanced[0]
    assert reply.text == fit_text(reply.text)


def test_forged_and_expired_differ_in_their_words() -> None:
    assert REPLIES[Reason.SRS_FORGED].text != REPLIES[Reason.SRS_EXPIRED].text


def test_a_rules_text_is_made_fit_for_a_reply() -> None:
    reply = REPLIES[Reason.REJECTED]
    assert reply.saying(" no \u00fc\x1b ").text == "no ??"
    assert len(reply.saying("x" * 1000).text) == MAX_TEXT
    assert reply.saying("") == reply
