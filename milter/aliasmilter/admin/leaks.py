"""`alias-milter leaks`: which address got mail from whom besides the vendor it was given to."""

import csv
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path

import click

from aliasmilter.admin.counted import read_counted
from aliasmilter.admin.output import Form, show_json, show_rows
from aliasmilter.forwarding.suffixes import registrable_domain
from aliasmilter.routing.lookup import Unavailable
from aliasmilter.routing.rules import RuleError, parse_rule
from aliasmilter.store.schema import VENDORS_PREFIX
from aliasmilter.store.tally import Seen


@dataclass(frozen=True, slots=True)
class Leak:
    """Mail to an address from somebody it was not given to; days are UTC."""

    address: str
    vendor: str
    sender: str
    count: int
    first: str
    last: str


def run(path: Path, domain: str | None, form: Form) -> int:
    """Print the leaks of a domain, or of all; 1 when Redis is away.

    Raises:
        ConfigError: the configuration cannot be used.
    """
    try:
        counted = read_counted(path, VENDORS_PREFIX, domain)
    except Unavailable as problem:
        click.echo(f"alias-milter: {problem}", err=True)
        return 1
    leaks = [leak for one in counted for leak in find(one.domain, one.rules, one.seen)]
    _PRINTERS[form](leaks)
    return 0


def find(
    domain: str, rules: Mapping[str, bytes], seen: Mapping[str, Mapping[str, Seen]]
) -> Iterator[Leak]:
    """The leaks of a domain, an address after the other, the most frequent sender first.

    Args:
        domain: the domain.
        rules: its rules; an address that has no vendor any more is left out.
        seen: local part -> domain that wrote -> what was seen.
    """
    for local, senders in sorted(seen.items()):
        vendor = _vendor(rules.get(local, b""))
        if vendor is None:
            continue
        own = registrable_domain(vendor)
        for who, what in sorted(senders.items(), key=lambda one: (-one[1].count, one[0])):
            if who != own:
                yield Leak(f"{local}@{domain}", vendor, who, what.count, what.first, what.last)


def _vendor(rule: bytes) -> str | None:
    try:
        return parse_rule(rule).vendor
    except RuleError:
        return None


def _table(leaks: Sequence[Leak]) -> None:
    headings = ("ADDRESS", "GIVEN TO", "MAIL FROM", "HOW OFTEN", "SINCE", "LAST")
    show_rows(headings, ([str(cell) for cell in astuple(leak)] for leak in leaks))


def _json(leaks: Sequence[Leak]) -> None:
    show_json(asdict(leak) for leak in leaks)


def _csv(leaks: Sequence[Leak]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(field.name for field in fields(Leak))
    writer.writerows(astuple(leak) for leak in leaks)


_PRINTERS = {Form.TABLE: _table, Form.JSON: _json, Form.CSV: _csv}
