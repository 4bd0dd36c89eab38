"""alias-milter's side of a set-up, for tests of `check --postfix` and `check --sendmail`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from aliasmilter import config as configuration
from aliasmilter.admin.ours import Ours
from aliasmilter.admin.report import Finding
from tests.harness.daemon import Config, toml

# As docs/postfix.md and docs/sendmail.md have it.
DOCUMENTED: Config = {
    "milter": {"socket": "unix:/run/alias-milter/milter.sock", "socket_mode": "0666"},
    "mail": {"hostname": "mx.example.net"},
    "srs": {"domain": "fwd.example.net", "secrets_file": "srs.secrets"},
}
SEALING: Config = {"arc": {"domain": "example.net", "selector": "arc", "key_file": "arc.pem"}}
REINJECT: Config = {"reinject": {"server": "127.0.0.1:10026"}}


def ours(
    folder: Path,
    config: Config | None = None,
    managed: Iterable[str] = ("example.com",),
    srs_domains: Iterable[str] = ("fwd.example.net",),
) -> Ours:
    """What the documents promise, with the sections of `config` on top."""
    merged = {**DOCUMENTED, **SEALING}
    for name, section in (config or {}).items():
        merged[name] = {**merged.get(name, {}), **section}
    file = folder / "alias-milter.toml"
    file.write_text(toml(merged))
    return Ours(configuration.load(file), frozenset(managed), frozenset(srs_domains))


def shown(findings: Iterable[Finding]) -> list[str]:
    """Each finding on a line, as the command prints it."""
    return [f"{one.severity}: {one.where}: {one.what}" for one in findings]


def errors(findings: Iterable[Finding]) -> list[str]:
    """Those that make the command exit with 1."""
    return [line for line in shown(findings) if line.startswith("error")]
