"""From decided recipients to envelopes, and from an envelope to the edits that make it.

An *envelope* is a sender, the recipients that share it, and whether it is held: what a milter
can change for the whole message only. `partition` says which envelopes a message needs; the
MTA's own transaction carries the first, and the others are submitted anew. Where that is not
possible, `merge` makes one of all.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from aliasmilter.mail.address import Address
from aliasmilter.routing.decision import Decision, Final


@dataclass(frozen=True, slots=True)
class Recipient:
    """An accepted RCPT.

    Attributes:
        argument: of RCPT, as the client sent it.
        parameters: those of RFC 3461 that go along to whoever gets the mail instead:
            "NOTIFY=... ORCPT=...", or "".
        decision: where it goes.
    """

    argument: str
    parameters: str
    decision: Decision

    @property
    def spellings(self) -> tuple[str, ...]:
        """What an MTA may know the recipient by: Postfix drops a source route, Sendmail not."""
        if self.argument.startswith("<@"):
            return (self.argument, "<" + self.argument.partition(":")[2])
        return (self.argument,)


@dataclass(frozen=True, slots=True)
class Handling:
    """What recipients have to share to be served by one envelope.

    Attributes:
        leaves: handed to another system on behalf of an alias: SRS sender, ARC set.
        held: kept in the MTA's hold queue.
        srs_domain: of the SRS sender; None for the configuration's.
        seal: (d=, s=) of the ARC set where the domain has its own; None for the configuration's.
        quarantined: a header tells the original recipient, which no other copy may carry.
        strict: the address that only its vendor may write to: refused at the end of the message,
            which is for all its recipients.
    """

    leaves: bool = False
    held: bool = False
    srs_domain: str | None = None
    seal: tuple[str | None, str | None] | None = None
    quarantined: bool = False
    strict: str = ""

    @property
    def is_ordinary(self) -> bool:
        """Whether the MTA does all of it by itself."""
        return self == _ORDINARY


_ORDINARY = Handling()


@dataclass(frozen=True, slots=True)
class Delivery:
    """Somebody who gets the mail, and the RCPT that brought it to them."""

    address: Address
    recipient: Recipient


@dataclass(frozen=True, slots=True)
class Envelope:
    """Deliveries that share a handling; nobody stands in it twice."""

    handling: Handling
    deliveries: tuple[Delivery, ...]


@dataclass(frozen=True, slots=True)
class Addition:
    """A recipient to add: path in brackets, and its parameters or ""."""

    path: str
    parameters: str


@dataclass(frozen=True, slots=True)
class RecipientEdits:
    """What turns the recipients of the transaction into those of an envelope."""

    delete: tuple[str, ...] = ()
    add: tuple[Addition, ...] = ()


def handlings_of(decision: Decision) -> frozenset[Handling]:
    """The handlings that a recipient's copies need, each for itself."""
    return frozenset(_handling(decision, (final,)) for final in decision.finals)


def handling_of(decision: Decision) -> Handling | None:
    """The handling that a recipient needs as a whole, None when nobody gets the mail.

    A rule with targets here and elsewhere counts as leaving: it cannot be split at RCPT.
    """
    if not decision.finals:
        return None
    whole = _handling(decision, decision.finals)
    # The header of a quarantined copy is no reason to part it from others in one transaction.
    return replace(whole, quarantined=False) if whole.quarantined else whole


def held_apart(handlings: Collection[Handling], others: Collection[Handling]) -> bool:
    """Whether what is held of these needs another transaction than what is held of the others.

    A milter holds in the MTA's own transaction alone, and that has one sender.
    """
    held = {handling for handling in handlings if handling.held}
    others_held = {handling for handling in others if handling.held}
    return bool(held and others_held) and held != others_held


def merge(recipients: Sequence[Recipient]) -> tuple[Envelope, ...]:
    """One envelope for all; none when nobody gets the mail."""
    placed = _placed(recipients)
    if not placed:
        return ()
    # The strictest wins: SRS for all rather than a failed SPF for some.
    leaving = next((handling for handling, _ in placed if handling.leaves), placed[0][0])
    held = any(handling.held for handling, _ in placed)
    handling = leaving
    if (handling.held, handling.quarantined) != (held, False):
        handling = replace(leaving, held=held, quarantined=False)
    return (Envelope(handling, tuple(delivery for _, delivery in placed)),)


