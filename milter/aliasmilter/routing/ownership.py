"""Whose an address is: the mailboxes here that it leads to."""

from aliasmilter.mail.address import Address
from aliasmilter.routing.decision import Decision


def owners(decision: Decision) -> tuple[Address, ...]:
    """The mailboxes that an address leads to, without subaddresses.

    A catch-all owns nothing: else whoever reads the quarantine could send as anybody. Nor does
    a mailbox on another system: nobody logs in here for it.
    """
    if decision.settings is None or decision.quarantined:
        return ()
    found = (final.mailbox or final.address for final in decision.finals if not final.leaves)
    return tuple({address.key: address for address in found}.values())
