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

QUIET = 0.05  # of the processors for others


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        path: what was measured.
        ours: the raw figure.
        reference: what it is compared with.
        ratio: of the two; within one run it holds on any machine. None: it was not measured.
        goal: the ratio that is wanted.
        at_most: the ratio shall not be above the goal; else not below it.
        note: how far the rounds were apart, or what else there is to say.
        disturbed: others used the machine meanwhile: the ratio proves nothing.
    """

    path: str
    ours: str
    reference: str
    ratio: float | None
    goal: float
    at_most: bool = False
    note: str = ""
    disturbed: bool = False

    @property
    def good(self) -> bool:
        """Whether the goal is reached."""
        if self.ratio is None:
            return False
        return self.ratio <= self.goal if self.at_most else self.ratio >= self.goal


@dataclass(frozen=True)
class Pairs:
    """Figures of the same moment, ours and the reference's, one pair a round.

    Attributes:
        ours: a figure a round.
        reference: likewise.
        others: the share of the processors that went to other work in the round. The scheduler
            divides by threads, and gives the side with more of them more: what was measured
            beside other work is not compared.
    """

    ours: Sequence[float]
    reference: Sequence[float]
    others: Sequence[float] = ()

    def quiet(self) -> Pairs:
        """The rounds that nobody disturbed; all of them when those are too few."""
        kept = [index for index, share in enumerate(self.others) if share <= QUIET]
        if len(kept) < 2:
            return self
        return Pairs(
            *([each[i] for i in kept] for each in (self.ours, self.reference, self.others))
        )

    @property
    def disturbed(self) -> bool:
        """Whether there was other work in most rounds."""
        return bool(self.others) and median(self.others) > QUIET

    @property
    def ratios(self) -> list[float]:
        """Ours by the reference's, of each round."""
        return [ours / other for ours, other in zip(self.ours, self.reference, strict=True)]

    def row(self, path: str, goal: float, reference: str, unit: str = "/s") -> Row:
        """The line for these pairs."""
        spread = f"rounds {min(self.ratios):.2f} to {max(self.ratios):.2f}"
        if self.disturbed:
            spread += f"; others had {max(self.others):.0%} of the machine"
        return Row(
            path,
            f"{median(self.ours):,.0f}{unit}",
            f"{reference}: {median(self.reference):,.0f}{unit}",
            median(self.ratios),
            goal,
            note=spread,
            disturbed=self.disturbed,
        )


def show(rows: Sequence[Row], console: Console) -> None:
    """Print the table."""
    shown = Table(title="alias-milter, benchmarks", title_justify="left")
    for heading in ("path", "measured", "compared with", "ratio", "goal", "", "note"):
        shown.add_column(heading, overflow="fold")
    for row in rows:
        mark = Text("\u2713", "green") if row.good else Text("\u2717", "bold red")
        if row.disturbed or row.ratio is None:
            mark = Text("?", "yellow")
        goal = f"{'<=' if row.at_most else '>='} {row.goal:g}"
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        cells = (row.path, row.ours, row.reference, ratio, goal)
        shown.add_row(*cells, mark, row.note)
    console.print(shown)


def save(rows: Sequence[Row], path: Path) -> None:
    """Write the rows as JSON."""
    path.write_text(json.dumps([{**asdict(row), "good": row.good} for row in rows], indent=1))
