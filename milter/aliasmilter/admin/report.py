"""What a command found, and how it says so."""

from dataclasses import dataclass
from enum import StrEnum

import click

from aliasmilter.admin.output import printable


class Severity(StrEnum):
    """How bad a finding is: errors make a command exit with 1."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong: where (a key and field, a file) and what."""

    severity: Severity
    where: str
    what: str

    def show(self, *, err: bool = False) -> None:
        """Print it on one line; with `err` on standard error."""
        colour = "red" if self.severity is Severity.ERROR else "yellow"
        said = printable(f"{self.where}: {self.what}")
        click.echo(f"{click.style(self.severity, fg=colour)}: {said}", err=err)


def error(where: str, what: str) -> Finding:
    """A finding that keeps mail from being delivered."""
    return Finding(Severity.ERROR, where, what)


def warning(where: str, what: str) -> Finding:
    """A finding that may not be what was meant."""
    return Finding(Severity.WARNING, where, what)
