"""Postfix's hold queue, by postqueue, postcat and postsuper (each has a manual page)."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aliasmilter.admin.held import Held, QueueError, call, in_order, notes_of


class PostfixQueue:
    """The hold queue of an instance.

    Args:
        folder: its configuration directory; None for the default instance.
    """

    def __init__(self, folder: Path | None) -> None:
        self._options = ("-c", str(folder)) if folder else ()
        self._submit_options = ("-C", str(folder)) if folder else ()

    def held(self) -> list[Held]:
        """All held messages, the oldest first."""
        lines = self._run("postqueue", "-j").splitlines()
        entries = [json.loads(line) for line in lines if line.strip()]
        held = [entry for entry in entries if entry["queue_name"] == "hold"]
        found = []
        for entry in held:
            try:
                found.append(self._held(entry))
            except QueueError:
                if self._is_held(entry["queue_id"]):
                    raise
                # Released in this very moment.
        return in_order(found)

    def content(self, queue_id: str) -> bytes:
        """A held message, as the milter left it."""
        return self._run("postcat", "-bhq", queue_id)

    def release(self, queue_id: str) -> None:
        """Let it go on, and at once. -r would have Postfix rewrite its addresses anew."""
        self._run("postsuper", "-H", queue_id)
        self._run("postqueue", "-i", queue_id)

    def delete(self, queue_id: str) -> None:
        """Remove it, if it is still held: nobody may lose a message that has been released."""
        self._run("postsuper", "-d", queue_id, "hold")

    def submit(self, sender: str, recipient: str, content: bytes) -> None:
        """Hand in a new message by sendmail(1); -G: it is not of a user of this host."""
        options = (*self._submit_options, "-i", "-G", "-f", sender or "<>")
        call(["sendmail", *options, "--", recipient], content)

    def _is_held(self, queue_id: str) -> bool:
        entries = map(json.loads, self._run("postqueue", "-j").splitlines())
        return any((e["queue_id"], e["queue_name"]) == (queue_id, "hold") for e in entries)

    def _run(self, program: str, *arguments: str) -> bytes:
        return call([program, *self._options, *arguments])

    def _held(self, entry: dict[str, Any]) -> Held:
        reasons: Sequence[str] = [r.get("delay_reason", "") for r in entry["recipients"]]
        return Held(
            queue_id=entry["queue_id"],
            # How showq(8) writes the null sender.
            sender="" if entry["sender"] == "MAILER-DAEMON" else entry["sender"],
            recipients=tuple(recipient["address"] for recipient in entry["recipients"]),
            arrived=datetime.fromtimestamp(entry["arrival_time"], UTC),
            notes=notes_of(self._run("postcat", "-hq", entry["queue_id"])),
            why=next((reason for reason in reasons if reason), ""),
        )
