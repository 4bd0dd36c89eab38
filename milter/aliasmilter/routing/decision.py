"""The values that routing takes and gives: the policy, and what becomes of a recipient."""

from dataclasses import dataclass

from aliasmilter.mail.address import Address
from aliasmilter.mail.replies import REPLIES, Reason, Reply
from aliasmilter.routing.rules import Settings


@dataclass(frozen=True, slots=True)
class Policy:
    """What the configuration says about routing.

    Attributes:
        local_domains: domains that no rules manage and the MTA delivers itself.
        delimiter: of subaddresses, where a domain sets none.
        quarantine: the mailbox for catch-all hits, where a domain sets none.
        hold: catch-all hits go to the MTA's hold queue instead.
    """

    local_domains: frozenset[str] = frozenset()
    delimiter: str = "+"
    quarantine: Address | None = None
    hold: bool = False


@dataclass(frozen=True, slots=True)
class Final:
    """Somebody who gets the mail.

    Attributes:
        address: who.
        leaves: the mail is handed to another system on behalf of an alias.
        held: the MTA keeps it in its hold queue.
        mailbox: the address without the subaddress that came along; None: there came none along.
        quarantined: it is the quarantine mailbox, which gets a hit.
    """

    address: Address
    leaves: bool = False
    held: bool = False
    mailbox: Address | None = None
    quarantined: bool = False


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A hit that was kept away from real inboxes: which address, by which rule, and why."""

    address: Address
    rule: str
    reason: Reason


@dataclass(frozen=True, slots=True)
class Vendor:
    """An address that was given to somebody: which, to whom, and whether to nobody else."""

    address: Address
    domain: str
    strict: bool


@dataclass(frozen=True, slots=True)
class Step:
    """One expansion, for people to read.

    Attributes:
        address: what was looked up.
        rule: `alias:<domain> <field>`, or "" when no rule was found.
        text: the rule as stored.
        outcome: what follows from it.
    """

    address: Address
    rule: str
    text: str
    outcome: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What happens to a recipient, and why.

    Attributes:
        address: the recipient that was decided.
        reason: the verdict.
        finals: who gets the mail; empty when it is refused or discarded.
        text: a reply text of a rule, or "".
        problem: for the log: which key and field is at fault, and how; or "".
        quarantined: hits that went to quarantine on the way.
        vendors: the addresses on the way that were given to somebody.
        settings: of the domain of the recipient, when it is managed.
        missing: the address without a rule that it is, in the domain whose rules were asked for it.
        steps: how the decision was found, where that was asked for.
    """

    address: Address
    reason: Reason
    finals: tuple[Final, ...] = ()
    text: str = ""
    problem: str = ""
    quarantined: tuple[Quarantined, ...] = ()
    vendors: tuple[Vendor, ...] = ()
    settings: Settings | None = None
    missing: Address | None = None
    steps: tuple[Step, ...] = ()

    @property
    def reply(self) -> Reply | None:
        """The SMTP reply when the recipient is refused; None when it is accepted."""
        reply = REPLIES.get(self.reason)
        return reply.saying(self.text) if reply else None

    @property
    def rewrites(self) -> bool:
        """Whether somebody else than the recipient gets the mail."""
        own = self.address.key
        return any(final.address.key != own for final in self.finals)
