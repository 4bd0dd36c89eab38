"""Every verdict there is, and every SMTP reply: one closed list, one table.

A `Reason` is what logs, metrics and tests speak of; its value is its name there. Those that
refuse have a `Reply` in `REPLIES`; the others accept.
"""

import re
from dataclasses import dataclass, replace
from enum import StrEnum


class Reason(StrEnum):
    """Why a recipient, or a message, is treated the way it is."""

    # accepted
    MAILBOX = "mailbox"  # maps to itself
    ALIAS = "alias"  # rewritten
    UNMANAGED = "unmanaged"  # no domain of ours: the MTA decides
    PASSED = "passed"  # unknown in a domain with `unknown pass`: the MTA decides
    QUARANTINED = "quarantined"  # by the action of its own rule
    CATCH_ALL = "catch-all"  # kept away from real inboxes
    DISCARDED = "discarded"
    SRS_REVERSED = "srs-reversed"  # a bounce on its way back

    # refused for good
    UNKNOWN = "unknown"
    DISABLED = "disabled"
    EXPIRED = "expired"
    REJECTED = "rejected"
    BLOCKED = "blocked"  # this sender, for this address or domain
    NOT_VENDOR = "not-vendor"  # a strict address that somebody else writes to
    LOOP = "loop"
    TOO_MANY_HOPS = "too-many-hops"
    SRS_FORGED = "srs-forged"
    SRS_EXPIRED = "srs-expired"
    MALFORMED = "malformed"
    NEEDS_SMTPUTF8 = "needs-smtputf8"
    DMARC_FAILED = "dmarc-failed"
    HEADER_TOO_BIG = "header-too-big"
    SENDER_MALFORMED = "sender-malformed"  # and copies would have to be made under it
    NOT_OWNER = "not-owner"  # a login sends as somebody else
    SHOWS_MAILBOX = "shows-mailbox"  # an answer that should go out under the alias

    # refused for now: the sender keeps the mail
    DEFERRED = "deferred"
    CYCLE = "cycle"
    TOO_DEEP = "too-deep"
    TOO_WIDE = "too-wide"
    INVALID_RULE = "invalid-rule"
    DANGLING = "dangling"  # an alias whose target does not exist
    STORE_UNAVAILABLE = "store-unavailable"
    DNS_UNAVAILABLE = "dns-unavailable"
    OTHER_HANDLING = "other-handling"
    TOO_MANY_RECIPIENTS = "too-many-recipients"
    TOO_MANY_SESSIONS = "too-many-sessions"
    SRS_THROTTLED = "srs-throttled"  # too much mail to a return address that is no bounce
    REINJECT_FAILED = "reinject-failed"  # a copy could not be submitted
    REINJECT_LOOP = "reinject-loop"  # our own submission came back to us
    MTA_INCAPABLE = "mta-incapable"
    INTERNAL_ERROR = "internal-error"


@dataclass(frozen=True, slots=True)
class Reply:
    """An SMTP reply.

    Attributes:
        code: RFC 5321 section 4.2, such as 550.
        enhanced: RFC 3463, such as "5.1.1".
        text: one line of printable ASCII.
    """

    code: int
    enhanced: str
    text: str

    @property
    def is_temporary(self) -> bool:
        """Whether the sender keeps the mail and tries again (RFC 5321 section 4.2.1)."""
        return 400 <= self.code < 500

    def saying(self, text: str) -> "Reply":
        """The same reply in the words of a rule; in its own when the rule has none."""
        fit = fit_text(text) if text else ""
        return replace(self, text=fit) if fit else self

    def __str__(self) -> str:
        return f"{self.code} {self.enhanced} {self.text}"


