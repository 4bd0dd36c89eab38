"""What was counted, as the commands show it."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from aliasmilter.cli import commands
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
