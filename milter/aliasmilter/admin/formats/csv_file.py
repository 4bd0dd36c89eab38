"""Comma-separated values (RFC 4180): `address,rule`, with or without these words on top."""

import csv
import io
from collections.abc import Iterable, Iterator

from aliasmilter.admin.formats.ruleset import RuleSet
from aliasmilter.store.audit import rule_address
from aliasmilter.store.snapshot import Snapshot

HEADER = ["address", "rule"]


def read(lines: Iterable[str], rules: RuleSet) -> None:
    """Take the records of a file.

    Args:
        lines: text, with their ends; octets that are no UTF-8 as surrogate escapes.
        rules: takes them, and every mistake.
    """
    reader = csv.reader(lines, strict=True)
    first = True
    try:
        for record in reader:
            if record and not (first and [word.strip().lower() for word in record] == HEADER):
                _take(record, reader.line_num, rules)
            first = False
    except csv.Error as problem:
        rules.mistake(reader.line_num, str(problem))


def write(snapshot: Snapshot, _: RuleSet) -> Iterator[str]:
    """The records for all rules of the snapshot, and a header; settings are left out."""
    text = io.StringIO()
    plain = csv.writer(text, lineterminator="\n")
    # A lone CR ends a line for readers, and is not quoted by the writer of every Python.
    careful = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    plain.writerow(HEADER)
    for domain in sorted(snapshot.rules):
        for name, raw in sorted(snapshot.rules[domain].items()):
            writer = careful if b"\r" in raw else plain
            writer.writerow((rule_address(domain, name), raw.decode("utf-8", "surrogateescape")))
            yield text.getvalue()
            text.seek(text.truncate(0))
    yield text.getvalue()


def _take(record: list[str], line: int, rules: RuleSet) -> None:
    if len(record) != len(HEADER):
        what = f"{len(record)} fields instead of {len(HEADER)}: a rule with a comma needs quotes"
        rules.mistake(line, what)
        return
    address, rule = record
    rules.add_address(address.strip(" \t"), rule.encode("utf-8", "surrogateescape"), line)
