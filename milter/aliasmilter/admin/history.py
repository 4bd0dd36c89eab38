"""`alias-milter log [ADDRESS|DOMAIN]`: who changed what with our commands."""

from itertools import islice
from pathlib import Path

import click

from aliasmilter import config as configuration
from aliasmilter.admin.edit import TIMEOUT
from aliasmilter.admin.output import show_json, show_rows
from aliasmilter.routing.lookup import Unavailable
from aliasmilter.store.audit import Entry, entries
from aliasmilter.store.editor import connect


def run(path: Path, subject: str | None, count: int, *, as_json: bool) -> int:
    """Print the newest changes, the newest last; 1 when Redis is away.

    Args:
        path: of the configuration.
        subject: only those about this address or domain.
        count: at most so many; 0 for all.
        as_json: a JSON array instead of a table.

    Raises:
        ConfigError: the configuration cannot be used.
    """
    config = configuration.load(path)
    client = connect(config.store.url, max(config.store.timeout, TIMEOUT))
    try:
        wanted = (e for e in entries(client) if subject is None or e.concerns(subject))
        found = list(islice(wanted, count or None))
    except Unavailable as problem:
        click.echo(f"alias-milter: {problem}", err=True)
        return 1
    finally:
        client.close()
    found.reverse()
    if as_json:
        show_json({**_row(entry), "before": entry.before, "after": entry.after} for entry in found)
    else:
        columns = ("WHEN", "WHO", "COMMAND", "ADDRESS", "BEFORE", "AFTER")
        show_rows(columns, (_cells(entry) for entry in found))
    return 0


def _row(entry: Entry) -> dict[str, str | None]:
    when = entry.when.isoformat(timespec="seconds")
    return {"when": when, "who": entry.who, "command": entry.command, "address": entry.address}


def _cells(entry: Entry) -> tuple[str, ...]:
    return (*(cell or "" for cell in _row(entry).values()), entry.before or "-", entry.after or "-")
