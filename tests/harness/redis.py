"""A private redis-server, real in every respect."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import quote

from tests.harness.certificate import write_certificate
from tests.harness.ports import accepts, reserved_port
from tests.harness.service import Service
from tests.harness.wait import LabError

# How redis-cli shows that a command failed (with --no-raw a value can never look like that).
ERROR_LINES = ("(error)", "Invalid argument(s)", "Could not connect", "Error:", "AUTH failed")


class RedisServer(Service):
    """redis-server on a unix socket and a TCP port, and on a TLS port if wished.

    Args:
        password: of the default user.
        tls: listen on a TLS port too, with a self-made certificate (`ca_file`) for 127.0.0.1.
        users: further users in the words of the `user` directive: "reader on >secret ~* +@read".
        settings: further lines of redis.conf.
    """

    name = "redis"

    def __init__(
        self,
        *,
        password: str | None = None,
        tls: bool = False,
        users: Sequence[str] = (),
        settings: Sequence[str] = (),
    ) -> None:
        self.password = password
        self.tls = tls
        self.users = users
        self.settings = settings
        self.port = 0
        self.tls_port = 0
        # Whose certificate it has instead of one of its own: servers that talk to each other.
        self.trusts: RedisServer | None = None

    def prepare(self, stack: ExitStack) -> None:
        """Take the ports and write redis.conf."""
        self.port = stack.enter_context(reserved_port())
        lines = [
            f"dir {self.folder}", f"unixsocket {self.socket}", "unixsocketperm 777",
            "bind 127.0.0.1", f"port {self.port}", 'save ""', "appendonly no", "databases 16",
        ]  # fmt: skip
        if self.tls:
            self.tls_port = stack.enter_context(reserved_port())
            if self.trusts is None:
                certificate, key = write_certificate(self.folder)
            else:
                folder = self.trusts.folder
                certificate, key = self.ca_file, folder / "redis.key"
            lines += [
                f"tls-port {self.tls_port}", "tls-auth-clients no", f"tls-cert-file {certificate}",
                f"tls-key-file {key}", f"tls-ca-cert-file {certificate}",
            ]  # fmt: skip
        if self.password is not None:
            lines.append(f'requirepass "{self.password}"')
        lines += [f"user {user}" for user in self.users]
        text = "".join(f"{line}\n" for line in [*lines, *self.settings])
        (self.folder / "redis.conf").write_text(text)

    @property
    def endpoint(self) -> str:
        """HOST:PORT of the TCP port, or of the TLS port where there is one."""
        return f"127.0.0.1:{self.tls_port or self.port}"

    def command(self) -> Sequence[str]:
        """The redis-server that Debian installs."""
        return ["redis-server", str(self.folder / "redis.conf")]

    def is_ready(self) -> bool:
        """Whether both sockets take connections."""
        return accepts(str(self.socket)) and accepts(self.port)

    @property
    def socket(self) -> Path:
        """The unix socket."""
        return self.folder / "redis.sock"

    @property
    def ca_file(self) -> Path:
        """What a TLS client must trust."""
        return (self.trusts or self).folder / "redis.crt"

    @property
    def url(self) -> str:
        """The URL of the unix socket, with the password."""
        return f"unix://{self._login}{self.socket}?db=0"

    @property
    def tcp_url(self) -> str:
        """The URL of the TCP port, with the password."""
        return f"redis://{self._login}127.0.0.1:{self.port}/0"

    @property
    def tls_url(self) -> str:
        """The URL of the TLS port, with the password."""
        return f"rediss://{self._login}127.0.0.1:{self.tls_port}/0"

    @property
    def _login(self) -> str:
        return "" if self.password is None else f":{quote(self.password, safe='')}@"

    def cli(self, *args: str, stdin: str | None = None) -> str:
        """Run redis-cli, as an administrator would.

        Args:
            args: one command, word by word.
            stdin: instead of `args`: commands, one a line.

        Returns:
            What redis-cli printed (typed, as on a terminal: `(integer) 1`, `"text"`).

        Raises:
            LabError: redis-cli failed, or Redis answered one of the commands with an error.
        """
        login = [] if self.password is None else ["-a", self.password, "--no-auth-warning"]
        run = subprocess.run(
            ["redis-cli", "-s", str(self.socket), "--no-raw", *login, *args],
            input=stdin, capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
        answer = run.stdout + run.stderr
        if run.returncode or any(line.startswith(ERROR_LINES) for line in answer.splitlines()):
            raise LabError(f"redis-cli {' '.join(args)}: {answer}")
        return run.stdout.rstrip("\n")

    def load(self, path: Path | str) -> str:
        """Run the commands in a file, as `redis-cli < FILE`. Raises LabError like `cli`."""
        return self.cli(stdin=Path(path).read_text())

    def flush(self) -> None:
        """Remove all the data."""
        self.cli("FLUSHALL")
