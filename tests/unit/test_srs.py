"""Return addresses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aliasmilter.forwarding.srs import (
    DAY,
    MAX_LOCAL_OCTETS,
    CannotRewrite,
    Rewriter,
    SRSError,
    looks_like_srs,
)
from aliasmilter.mail.address import Address, parse_address
from aliasmilter.mail.replies import Reason

NOW = 1_800_000_000.0
HOME = "fwd.example.net"
LOCAL = st.text(alphabet='abcXYZ019.=+-_ "\\@\u00e4', min_size=1, max_size=30)


def rewriter(*secrets: str, now: float = NOW) -> Rewriter:
    return Rewriter(secrets or ("a secret",), max_age_days=21, hash_length=4, clock=lambda: now)


@given(LOCAL, st.sampled_from(["bank.example", "xn--bcher-kva.example"]))
def test_what_was_made_here_is_undone_here(local: str, domain: str) -> None:
    sender = Address(local, domain)
    try:
        made = rewriter().forward(sender, HOME)
    except CannotRewrite:
        return
    assert len(made.local.encode()) <= MAX_LOCAL_OCTETS
    assert rewriter().reverse(made) == sender
    folded = Address(made.local.lower(), made.domain)
    assert rewriter().reverse(folded).key == sender.key


@given(st.text(max_size=80))
def test_any_local_part_is_undone_or_an_srs_error(local: str) -> None:
    for text in (local, f"SRS0={local}", f"SRS1={local}"):
        with pytest.raises(SRSError):
            rewriter().reverse(Address(text, HOME))


@given(st.integers(0, 3), st.sampled_from("ABCabc019"))
def test_a_forged_hash_is_refused(position: int, character: str) -> None:
    made = rewriter().forward(parse_address("alice@bank.example"), HOME)
    at = len("SRS0=") + position
    forged = made.local[:at] + character + made.local[at + 1 :]
    if forged.lower() == made.local.lower():
        return
    with pytest.raises(SRSError) as refused:
        rewriter().reverse(Address(forged, HOME))
    assert refused.value.reason is Reason.SRS_FORGED


def test_an_address_expires_after_its_days_and_another_mtas_clock_may_be_a_day_ahead() -> None:
    made = rewriter().forward(parse_address("alice@bank.example"), HOME)
    assert rewriter(now=NOW + 18 * DAY).reverse(made)
    assert rewriter(now=NOW - DAY).reverse(made)
    with pytest.raises(SRSError) as refused:
        rewriter(now=NOW + 22 * DAY).reverse(made)
    assert refused.value.reason is Reason.SRS_EXPIRED


@pytest.mark.parametrize("days", [7, 21, 60])
def test_an_address_is_good_for_as_many_days_as_are_set(days: int) -> None:
    def aged(days_old: int) -> Rewriter:
        clock = NOW + days_old * DAY
        return Rewriter(["a secret"], max_age_days=days, hash_length=4, clock=lambda: clock)

    def is_good(made: Address, days_old: int) -> bool:
        try:
            return bool(aged(days_old).reverse(made))
        except SRSError:
            return False

    # Some of them have the date of one of the three days before.
    made = [aged(0).forward(Address(f"u{n}", "bank.example"), HOME) for n in range(20)]
    assert all(is_good(one, days - 3) for one in made)
    assert any(is_good(one, days) for one in made)
    assert not any(is_good(one, days + 1) for one in made)


@pytest.mark.parametrize("length", [4, 8, 20])
def test_a_hash_has_as_many_characters_as_are_set(length: int) -> None:
    own = Rewriter(["a secret"], max_age_days=21, hash_length=length, clock=lambda: NOW)
    sender = parse_address("al@bank.example")
    made = own.forward(sender, HOME)
    assert len(made.local.split("=")[1]) == length
    assert own.reverse(made) == sender
    shorter = made.local.replace(made.local[5 : 5 + length], made.local[5 : 4 + length])
    with pytest.raises(SRSError):
        own.reverse(Address(shorter, HOME))


def test_a_local_part_of_64_octets_is_what_every_host_takes() -> None:
    room = MAX_LOCAL_OCTETS - len("SRS0=HHHH=TT=bank.example=")
    assert rewriter().forward(Address("x" * room, "bank.example"), HOME).domain == HOME
    with pytest.raises(CannotRewrite):
        rewriter().forward(Address("x" * (room + 1), "bank.example"), HOME)


def test_the_first_secret_signs_and_all_verify() -> None:
    made = rewriter("old").forward(parse_address("alice@bank.example"), HOME)
    assert rewriter("new", "old").reverse(made)
    with pytest.raises(SRSError):
        rewriter("new").reverse(made)


def test_srs_addresses_of_others_become_srs1_and_ours_stay() -> None:
    other = parse_address("SRS0=abcd=EF=bank.example=alice@other.example")
    made = rewriter().forward(other, HOME)
    assert made.local.startswith("SRS1=")
    assert rewriter().reverse(made) == other
    again = rewriter().forward(Address(made.local, "third.example"), HOME)
    assert rewriter().reverse(again) == other
    assert rewriter().forward(made, HOME) == made


def test_what_was_forwarded_under_two_domains_of_ours_is_undone_as_a_whole() -> None:
    alice = parse_address("alice@bank.example")
    twice = rewriter().forward(rewriter().forward(alice, HOME), "own.example")
    assert twice.local.startswith("SRS1=")
    assert rewriter().reverse(twice) == alice
    with pytest.raises(SRSError) as refused:
        rewriter(now=NOW + 22 * DAY).reverse(twice)
    assert refused.value.reason is Reason.SRS_EXPIRED


def test_a_forged_srs1_address_sends_nobody_anywhere() -> None:
    other = parse_address("SRS0=abcd=EF=bank.example=alice@other.example")
    made = rewriter().forward(other, HOME)
    for genuine, forged in (("=other.example=", "=evil.example="), ("=alice", "=aline")):
        address = Address(made.local.replace(genuine, forged), HOME)
        assert address != made
        with pytest.raises(SRSError) as refused:
            rewriter().reverse(address)
        assert refused.value.reason is Reason.SRS_FORGED


@pytest.mark.parametrize("separator", ["=", "+", "-"])
def test_an_old_srs1_address_without_a_hash_keeps_its_host(separator: str) -> None:
    inner = f"{separator}abcd=EF=bank.example=alice"
    old = parse_address(f"SRS1=other.example={inner}@third.example")
    made = rewriter().forward(old, HOME)
    assert made.local.endswith(f"=other.example={inner}")
    assert str(rewriter().reverse(made)) == f"SRS0{inner}@other.example"
    within = parse_address("xSRS1=a.example==b=c@third.example")
    assert rewriter().reverse(rewriter().forward(within, HOME)) == within


def test_what_only_looks_like_srs1_is_an_address_like_any_other() -> None:
    odd = parse_address("SRS1=x@bank.example")
    assert rewriter().reverse(rewriter().forward(odd, HOME)) == odd


def test_what_cannot_be_rewritten_says_so() -> None:
    for sender in (Address("x" * 60, "bank.example"), Address("bob", "")):
        with pytest.raises(CannotRewrite):
            rewriter().forward(sender, HOME)


def test_the_quotes_of_a_local_part_count() -> None:
    # RFC 5321 section 4.5.3.1.1 limits the local part as it stands in the path.
    within = rewriter().forward(Address("a b" + "x" * 36, "b.example"), HOME)
    assert len(str(within).rpartition("@")[0]) == MAX_LOCAL_OCTETS
    with pytest.raises(CannotRewrite):
        rewriter().forward(Address("a b" + "x" * 37, "b.example"), HOME)


def test_hashes_have_no_character_that_one_of_the_two_alphabets_lacks() -> None:
    made = [rewriter().forward(Address(f"u{n}", "bank.example"), HOME) for n in range(2000)]
    odd = [m for m in made if set(m.local[5:9]) & set("-_+/")]
    assert len(odd) < 10


def test_row_9_a_huge_address_is_refused_at_once() -> None:
    with pytest.raises(SRSError):
        rewriter().reverse(Address("SRS0=aaaa=" + "A" * 100_000 + "=x=y", HOME))


def test_form() -> None:
    assert looks_like_srs(Address("srs0+x", HOME))
    assert not looks_like_srs(Address("srs2=x", HOME))
