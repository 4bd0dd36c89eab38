"""Authentication of a message: SPF, DKIM, ARC and DMARC, with one deadline for all their DNS.

evaluate()         mode = "verify": everything is checked here
trusted_results()  mode = "trust": read from Authentication-Results of our authserv-id
forged_results()   fields that claim our authserv-id and must go
results_header()   results as the text of an Authentication-Results field
is_refused()       whether DMARC wants the message rejected, and no trusted sealer vouches
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from aliasmilter.forwarding import chain, dkim, dmarc, spf
from aliasmilter.forwarding.author import named_domains
from aliasmilter.forwarding.authserv import forged_results, trusted_results
from aliasmilter.forwarding.dns import Lookup
from aliasmilter.forwarding.results import (
    ArcSetResult,
    DmarcResult,
    Results,
    Verdict,
    results_header,
)
from aliasmilter.mail.message import HeaderField, Message

__all__ = [
    "Client",
    "Limits",
    "evaluate",
    "forged_results",
    "is_refused",
    "results_header",
    "trusted_results",
]


@dataclass(frozen=True, slots=True)
class Client:
    """Who delivered the message: IP address ("" when there is none) and HELO name."""

    ip: str
    helo: str


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of what a sender wrote is looked at."""

    signatures: int = 10
    arc_sets: int = chain.MAX_SETS


DEFAULT_LIMITS = Limits()


def evaluate(
    message: Message,
    client: Client,
    mail_from: str,
    lookup: Lookup,
    *,
    now: float,
    limits: Limits = DEFAULT_LIMITS,
) -> Results:
    """Check everything. Never raises; trouble with DNS is TEMPERROR, within the lookup's deadline.

    `mail_from` is the address without brackets, "" for the null sender; `now` is Unix time.
    SPF comes after the signatures: its record, which names up to ten more, is what can use up the
    deadline, and a signature says more about forwarded mail.
    """
    signatures = dkim.evaluate(message, lookup, now, limits.signatures)
    arc = chain.evaluate(message, lookup, limits.arc_sets, now=now)
    sender = spf.evaluate(client.ip, client.helo, mail_from, lookup)
    author = dmarc.evaluate(message, sender, signatures, lookup)
    if author.verdict is Verdict.PERMERROR:
        each = (dmarc.evaluate(one, sender, signatures, lookup) for one in _by_one_author(message))
        author = _strictest(author, list(each))
    return Results(sender, signatures, arc, author, client.ip)


def _by_one_author(message: Message) -> Iterator[Message]:
    """A message for each domain that the From fields name, as if it were written there."""
    for domain in named_domains(message):
        yield Message((HeaderField(b"From", f" x@{domain}".encode()),))


def _strictest(unread: DmarcResult, found: Sequence[DmarcResult]) -> DmarcResult:
    """The result for a message without one author domain, of those for the domains it names.

    RFC 9989, 11.5: the strictest policy among the checks that fail applies, or a second domain
    in From would turn DMARC off for the first. Without an answer there may be such a one.
    """
    for each in found:
        if each.verdict is Verdict.FAIL and each.policy == "reject":
            return replace(each, reason=unread.reason)
    unknown = (each for each in found if each.verdict is Verdict.TEMPERROR)
    return next(unknown, unread)


def is_refused(results: Results, trusted_sealers: Collection[str]) -> bool:
    """Whether the message fails DMARC under p=reject and no trusted sealer vouches for it."""
    found = results.dmarc
    if found is None or found.verdict is not Verdict.FAIL or found.policy != "reject":
        return False
    arc = results.arc
    if arc is None or arc.verdict is not Verdict.PASS:
        return True
    return not _vouches(arc.sets, {domain.lower() for domain in trusted_sealers})


def _vouches(sets: Sequence[ArcSetResult], trusted: Collection[str]) -> bool:
    """Whether a chain that passes says that the message was genuine before it was changed.

    Its newest seal has to be by a trusted domain: whoever seals last could have put together any
    older sets (RFC 8617, 9). What that domain found counts (7.2.1): that the message passed DMARC,
    or that it came with a chain that passed, whose newest seal then has to be as good.
    """
    for each in reversed(sets):
        if each.domain not in trusted:
            return False
        if "dmarc" in each.passed or "arc" not in each.passed:
            return "dmarc" in each.passed
    return False
