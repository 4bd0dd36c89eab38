"""What is counted of mail: sessions, recipients, messages, and what became of them.

The label values come out of the closed lists that the verdicts themselves come out of.
"""

from aliasmilter.forwarding.arc import Sealed, Unsealed
from aliasmilter.forwarding.results import Results, Verdict
from aliasmilter.forwarding.srs import Unchanged
from aliasmilter.mail.replies import REPLIES, Reason
from aliasmilter.metrics import Counter, Gauge, Histogram, exceptions, one_label, product

NO_REASON = "none"
_METHODS = ("spf", "dkim", "dmarc", "arc")


def verdict_of(reason: Reason) -> str:
    """`accepted`, `rejected` for good, or `deferred`: the sender tries again."""
    reply = REPLIES.get(reason)
    if reply is None:
        return "accepted"
    return "deferred" if reply.is_temporary else "rejected"


def name_of(cause: Unsealed) -> str:
    """The name of a cause, for a label."""
    return cause.name.lower().replace("_", "-")


sessions = Counter("sessions", "SMTP sessions that began.")
harvests = Counter("harvests", "Clients that began to guess addresses.")
open_sessions = Gauge("open_sessions", "SMTP sessions that are open now.")
_recipients = Counter(
    "recipients",
    "Recipients decided at RCPT.",
    ["verdict", "reason"],
    [(verdict_of(reason), reason) for reason in Reason],
)
_messages = Counter(
    "messages",
    "Messages decided at their end.",
    ["verdict", "reason"],
    [
        *((word, NO_REASON) for word in ("accepted", "held", "discarded")),
        *((verdict_of(reason), reason) for reason in REPLIES),
    ],
)
rcpt_seconds = Histogram("rcpt_seconds", "Time to decide a recipient.")
message_seconds = Histogram(
    "message_seconds", "Time to decide a message at its end: DNS, seals and copies included."
)
_srs_senders = Counter(
    "srs_senders",
    "Senders of mail that left: rewritten, or why they stayed as they were.",
    ["result"],
    one_label(("rewritten", *Unchanged)),
)
_RETURNS = {
    Reason.SRS_REVERSED: "reversed",
    Reason.SRS_FORGED: "forged",
    Reason.SRS_EXPIRED: "expired",
}
_srs_returns = Counter(
    "srs_returns",
    "Recipients that were return addresses of ours, or claimed to be.",
    ["result"],
    one_label(_RETURNS.values()),
)
_arc_sealed = Counter(
    "arc_sealed",
    "ARC sets that were added, by what they say of the chain before.",
    ["cv"],
    one_label((Verdict.NONE, Verdict.PASS, Verdict.FAIL)),
)
_arc_unsealed = Counter(
    "arc_unsealed",
    "Messages that left without an ARC set of ours, by cause.",
    ["cause"],
    one_label(name_of(cause) for cause in Unsealed),
)
_authentication = Counter(
    "authentication_results",
    "What was found of messages that were about to leave; each DKIM signature counts.",
    ["method", "result"],
    product(_METHODS, Verdict),
)
reinjections = Counter(
    "reinjections",
    "Copies handed over to [reinject] server; repeated: everybody had got it at an earlier try.",
    ["result"],
    one_label(("submitted", "repeated", "failed")),
)


def recipient(reason: Reason) -> None:
    """A recipient was decided."""
    _recipients.inc(verdict_of(reason), reason)
    if reason in _RETURNS:
        _srs_returns.inc(_RETURNS[reason])


def accepted(word: str) -> None:
    """A message was `accepted`, `held` or `discarded`."""
    _messages.inc(word, NO_REASON)


def refused(reason: Reason) -> None:
    """A message was refused."""
    _messages.inc(verdict_of(reason), reason)


def failed(callback: str) -> None:
    """A callback of libmilter raised; RCPT and the end of a message are answered with 451."""
    exceptions.inc("milter")
    if callback == "envrcpt":
        recipient(Reason.INTERNAL_ERROR)
    elif callback == "eom":
        refused(Reason.INTERNAL_ERROR)


def sender(unchanged: Unchanged | None) -> None:
    """The sender of mail that leaves was rewritten, or not."""
    _srs_senders.inc(unchanged or "rewritten")


def sealed(outcome: Sealed | Unsealed) -> None:
    """A message that leaves got an ARC set, or none."""
    if isinstance(outcome, Sealed):
        _arc_sealed.inc(outcome.cv)
    else:
        _arc_unsealed.inc(name_of(outcome))


def examined(results: Results) -> None:
    """A message was examined before it leaves."""
    found = {"spf": results.spf, "dmarc": results.dmarc, "arc": results.arc}
    for method, result in found.items():
        if result:
            _authentication.inc(method, result.verdict)
    for signature in results.dkim:
        _authentication.inc("dkim", signature.verdict)
