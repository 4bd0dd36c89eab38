"""Messages that the MTA holds, whichever MTA it is.

QueueError      one of the MTA's tools failed, or the queue cannot be read; the text is for people
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from aliasmilter.mail.message import QUARANTINE_HEADER, Message

# Debian's mail tools live in sbin, which an ordinary PATH lacks.
_FOLDERS = ("/usr/sbin", "/usr/lib", "/sbin")
_PATIENCE = 300.0  # seconds for one of the MTA's tools

_NOTE = re.compile(r"recipient=(.*?);\s*rule=(.*?);\s*reason=(\S+)")


class QueueError(Exception):
    """What was asked of the MTA was not done; the text says why."""


@dataclass(frozen=True, slots=True)
class Note:
    """What the milter wrote on a hit: the address as it came, the rule, and the reason."""

    recipient: str
    rule: str
    reason: str


@dataclass(frozen=True, slots=True)
class Held:
    """A held message.

    Attributes:
        queue_id: the MTA's.
        sender: the reverse-path without brackets, "" for the null one.
        recipients: who gets it on release.
        arrived: when it came in.
        notes: of ours; empty when somebody else has it held.
        why: the MTA's own note, where it keeps one.
    """

    queue_id: str
    sender: str
    recipients: tuple[str, ...]
    arrived: datetime
    notes: tuple[Note, ...] = ()
    why: str = ""


class Queue(Protocol):
    """What the commands need of an MTA; every method raises QueueError."""

    def held(self) -> list[Held]:
        """All held messages, the oldest first."""

    def content(self, queue_id: str) -> bytes:
        """A held message: header, empty line, body, with LF line ends."""

    def release(self, queue_id: str) -> None:
        """Let a held message go on to the recipients it has."""

    def delete(self, queue_id: str) -> None:
        """Remove a held message for good."""

    def submit(self, sender: str, recipient: str, content: bytes) -> None:
        """Hand in a new message; returns when the MTA has taken it into its keeping."""


def notes_of(content: bytes) -> tuple[Note, ...]:
    """What the milter wrote on top of a message.

    Only what stands above the MTA's own Received field: what stands below came with the message,
    and anybody can write there.
    """
    found = []
    for field in Message.parse(content).headers:
        if field.key == b"received":
            break
        if field.key == QUARANTINE_HEADER.lower().encode():
            match = _NOTE.search(field.unfolded.decode("utf-8", "replace"))
            if match:
                found.append(Note(*match.groups()))
    return tuple(found)


def find_program(name: str) -> str | None:
    """Where one of the MTA's tools is."""
    folders = (os.environ.get("PATH", os.defpath), *_FOLDERS)
    return shutil.which(name, path=os.pathsep.join(folders))


def call(
    command: Sequence[str], stdin: bytes = b"", environment: Mapping[str, str] | None = None
) -> bytes:
    """Run one of the MTA's tools; returns its standard output.

    Args:
        command: name and arguments; never through a shell.
        stdin: what it reads.
        environment: on top of our own.

    Raises:
        QueueError: it is not there, failed, or did not end.
    """
    program = find_program(command[0])
    if program is None:
        raise QueueError(f"{command[0]}: not found")
    try:
        done = subprocess.run(  # noqa: S603
            [program, *command[1:]],
            input=stdin,
            capture_output=True,
            timeout=_PATIENCE,
            check=False,
            env={**os.environ, "LC_ALL": "C", **(environment or {})},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise QueueError(f"{command[0]}: {error}") from error
    if done.returncode:
        said = (done.stderr or done.stdout).decode("utf-8", "replace").strip()
        raise QueueError(f"{command[0]}: {said or f'exit status {done.returncode}'}")
    return done.stdout


def in_order(messages: Iterable[Held]) -> list[Held]:
    """The oldest first."""
    return sorted(messages, key=lambda held: (held.arrived, held.queue_id))
