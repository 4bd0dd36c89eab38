"""Addresses without a rule of their own: what `alias-milter suggest` works from."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from aliasmilter.config import SuggestSection
from aliasmilter.forwarding import spf
from aliasmilter.forwarding.dns import Lookup, Resolver
from aliasmilter.forwarding.results import Verdict
from aliasmilter.mail.address import Address, local_key
from aliasmilter.store import tally
from aliasmilter.store.journal import Journal
from aliasmilter.store.link import Command
from aliasmilter.store.schema import misses_key
from aliasmilter.store.tally import UNAUTHENTICATED

DNS_TIMEOUT = 2.0  # seconds; nobody waits, but the entries behind it do
MAX_AT_ONCE = 50  # entries whose sender is looked up; those of a flood are not


@dataclass(slots=True)
class Misses:
    """Counts them in the store, by the domain that wrote, as far as SPF tells.

    Attributes:
        journal: writes, and asks DNS, in a thread of its own.
        lookup: begins a lookup that has so many seconds.
        clock: seconds since the epoch.
        remember_days: how long they are kept.
    """

    journal: Journal
    lookup: Callable[[float], Lookup]
    clock: Callable[[], float]
    remember_days: int
    _under_way: threading.Semaphore = field(
        default_factory=lambda: threading.Semaphore(MAX_AT_ONCE)
    )

    def note(self, address: Address, ip: str, helo: str, sender: Address | None) -> None:
        """Take note of one; never waits."""
        examined = self._under_way.acquire(blocking=False)

        def entry() -> Sequence[Command]:
            if not examined:
                return [self._command(address, UNAUTHENTICATED)]
            try:
                return [self._command(address, self._sender(ip, helo, sender))]
            finally:
                self._under_way.release()

        if not self.journal.note(entry) and examined:
            self._under_way.release()

    def _command(self, address: Address, domain: str) -> Command:
        seconds = self.remember_days * 86_400
        key = misses_key(address.domain)
        local = local_key(address.local)
        return tally.count(key, local, domain, tally.day(self.clock()), seconds=seconds)

    def _sender(self, ip: str, helo: str, sender: Address | None) -> str:
        """The domain that wrote, when SPF says that it was its host."""
        if sender is None:
            return UNAUTHENTICATED
        result = spf.evaluate(ip, helo, str(sender), self.lookup(DNS_TIMEOUT))
        return result.domain if result.verdict is Verdict.PASS else UNAUTHENTICATED


def make_misses(
    settings: SuggestSection, journal: Journal, resolver: Resolver, clock: Callable[[], float]
) -> Misses | None:
    """What the configuration asks for; None when nothing is remembered."""
    if not settings.remember_days:
        return None
    return Misses(journal, resolver.lookup, clock, settings.remember_days)
