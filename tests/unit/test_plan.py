"""From recipients to envelopes and edits: nobody lost, nobody twice."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aliasmilter.mail.address import parse_address
from aliasmilter.mail.replies import Reason
from aliasmilter.routing.decision import Decision, Final, Quarantined
from aliasmilter.routing.plan import (
    Envelope,
    Recipient,
    merge,
    partition,
    recipient_edits,
)
from aliasmilter.routing.rules import Settings

PEOPLE = [f"p{n}@example.com" for n in range(4)] + ["out@gmail.example"]


@st.composite
def recipients(draw: st.DrawFn) -> Recipient:
    name = draw(st.sampled_from([*PEOPLE[:4], "P0@example.com", "team@example.com"]))
    address = parse_address(name)
    if name == "team@example.com":
        who = draw(st.lists(st.sampled_from(PEOPLE), max_size=3, unique=True))
    else:
        who = [name.lower()]
    finals = tuple(Final(parse_address(w), leaves=w.startswith("out")) for w in who)
    return Recipient(f"<{name}>", "", Decision(address, Reason.ALIAS, finals, settings=Settings()))


def served(envelope: Envelope, accepted: list[Recipient]) -> list[str]:
    """Who is left in the MTA's transaction after the edits."""
    edits = recipient_edits(envelope, accepted)
    kept = {r.argument for r in accepted} - set(edits.delete)
    return sorted(text.strip("<>").lower() for text in [*kept, *(a.path for a in edits.add)])


@given(st.lists(recipients(), min_size=1, max_size=5))
def test_one_envelope_serves_everybody_once(accepted: list[Recipient]) -> None:
    wanted = {f.address.key for r in accepted for f in r.decision.finals}
    for envelope in merge(accepted):
        assert served(envelope, accepted) == sorted(wanted)
    assert bool(merge(accepted)) == bool(wanted)


@given(st.lists(recipients(), min_size=1, max_size=5))
def test_the_envelopes_together_serve_everybody_once(accepted: list[Recipient]) -> None:
    wanted = sorted({f.address.key for r in accepted for f in r.decision.finals})
    envelopes = partition(accepted)
    got = sorted(d.address.key for envelope in envelopes for d in envelope.deliveries)
    assert got == wanted
    for envelope in envelopes:
        assert len({d.address.key.endswith("gmail.example") for d in envelope.deliveries}) == 1
    if envelopes:
        mine = sorted(d.address.key for d in envelopes[0].deliveries)
        assert served(envelopes[0], accepted) == mine
        assert envelopes[0].handling.leaves == all(e.handling.leaves for e in envelopes)


def test_what_is_held_stays_in_the_mtas_own_transaction() -> None:
    hit = parse_address("guess@example.com")
    held = Recipient(
        "<guess@example.com>",
        "",
        Decision(
            hit,
            Reason.CATCH_ALL,
            (Final(hit, held=True),),
            quarantined=(Quarantined(hit, "*@example.com", Reason.CATCH_ALL),),
        ),
    )
    bob = parse_address("bob@example.com")
    other = Recipient("<bob@example.com>", "", Decision(bob, Reason.MAILBOX, (Final(bob),)))
    first, second = partition([other, held])
    assert first.handling.held
    assert not second.handling.held


def test_postfix_knows_a_recipient_without_its_source_route() -> None:
    recipient = Recipient("<@a.example:bob@example.com>", "", Decision(
        parse_address("bob@example.com"), Reason.DISCARDED))  # fmt: skip
    assert recipient.spellings == ("<@a.example:bob@example.com>", "<bob@example.com>")
