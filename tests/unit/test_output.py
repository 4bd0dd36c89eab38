"""What a terminal shows, and what a pipe gets."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.daemon import REPOSITORY, toml
from tests.harness.redis import RedisServer

NAME = "somebody.with.a.very.long.name.that.no.column.of.a.terminal.has.room.for"


@pytest.fixture
def config(tmp_path: Path, redis: RedisServer) -> Path:
    (tmp_path / "srs.secrets").write_text("a secret that is long enough\n")
    srs = {"domain": "fwd.example.net", "secrets_file": "srs.secrets"}
    file = tmp_path / "alias-milter.toml"
    file.write_text(toml({"store": {"url": redis.url}, "srs": srs}))
    redis.cli("HSET", "domain:example.com", "unknown", "reject")
    redis.cli("HSET", "alias:example.com", NAME, f"{NAME}@example.com")
    return file


def command(config: Path, *args: str) -> list[str]:
    return [sys.executable, "-m", "aliasmilter", *args, "-c", str(config)]


def on_a_terminal(config: Path, *args: str) -> str:
    """What a terminal of 60 columns gets."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY}/milter", "COLUMNS": "60",
                   "TERM": "xterm"}  # fmt: skip
    with subprocess.Popen(command(config, *args), stdin=theirs, stdout=theirs, stderr=theirs,
                          env=environment) as process:  # fmt: skip
        os.close(theirs)
        shown = b""
        while True:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # how Linux says that the other side is closed
                break
            if not piece:
                break
            shown += piece
        process.wait(30)
    os.close(ours)
    return shown.decode()


def test_a_table_folds_what_is_too_long_and_drops_nothing(config: Path) -> None:
    shown = on_a_terminal(config, "list")
    assert "ADDRESS" in shown
    assert "…" not in shown
    _, *lines = re.sub("\x1b[^m]*m", "", shown).splitlines()
    assert "".join(line[:30].strip() for line in lines) == f"{NAME}@example.com"
    assert all(len(line) <= 60 for line in lines)


def test_a_pipe_gets_no_colours_and_no_bar(config: Path, tmp_path: Path) -> None:
    file = tmp_path / "rules.csv"
    file.write_text("".join(f"u{n}@example.com,u{n}@example.com\n" for n in range(12_000)))
    environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY}/milter", "TERM": "xterm"}
    for arguments in (["import", str(file)], ["list"], ["log", "-n", "5"]):
        done = subprocess.run(
            command(config, *arguments), capture_output=True, env=environment, check=True
        )
        assert b"\x1b" not in done.stdout + done.stderr
        assert done.stderr == b""


def test_many_rules_show_a_bar_on_a_terminal(config: Path, tmp_path: Path) -> None:
    file = tmp_path / "rules.csv"
    file.write_text("".join(f"u{n}@example.com,u{n}@example.com\n" for n in range(12_000)))
    shown = on_a_terminal(config, "import", str(file))
    assert "writing" in shown
    assert "12000 added, 0 changed, 0 removed" in shown
    assert "writing" not in on_a_terminal(config, "add", "x@example.com", "u1@example.com")
