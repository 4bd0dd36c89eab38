"""The load generator: load.c, compiled by `make bench`, and what it measured."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.harness.wait import LabError

REPOSITORY = Path(__file__).parents[1]
PROGRAM = REPOSITORY / "build" / "load"
ACCEPTED, REJECTED = ("a", "c"), ("5", "r")
DELETED, ADDED, INSERTED = "-", "+", "i"


@dataclass(frozen=True)
class Load:
    """What a run of the load generator measured.

    Attributes:
        messages: that were answered.
        seconds: that took.
        p50: median latency of a whole message, in milliseconds.
        p99: the latency that one in a hundred exceeds.
        max: the longest.
        answers: how many messages ended with which answer (the protocol's letters; "4", "5").
        edits: how many changes were asked for, by the protocol's letters.
        errors: connections that broke.
    """

    messages: int
    seconds: float
    p50: float
    p99: float
    max: float
    answers: dict[str, int]
    edits: dict[str, int]
    errors: int

    @property
    def rate(self) -> float:
        """Messages a second."""
        return self.messages / self.seconds

    def require(self, answers: Sequence[str], **edits_a_message: int) -> Load:
        """Itself, when all messages ended in one of these answers with so many edits each.

        A benchmark that does not do the work is none. Raises LabError.
        """
        wanted = {kind: count * self.messages for kind, count in edits_a_message.items()}
        found = {
            "deleted": self.edits.get(DELETED, 0),
            "added": self.edits.get(ADDED, 0) + self.edits.get("2", 0),
            "inserted": self.edits.get(INSERTED, 0),
            "sender": self.edits.get("e", 0),
        }
        wrong = {k: v for k, v in found.items() if v != wanted.get(k, 0)}
        if self.errors or wrong or not self.messages or set(self.answers) - set(answers):
            raise LabError(f"the milter did not do its work: {self}, wrong: {wrong}")
        return self


def run_load(
    socket: str,
    messages: Sequence[Path] = (),
    *,
    seconds: float = 5.0,
    count: int | None = None,
    connections: int = 8,
    per_connection: int = 50,
    sender: str = "<alice@bank.example>",
    recipients: Sequence[str] = ("<sales@example.com>",),
    client: str = "192.0.2.10",
) -> Load:
    """Run the load generator.

    Args:
        socket: of the milter, as `[milter] socket` has it.
        messages: files with CRLF line ends; without any, every transaction ends after RCPT.
        seconds: how long; or
        count: how many messages, if that is sooner.
        connections: at a time.
        per_connection: messages in each, one after the other.
        sender: argument of MAIL.
        recipients: arguments of RCPT; "%ld" is a number of the message's own.
        client: IP address of the SMTP client.

    Raises:
        LabError: it failed; the message has what it wrote.
    """
    words = [PROGRAM, "-s", socket, "-t", seconds, "-c", connections, "-k", per_connection]
    words += ["-f", sender, "-i", client, *(["-n", count] if count else [])]
    words += [word for recipient in recipients for word in ("-r", recipient)]
    done = subprocess.run(
        [str(word) for word in [*words, *messages]],
        capture_output=True, text=True, timeout=seconds + 60, check=False,
    )  # fmt: skip
    if not done.stdout.startswith("{"):
        raise LabError(f"load: {done.stderr}{done.stdout}")
    return Load(**json.loads(done.stdout))
