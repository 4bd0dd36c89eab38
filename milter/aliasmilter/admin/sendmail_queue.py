"""Sendmail's quarantined messages.

What is listed is read from the queue itself (operations guide, appendix B): mailq cuts addresses
off. Releasing is Sendmail's own; for deleting it has no command, so both files of a message are
removed under the lock that Sendmail takes before it touches one.
"""

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path

from aliasmilter.admin.held import Held, QueueError, call, in_order, notes_of

DEFAULT = Path("/etc/mail/sendmail.cf")

_FOLDER = re.compile(r"^O\s*QueueDirectory\s*=\s*(\S+)", re.MULTILINE)
_HEADER = re.compile(r"H(?:\?([^?]*)\?)?(.*)", re.DOTALL)
_RECIPIENT = re.compile(r"R(?:[A-Za-z]*:)?<?(.*?)>?")


class SendmailQueue:
    """The quarantined messages of a Sendmail.

    Args:
        configuration: its sendmail.cf, or the directory that holds it; None for the default.
    """

    def __init__(self, configuration: Path | None) -> None:
        file = configuration or DEFAULT
        self._file = file / "sendmail.cf" if file.is_dir() else file
        self._options = (f"-C{self._file}",) if configuration else ()

    def held(self) -> list[Held]:
        """All held messages, the oldest first."""
        found = []
        for control in self._controls("hf*"):
            try:
                found.append(_held(control.name[2:], _lines(control)))
            except FileNotFoundError:
                continue  # released in this very moment
            except OSError as error:
                raise QueueError(f"{control}: {error.strerror}") from error
        return in_order(found)

    def content(self, queue_id: str) -> bytes:
        """A held message, as the milter left it."""
        control = self._control(queue_id)
        try:
            header = _header(_lines(control))
            return header + b"\n" + self._data(control).read_bytes()
        except OSError as error:
            raise QueueError(f"{queue_id}: {error.strerror}") from error

    def release(self, queue_id: str) -> None:
        """Let it go on, and at once."""
        self._control(queue_id)
        call(["sendmail", *self._options, "-qQ", f"-qI{queue_id}", "-Q"])
        if self._found(queue_id):
            raise QueueError(f"{queue_id}: Sendmail has not released it; see its log")
        call(["sendmail", *self._options, f"-qI{queue_id}"])

    def delete(self, queue_id: str) -> None:
        """Remove it, if it is still held and nobody works on it."""
        control = self._control(queue_id)
        try:
            with _locked(control):
                # The control file first: data without it is rubbish, the reverse is an error.
                control.unlink()
                self._data(control).unlink(missing_ok=True)
        except BlockingIOError:
            raise QueueError(f"{queue_id}: Sendmail is working on it") from None
        except OSError as error:
            raise QueueError(f"{queue_id}: {error.strerror}") from error

    def submit(self, sender: str, recipient: str, content: bytes) -> None:
        """Hand in a new message; -G: it is not of a user of this host."""
        options = (*self._options, "-i", "-G", "-f", sender or "<>")
        call(["sendmail", *options, "--", recipient], content)

    def _folders(self) -> list[Path]:
        try:
            text = self._file.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise QueueError(f"{self._file}: {error.strerror}") from error
        named = _FOLDER.search(text)
        queue = Path(named[1] if named else "/var/spool/mqueue")
        if "*" not in queue.name:
            return [queue]
        # `/var/spool/mqueue/q*` stands for several queues, each of which may have qf and df apart.
        return [place for place in _entries(queue.parent, queue.name) if place.is_dir()]

    def _controls(self, pattern: str) -> list[Path]:
        try:
            places = [place for folder in self._folders() for place in (folder, folder / "qf")]
            there = [place for place in places if place.name != "qf" or place.is_dir()]
            return [file for place in there for file in _entries(place, pattern)]
        except OSError as error:
            raise QueueError(f"{error.filename}: {error.strerror}") from error

    def _found(self, queue_id: str) -> Path | None:
        return next(iter(self._controls(f"hf{queue_id}")), None)

    def _control(self, queue_id: str) -> Path:
        control = self._found(queue_id)
        if control is None:
            raise QueueError(f"{queue_id}: not held")
        return control

    def _data(self, control: Path) -> Path:
        name = f"df{control.name[2:]}"
        beside = control.parent.parent / "df" / name
        return beside if control.parent.name == "qf" and beside.exists() else control.parent / name


def _entries(folder: Path, pattern: str) -> list[Path]:
    """What is in a folder; raises OSError where glob would find nothing and not say why."""
    return sorted(file for file in folder.iterdir() if fnmatchcase(file.name, pattern))


@contextmanager
def _locked(control: Path) -> Iterator[None]:
    """Take Sendmail's lock, of whichever kind it was built with; raises BlockingIOError."""
    with control.open("rb+") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Between finding and locking it may have been released: that is a rename.
        if os.fstat(file.fileno()).st_nlink == 0 or not control.exists():
            raise BlockingIOError
        yield


def _lines(control: Path) -> list[str]:
    """The logical lines of a control file; surrogates stand for octets beyond UTF-8."""
    lines: list[str] = []
    for line in control.read_text(encoding="utf-8", errors="surrogateescape").split("\n"):
        if line.startswith((" ", "\t")) and lines:
            lines[-1] += "\n" + line
        elif line == ".":
            break
        else:
            lines.append(line)
    return lines


def _held(queue_id: str, lines: list[str]) -> Held:
    first = {line[:1]: line[1:] for line in reversed(lines)}
    people = [_RECIPIENT.fullmatch(line) for line in lines if line.startswith("R")]
    return Held(
        queue_id=queue_id,
        sender=first.get("S", "").strip("<>"),
        recipients=tuple(person[1] for person in people if person),
        arrived=datetime.fromtimestamp(int(first.get("T", "0")), UTC),
        notes=notes_of(_header(lines)),
        why=first.get("q", ""),
    )


def _header(lines: list[str]) -> bytes:
    fields = [_HEADER.fullmatch(line) for line in lines if line.startswith("H")]
    # Return-Path is for final delivery (RFC 5321 section 4.4), and not filled in yet.
    kept = [field[2] for field in fields if field and field[1] != "P"]
    return "".join(f"{field}\n" for field in kept).encode("utf-8", "surrogateescape")
