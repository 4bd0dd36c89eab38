"""Whose an address is."""

from __future__ import annotations

from dataclasses import replace
from datetime import date

import pytest

from aliasmilter.mail.address import parse_address
from aliasmilter.routing.decision import Policy
from aliasmilter.routing.ownership import owners
from aliasmilter.routing.resolver import resolve
from tests.unit.fakes import Store

RULES = {
    "dash.example": {
        "sales": "bob-smith@plus.example",
        "bob-smith": "bob-smith@dash.example",
        "bob": "bob@dash.example",
        "desk": "amy+desk@plus.example",
        "shared": "amy@plus.example guess@dash.example",
        "*": "bob@dash.example",
    },
    "plus.example": {"bob-smith": "bob-smith@plus.example", "amy": "amy@plus.example"},
    "pass.example": {},
    "here.example": {"info": "bob-smith@local.example", "away": "bob@gmail.example"},
}
SETTINGS = {
    "dash.example": {"delimiter": "-"},
    "pass.example": {"unknown": "pass", "delimiter": "-"},
}
POLICY = Policy(
    local_domains=frozenset({"local.example"}), quarantine=parse_address("q@dash.example")
)


@pytest.mark.parametrize("hold", [False, True])
@pytest.mark.parametrize(
    ("address", "mailboxes"),
    [
        ("bob@dash.example", ["bob@dash.example"]),
        ("bob-x@dash.example", ["bob@dash.example"]),
        ("bob-smith@dash.example", ["bob-smith@dash.example"]),
        ("bob-smith-x@dash.example", ["bob@dash.example"]),
        ("sales@dash.example", ["bob-smith@plus.example"]),
        ("sales-x@dash.example", ["bob-smith@plus.example"]),
        ("desk@dash.example", ["amy@plus.example"]),
        ("bob-x@pass.example", ["bob@pass.example"]),
        ("info+x@here.example", ["bob-smith@local.example"]),
        ("away@here.example", []),
        ("guess@dash.example", []),
        ("shared@dash.example", ["amy@plus.example"]),
        ("somebody@unmanaged.example", []),
    ],
)
def test_an_address_belongs_to_the_mailbox_and_not_to_what_looks_like_one(
    address: str, mailboxes: list[str], *, hold: bool
) -> None:
    policy = replace(POLICY, hold=hold)
    decision = resolve(parse_address(address), Store(RULES, SETTINGS), policy, date(2026, 11, 1))
    assert [str(owner) for owner in owners(decision)] == mailboxes
