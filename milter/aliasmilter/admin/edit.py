"""`alias-milter add|remove|import`: changing rules, all checked before anything is written."""

import gc
import getpass
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TypeVar

import click

from aliasmilter import config as configuration
from aliasmilter.admin.formats.ruleset import RuleSet
from aliasmilter.admin.output import Bar, printable
from aliasmilter.admin.report import Finding, Severity, error
from aliasmilter.admin.validation import validate
from aliasmilter.config import Config
from aliasmilter.routing.lookup import Unavailable
from aliasmilter.store.audit import Change, Subject, rule_address
from aliasmilter.store.editor import AuditIncomplete, Conflict, Editor, connect
from aliasmilter.store.schema import alias_key, block_key, domain_key
from aliasmilter.store.snapshot import Snapshot, read

TIMEOUT = 30.0  # seconds for one reply of Redis while much is read or written
_MAX_FINDINGS = 200
_NEW_DOMAIN = {b"unknown": b"reject"}

_Name = TypeVar("_Name", str, bytes)


@dataclass(frozen=True, slots=True)
class Wish:
    """What a command wants to change.

    Attributes:
        command: its name, for the audit stream.
        rules: what is to be there.
        removed: (domain, local part or `*`) of rules that are to go.
        replace: other rules of the domains that `rules` has rules for go, too; likewise settings
            and blocked senders.
        overwrite: a rule that is there may be changed.
        create_domains: domains that are not managed become so.
        skip: what could not be taken over is left out.
        dry_run: nothing is written.
    """

    command: str
    rules: RuleSet = field(default_factory=RuleSet)
    removed: Sequence[tuple[str, str]] = ()
    replace: bool = False
    overwrite: bool = True
    create_domains: bool = False
    skip: bool = False
    dry_run: bool = False

    @property
    def domains(self) -> set[str]:
        """The domains whose rules, settings or blocked senders it may change."""
        return {*self.rules.domains, *(domain for domain, _ in self.removed)}


def run(path: Path, wish: Wish, bar: Bar) -> int:
    """Carry a wish out, if all of it is good; tell what was changed, or why nothing was.

    Returns:
        0, or 1 when something is wrong: then nothing was written.

    Raises:
        ConfigError: the configuration cannot be used.
    """
    config = configuration.load(path)
    if _report(_refusals(wish)):
        return 1
    try:
        with without_collector():
            return _edit(config, wish, bar)
    except (Unavailable, Conflict) as problem:
        hint = "; nothing was written, try again" if isinstance(problem, Conflict) else ""
        click.echo(f"alias-milter: {problem}{hint}", err=True)
    except AuditIncomplete as problem:
        click.echo(f"alias-milter: all is written, but not all of the log: {problem}", err=True)
    return 1


def user() -> str:
    """Who sits at the terminal, also behind sudo and su."""
    if sudo := os.environ.get("SUDO_USER"):
        return sudo
    try:
        return os.getlogin()
    except OSError:
        pass  # no terminal: cron, a service
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return str(os.getuid())


def _edit(config: Config, wish: Wish, bar: Bar) -> int:
    client = connect(config.store.url, max(config.store.timeout, TIMEOUT))
    try:
        with Editor(client, sorted(wish.domains), user(), wish.command) as editor:
            snapshot = read(config.store.url, max(config.store.timeout, TIMEOUT))
            findings, changes = _plan(wish, snapshot)
            if not findings:
                findings = _check(config, wish, snapshot, changes, bar)
            if _report(findings):
                return 1
            if not wish.dry_run and changes:
                editor.write(changes, snapshot, bar.phase("writing", len(changes)))
    finally:
        client.close()
    _tell(wish, changes)
    return 0


