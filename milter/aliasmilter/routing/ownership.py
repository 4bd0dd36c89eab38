"""Whose an address is: the mailboxes here that it leads to, and whether it is one itself."""

from aliasmilter.mail.address import Address
from aliasmilter.routing.decision import Decision


def owners(decision: Decision) -> tuple[Address, ...]:
    """The mailboxes that an address leads to, without subaddresses.

    Who gets hits of a catch-all owns nothing by that: else whoever reads the quarantine could send
    as anybody. Nor does a mailbox on another system: nobody logs in here for it.
    """
    if decision.settings is None:
        return ()
    here = (f for f in decision.finals if not (f.leaves or f.held or f.quarantined))
    found = (final.mailbox or final.address for final in here)
    return tuple({address.key: address for address in found}.values())


def mailbox_of(decision: Decision) -> Address | None:
    """The mailbox that an address itself is, without subaddress; None for an alias.

    Others may get copies, and no rule needs to name it: in a domain with `unknown pass`, or that
    no rules manage.
    """
    own = decision.address.key
    itself = (f for f in decision.finals if f.address.key == own and not (f.held or f.quarantined))
    return next((final.mailbox or final.address for final in itself), None)
