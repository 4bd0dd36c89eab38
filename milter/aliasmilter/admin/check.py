"""`alias-milter check`: the configuration, the files it names, every rule in Redis, and the MTA.

The rules are decided by the same code that decides them for the MTA; what it says of each is
what senders would get.
"""

import stat
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path

import click

from aliasmilter import config as configuration
from aliasmilter.admin.access import unreadable
from aliasmilter.admin.ours import Ours, ours
from aliasmilter.admin.postfix import reading as postfix_reading
from aliasmilter.admin.postfix.findings import findings as postfix_findings
from aliasmilter.admin.report import Finding, Severity, error, warning
from aliasmilter.admin.sendmail import reading as sendmail_reading
from aliasmilter.admin.sendmail.findings import findings as sendmail_findings
from aliasmilter.admin.validation import (
    MISTAKES,
    PROBE,
    alias_problem,
    catch_all_warning,
    field_problem,
    member_problem,
)
from aliasmilter.config import Config, ConfigError
from aliasmilter.forwarding.outbound import Keyring, load_keyring
from aliasmilter.mail.address import Address, AddressError, parse_domain
from aliasmilter.mail.replies import Reason
from aliasmilter.routing.lookup import Unavailable
from aliasmilter.routing.plan import handling_of
from aliasmilter.routing.resolver import resolve
from aliasmilter.routing.rules import (
    CATCH_ALL,
    Action,
    RuleError,
    Settings,
    parse_rule,
    parse_settings,
)
from aliasmilter.store.schema import alias_key, block_key, domain_key
from aliasmilter.store.snapshot import Snapshot, read

SHORT_SECRET = 16
_TIMEOUT = 10.0  # seconds for one reply while everything is read


def run(path: Path, postfix: Path | None = None, sendmail: Path | None = None) -> int:
    """Check everything and print what was found; the exit status.

    Args:
        path: the configuration file.
        postfix: the folder with main.cf and master.cf, to check them too.
        sendmail: the .mc file, likewise.

    Raises:
        ConfigError: the configuration itself, or the MTA's, cannot be read.
    """
    config = configuration.load(path)
    findings = list(_secrets(config))
    keyring = None
    try:
        keyring = load_keyring(config.arc)
    except ConfigError as failure:
        findings.append(error("[arc]", str(failure)))
    findings += unreadable(path.absolute().parent, _files(config, keyring))
    try:
        snapshot = read(config.store.url, max(config.store.timeout, _TIMEOUT))
    except Unavailable as failure:
        findings.append(error("[store] url", str(failure)))
        snapshot = Snapshot()
    findings += _Rules(config, keyring, snapshot, datetime.now(UTC).date()).findings()
    findings += _mta(ours(config, snapshot), postfix, sendmail)
    for finding in findings:
        finding.show()
    errors = sum(finding.severity is Severity.ERROR for finding in findings)
    rules = sum(len(rules) for rules in snapshot.rules.values())
    click.echo(
        f"{path}: {len(snapshot.settings)} domains, {rules} rules: "
        f"{errors} errors, {len(findings) - errors} warnings"
    )
    return 1 if errors else 0


def _mta(mine: Ours, postfix: Path | None, sendmail: Path | None) -> Iterator[Finding]:
    """The MTA's own configuration, where it is asked for."""
    if postfix:
        yield from postfix_findings(postfix_reading.read(postfix, mine.domains), mine)
    if sendmail:
        yield from sendmail_findings(sendmail_reading.read(sendmail), mine)


def _secrets(config: Config) -> Iterator[Finding]:
    """The SRS secrets: there, good, and nobody else's."""
    file = config.srs.secrets_file
    try:
        secrets = configuration.load_secrets(file)
    except ConfigError as failure:
        yield error(str(file), str(failure))
        return
    if file.stat().st_mode & stat.S_IROTH:
        yield warning(str(file), "everybody can read the SRS secrets: chmod o= it")
    if len(secrets[0]) < SHORT_SECRET:
        yield warning(str(file), f"the first secret is shorter than {SHORT_SECRET} characters")


def _files(config: Config, keyring: Keyring | None) -> Iterator[Path]:
    """What the daemon has to read beside its configuration."""
    yield config.srs.secrets_file
    if config.arc.enabled and config.arc.key_file:
        yield config.arc.key_file
        for domain, selector in sorted(keyring.others if keyring else ()):
            yield config.arc.key_file.parent / domain / f"{selector}.pem"


