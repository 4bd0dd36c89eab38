"""docs/rules.md is true: its examples load, and mean what they say."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path

from aliasmilter.mail.address import parse_address
from aliasmilter.mail.replies import REPLIES, Reason
from aliasmilter.routing.decision import Policy
from aliasmilter.routing.resolver import resolve
from aliasmilter.store.snapshot import Snapshot, read
from tests.harness.redis import RedisServer

REPOSITORY = Path(__file__).parents[2]
DOCUMENT = (REPOSITORY / "docs" / "rules.md").read_text()
POLICY = Policy(quarantine=parse_address("quarantine@example.net"))
DAY = date(2026, 11, 1)


def load(redis: RedisServer) -> Snapshot:
    for block in re.findall(r"```redis\n(.*?)```", DOCUMENT, re.DOTALL):
        redis.cli(stdin=block)
    return read(redis.url, 5.0)


def test_every_rule_of_the_document_is_accepted_or_refused_on_purpose(redis: RedisServer) -> None:
    snapshot = load(redis)
    mistakes = {Reason.INVALID_RULE, Reason.DANGLING, Reason.CYCLE}
    for domain, rules in snapshot.rules.items():
        for local in rules:
            address = parse_address(f"{local if local != '*' else 'guess'}@{domain}")
            decision = resolve(address, snapshot.lookup, POLICY, DAY)
            assert decision.reason not in mistakes, decision


def test_the_examples_go_where_the_document_says(redis: RedisServer) -> None:
    snapshot = load(redis)

    def goes(address: str) -> str:
        decision = resolve(parse_address(address), snapshot.lookup, POLICY, DAY)
        return " ".join(str(final.address) for final in decision.finals) or decision.reason.value

    assert goes("sales+fair@example.com") == "bob+fair@example.com"
    assert goes("anna+x@example.com") == "anna@gmail.example"
    assert goes("team@old.example") == "bob@example.com carol@example.com"
    assert goes("guess@new.example") == "quarantine@example.net"
    assert goes("dave@example.com") == "disabled"
    assert goes("nobody@example.com") == "unknown"
    assert goes("spamtrap@example.com") == "discarded"


def test_the_demo_rules_load(redis: RedisServer) -> None:
    redis.load(REPOSITORY / "rules" / "demo.redis")
    assert read(redis.url, 5.0).settings["old.example"] == {b"alias_of": b"example.com"}


def test_the_reply_table_tells_each_reason_with_its_code() -> None:
    told = set[str]()
    rows = [line for line in DOCUMENT.splitlines() if re.match(r"\|.*\| \d{3} \d", line)]
    for row in rows:
        _, _, reply, reasons, _ = row.split("|")
        for name in re.findall(r"`([a-z0-9-]+)`", reasons):
            table = REPLIES[Reason(name)]
            assert f"{table.code} {table.enhanced}" == reply.strip(), name
            told.add(name)
    assert told == {reason.value for reason in REPLIES}
