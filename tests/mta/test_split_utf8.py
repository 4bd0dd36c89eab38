"""[reinject] with SMTPUTF8, which Postfix offers and Debian's Sendmail does not."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.harness.lab import Lab
from tests.harness.smtp import message

RULES = (
    "HSET domain:example.com unknown reject",
    "HSET alias:example.com bob bob@example.com out me@gmail.example",
    'HSET alias:example.com j\u00f6rg "bob@example.com j\u00f6rg@gmail.example"',
)


@pytest.mark.parametrize("word", ["SMTPUTF8", "smtputf8"])
def test_smtputf8_survives_the_split(make_lab: Callable[..., Lab], word: str) -> None:
    lab = make_lab(reinject=True)
    lab.rules(*RULES)
    outcome = lab.send(
        "\u00e4nne@b\u00fccher.example",
        "j\u00f6rg@example.com",
        content=message(subject="Gr\u00fc\u00dfe", to="j\u00f6rg@example.com", body="\u00fc\r\n"),
        mail_options=[word, "BODY=8BITMIME"],
    )
    assert outcome.accepted
    (stays,) = lab.world.wait_for("bob@example.com")
    (leaves,) = lab.world.wait_for("j\u00f6rg@gmail.example")
    assert stays.sender == "\u00e4nne@b\u00fccher.example"
    assert leaves.sender.startswith("SRS0=")
    assert leaves.sender.endswith("\u00e4nne@srs.example.net")
    assert {"SMTPUTF8", "BODY=8BITMIME"} <= set(leaves.mail_options)
    assert "Subject: Gr\u00fc\u00dfe\r\n".encode() in leaves.content
    # And back.
    assert lab.send("", leaves.sender, mail_options=["SMTPUTF8"]).accepted
    assert len(lab.world.wait_for_total(3)) == 3


def test_a_copy_beyond_ascii_does_not_break_a_message_that_did_not_ask_for_it(
    make_lab: Callable[..., Lab],
) -> None:
    """A mailbox here, which a client without SMTPUTF8 reaches through an alias."""
    lab = make_lab({"quarantine": {"action": "hold"}}, reinject=True)
    lab.rules(
        "HSET domain:example.com unknown reject",
        "HSET alias:example.com j\u00f6rg j\u00f6rg@example.com alias j\u00f6rg@example.com",
        "HSET alias:example.com * quarantine",
    )
    assert lab.send("alice@bank.example", "guess@example.com", "alias@example.com").accepted
    lab.world.wait_for("j\u00f6rg@example.com")
