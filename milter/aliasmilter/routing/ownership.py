"""Whose an address is: the mailboxes here that it leads to."""

from aliasmilter.mail.address import Address, split_subaddress
from aliasmilter.routing.decision import Decision, Policy


def owners(decision: Decision, policy: Policy) -> tuple[Address, ...]:
    """The mailboxes that an address leads to, without subaddresses.

    A catch-all owns nothing: else whoever reads the quarantine could send as anybody. Nor does
    a mailbox on another system: nobody logs in here for it.
    """
    if decision.settings is None or decision.quarantined:
        return ()
    own = decision.settings.delimiter
    delimiter = policy.delimiter if own is None else own
    found = (_plain(f.address, delimiter) for f in decision.finals if not f.leaves)
    return tuple({address.key: address for address in found}.values())


def _plain(mailbox: Address, delimiter: str) -> Address:
    parts = split_subaddress(mailbox.local, delimiter)
    return Address(parts[0], mailbox.domain) if parts else mailbox
