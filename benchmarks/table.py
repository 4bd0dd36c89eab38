"""What a benchmark found, and how it is shown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table
from rich.text import Text


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        path: what was measured.
        ours: the raw figure.
        reference: what it is compared with.
        ratio: of the two; within one run it holds on any machine.
        goal: the ratio that is wanted.
        at_most: the ratio shall not be above the goal; else not below it.
        note: how far the rounds were apart, or what else there is to say.
    """

    path: str
    ours: str
    reference: str
    ratio: float
    goal: float
    at_most: bool = False
    note: str = ""

    @property
    def good(self) -> bool:
        """Whether the goal is reached."""
        return self.ratio <= self.goal if self.at_most else self.ratio >= self.goal


@dataclass(frozen=True)
class Pairs:
    """Figures of the same moment, ours and the reference's, one pair a round.

    Other work on the machine slows both of a pair. The median ignores a round that it hit unevenly.
    """

    ours: Sequence[float]
    reference: Sequence[float]

    @property
    def ratios(self) -> list[float]:
        """Ours by the reference's, of each round."""
        return [ours / other for ours, other in zip(self.ours, self.reference, strict=True)]

    def row(self, path: str, goal: float, reference: str, unit: str = "/s") -> Row:
        """The line for these pairs."""
        spread = f"rounds {min(self.ratios):.2f} to {max(self.ratios):.2f}"
        return Row(
            path,
            f"{median(self.ours):,.0f}{unit}",
            f"{reference}: {median(self.reference):,.0f}{unit}",
            median(self.ratios),
            goal,
            note=spread,
        )


def show(rows: Sequence[Row], console: Console) -> None:
    """Print the table."""
    shown = Table(title="alias-milter, benchmarks", title_justify="left")
    for heading in ("path", "measured", "compared with", "ratio", "goal", "", "note"):
        shown.add_column(heading, overflow="fold")
    for row in rows:
        mark = Text("\u2713", "green") if row.good else Text("\u2717", "bold red")
        goal = f"{'<=' if row.at_most else '>='} {row.goal:g}"
        cells = (row.path, row.ours, row.reference, f"{row.ratio:.2f}", goal)
        shown.add_row(*cells, mark, row.note)
    console.print(shown)


def save(rows: Sequence[Row], path: Path) -> None:
    """Write the rows as JSON."""
    path.write_text(json.dumps([{**asdict(row), "good": row.good} for row in rows], indent=1))