def partition(recipients: Sequence[Recipient]) -> tuple[Envelope, ...]:
    """An envelope for each handling, one for all that is held; none when nobody gets the mail.

    The first is for the MTA's own transaction: the one that is held, since only there a milter can
    hold; else one that stays, the ordinary one before all. Of the others the ordinary one is the
    last, so that none fails after it: who comes again alone, in an ordinary transaction, is not
    looked up among those that were served.
    """
    placed = _placed(recipients)
    held = [handling for handling, _ in placed if handling.held]
    strictest = next((handling for handling in held if handling.leaves), None)
    groups: dict[Handling, list[Delivery]] = {}
    for handling, delivery in placed:
        whole = (strictest or held[0]) if handling.held else handling
        groups.setdefault(whole, []).append(delivery)
    envelopes = [Envelope(handling, tuple(group)) for handling, group in groups.items()]
    envelopes.sort(key=_rank)
    own, others = envelopes[:1], envelopes[1:]
    return (*own, *sorted(others, key=lambda e: e.handling.is_ordinary))


def _rank(envelope: Envelope) -> tuple[bool, bool, bool]:
    """The lowest is for the MTA's own transaction."""
    handling = envelope.handling
    return not handling.held, handling.leaves, not handling.is_ordinary


def recipient_edits(envelope: Envelope, recipients: Sequence[Recipient]) -> RecipientEdits:
    """The edits for the MTA's own transaction.

    Args:
        envelope: who shall get this transaction's copy.
        recipients: all that were accepted in it.
    """
    kept = _kept(envelope, recipients)
    delete = {
        spelling: None
        for recipient in recipients
        if recipient.argument not in kept
        for spelling in recipient.spellings
    }
    present = {r.decision.address.key for r in recipients if r.argument in kept}
    add = tuple(
        Addition(delivery.address.path, delivery.recipient.parameters)
        for delivery in envelope.deliveries
        if delivery.address.key not in present
    )
    return RecipientEdits(tuple(delete), add)


def _handling(decision: Decision, finals: Sequence[Final]) -> Handling:
    held = leaves = quarantined = False
    for final in finals:
        held, leaves = held or final.held, leaves or final.leaves
        quarantined = quarantined or final.quarantined or final.held
    if not (held or leaves or quarantined or decision.vendors):
        return _ORDINARY
    strict = next((vendor.address.key for vendor in decision.vendors if vendor.strict), "")
    settings = decision.settings
    if not leaves or settings is None:
        return Handling(leaves, held, quarantined=quarantined, strict=strict)
    seal = (settings.arc_domain, settings.arc_selector)
    return Handling(
        leaves, held, settings.srs_domain, seal if any(seal) else None, quarantined, strict
    )


def _placed(recipients: Sequence[Recipient]) -> list[tuple[Handling, Delivery]]:
    """Each person once, with the handling of the way that reaches them first.

    Somebody also reached by a way that holds nothing is not held.
    """
    placed: dict[str, tuple[Handling, Delivery]] = {}
    for recipient in recipients:
        for final in recipient.decision.finals:
            known = placed.get(final.address.key)
            if known is None or (known[0].held and not final.held):
                handling = _handling(recipient.decision, (final,))
                placed[final.address.key] = handling, Delivery(final.address, recipient)
    return list(placed.values())


def _kept(envelope: Envelope, recipients: Sequence[Recipient]) -> frozenset[str]:
    """The RCPT arguments that stay as they are."""
    wanted = {delivery.address.key for delivery in envelope.deliveries}
    if wanted.isdisjoint([recipient.decision.address.key for recipient in recipients]):
        return frozenset()  # as with aliases
    arguments: dict[str, set[str]] = {}
    for recipient in recipients:
        if recipient.decision.address.key in wanted:
            arguments.setdefault(recipient.decision.address.key, set()).add(recipient.argument)
    # One person named in two spellings: which of them an MTA deletes depends on how it compares,
    # so both go and one is added. Outside our domains spellings are none of our business.
    ours = {r.decision.address.key for r in recipients if r.decision.settings is not None}
    return frozenset(
        argument
        for key, spellings in arguments.items()
        if len(spellings) == 1 or key not in ours
        for argument in spellings
    )
