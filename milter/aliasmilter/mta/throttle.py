"""How much mail that is no bounce goes to return addresses.

An SRS address leads, for as long as it is good, to somebody else's mailbox. Bounces go there from
the null sender, without limit. Automatic replies and some systems' reports come from other senders
and are welcome, but who holds such addresses must not send mail through us as he likes: so
messages are counted for each return address and for each client, an hour at a time, for all
workers and hosts together.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from aliasmilter.config import LimitsSection
from aliasmilter.mail.address import Address
from aliasmilter.mta.harvest import client_of

WINDOW = 3600  # seconds

Count = Callable[[Sequence[str], int], Sequence[int]]
"""Adds one to each counter, which lasts that many seconds; their values. Raises Unavailable."""


@dataclass(frozen=True, slots=True)
class Throttle:
    """Counts the mail to return addresses.

    Attributes:
        per_address: messages an hour to one return address; 0: no limit.
        per_client: messages an hour from one client to all of them; 0: no limit.
        count: the store's.
    """

    per_address: int
    per_client: int
    count: Count

    def is_too_much(self, address: Address, client_ip: str | None) -> bool:
        """Count one more message to a return address that is genuine.

        Raises:
            Unavailable: it could not be counted; the sender keeps the mail.
        """
        limits = {}
        if self.per_address:
            limits[_digest("address", address.key)] = self.per_address
        if self.per_client and client_ip:
            limits[_digest("client", client_of(client_ip))] = self.per_client
        if not limits:
            return False
        counted = self.count(list(limits), WINDOW)
        return any(n > limit for n, limit in zip(counted, limits.values(), strict=True))


def make_throttle(limits: LimitsSection, count: Count) -> Throttle | None:
    """What the configuration asks for; None when nothing is limited."""
    if not limits.srs_address_per_hour and not limits.srs_client_per_hour:
        return None
    return Throttle(limits.srs_address_per_hour, limits.srs_client_per_hour, count)


def _digest(kind: str, text: str) -> str:
    """Of one length, whatever a client sends."""
    return hashlib.sha256(f"{kind} {text}".encode()).hexdigest()[:32]
