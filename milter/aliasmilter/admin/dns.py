"""`alias-milter dns DOMAIN`: the DNS records that are called for, and whether they are there.

What a managed domain needs: an MX that names this host, and an SPF record and a DMARC policy of its
own, as mail is sent in its name. What a domain of SRS senders needs: an MX, or bounces do not come
back; an SPF record that names this host, or forwarding breaks SPF after all; a policy that says
that nobody writes mail in its name. What seals need: the key.
"""

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import click

from aliasmilter import config as configuration
from aliasmilter.admin.output import printable
from aliasmilter.config import Config
from aliasmilter.forwarding import dmarc, spf
from aliasmilter.forwarding.dns import Lookup, Resolver, UnavailableError
from aliasmilter.forwarding.keys import dns_record, key_record
from aliasmilter.forwarding.outbound import Keyring, SealChoice, load_keyring
from aliasmilter.forwarding.results import Verdict
from aliasmilter.routing.lookup import Unavailable
from aliasmilter.routing.rules import Settings
from aliasmilter.store.domains import read_settings
from aliasmilter.store.editor import connect

_TIMEOUT = 10.0  # seconds for one reply of Redis
_SHOWN = 100  # characters of a record in the list of what is there


@dataclass(frozen=True, slots=True)
class State:
    """What the DNS says where a record is called for.

    Attributes:
        good: what is there does what the record is for.
        there: the records, as text.
        why: what is wrong, when that is not plain from the records.
    """

    good: bool
    there: tuple[str, ...] = ()
    why: str = ""


@dataclass(frozen=True, slots=True)
class Needed:
    """A record that the configuration calls for.

    Attributes:
        name: its owner, without the final dot.
        kind: "MX" or "TXT".
        text: its data.
        purpose: one line for people.
        look: finds out what is there. Raises UnavailableError.
        zone: its lines in a zone file, when they are not simply name, kind and data.
    """

    name: str
    kind: str
    text: str
    purpose: str
    look: Callable[[Lookup], State]
    zone: str = ""

    @property
    def line(self) -> str:
        """The record on one line."""
        return f"{self.name}. IN {self.kind} {self.text}"


def run(path: Path, domain: str, *, check: bool) -> int:
    """Print the records for a domain; with `check`, whether they are there.

    Returns:
        0; 1 when one is missing or wrong, or the domain is none of ours.

    Raises:
        ConfigError: the configuration cannot be used.
    """
    config = configuration.load(path)
    keyring = load_keyring(config.arc)
    client = connect(config.store.url, max(config.store.timeout, _TIMEOUT))
    try:
        domains = read_settings(client)
    except Unavailable as problem:
        click.echo(f"alias-milter: {problem}", err=True)
        return 1
    finally:
        client.close()
    wanted = _Records(config, keyring, domains)
    needed: dict[tuple[str, str], Needed] = {}
    for each in wanted.of(domain):
        needed.setdefault((each.name, each.text), each)
    for wrong in wanted.problems:
        click.echo(f"alias-milter: {wrong}", err=True)
    if not needed and not wanted.problems:
        what = "neither managed, nor a domain of SRS senders or of ARC seals"
        click.echo(f"alias-milter: {domain} is {what}", err=True)
        return 1
    if not check:
        for each in needed.values():
            click.echo(f"; {each.purpose}\n{each.zone or each.line}")
        return 1 if wanted.problems else 0
    lookup = Resolver(config.dns.nameservers).lookup(config.dns.timeout)
    good = [_show(each, lookup) for each in needed.values()]
    return 0 if all(good) and not wanted.problems else 1


