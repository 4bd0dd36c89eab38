"""The blocks of docs/postfix.md, and a lab that runs them as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from tests.harness import smtp
from tests.harness.certificate import write_certificate
from tests.harness.daemon import Config, Daemon
from tests.harness.lab import Lab
from tests.harness.ports import reserved_port
from tests.harness.postfix import Postfix

DOCUMENT = Path(__file__).parents[2] / "docs/postfix.md"
BLOCKS: dict[str, str] = dict(
    re.findall(r"^```(\S+ \S+)\n(.*?)^```$", DOCUMENT.read_text(), re.DOTALL | re.MULTILINE)
)

# As without any line: the lab's own default lets everybody write the socket.
MODE = {"socket_mode": "0660"}

# The document must bring these itself: the lab's own lines are taken away.
DOCUMENTED = (
    "milter_default_action",
    "milter_protocol",
    "relay_recipient_maps",
    "relay_transport",
    "smtp_line_length_limit",
    "smtpd_relay_restrictions",
)

RULES = (
    "HSET domain:example.com unknown reject",
    "HSET alias:example.com bob bob@example.com sales bob@example.com fwd me@gmail.example",
    "HSET alias:example.com off disabled",
)
ALICE = "alice@bank.example"


def lines_of(text: str) -> dict[str, str | None]:
    """main.cf, read as Postfix does: a line that begins with a space continues the last one."""
    joined = re.sub(r"\n[ \t]+", " ", text)
    lines = [line.partition("=") for line in joined.splitlines()]
    return {name.strip(): value.strip() for name, _, value in lines}


class DocumentedLab(Lab):
    """A lab whose Postfix and daemon have the named blocks of the document, and little else.

    Args:
        names: "filter" stands for the blocks of that name, for all files.
        main: lines of main.cf that differ from the document.
        config: of the daemon, beyond the document.
    """

    def __init__(
        self,
        *names: str,
        main: Mapping[str, str | None] | None = None,
        config: Config | None = None,
    ) -> None:
        super().__init__(config, main=main)
        self.names = names

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.srs_port = stack.enter_context(reserved_port())
            self.copies_port = stack.enter_context(reserved_port())
            self.submission_port = stack.enter_context(reserved_port())
            super().__enter__()
            self._stack.push(stack.pop_all())
        self.rules(*RULES)
        return self

    def make_daemon(self) -> Daemon:
        settings = tomllib.loads(BLOCKS["toml filter"])
        del settings["milter"]["socket"]
        settings |= tomllib.loads(self.block("toml", but=("filter",)))
        return Daemon(
            self.redis.url, {**settings, "milter": MODE | settings["milter"], **self.config}
        )

    def make_postfix(self, reinject_port: int | None) -> Postfix:
        users = self.redis.folder / "users"
        write_certificate(self.redis.folder, "mx")
        users.write_text("bob@example.com x\ncarol@other.example x\n")
        # The machine's own Postfix may have no configuration, and postmap wants one.
        (users.parent / "main.cf").write_text("compatibility_level = 3.6\n")
        # For files of this very second postmap waits until they are older.
        for name in ("main.cf", "users"):
            os.utime(users.parent / name, (0, 0))
        subprocess.run(["postmap", "-c", str(users.parent), f"hash:{users}"], check=True)
        main = lines_of(self.block("main.cf")) | dict(self.main or {})
        return Postfix(
            next_hop=self.world.port,
            main=dict.fromkeys(DOCUMENTED) | main,
            master=self.block("master.cf"),
        )

    def block(self, file: str, but: Sequence[str] = ()) -> str:
        """The lines for that file, with our ports and folders."""
        text = "".join(BLOCKS.get(f"{file} {n}", "") for n in self.names if n not in but)
        if "unix:/run/alias-milter" in text:
            text = text.replace("unix:/run/alias-milter", f"unix:{self.daemon.folder}")
        for old, new in {
            "smtp:[mailbox.example.net]": f"smtp:[127.0.0.1]:{self.world.port}",
            "lmtp:unix:private/dovecot-lmtp": f"smtp:[127.0.0.1]:{self.world.port}",
            "hash:/etc/postfix/mailboxes": f"hash:{self.redis.folder}/users",
            "hash:/etc/postfix/relay-recipients": f"hash:{self.redis.folder}/users",
            "10027": str(self.srs_port),
            "10026": str(self.copies_port),
            "submission inet": f"127.0.0.1:{self.submission_port} inet",
            "/etc/ssl/certs/mx.example.net.pem": str(self.redis.folder / "mx.crt"),
            "/etc/ssl/private/mx.example.net.key": str(self.redis.folder / "mx.key"),
        }.items():
            text = text.replace(old, new)
        return text

    def rcpt(self, *recipients: str) -> list[smtp.Reply]:
        """What Postfix says to each RCPT."""
        return list(self.send(ALICE, *recipients).rcpts)
