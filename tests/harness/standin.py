"""A milter with fixed rules and a record of all that reaches it, to show what an MTA does.

Run as `python -m tests.harness.standin SOCKET RECORD`, with the socket in libmilter's spelling.
RECORD gets a JSON list for each callback: its name and its arguments. What happens to a
recipient stands in its local part:

    unknown         refused, 550 5.1.1
    alias           becomes bob, with the client's NOTIFY and ORCPT
    forward         becomes me@gmail.example; the sender becomes SRS0=x=y=DOMAIN=LOCAL@SRS_DOMAIN
    hold            the message is quarantined
    SRS0=*=*=d=l    becomes l@d
    slow            the end of the message takes SLOW_SECONDS

Everybody else passes. A message that is accepted gets the headers X-First and X-Second, both
inserted at index 0, in this order.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import Milter

from tests.harness.ports import accepts
from tests.harness.service import Service

SRS_DOMAIN = "fwd.example.net"
SLOW_SECONDS = 3.0
MACROS = ("i", "{daemon_name}", "{client_addr}", "{auth_authen}")


@Milter.header_leading_space
class Callbacks(Milter.Base):  # type: ignore[misc]  # pymilter has no types
    """One connection."""

    record: Path

    def note(self, *words: object) -> None:
        with self.record.open("a") as file:
            file.write(json.dumps(words, default=str) + "\n")

    def negotiate(self, options: list[int]) -> int:
        # {client_addr} comes only to those who ask for it. Base.setsymlist passes bytes and fails.
        self._ctx.setsymlist(Milter.M_ENVFROM, " ".join(MACROS))
        return int(super().negotiate(options))

    def connect(self, name: str, family: int, address: object) -> int:
        self.note("connect", name, address)
        return int(Milter.CONTINUE)

    def envfrom(self, sender: str, *options: str) -> int:
        self.sender = sender.strip("<>")
        self.recipients: list[tuple[str, list[str]]] = []
        macros = {name: self.getsymval(name) for name in MACROS}
        self.note("envfrom", sender, options, macros)
        return int(Milter.CONTINUE)

    def envrcpt(self, recipient: str, *options: str) -> int:
        self.note("envrcpt", recipient, options)
        if recipient.startswith("<unknown@"):
            self.setreply("550", "5.1.1", "No such user here")
            return int(Milter.REJECT)
        keep = [option for option in options if option.startswith(("NOTIFY=", "ORCPT="))]
        self.recipients.append((recipient, keep))
        return int(Milter.CONTINUE)

    def header(self, name: str, value: str) -> int:
        self.note("header", name, value)
        return int(Milter.CONTINUE)

    def eom(self) -> int:
        self.note("eom", self.getsymval("i"))
        for recipient, options in self.recipients:
            local, _, domain = recipient.strip("<>").rpartition("@")
            self.treat(recipient, local, domain, options)
        self.addheader("X-First", " one", 0)
        self.addheader("X-Second", " two", 0)
        return int(Milter.ACCEPT)

    def treat(self, recipient: str, local: str, domain: str, options: Sequence[str]) -> None:
        if local == "slow":
            time.sleep(SLOW_SECONDS)
        elif local == "hold":
            self.quarantine("catch-all")
        elif local.startswith("SRS0="):
            original = local.split("=", 4)
            self.replace(recipient, f"{original[4]}@{original[3]}", options)
        elif local == "forward":
            self.replace(recipient, "me@gmail.example", options)
            user, _, host = self.sender.rpartition("@")
            self.chgfrom(f"<SRS0=x=y={host}={user}@{SRS_DOMAIN}>")
        elif local == "alias":
            self.replace(recipient, f"bob@{domain}", options)

    def replace(self, old: str, new: str, options: Sequence[str]) -> None:
        self.delrcpt(old)
        self.addrcpt(f"<{new}>", *([" ".join(options)] if options else []))


class StandIn(Service):
    """The stand-in as a process of the lab."""

    name = "standin"

    def prepare(self, stack: ExitStack) -> None:
        """Make the record, which other users of the machine need not write."""
        self.record_file.touch()

    @property
    def record_file(self) -> Path:
        """Where the callbacks are written down."""
        return self.folder / "record"

    @property
    def socket(self) -> str:
        """The socket, in everybody's spelling."""
        return f"unix:{self.folder}/milter.sock"

    def command(self) -> Sequence[str]:
        """This module as a program."""
        return [sys.executable, "-m", __name__, self.socket, str(self.record_file)]

    def environment(self) -> dict[str, str]:
        """The environment, with this repository."""
        return {"PYTHONPATH": str(Path(__file__).parents[2])}

    def is_ready(self) -> bool:
        """Whether the socket takes connections."""
        return accepts(f"{self.folder}/milter.sock")

    def stop(self, timeout: float = 0.0) -> None:
        """End it at once: it holds nothing, and libmilter takes seconds to obey SIGTERM."""
        self.kill()

    def calls(self, callback: str) -> list[list[object]]:
        """The arguments of all calls of that callback so far, oldest first."""
        lines = [json.loads(line) for line in self.record_file.read_text().splitlines()]
        return [arguments for name, *arguments in lines if name == callback]

    def clear(self) -> None:
        """Forget what was called."""
        self.record_file.write_text("")


def main() -> None:
    """Serve until SIGTERM."""
    socket, record = sys.argv[1:]
    Callbacks.record = Path(record)
    Milter.factory = Callbacks
    Milter.set_flags(
        Milter.CHGBODY
        | Milter.ADDHDRS
        | Milter.ADDRCPT
        | Milter.ADDRCPT_PAR
        | Milter.DELRCPT
        | Milter.CHGFROM
        | Milter.QUARANTINE
    )
    Milter.runmilter("standin", socket, 60)


if __name__ == "__main__":
    main()
