"""docs/commands.md is true: its commands print what it says, one after the other."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from aliasmilter.cli import commands
from tests.harness.daemon import toml
from tests.harness.redis import RedisServer

DOCUMENT = (Path(__file__).parents[2] / "docs" / "commands.md").read_text()
README = (Path(__file__).parents[2] / "README.md").read_text()


def test_the_examples_print_what_the_document_says(
    tmp_path: Path, redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("srs.secrets").write_text("a secret that is long enough\n")
    srs = {"domain": "fwd.example.net", "secrets_file": "srs.secrets"}
    quarantine = {"mailbox": "quarantine@example.net"}
    config = {"store": {"url": redis.url}, "srs": srs, "quarantine": quarantine}
    Path("alias-milter.toml").write_text(toml(config))
    for name, text in re.findall(r"```csv (\S+)\n(.*?)```", DOCUMENT, re.DOTALL):
        Path(name).write_text(text)
    blocks = re.findall(r"```console\n(.*?)```", DOCUMENT, re.DOTALL)
    examples = [each for block in blocks for each in re.split(r"(?m)^\$ ", block)[1:]]
    assert len(examples) > 10
    for example in examples:
        line, _, output = example.partition("\n")
        program, *arguments = shlex.split(line)
        assert program == "alias-milter"
        result = CliRunner().invoke(commands, [*arguments, "-c", "alias-milter.toml"])
        assert result.output == output, line


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("add", "  alias-milter add dave@example.com disabled Dave has left"),
        ("import", "  csv      sales@example.com,\"bob@example.com, carol@example.com\""),
    ],
)
def test_the_examples_in_the_help_stand_line_by_line(command: str, line: str) -> None:
    shown = CliRunner().invoke(commands, [command, "--help"]).output
    assert line in shown.splitlines()
    assert "\\b" not in shown
    assert "\b" not in shown


def test_every_command_is_in_the_readme_and_says_what_it_is() -> None:
    for name, command in commands.commands.items():
        assert re.search(rf"`(alias-milter )?{name}\b", README), name
        assert command.help, name