class _Rules:
    """The findings about what stands in Redis."""

    def __init__(
        self, config: Config, keyring: Keyring | None, snapshot: Snapshot, today: date
    ) -> None:
        self._config = config
        self._keyring = keyring
        self._snapshot = snapshot
        self._today = today

    def findings(self) -> Iterator[Finding]:
        for key, problem in self._snapshot.unreadable.items():
            yield error(key, problem)
        for domain, settings in sorted(self._snapshot.settings.items()):
            yield from self._domain(domain, settings)
        for domain, rules in sorted(self._snapshot.rules.items()):
            if not self._snapshot.settings.get(domain):
                problem = f"the domain is not managed: there is no {domain_key(domain)}"
                yield error(alias_key(domain), problem)
                continue
            for local, raw in sorted(rules.items()):
                yield from self._rule(domain, local, raw)
        for domain, members in sorted(self._snapshot.blocks.items()):
            yield from self._blocks(domain, members)

    def _domain(self, domain: str, fields: dict[bytes, bytes]) -> Iterator[Finding]:
        key = domain_key(domain)
        yield from _name(domain, key)
        if domain in self._config.mail.local_domains:
            yield warning(key, "also in [mail] local_domains; the rules decide")
        if key in self._snapshot.unreadable:
            return
        try:
            settings = parse_settings(fields)
        except RuleError as problem:
            yield error(key, str(problem))
            return
        if unfit := alias_problem(domain, self._snapshot, self._config.mail.local_domains):
            yield error(f"{key} alias_of", unfit)
        yield from self._settings(key, settings)

    def _settings(self, key: str, settings: Settings) -> Iterator[Finding]:
        srs = settings.srs_domain
        if srs and srs != self._config.srs.domain and srs not in self._snapshot.settings:
            yield warning(
                f"{key} srs_domain",
                f"{srs} is not managed: forged return addresses there are left to the MTA",
            )
        choice = (settings.arc_domain, settings.arc_selector)
        if self._keyring and any(choice) and self._keyring.choose(choice) is None:
            yield error(f"{key} arc_domain, arc_selector", "there is no key for them: see keygen")
        mailbox = settings.quarantine
        if mailbox and not self._is_ours(mailbox.domain):
            yield warning(f"{key} quarantine", f"{mailbox} is on another system")

    def _blocks(self, domain: str, members: set[bytes]) -> Iterator[Finding]:
        key = block_key(domain)
        if not self._snapshot.settings.get(domain):
            yield error(key, f"the domain is not managed: there is no {domain_key(domain)}")
        for member in sorted(members):
            problem = member_problem(member)
            if problem:
                yield error(f"{key} {member.decode('utf-8', 'backslashreplace')}", problem)

    def _rule(self, domain: str, local: str, raw: bytes) -> Iterator[Finding]:
        where = f"{alias_key(domain)} {local}"
        unfit = field_problem(domain, local)
        if unfit:
            yield Finding(unfit[0], where, unfit[1])
        try:
            rule = parse_rule(raw)
        except RuleError as problem:
            yield error(where, str(problem))
            return
        if local == CATCH_ALL:
            yield from self._catch_all(domain, where, rule.action, targets=bool(rule.targets))
            return
        if unfit and unfit[0] is Severity.ERROR:
            return
        address = Address(local.replace(CATCH_ALL, PROBE), domain)
        decision = resolve(address, self._snapshot.lookup, self._config.policy, self._today)
        if decision.reason in MISTAKES:
            yield error(where, f"{decision.reason}: {decision.problem}")
        elif decision.reason is Reason.EXPIRED:
            yield warning(where, f"expired on {rule.expires}" if rule.expires else "expired")
        handling = handling_of(decision)
        if handling and handling.leaves and not all(final.leaves for final in decision.finals):
            yield warning(where, "targets here and on other systems: all copies get the SRS sender")

    def _catch_all(
        self, domain: str, where: str, action: Action | None, *, targets: bool
    ) -> Iterator[Finding]:
        probe = Address(PROBE, domain)
        decision = resolve(probe, self._snapshot.lookup, self._config.policy, self._today)
        if decision.reason in MISTAKES:
            yield error(where, f"{decision.reason}: {decision.problem}")
        elif targets and action is None and decision.quarantined:
            yield warning(where, catch_all_warning(self._config.policy))

    def _is_ours(self, domain: str) -> bool:
        return domain in self._snapshot.settings or domain in self._config.mail.local_domains


def _name(domain: str, key: str) -> Iterator[Finding]:
    try:
        canonical = parse_domain(domain)
    except AddressError as problem:
        yield error(key, str(problem))
        return
    if canonical != domain:
        yield error(key, f"never found: write it {domain_key(canonical)}")
