"""The files that rules are read from and written to."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import PurePath

from aliasmilter.admin.formats import csv_file, redis_script, virtual
from aliasmilter.admin.formats.ruleset import RuleSet
from aliasmilter.store.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class Format:
    """A kind of file.

    Attributes:
        read: takes the lines of a file into a rule set; what is wrong with them too.
        write: the text for some domains, piece by piece, and what it cannot say as findings.
        suffixes: of its files.
    """

    read: Callable[[Iterable[str], RuleSet], None]
    write: Callable[[Snapshot, RuleSet], Iterable[str]]
    suffixes: tuple[str, ...]


FORMATS: dict[str, Format] = {
    "redis": Format(redis_script.read, redis_script.write, (".redis", ".rediscli")),
    "csv": Format(csv_file.read, csv_file.write, (".csv",)),
    "virtual": Format(virtual.read, virtual.write, (".virtual", ".cf")),
}


def format_of(file_name: str) -> str | None:
    """The name of the format that a file's name tells, or None."""
    path = PurePath(file_name)
    for name, each in FORMATS.items():
        if path.suffix.lower() in each.suffixes:
            return name
    # /etc/postfix/virtual
    return "virtual" if path.name.lower().startswith("virtual") else None
