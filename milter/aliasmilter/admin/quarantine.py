"""`alias-milter quarantine list|show|release|delete`: held mail, and counts of hits."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from aliasmilter import config as configuration
from aliasmilter.admin.edit import TIMEOUT
from aliasmilter.admin.held import Held, Queue, QueueError, find_program
from aliasmilter.admin.output import show_json, show_rows
from aliasmilter.admin.postfix_queue import PostfixQueue
from aliasmilter.admin.sendmail_queue import DEFAULT as SENDMAIL_CF
from aliasmilter.admin.sendmail_queue import SendmailQueue
from aliasmilter.config import Config
from aliasmilter.mail.address import Address
from aliasmilter.routing.lookup import Unavailable
from aliasmilter.store.domains import read_settings
from aliasmilter.store.editor import connect
from aliasmilter.store.tally import read_hits

POSTFIX_CF = Path("/etc/postfix/main.cf")


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which MTA holds the mail.

    Attributes:
        mta: "postfix" or "sendmail"; None: the one that is there.
        configuration: the directory of Postfix's main.cf, or Sendmail's sendmail.cf; None for the
            default.
    """

    mta: str | None = None
    configuration: Path | None = None

    def queue(self) -> Queue:
        """The queue of that MTA.

        Raises:
            UsageError: neither is to be found.
        """
        mta = self.mta or self._detected()
        if mta is None:
            raise click.UsageError("neither Postfix nor Sendmail found: give --mta")
        return (PostfixQueue if mta == "postfix" else SendmailQueue)(self.configuration)

    def _detected(self) -> str | None:
        folder = self.configuration
        if folder:
            return "postfix" if (folder / "main.cf").exists() else "sendmail"
        if POSTFIX_CF.exists() and find_program("postqueue"):
            return "postfix"
        return "sendmail" if SENDMAIL_CF.exists() and find_program("sendmail") else None


def list_held(path: Path, chosen: Chosen, *, everything: bool, as_json: bool) -> int:
    """Print what is held; 1 when the queue cannot be read.

    Args:
        path: of the configuration.
        chosen: the MTA.
        everything: also what somebody else has put on hold.
        as_json: a JSON array instead of a table.

    Raises:
        ConfigError: the configuration cannot be used.
    """
    configuration.load(path)
    try:
        found = [held for held in chosen.queue().held() if held.notes or everything]
    except QueueError as problem:
        return _failed(problem)
    if as_json:
        show_json(_described(held) for held in found)
    else:
        show_rows(("ID", "ARRIVED", "SENDER", "RECIPIENT", "RULE", "REASON"), map(_row, found))
    return 0


def list_hits(path: Path, *, as_json: bool) -> int:
    """Print how many messages each domain's quarantine mailbox got; 1 when Redis is away.

    Raises:
        ConfigError: the configuration cannot be used.
    """
    config = configuration.load(path)
    client = connect(config.store.url, max(config.store.timeout, TIMEOUT))
    try:
        hits, domains = read_hits(client), read_settings(client)
    except Unavailable as problem:
        return _failed(problem)
    finally:
        client.close()
    rows = []
    for domain, count in sorted(hits.items(), key=lambda item: (-item[1], item[0])):
        settings = domains.get(domain)
        rows.append((domain, _mailbox(config, settings.quarantine if settings else None), count))
    if as_json:
        show_json({"domain": d, "mailbox": mailbox, "hits": count} for d, mailbox, count in rows)
    else:
        show_rows(("DOMAIN", "MAILBOX", "HITS"), ((d, m or "-", str(n)) for d, m, n in rows))
    return 0


def show(path: Path, chosen: Chosen, queue_id: str) -> int:
    """Print a held message, what is known of it on standard error; 1 when it is not held.

    Raises:
        ConfigError: the configuration cannot be used.
    """
    configuration.load(path)
    queue = chosen.queue()
    try:
        held, content = _find(queue, queue_id), queue.content(queue_id)
    except QueueError as problem:
        return _failed(problem)
    click.echo(f"; sender <{held.sender}>, arrived {held.arrived:%Y-%m-%d %H:%M:%S} UTC", err=True)
    click.echo(f"; goes to {_names(held.recipients)}", err=True)
    for note in held.notes:
        said = f"; came to {note.recipient} by {note.rule} ({note.reason})"
        click.echo(said, err=True)
    sys.stdout.buffer.write(content)
    sys.stdout.buffer.flush()
    return 0


def release(path: Path, chosen: Chosen, queue_id: str, to: Address | None) -> int:
    """Let a held message go: on its way, or as a new message to another address.

    The new message is in the MTA's keeping before the held one is deleted: whatever happens in
    between, there are two of it rather than none.

    Returns:
        0; 1 when it is not held, or the MTA refused.

    Raises:
        ConfigError: the configuration cannot be used.
    """
    configuration.load(path)
    queue = chosen.queue()
    try:
        held = _find(queue, queue_id)
        if to is None:
            queue.release(queue_id)
            click.echo(f"{queue_id}: released to {_names(held.recipients)}")
            return 0
        queue.submit(held.sender, str(to), queue.content(queue_id))
    except QueueError as problem:
        return _failed(problem)
    try:
        queue.delete(queue_id)
    except QueueError as problem:
        click.echo(f"{queue_id}: sent to <{to}>, and held still: {problem}", err=True)
        return 1
    click.echo(f"{queue_id}: sent to <{to}>")
    return 0


def delete(path: Path, chosen: Chosen, queue_id: str) -> int:
    """Remove a held message for good; 1 when it is not held, or the MTA refused.

    Raises:
        ConfigError: the configuration cannot be used.
    """
    configuration.load(path)
    queue = chosen.queue()
    try:
        _find(queue, queue_id)
        queue.delete(queue_id)
    except QueueError as problem:
        return _failed(problem)
    click.echo(f"{queue_id}: deleted")
    return 0


def holds(path: Path) -> bool:
    """Whether the configuration has catch-all hits held.

    Raises:
        ConfigError: the configuration cannot be used.
    """
    return configuration.load(path).policy.hold


def _find(queue: Queue, queue_id: str) -> Held:
    """The held message of that id; the MTA's tools would act on any message, held or not."""
    for held in queue.held():
        if held.queue_id == queue_id:
            return held
    raise QueueError(f"{queue_id}: not held")


def _mailbox(config: Config, own: Address | None) -> str | None:
    return str(own) if own else config.quarantine.mailbox


def _failed(problem: Exception) -> int:
    click.echo(f"alias-milter: {problem}", err=True)
    return 1


def _names(addresses: Sequence[str]) -> str:
    return " ".join(f"<{address}>" for address in addresses)


def _row(held: Held) -> tuple[str, ...]:
    notes = held.notes
    return (
        held.queue_id,
        f"{held.arrived:%Y-%m-%dT%H:%M:%SZ}",
        f"<{held.sender}>",
        " ".join(note.recipient for note in notes) or _names(held.recipients),
        " ".join(dict.fromkeys(note.rule for note in notes)) or "-",
        " ".join(dict.fromkeys(note.reason for note in notes)) or held.why or "-",
    )


def _described(held: Held) -> dict[str, Any]:
    hits = [{"recipient": n.recipient, "rule": n.rule, "reason": n.reason} for n in held.notes]
    return {
        "id": held.queue_id,
        "arrived": held.arrived.isoformat(),
        "sender": held.sender,
        "recipients": list(held.recipients),
        "hits": hits,
        "why": held.why,
    }