class _Records:
    """Works out which records are needed."""

    def __init__(
        self, config: Config, keyring: Keyring | None, domains: Mapping[str, Settings | None]
    ) -> None:
        self._config = config
        self._keyring = keyring
        self._domains = domains
        self._host = config.mail.hostname
        self.problems: list[str] = []

    def of(self, domain: str) -> Iterator[Needed]:
        """The records for a domain, those of its SRS senders and seals included."""
        if domain in self._domains:
            yield from self._managed(domain, self._domains[domain] or Settings())
        if domain in self._srs_domains():
            yield from self._srs(domain)
        yield from self._keys_of(domain)

    def _srs_domains(self) -> set[str]:
        own = {s.srs_domain for s in self._domains.values() if s and s.srs_domain}
        return {self._config.srs.domain, *own}

    def _managed(self, domain: str, settings: Settings) -> Iterator[Needed]:
        yield self._mx(domain, "mail to it comes here")
        yield self._spf(domain, "~all", "add the other hosts that send mail in its name")
        yield self._dmarc(domain, "none", "make it stricter once all its mail passes")
        yield from self._srs(settings.srs_domain or self._config.srs.domain)
        choice = (settings.arc_domain, settings.arc_selector)
        yield from self._key(choice if any(choice) else None)

    def _srs(self, domain: str) -> Iterator[Needed]:
        is_managed = domain in self._domains
        yield self._mx(domain, "bounces to SRS senders come back here")
        # RFC 7208 section 4.5: two records at one name are a permerror for all its mail. Where
        # people write in its name too, it has to be theirs.
        end = "~all" if is_managed else "-all"
        yield self._spf(domain, end, "this host sends with SRS senders")
        if not is_managed:
            yield self._dmarc(domain, "reject", "nobody writes mail in the name of SRS senders")

    def _mx(self, domain: str, purpose: str) -> Needed:
        def look(lookup: Lookup) -> State:
            found = lookup.mx(domain)
            there = tuple(f"{preference} {host}." for preference, host in found)
            if self._host not in {host.rstrip(".").lower() for _, host in found}:
                return State(good=False, there=there)
            known = _addresses(self._host, lookup)
            return State(bool(known), there, "" if known else f"{self._host} has no address")

        return Needed(domain, "MX", f"10 {self._host}.", purpose, look)

    def _spf(self, domain: str, end: str, purpose: str) -> Needed:
        def look(lookup: Lookup) -> State:
            there = tuple(
                each.decode("utf-8", "replace")
                for each in lookup.txt(domain)
                if each.lower().startswith(b"v=spf1")
            )
            addresses = _addresses(self._host, lookup)
            if not addresses:
                return State(good=False, there=there, why=f"{self._host} has no address")
            for ip in addresses:
                verdict = spf.evaluate(ip, self._host, f"postmaster@{domain}", lookup).verdict
                if verdict is Verdict.TEMPERROR:
                    raise UnavailableError(f"{domain} SPF: DNS gave no answer")
                if verdict is not Verdict.PASS:
                    return State(good=False, there=there, why=f"spf={verdict} for {ip}")
            return State(good=True, there=there)

        return Needed(domain, "TXT", f'"v=spf1 a:{self._host} {end}"', purpose, look)

    def _dmarc(self, domain: str, policy: str, purpose: str) -> Needed:
        name = f"_dmarc.{domain}"

        def look(lookup: Lookup) -> State:
            record, owner = dmarc.find_record(domain, lookup)
            there = tuple(t.decode("utf-8", "replace") for t in lookup.txt(f"_dmarc.{owner}"))
            return State(record is not None, there)

        return Needed(name, "TXT", f'"v=DMARC1; p={policy}"', purpose, look)

    def _key(self, choice: SealChoice) -> Iterator[Needed]:
        if self._keyring is None:
            return
        sealer = self._keyring.choose(choice)
        if sealer is None:
            domain, selector = choice or (None, None)
            default = self._keyring.default
            names = f"{domain or default.domain} {selector or default.selector}"
            self.problems.append(f"there is no key to seal with: alias-milter keygen {names}")
            return
        name = f"{sealer.selector}._domainkey.{sealer.domain}"
        text = key_record(sealer.private_key).decode("ascii")
        zone = dns_record(sealer.domain, sealer.selector, sealer.private_key).rstrip("\n")

        def look(lookup: Lookup) -> State:
            there = tuple(each.decode("utf-8", "replace") for each in lookup.txt(name))
            return State(any(_public(each) == _public(text) for each in there), there)

        yield Needed(name, "TXT", f'"{text}"', f"ARC seals with d={sealer.domain}", look, zone)

    def _keys_of(self, domain: str) -> Iterator[Needed]:
        if self._keyring is None:
            return
        default = self._keyring.default
        for choice in ((default.domain, default.selector), *sorted(self._keyring.others)):
            if choice[0] == domain:
                yield from self._key(choice)


def _addresses(host: str, lookup: Lookup) -> tuple[str, ...]:
    return (*lookup.text(host, "A"), *lookup.text(host, "AAAA"))


def _public(record: str) -> str:
    """The public key in a record (RFC 6376 section 3.6.1), folds taken out; "" if there is none."""
    tags = (tag.partition("=") for tag in record.split(";"))
    found = {name.strip(): value for name, _, value in tags}
    return re.sub(r"\s", "", found.get("p", ""))


def _show(needed: Needed, lookup: Lookup) -> bool:
    """Print whether a record is there, or what is there instead."""
    try:
        state = needed.look(lookup)
    except UnavailableError as problem:
        state = State(good=False, why=f"not known: {problem}")
    mark = click.style(_tick(good=state.good), fg="green" if state.good else "red")
    click.echo(f"{mark} {_short(needed.line)}")
    if not state.good:
        for each in state.there:
            click.echo(f"    there instead: {_short(each)}")
        if state.why or not state.there:
            click.echo(f"    {state.why or 'missing'}")
    return state.good


def _short(text: str) -> str:
    shown = printable(text)
    return shown if len(shown) <= _SHOWN else shown[: _SHOWN - 3] + "..."


def _tick(*, good: bool) -> str:
    """A tick or a cross, in what the terminal can show."""
    mark, plain = ("\u2713", "ok") if good else ("\u2717", "no")
    try:
        mark.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return plain
    return mark
