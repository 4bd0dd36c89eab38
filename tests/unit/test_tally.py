"""What was counted, as the commands show it."""

from __future__ import annotations

import json
import time
from pathlib import Path

from click.testing import CliRunner

from aliasmilter.cli import commands
from aliasmilter.store import tally
from tests.harness.daemon import toml
from tests.harness.redis import RedisServer


def test_quarantine_list_shows_the_hits_of_each_domain(tmp_path: Path, redis: RedisServer) -> None:
    (tmp_path / "srs.secrets").write_text("a secret that is long enough\n")
    file = tmp_path / "alias-milter.toml"
    srs = {"domain": "fwd.example.net", "secrets_file": "srs.secrets"}
    mailbox = {"mailbox": "quarantine@example.net"}
    file.write_text(toml({"store": {"url": redis.url}, "srs": srs, "quarantine": mailbox}))
    redis.cli("HSET", "domain:own.example", "quarantine", "junk@own.example")
    redis.cli("HSET", "quarantined", "own.example", "3", "example.com", "20")
    listing = ["quarantine", "list", "-c", str(file)]
    assert CliRunner().invoke(commands, listing).output.splitlines() == [
        "example.com\tquarantine@example.net\t20",
        "own.example\tjunk@own.example\t3",
    ]
    told = json.loads(CliRunner().invoke(commands, [*listing, "--json"]).output)
    assert told[1] == {"domain": "own.example", "mailbox": "junk@own.example", "hits": 3}


def test_suggest_shows_what_was_asked_for_within_the_days_that_are_remembered(
    tmp_path: Path, redis: RedisServer
) -> None:
    (tmp_path / "srs.secrets").write_text("a secret that is long enough\n")
    file = tmp_path / "alias-milter.toml"
    srs = {"domain": "fwd.example.net", "secrets_file": "srs.secrets"}
    suggest = {"remember_days": 30}
    file.write_text(toml({"store": {"url": redis.url}, "srs": srs, "suggest": suggest}))
    redis.cli("HSET", "alias:example.com", "sales", "bob@example.com")
    now = time.time()
    for local, age in (("slaes", 1), ("salse", 31)):
        day = tally.day(now - age * 86_400)
        redis.cli("HSET", "misses:example.com", local, json.dumps({"x.example": [1, day, day]}))
    shown = CliRunner().invoke(commands, ["suggest", "-c", str(file)]).output
    assert "slaes" in shown
    assert "salse" not in shown
