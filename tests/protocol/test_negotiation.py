"""What the daemon agrees on with MTAs that offer much or little."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from miltertest import constants

from tests.harness.daemon import Daemon
from tests.harness.mta_client import ACTIONS, STEPS, Mta

Connect = Callable[..., Mta]
Start = Callable[..., Daemon]

NEEDED = {
    "change the sender": constants.SMFIF_CHGFROM,
    "add recipients": constants.SMFIF_ADDRCPT,
    "add recipients with parameters": constants.SMFIF_ADDRCPT_PAR,
    "delete recipients": constants.SMFIF_DELRCPT,
    "add headers": constants.SMFIF_ADDHDRS,
    "change headers": constants.SMFIF_CHGHDRS,
    "quarantine": constants.SMFIF_QUARANTINE,
}
# libmilter takes an offer of 0 for that of an MTA that is older than offers.
NOTHING_USED = constants.SMFIP_NOCONNECT


def test_of_all_steps_only_rcpt_a_piece_of_the_body_and_the_end_of_the_message_are_answered(
    mta: Mta,
) -> None:
    names = (
        "NOUNKNOWN", "NODATA", "NOEOH", "SKIP",
        "NR_CONN", "NR_HELO", "NR_MAIL", "NR_HDR", "HDR_LEADSPC",
    )  # fmt: skip
    assert mta.steps == sum(getattr(constants, f"SMFIP_{name}") for name in names)


def test_a_milter_asks_for_the_actions_it_needs_and_never_for_changing_bodies(mta: Mta) -> None:
    assert mta.actions == sum(NEEDED.values()) | constants.SMFIF_SETSYMLIST


def test_an_mta_that_takes_lists_of_macros_is_asked_for_few(mta: Mta) -> None:
    assert mta.macro_lists == {
        constants.SMFIM_CONNECT: "v",
        constants.SMFIM_HELO: "v",
        constants.SMFIM_ENVFROM: "i {auth_authen} {mail_addr}",
        constants.SMFIM_ENVRCPT: "i {rcpt_addr}",
        constants.SMFIM_DATA: "i",
        constants.SMFIM_EOM: "i",
        constants.SMFIM_EOH: "i",
    }


def test_an_mta_that_takes_no_lists_of_macros_is_served_as_well(connect: Connect) -> None:
    with connect(actions=ACTIONS & ~constants.SMFIF_SETSYMLIST) as mta:
        assert mta.macro_lists == {}
        mta.mail()
        assert mta.rcpt("<sales@example.com>").kind == "continue"
        assert mta.message().of("addrcpt") == [("<bob@example.com>",)]


@pytest.mark.parametrize("action", NEEDED)
def test_an_mta_that_does_not_offer_an_action_gets_451_and_the_log_says_which(
    connect: Connect, daemon: Daemon, action: str
) -> None:
    before = len(daemon.log)
    with connect(actions=ACTIONS & ~NEEDED[action]) as mta:
        mta.mail()
        for recipient in ("<bob@example.com>", "<nobody@example.com>", "<me@foreign.example>"):
            answer = str(mta.rcpt(recipient))
            assert answer == "451 4.3.5 Mail system configuration error"
        line = f'error: the MTA offers too little missing="{action}"'
        assert line.replace('"quarantine"', "quarantine") in daemon.log[before:].splitlines()


def test_the_log_names_all_actions_that_are_missing(connect: Connect, daemon: Daemon) -> None:
    before = len(daemon.log)
    with connect(actions=constants.SMFI_V1_ACTS) as mta:
        mta.mail()
        assert mta.rcpt("<bob@example.com>").text.startswith("451 4.3.5")
    missing = "change the sender, add recipients with parameters, change headers, quarantine"
    assert f'missing="{missing}"' in daemon.log[before:]


def test_an_mta_without_the_no_reply_steps_gets_every_answer_it_waits_for(
    connect: Connect,
) -> None:
    with connect(steps=constants.SMFI_V2_PROT) as mta:
        assert mta.mail().kind == "continue"
        assert mta.rcpt("<nobody@example.com>").text.startswith("550 5.1.1")
        assert mta.rcpt("<sales@example.com>").kind == "continue"
        assert mta.step("L", name="From", value="alice@bank.example").kind == "continue"
        assert mta.end().of("addrcpt") == [("<bob@example.com>",)]


def test_an_mta_that_can_leave_nothing_out_gets_an_answer_to_everything(
    connect: Connect,
) -> None:
    with connect(steps=NOTHING_USED) as mta:
        assert mta.mail().kind == "continue"
        assert mta.rcpt("<sales@example.com>").kind == "continue"
        assert mta.step("L", name="From", value="alice@bank.example").kind == "continue"
        assert mta.step("N").kind == "continue"
        assert mta.step("B", buf="hello\r\n").kind == "continue"
        assert mta.end().of("addrcpt") == [("<bob@example.com>",)]


@pytest.mark.parametrize(
    ("steps", "space"),
    [(STEPS, " "), (STEPS & ~constants.SMFIP_HDR_LEADSPC, "")],
    ids=["kept", "added-by-the-mta"],
)
def test_inserted_headers_have_one_leading_space_whoever_writes_it(
    connect: Connect, steps: int, space: str
) -> None:
    with connect(steps=steps) as mta:
        mta.mail()
        mta.rcpt("<sales@example.com>")
        ((index, name, value),) = mta.message().of("insheader")
        assert (index, name) == ("0", "X-Alias-Milter-Trace")
        assert value.startswith(f"{space}v1 ")
        assert "\r" not in value


def test_a_later_session_is_not_harmed_by_one_with_an_incapable_mta(connect: Connect) -> None:
    with connect(actions=constants.SMFIF_ADDHDRS) as incapable, connect() as capable:
        incapable.mail()
        capable.mail()
        assert incapable.rcpt("<bob@example.com>").text.startswith("451 4.3.5")
        assert capable.rcpt("<bob@example.com>").kind == "continue"
