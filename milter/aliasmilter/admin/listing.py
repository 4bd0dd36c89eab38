"""`alias-milter list|export [DOMAIN]`: the rules as they stand."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from aliasmilter import config as configuration
from aliasmilter.admin.edit import TIMEOUT
from aliasmilter.admin.formats import FORMATS
from aliasmilter.admin.formats.ruleset import RuleSet
from aliasmilter.admin.output import printable, show_json, show_rows
from aliasmilter.mail.address import Address
from aliasmilter.routing.lookup import Unavailable
from aliasmilter.routing.rules import RuleError, parse_rule
from aliasmilter.store.audit import rule_address
from aliasmilter.store.schema import domain_key
from aliasmilter.store.snapshot import Snapshot, octets, read


def show(path: Path, domain: str | None, *, as_json: bool) -> int:
    """Print the rules; 1 when Redis is away, or the domain is not managed.

    Args:
        path: of the configuration.
        domain: the one that is wanted, or None for all.
        as_json: a JSON array instead of a table.

    Raises:
        ConfigError: the configuration cannot be used.
    """
    snapshot = _read(path, domain)
    if snapshot is None:
        return 1
    if as_json:
        show_json(_described(address, raw) for address, raw in _rules(snapshot))
    else:
        rows = ((address, _text(raw)) for address, raw in _rules(snapshot))
        show_rows(("ADDRESS", "RULE"), rows)
    return 0


def export(path: Path, domain: str | None, file_format: str) -> int:
    """Write the rules to standard output in a format that `import` reads.

    Returns:
        0; 1 when Redis is away, the domain is not managed, or something is missing: a key that
        cannot be read, a rule that the format cannot say.

    Raises:
        ConfigError: the configuration cannot be used.
    """
    snapshot = _read(path, domain)
    if snapshot is None:
        return 1
    said = RuleSet()
    output = sys.stdout.buffer
    for text in FORMATS[file_format].write(snapshot, said):
        output.write(text.encode("utf-8", "surrogateescape"))
    output.flush()
    for finding in (*said.notices, *said.left_out):
        finding.show(err=True)
    if said.left_out:
        count = len(said.left_out)
        click.echo(f"alias-milter: {count} rules cannot be said in this format", err=True)
    return 1 if said.left_out or snapshot.unreadable else 0


def _read(path: Path, domain: str | None) -> Snapshot | None:
    config = configuration.load(path)
    try:
        snapshot = read(config.store.url, max(config.store.timeout, TIMEOUT), domain)
    except Unavailable as problem:
        click.echo(f"alias-milter: {problem}", err=True)
        return None
    for key, wrong in snapshot.unreadable.items():
        click.echo(f"alias-milter: {printable(key)}: {wrong}", err=True)
    there = (snapshot.settings, snapshot.rules, snapshot.blocks)
    if domain and not any(some.get(domain) for some in there):
        if not snapshot.unreadable:
            hint = f"there is no {domain_key(domain)}"
            click.echo(f"alias-milter: {domain} is not a managed domain: {hint}", err=True)
        return None
    return snapshot


def _rules(snapshot: Snapshot) -> Iterator[tuple[str, bytes]]:
    for domain in sorted(snapshot.rules):
        for name, raw in sorted(snapshot.rules[domain].items()):
            yield _text(octets(rule_address(domain, name))), raw


def _described(address: str, raw: bytes) -> dict[str, Any]:
    said: dict[str, Any] = {"address": address, "rule": _text(raw)}
    try:
        rule = parse_rule(raw)
    except RuleError as problem:
        return said | {"problem": str(problem)}
    targets = [str(t) if isinstance(t, Address) else f"@{t.domain}" for t in rule.targets]
    return said | {
        "targets": targets,
        "expires": rule.expires.isoformat() if rule.expires else None,
        "action": rule.action,
        "text": rule.text,
        "vendor": rule.vendor,
        "strict": rule.strict,
        "block": sorted(rule.block),
        "note": rule.note,
    }


def _text(word: bytes) -> str:
    return word.decode("utf-8", "backslashreplace")
