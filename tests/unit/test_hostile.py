"""What is bounded, whoever wrote it: work is counted here, never timed."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from contextlib import suppress
from datetime import date

import pytest

from aliasmilter.config import LimitsSection
from aliasmilter.forwarding import srs
from aliasmilter.forwarding.srs import Rewriter, SRSError
from aliasmilter.mail.address import Address, parse_address
from aliasmilter.mail.message import HeaderField
from aliasmilter.mail.replies import REPLIES, Reason
from aliasmilter.mta.quarantine import notes
from aliasmilter.mta.throttle import make_throttle
from aliasmilter.routing.decision import Decision, Policy, Quarantined
from aliasmilter.routing.plan import Recipient
from aliasmilter.routing.resolver import MAX_ADDRESSES, MAX_DEPTH, resolve
from aliasmilter.routing.rules import MAX_RULE_OCTETS
from aliasmilter.store.redis import AliasStore
from tests.harness.redis import RedisServer
from tests.unit.fakes import Store

DAY = date(2026, 11, 1)
MEGABYTE = 1 << 20


def decide(rules: dict[str, str], local: str = "start") -> tuple[Store, Reason, int]:
    store = Store({"example.com": rules})
    decision = resolve(parse_address(f"{local}@example.com"), store, Policy(), DAY)
    return store, decision.reason, len(decision.finals)


def test_row_5_a_million_ways_to_four_people_are_four_copies_and_few_lookups() -> None:
    levels = MAX_DEPTH - 1
    rules = {"start": " ".join(f"d0.{n}@example.com" for n in range(4))}
    for level in range(levels):
        below = " ".join(f"d{level + 1}.{n}@example.com" for n in range(4))
        rules |= {f"d{level}.{n}": below for n in range(4)}
    rules |= {f"d{levels}.{n}": f"d{levels}.{n}@example.com" for n in range(4)}
    assert 4 ** (levels + 1) >= 1_000_000
    store, reason, people = decide(rules)
    assert (reason, people) == (Reason.ALIAS, 4)
    assert len(store.calls) == MAX_DEPTH + 1
    assert sum(map(len, store.calls)) == 4 * (levels + 1) + 1


def test_row_5_a_million_different_targets_are_too_many_and_take_little_memory() -> None:
    width = 900
    rules = {"start": " ".join(f"a{n}@example.com" for n in range(width))}
    for n in range(width):
        rules[f"a{n}"] = " ".join(f"b{n}.{m}@example.com" for m in range(3000))[:MAX_RULE_OCTETS]
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        store, reason, people = decide(rules)
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert (reason, people) == (Reason.TOO_WIDE, 0)
    assert sum(map(len, store.calls)) <= MAX_ADDRESSES
    # The store's own answer for a level is the most of it.
    assert peak < sum(map(len, rules.values())) + 20 * MEGABYTE


def test_row_5_long_rules_that_all_say_the_same_are_not_all_read() -> None:
    width = 900
    rules = {"start": " ".join(f"a{n}@example.com" for n in range(width))}
    rules |= {f"a{n}": "b@gmail.example " * 4000 for n in range(width)}
    _, reason, _ = decide(rules)
    assert reason is Reason.TOO_WIDE


def test_a_text_of_another_address_is_not_told() -> None:
    rules = {"info": "dave@example.com", "dave": "disabled Dave is in prison"}
    store = Store(
        {"example.com": rules, "old.example": {}}, {"old.example": {"alias_of": "example.com"}}
    )
    policy = Policy()

    def reply(address: str) -> str:
        return str(resolve(parse_address(address), store, policy, DAY).reply)

    assert reply("dave@example.com") == "550 5.2.1 Dave is in prison"
    assert reply("dave@old.example") == "550 5.2.1 Dave is in prison"
    assert reply("info@example.com") == "550 5.2.1 This address is disabled"


def test_no_reply_names_another_address() -> None:
    secret = "secret-target"
    rules = {
        "dangling": f"{secret}@example.com", "loop": f"{secret}-loop@example.com",
        f"{secret}-loop": "loop@example.com", "broken": f"{secret} nonsense",
        "off": f"{secret}-off@example.com", f"{secret}-off": f"reject {secret}",
        "wide": " ".join(f"{secret}{n}@gmail.example" for n in range(501)),
        "deep": f"{secret}0@example.com", "slow": f"{secret}-slow@example.com",
        f"{secret}-slow": f"defer {secret}",
        **{f"{secret}{n}": f"{secret}{n + 1}@example.com" for n in range(20)},
    }  # fmt: skip
    store = Store({"example.com": rules})
    for local in ("dangling", "loop", "broken", "off", "wide", "deep", "slow", "nobody"):
        decision = resolve(parse_address(f"{local}@example.com"), store, Policy(), DAY)
        assert decision.reply is not None, local
        assert secret not in str(decision.reply)


@pytest.fixture
def hashes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The octets that were hashed, hash by hash."""
    done: list[int] = []
    original = srs._signature

    def counted(key: bytes, data: Sequence[bytes]) -> bytes:
        done.append(sum(map(len, data)))
        return original(key, data)

    monkeypatch.setattr(srs, "_signature", counted)
    return done