REPLIES: dict[Reason, Reply] = {
    Reason.UNKNOWN: Reply(550, "5.1.1", "No such address here"),
    Reason.DISABLED: Reply(550, "5.2.1", "This address is disabled"),
    Reason.EXPIRED: Reply(550, "5.2.1", "This address is no longer in use"),
    Reason.REJECTED: Reply(550, "5.7.1", "This address does not accept your message"),
    Reason.BLOCKED: Reply(550, "5.7.1", "This address does not accept mail from you"),
    Reason.NOT_VENDOR: Reply(550, "5.7.1", "This address does not accept mail from you"),
    Reason.LOOP: Reply(554, "5.4.6", "Mail loop: this message has passed this address already"),
    Reason.TOO_MANY_HOPS: Reply(554, "5.4.6", "Mail loop: too many Received header fields"),
    Reason.SRS_FORGED: Reply(550, "5.7.1", "This return address was not made here"),
    Reason.SRS_EXPIRED: Reply(550, "5.7.1", "This return address has expired"),
    Reason.MALFORMED: Reply(501, "5.1.3", "Malformed address"),
    # RFC 6531 section 3.7.4.2 and RFC 5248: X.6.7
    Reason.NEEDS_SMTPUTF8: Reply(550, "5.6.7", "This address needs a message sent with SMTPUTF8"),
    Reason.DMARC_FAILED: Reply(550, "5.7.1", "Not forwarded: the message fails its DMARC policy"),
    Reason.HEADER_TOO_BIG: Reply(552, "5.3.4", "The header of this message is too big"),
    Reason.SENDER_MALFORMED: Reply(553, "5.1.7", "Malformed sender address"),
    # RFC 6409 section 6.1: a submission server may refuse an address that is not the user's.
    Reason.NOT_OWNER: Reply(553, "5.7.1", "This login may not send from this address"),
    Reason.SHOWS_MAILBOX: Reply(550, "5.7.1", "Answer from the alias that the message came to"),
    Reason.DEFERRED: Reply(450, "4.2.1", "This address is not available now, try again later"),
    Reason.CYCLE: Reply(451, "4.4.6", "The rules for this address form a loop, try again later"),
    Reason.TOO_DEEP: Reply(451, "4.4.6", "The rules for this address are too deep"),
    Reason.TOO_WIDE: Reply(451, "4.4.6", "The rules for this address lead to too many others"),
    Reason.INVALID_RULE: Reply(451, "4.3.5", "The rule for this address is in error"),
    Reason.DANGLING: Reply(451, "4.3.5", "The rule for this address leads nowhere"),
    Reason.STORE_UNAVAILABLE: Reply(451, "4.3.0", "Address lookup is not possible now"),
    Reason.DNS_UNAVAILABLE: Reply(451, "4.3.0", "The sender's policy cannot be looked up now"),
    Reason.OTHER_HANDLING: Reply(452, "4.5.3", "This recipient needs a transaction of its own"),
    Reason.TOO_MANY_RECIPIENTS: Reply(452, "4.5.3", "Too many recipients"),
    Reason.TOO_MANY_SESSIONS: Reply(451, "4.3.2", "Too many connections, try again later"),
    Reason.SRS_THROTTLED: Reply(450, "4.7.1", "Too much mail to return addresses, try again later"),
    Reason.REINJECT_FAILED: Reply(451, "4.3.0", "Not all copies could be made, try again later"),
    Reason.REINJECT_LOOP: Reply(451, "4.3.5", "Mail system configuration error: loop"),
    Reason.MTA_INCAPABLE: Reply(451, "4.3.5", "Mail system configuration error"),
    Reason.INTERNAL_ERROR: Reply(451, "4.3.0", "Internal error, try again later"),
}

# RFC 5321 section 4.5.3.1.5: a reply line has 512 octets at most, code and CRLF included.
MAX_TEXT = 480
_UNPRINTABLE = re.compile(r"[^ -~]")


def fit_text(text: str) -> str:
    """Make a rule's text fit for a reply: printable ASCII, on one line, of bounded length.

    What does not fit shows as `?`: a reply that an MTA refuses to send would turn into a 451.
    """
    return _UNPRINTABLE.sub("?", text.strip())[:MAX_TEXT]