@contextmanager
def without_collector() -> Iterator[None]:
    """A million rules make the collector of cycles look at them again and again; they have none."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _plan(wish: Wish, snapshot: Snapshot) -> tuple[list[Finding], list[Change]]:
    """What has to change, and is changed in the snapshot; or why it cannot."""
    keys = {k for d in wish.domains for k in (domain_key(d), alias_key(d), block_key(d))}
    findings = [error(key, snapshot.unreadable[key]) for key in keys & snapshot.unreadable.keys()]
    for domain, name in wish.removed:
        if name not in snapshot.rules.get(domain, {}):
            findings.append(error(rule_address(domain, name), "there is no such rule"))
    changes = list(difference(wish, snapshot))
    if not wish.overwrite:
        for change in changes:
            if change.before is not None and change.after is not None:
                there = f"has the rule {_text(change.before)!r} already; --replace changes it"
                findings.append(error(change.address, there))
    _carry_out(changes, snapshot)
    return findings, changes


def difference(wish: Wish, snapshot: Snapshot) -> Iterator[Change]:
    """The changes that make the snapshot what is wished, settings first."""
    for domain in wish.rules.domains:
        yield from _settings(wish, domain, snapshot.settings.get(domain, {}))
    for domain, given in wish.rules.rules.items():
        known = snapshot.rules.get(domain, {})
        for name, (raw, _) in given.items():
            before = known.get(name)
            if before != raw:
                yield Change(domain, name, before, raw)
        if wish.replace:
            for name, raw in known.items():
                if name not in given:
                    yield Change(domain, name, raw, None)
    for domain, members in wish.rules.blocks.items():
        yield from _blocks(wish, domain, members, snapshot.blocks.get(domain, set()))
    for domain, name in dict.fromkeys(wish.removed):
        yield Change(domain, name, snapshot.rules.get(domain, {}).get(name), None)


def _blocks(
    wish: Wish, domain: str, given: Collection[bytes], known: Collection[bytes]
) -> Iterator[Change]:
    for member in given:
        if member not in known:
            yield Change(domain, "", None, member, Subject.BLOCK)
    if wish.replace:
        for member in sorted(known):
            if member not in given:
                yield Change(domain, "", member, None, Subject.BLOCK)


def _settings(wish: Wish, domain: str, known: dict[bytes, bytes]) -> Iterator[Change]:
    given = wish.rules.settings.get(domain, {})
    if wish.create_domains and not known and not given:
        given = _NEW_DOMAIN
    for name, value in given.items():
        if known.get(name) != value:
            yield Change(domain, _text(name), known.get(name), value, Subject.SETTING)
    if wish.replace and given:
        for name, value in known.items():
            if name not in given:
                yield Change(domain, _text(name), value, None, Subject.SETTING)


def _carry_out(changes: Sequence[Change], snapshot: Snapshot) -> None:
    """Make the snapshot what the rules will be."""
    for change in changes:
        if change.kind is Subject.BLOCK:
            members = snapshot.blocks.setdefault(change.domain, set())
            if change.before is not None:
                members.discard(change.before)
            if change.after is not None:
                members.add(change.after)
        elif change.kind is Subject.SETTING:
            fields = snapshot.settings.setdefault(change.domain, {})
            _set(fields, change.name.encode(), change.after)
        else:
            _set(snapshot.rules.setdefault(change.domain, {}), change.name, change.after)


def _set(fields: dict[_Name, bytes], name: _Name, value: bytes | None) -> None:
    if value is None:
        fields.pop(name, None)
    else:
        fields[name] = value


def _check(
    config: Config, wish: Wish, snapshot: Snapshot, changes: Sequence[Change], bar: Bar
) -> list[Finding]:
    findings = validate(
        snapshot,
        changes,
        config.policy,
        datetime.now(UTC).date(),
        place=wish.rules.place,
        progress=bar.phase("checking", len(changes)),
    )
    # What is wrong in the same way a hundred times over need not be looked for a million times.
    return list(islice(findings, _MAX_FINDINGS))


def _refusals(wish: Wish) -> list[Finding]:
    """What is wrong with the wish itself, whatever stands in Redis."""
    for finding in wish.rules.notices:
        finding.show(err=True)
    left_out = wish.rules.left_out
    if left_out and not wish.skip:
        what = f"{len(left_out)} entries cannot be taken over; --skip leaves them out"
        return [*wish.rules.problems, *left_out, error(wish.rules.source, what)]
    return [*wish.rules.problems, *left_out]


def _report(findings: Sequence[Finding]) -> bool:
    """Print what was found; whether that forbids to write."""
    for finding in findings[:_MAX_FINDINGS]:
        finding.show(err=True)
    if len(findings) >= _MAX_FINDINGS:
        click.echo("... and there may be more", err=True)
    if all(finding.severity is Severity.WARNING for finding in findings):
        return False
    click.echo("alias-milter: nothing was written", err=True)
    return True


def _tell(wish: Wish, changes: Sequence[Change]) -> None:
    """Say what was changed: single rules and dry runs in full, else the numbers."""
    if wish.dry_run or wish.command != "import":
        for change in changes:
            click.echo(_line(change))
    added = sum(change.before is None for change in changes)
    removed = sum(change.after is None for change in changes)
    changed = len(changes) - added - removed
    numbers = f"{added} added, {changed} changed, {removed} removed"
    click.echo(f"{numbers} (dry run: nothing was written)" if wish.dry_run else numbers)


def _line(change: Change) -> str:
    if change.before is None:
        sign, values, colour = "+", [change.after], "green"
    elif change.after is None:
        sign, values, colour = "-", [change.before], "red"
    else:
        sign, values, colour = "~", [change.before, change.after], "yellow"
    told = " -> ".join(printable(_text(value)) for value in values if value is not None)
    return f"{click.style(sign, fg=colour)} {printable(change.address)}: {told}"


def _text(value: bytes) -> str:
    return value.decode("utf-8", "backslashreplace")