def rewriter() -> Rewriter:
    return Rewriter(["new", "old"], max_age_days=21, hash_length=4, clock=lambda: 1_800_000_000.0)


@pytest.mark.parametrize(
    "local",
    [
        "SRS0=aaaa=" + "A" * 100_000 + "=bank.example=alice",
        "SRS0=" + "=" * 100_000,
        "SRS1=" + "=" * 100_000,
        "SRS0=" + "SRS0=" * 20_000,
        "SRS1=aaaa=" + "b" * 100_000 + "==aaaa=AA=c.example=d",
        "SRS0=aaaa=AA=bank.example=" + "\u00e4" * 100_000,
    ],
)
def test_row_9_a_huge_return_address_is_refused_without_a_single_hash(
    local: str, hashes: list[int]
) -> None:
    with pytest.raises(SRSError) as error:
        rewriter().reverse(Address(local, "srs.example.net"))
    assert error.value.reason is Reason.SRS_FORGED
    assert hashes == []


def test_good_expired_and_forged_return_addresses_cost_the_same_hashes(hashes: list[int]) -> None:
    made = rewriter().forward(parse_address("alice@bank.example"), "srs.example.net").local
    costs = []
    for local in (made, made.replace("=alice", "=aline"), made.replace("SRS0=", "SRS0=x")):
        hashes.clear()
        with suppress(SRSError):
            rewriter().reverse(Address(local, "srs.example.net"))
        costs.append(len(hashes))
    assert costs == [2, 2, 2]


def test_every_refusal_that_a_sender_can_cause_for_ever_is_final() -> None:
    for reason in (
        Reason.MALFORMED, Reason.HEADER_TOO_BIG, Reason.SENDER_MALFORMED, Reason.TOO_MANY_HOPS,
        Reason.LOOP, Reason.SRS_FORGED, Reason.SRS_EXPIRED, Reason.NEEDS_SMTPUTF8,
    ):  # fmt: skip
        assert not REPLIES[reason].is_temporary


# Counters


def test_a_counter_counts_and_ends(redis: RedisServer) -> None:
    store = AliasStore(redis.url, 5.0)
    assert store.count(["a", "b"], 100) == [1, 1]
    assert store.count(["b"], 100) == [2]
    assert store.count(["a", "b"], 100) == [2, 3]
    assert 0 < int(redis.cli("TTL", "counted:b").rpartition(" ")[2]) <= 100
    store.close()


def test_a_throttle_counts_no_more_than_it_limits() -> None:
    asked: list[int] = []

    def count(digests: Sequence[str], seconds: int) -> list[int]:
        asked.append(len(digests))
        return [10] * len(digests)

    address = parse_address("SRS0=x@srs.example.net")
    for per_address, per_client, ip, exceeded in (
        (9, 0, "192.0.2.1", True), (10, 0, "192.0.2.1", False), (0, 9, "192.0.2.1", True),
        (10, 10, "192.0.2.1", False), (10, 9, None, False),
    ):  # fmt: skip
        limits = LimitsSection(srs_address_per_hour=per_address, srs_client_per_hour=per_client)
        throttle = make_throttle(limits, count)
        assert throttle is not None
        assert throttle.is_too_much(address, ip) is exceeded
    assert asked == [1, 1, 1, 2, 1]
    assert (
        make_throttle(LimitsSection(srs_address_per_hour=0, srs_client_per_hour=0), count) is None
    )


def test_a_header_is_read_once_however_many_recipients_are_quarantined() -> None:
    read: list[bytes] = []

    class Counted(HeaderField):
        @property
        def unfolded(self) -> bytes:
            read.append(self.value)
            return self.value

    hit = Quarantined(parse_address("x@example.com"), "*@example.com", Reason.CATCH_ALL)
    recipients = [
        Recipient(
            f"<x{n}@example.com>",
            "",
            Decision(parse_address(f"x{n}@example.com"), Reason.CATCH_ALL, quarantined=(hit,)),
        )
        for n in range(100)
    ]
    visible = [
        Counted(b"To", b" x7@example.com, y@example.com"),
        Counted(b"Cc", b" x9@example.com"),
    ]
    told = notes(recipients, visible)
    assert len(read) == len(visible)
    assert [note.partition(";")[0] for note in told] == [
        "recipient=undisclosed",
        "recipient=x7@example.com",
        "recipient=x9@example.com",
    ]
