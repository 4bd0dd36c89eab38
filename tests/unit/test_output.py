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


def on_a_terminal(config: Path, *args: str, **variables: str) -> str:
    """What a terminal of 60 columns gets."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY}/milter", "COLUMNS": "60",
                   "TERM": "xterm", **variables}  # fmt: skip
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


@pytest.mark.parametrize(
    "arguments",
    [("add", "-n", "x@example.com", f"{NAME}@example.com"), ("check",), ("list",),
     ("add", "-n", "x@example.com", "nonsense"), ("dns", "--check", "example.com")],
)  # fmt: skip
def test_colours_can_be_declined(
    config: Path, redis: RedisServer, arguments: tuple[str, ...]
) -> None:
    config.write_text(config.read_text() + '[dns]\nnameservers = ["127.0.0.1:1"]\ntimeout = 0.5\n')
    redis.cli("HSET", "alias:example.com", "bad", "nonsense")
    coloured = re.compile("\x1b\\[[0-9;]*3[0-9]")
    plain = on_a_terminal(config, *arguments, NO_COLOR="1")
    assert not coloured.search(plain)
    if arguments != ("list",):
        assert coloured.search(on_a_terminal(config, *arguments, NO_COLOR=""))


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


def in_a_shell(config: Path, line: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """What becomes of `$A list >/dev/full`; $A is alias-milter, and $C its -c FILE."""
    environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY}/milter", **variables}
    environment |= {"A": f"{sys.executable} -m aliasmilter", "C": f"-c {config}"}
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", line], capture_output=True, text=True, env=environment,
        timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("arguments", ["export", "list", "list --json", "check", "leaks --csv"])
def test_an_output_that_is_full_is_said_in_one_line(
    config: Path, redis: RedisServer, arguments: str
) -> None:
    rules = "".join(f"HSET alias:example.com u{n} u{n}@example.com\n" for n in range(1000))
    redis.cli(stdin=rules)
    done = in_a_shell(config, f"$A {arguments} $C >/dev/full")
    assert done.stderr == "alias-milter: standard output: No space left on device\n"
    assert done.returncode == 1


@pytest.mark.parametrize(
    "line",
    ["$A list $C >&-", "$A export $C >&-", "$A import -f csv - $C <&-", "$A list $C <&- >&- 2>&-",
     "$A resolve bob@example.com $C 2>&-"],
)  # fmt: skip
def test_a_stream_that_is_closed_is_no_accident(
    config: Path, redis: RedisServer, line: str
) -> None:
    redis.cli("HSET", "alias:example.com", "bob", "bob@example.com")
    done = in_a_shell(config, line)
    assert done.returncode == 0
    assert done.stderr == ""


def test_an_error_output_that_is_full_ends_with_status_1(config: Path) -> None:
    done = in_a_shell(config, "$A list other.example $C 2>/dev/full")
    assert (done.returncode, done.stdout) == (1, "")


def test_what_cannot_be_read_is_said_in_one_line(config: Path) -> None:
    done = in_a_shell(config, "$A import -f csv - $C 0>/dev/null")
    assert done.returncode == 1
    assert done.stderr == "alias-milter: [Errno 9] Bad file descriptor\n"


def test_who_reads_only_the_beginning_hears_nothing(config: Path, redis: RedisServer) -> None:
    rules = "".join(f"HSET alias:example.com u{n} u{n}@example.com\n" for n in range(5000))
    redis.cli(stdin=rules)
    for command_line in ("list", "list --json", "export", "export -f csv"):
        done = in_a_shell(config, f"$A {command_line} $C | head -n 1 >/dev/null")
        assert done.stderr == ""


def test_what_the_terminal_cannot_show_is_escaped(config: Path, redis: RedisServer) -> None:
    name = "\u5c71\u7530"
    redis.cli("HSET", "alias:example.com", name, f"{name}@example.com")
    for arguments in ("list", "list --json", f"resolve {name}@example.com"):
        done = in_a_shell(config, f"$A {arguments} $C", PYTHONIOENCODING="latin-1")
        assert (done.returncode, done.stderr) == (0, "")
        assert "\\u5c71\\u7530@example.com" in done.stdout
