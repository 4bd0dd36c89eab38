"""Showing much at once: tables, JSON and a progress bar, each as it suits who reads it."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from itertools import chain, islice
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

MANY = 10_000
"""More rules than these call for a progress bar, and are no table any more."""

_STEP = 1000


class Form(StrEnum):
    """How an answer is written."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


_T = TypeVar("_T")


def show_rows(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows: a table on a terminal, else lines with tabs, whole and without decoration.

    Args:
        columns: the headings.
        rows: text for each column.
    """
    rest = iter(rows)
    if sys.stdout.isatty():
        first = list(islice(rest, MANY + 1))
        if len(first) <= MANY:
            _show_table(columns, first)
            return
        rest = chain(first, rest)
    for row in rest:
        click.echo("\t".join(printable(cell) for cell in row))


def show_json(objects: Iterable[dict[str, Any]]) -> None:
    """Print a JSON array, an object a line, without holding all of it."""
    separator = "["
    for each in objects:
        click.echo(separator + "\n" + json.dumps(each, ensure_ascii=False), nl=False)
        separator = ","
    click.echo("\n]" if separator == "," else "[]")


def printable(text: str) -> str:
    """The text with escapes for what could do something to a terminal, or is no character."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


@contextmanager
def progress_bar() -> Iterator["Bar"]:
    """A bar on standard error, when that is a terminal, for work that takes a while."""
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    try:
        yield Bar(bar)
    finally:
        bar.stop()


class Bar:
    """Shows how far each phase of the work is."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def phase(self, name: str, total: int | None) -> Callable[[int], None]:
        """Begin a phase; call what is returned with the number of rules done since last time."""
        if total is not None and total <= MANY:
            return lambda _: None
        self._progress.start()
        task = self._progress.add_task(name, total=total)
        return lambda count: self._progress.advance(task, count)

    def counted(self, name: str, items: Iterable[_T]) -> Iterator[_T]:
        """Pass items on, with a phase for them once they are many."""
        rest = iter(items)
        yield from islice(rest, MANY)
        advance: Callable[[int], None] | None = None
        for number, item in enumerate(rest, 1):
            if advance is None:
                advance = self.phase(name, None)
                advance(MANY)
            if not number % _STEP:
                advance(_STEP)
            yield item


def _show_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    Console().print(table)
