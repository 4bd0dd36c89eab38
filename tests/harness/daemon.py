"""The real alias-milter daemon, as `alias-milter run` starts it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from tests.harness.ports import accepts, reserved_port
from tests.harness.service import Service, children

Config = Mapping[str, Mapping[str, object]]

REPOSITORY = Path(__file__).parents[2]
SRS_DOMAIN = "srs.example.net"

# The configuration of a daemon that no test says otherwise of.
DEFAULTS: Config = {
    "milter": {"socket_mode": "0666", "workers": 2},
    "mail": {"hostname": "mx.example.net"},
    "srs": {"domain": SRS_DOMAIN, "secrets_file": "srs.secrets"},
    "arc": {"enabled": False},
    "quarantine": {"mailbox": "quarantine@example.net"},
}


def toml(config: Config) -> str:
    """Write sections of strings, numbers, booleans and lists of them as TOML."""
    lines = []
    for section, settings in config.items():
        lines.append(f"[{section}]")
        # A TOML basic string takes all that JSON's escapes can say.
        lines += [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
        lines.append("")
    return "\n".join(lines)


class Daemon(Service):
    """`python -m aliasmilter run -c FILE` with its configuration, secrets and log.

    Args:
        store_url: the Redis server.
        config: settings by section, on top of DEFAULTS and of the socket and store made here.
        secrets: the lines of the SRS secrets file.
        inet: listen on a TCP port instead of a unix socket.
        files: further files in the daemon's folder, by name, with mode 0600.
    """

    name = "daemon"

    def __init__(
        self,
        store_url: str,
        config: Config | None = None,
        *,
        secrets: Sequence[str] = ("a secret of the tests",),
        inet: bool = False,
        files: Mapping[str, str] | None = None,
    ) -> None:
        self.store_url = store_url
        self.config = config or {}
        self.inet = inet
        self.files = {"srs.secrets": "".join(f"{line}\n" for line in secrets), **(files or {})}
        self.port = 0
        self._log_start = 0

    def prepare(self, stack: ExitStack) -> None:
        """Take the port and write the files."""
        if self.inet:
            self.port = stack.enter_context(reserved_port())
        for name, text in self.files.items():
            self.write_file(name, text)
        self.write_config(self.config)

    def write_file(self, name: str, text: str) -> Path:
        """Write a file of the daemon's folder, readable for the owner alone."""
        file = self.folder / name
        file.touch(0o600)
        file.write_text(text)
        return file

    def write_config(self, config: Config) -> None:
        """Write the configuration file: DEFAULTS, the socket and the store, and `config`."""
        place: Config = {"milter": {"socket": self.socket}, "store": {"url": self.store_url}}
        names = dict.fromkeys([*DEFAULTS, *place, *config])
        merged = {
            name: {**DEFAULTS.get(name, {}), **place.get(name, {}), **config.get(name, {})}
            for name in names
        }
        self.config_file.write_text(toml(merged))

    @property
    def config_file(self) -> Path:
        """The configuration file."""
        return self.folder / "alias-milter.toml"

    @property
    def socket(self) -> str:
        """The socket as `[milter] socket` has it."""
        here = f"inet:{self.port}@127.0.0.1" if self.inet else f"unix:{self.folder}/milter.sock"
        return str(self.config.get("milter", {}).get("socket", here))

    @property
    def endpoint(self) -> str:
        """The socket as Postfix's smtpd_milters has it."""
        return f"inet:127.0.0.1:{self.port}" if self.inet else self.socket

    @property
    def workers(self) -> list[int]:
        """The pids of the worker processes."""
        return children(self.pid)

    def command(self) -> Sequence[str]:
        """The daemon in the foreground."""
        return [sys.executable, "-m", "aliasmilter", "run", "-c", str(self.config_file)]

    def environment(self) -> Mapping[str, str]:
        """The environment, with this repository's code."""
        return {**os.environ, "PYTHONPATH": f"{REPOSITORY}/milter", "PYTHONUNBUFFERED": "1"}

    def start(self) -> None:
        """Start the daemon (again), and return when it is ready."""
        self._log_start = len(self.log)
        super().start()

    def is_ready(self) -> bool:
        """Whether it says so, and the socket takes connections."""
        if "ready" not in self.log[self._log_start :]:
            return False
        return accepts(self.port or self.socket.removeprefix("unix:"))

    def end(self) -> None:
        """At once: libmilter takes 5 s to stop when an MTA has been connected."""
        self.kill()

    def reload(self) -> None:
        """Have it read its configuration again (SIGHUP)."""
        self.signal(signal.SIGHUP)

    def run(self, *args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command of the CLI with this configuration: `run("resolve", "bob@example.com")`.

        Returns:
            The finished process: exit status and output, judged by the caller.
        """
        return subprocess.run(
            [sys.executable, "-m", "aliasmilter", *args, "-c", str(self.config_file)],
            input=stdin, capture_output=True, text=True, timeout=60, check=False,
            env=self.environment(), cwd=self.folder,
        )  # fmt: skip
