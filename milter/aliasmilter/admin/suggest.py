"""`alias-milter suggest`: addresses that were asked for and look like a typo of one that exists."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import click
from rapidfuzz import process
from rapidfuzz.distance import OSA

from aliasmilter import config as configuration
from aliasmilter.admin import edit
from aliasmilter.admin.counted import read_counted
from aliasmilter.admin.edit import Wish
from aliasmilter.admin.formats.ruleset import RuleSet
from aliasmilter.admin.output import Bar, printable
from aliasmilter.mail.address import Address
from aliasmilter.routing.lookup import Unavailable, is_pattern
from aliasmilter.routing.rules import CATCH_ALL
from aliasmilter.store.schema import MISSES_PREFIX, alias_key
from aliasmilter.store.tally import OTHERS, UNAUTHENTICATED, Seen, day, oldest_day, since

AUTHENTICATED_WEIGHT = 5  # a sender that is known counts like so many messages of unknown ones
SHORT = 5  # letters: in short names one mistake is all that is taken for a typo


@dataclass(frozen=True, slots=True)
class Suggestion:
    """An address that looks like another one.

    Attributes:
        typo: the local part that was asked for.
        meant: the one it looks like.
        count: how often it was asked for.
        senders: how many domains that were authenticated asked for it.
    """

    typo: str
    meant: str
    count: int
    senders: int

    @property
    def weight(self) -> int:
        """What is likely to be a real correspondent's mistake weighs more."""
        return self.count + AUTHENTICATED_WEIGHT * self.senders

    def line(self, domain: str) -> str:
        """What to give redis-cli."""
        return f"HSET {alias_key(domain)} {_quoted(self.typo)} {_quoted(self.rule(domain))}"

    def rule(self, domain: str) -> str:
        """Where the typo shall lead."""
        return str(Address(self.meant, domain))


def run(path: Path, domain: str | None, bar: Bar, *, apply: bool) -> int:
    """Print the suggestions for a domain, or for all, as lines for redis-cli.

    Args:
        path: of the configuration.
        domain: the one that is wanted, or None for all.
        bar: shows how far changes are.
        apply: ask for each of them whether to add it.

    Returns:
        0; 1 when Redis is away, or something could not be added.

    Raises:
        ConfigError: the configuration cannot be used.
    """
    try:
        counted = read_counted(path, MISSES_PREFIX, domain)
    except Unavailable as problem:
        click.echo(f"alias-milter: {problem}", err=True)
        return 1
    status, oldest = 0, _oldest_day(path)
    for one in counted:
        for found in suggestions(since(one.seen, oldest), one.rules):
            # redis-cli knows no comments; `import` passes over ECHO as well.
            click.echo(f'ECHO "{_reason(found)}"')
            click.echo(found.line(one.domain))
            if apply and click.confirm("Add it?", default=False, err=True):
                status |= _add(path, one.domain, found, bar)
    return status


def _oldest_day(path: Path) -> str:
    """The first day that is remembered; "" where it is not said how long."""
    seconds = configuration.load(path).suggest.remember_days * 86_400
    return oldest_day(day(time.time()), seconds) if seconds else ""


def _reason(found: Suggestion) -> str:
    return f"asked for {found.count} times, by {found.senders} authenticated senders"


def _add(path: Path, domain: str, found: Suggestion, bar: Bar) -> int:
    rules = RuleSet()
    rules.add(domain, found.typo, found.rule(domain).encode())
    return edit.run(path, Wish("suggest", rules, overwrite=False), bar)


def _quoted(word: str) -> str:
    """As redis-cli reads it; what a stranger asked for must not become another command."""
    if word.isascii() and word.replace("@", "").replace(".", "").replace("-", "").isalnum():
        return word
    return '"' + printable(word).replace("\\", "\\\\").replace('"', '\\"') + '"'


def suggestions(
    misses: Mapping[str, Mapping[str, Seen]], existing: Mapping[str, object]
) -> list[Suggestion]:
    """The likely typos, the weightiest first.

    Args:
        misses: local part -> domain that wrote -> what was seen.
        existing: the local parts that have a rule.
    """
    names = [name for name in existing if name != CATCH_ALL and not is_pattern(name)]
    found = (_suggestion(local, seen, names) for local, seen in misses.items()
             if local not in existing)  # fmt: skip
    return sorted((one for one in found if one), key=lambda one: (-one.weight, one.typo))


def _suggestion(local: str, seen: Mapping[str, Seen], names: list[str]) -> Suggestion | None:
    """Within one transposition, insertion, deletion or substitution; two in longer names."""
    limit = 1 if len(local) <= SHORT else 2
    best = process.extractOne(local, names, scorer=OSA.distance, score_cutoff=limit)
    if best is None:
        return None
    count = sum(what.count for what in seen.values())
    return Suggestion(local, best[0], count, sum(1 for _ in _authenticated(seen)))


def _authenticated(seen: Mapping[str, Seen]) -> Iterator[str]:
    return (who for who in seen if who not in (UNAUTHENTICATED, OTHERS))
