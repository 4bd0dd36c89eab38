"""Addresses that were given to one vendor: who writes to them, and who may."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from aliasmilter.forwarding.results import Results, Verdict
from aliasmilter.forwarding.suffixes import registrable_domain
from aliasmilter.mail.address import Address, local_key
from aliasmilter.mail.replies import Reason
from aliasmilter.routing.decision import Vendor
from aliasmilter.routing.plan import Recipient
from aliasmilter.store import tally
from aliasmilter.store.journal import Journal
from aliasmilter.store.schema import vendors_key
from aliasmilter.store.tally import UNAUTHENTICATED


@dataclass(frozen=True, slots=True)
class Vendors:
    """Watches over the addresses that were given to vendors.

    Attributes:
        record: takes note that mail of a domain came to an address; never raises, never waits.
    """

    record: Callable[[Address, str], None]

    def watch(self, recipients: Sequence[Recipient], results: Results) -> Reason | None:
        """Take note of who wrote to whom; why the message is refused, or None.

        Whoever is not authenticated may be anybody: for a strict address that is not the vendor.
        """
        vendors = vendors_of(recipients)
        for vendor in vendors:
            self.record(vendor.address, sender_of(vendor, results))
        strict = [vendor for vendor in vendors if vendor.strict]
        if all(sender_of(vendor, results) == _organization(vendor) for vendor in strict):
            return None
        return Reason.DNS_UNAVAILABLE if _undecided(results) else Reason.NOT_VENDOR


def vendors_of(recipients: Iterable[Recipient]) -> list[Vendor]:
    """The vendors whose addresses a message goes to."""
    return [vendor for recipient in recipients for vendor in recipient.decision.vendors]


def sender_of(vendor: Vendor, results: Results) -> str:
    """The registrable domain that wrote: the vendor's where it is among those that passed."""
    domains = [registrable_domain(domain) for domain in results.authenticated]
    own = _organization(vendor)
    return own if own in domains else next(iter(domains), UNAUTHENTICATED)


def _organization(vendor: Vendor) -> str:
    return registrable_domain(vendor.domain)


def _undecided(results: Results) -> bool:
    """Whether somebody might have passed, had DNS given an answer."""
    verdicts = {signature.verdict for signature in results.dkim}
    if results.spf:
        verdicts.add(results.spf.verdict)
    return Verdict.TEMPERROR in verdicts


def make_vendors(journal: Journal, clock: Callable[[], float]) -> Vendors:
    """Writes into the journal who wrote to whom."""

    def record(address: Address, sender: str) -> None:
        key, local = vendors_key(address.domain), local_key(address.local)
        journal.note(lambda: [tally.count(key, local, sender, tally.day(clock()))])

    return Vendors(record)
