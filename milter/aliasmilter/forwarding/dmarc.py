"""DMARC (RFC 7489 and its successor RFC 9989): alignment, policy and verdict.

Organizational domains come from the public suffix list. The `dmarc` package is not used: it takes
any parent domain for aligned (d=co.uk for example.co.uk), gives up on a record with one bad tag,
and knows neither `np` nor temporary errors.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from aliasmilter.forwarding.author import NoAuthorError, author_domain
from aliasmilter.forwarding.dns import Lookup, UnavailableError
from aliasmilter.forwarding.results import DkimResult, DmarcResult, SpfResult, Verdict
from aliasmilter.forwarding.suffixes import registrable_domain
from aliasmilter.mail.message import Message

MAX_RECORD = 8192
POLICIES = ("none", "quarantine", "reject")


@dataclass(frozen=True, slots=True)
class Record:
    """A policy record (RFC 9989, 4.7) as far as a receiver acts on it."""

    policy: str
    subdomains: str
    nonexistent: str
    strict_dkim: bool
    strict_spf: bool
    testing: bool


def evaluate(
    message: Message, spf: SpfResult, dkim: Iterable[DkimResult], lookup: Lookup
) -> DmarcResult:
    """The DMARC result of a message. Never raises.

    A From field without exactly one domain is a permerror. TEMPERROR whenever the message might
    have passed, had DNS given an answer: nothing is refused because DNS is down.
    """
    try:
        domain = author_domain(message)
    except NoAuthorError as error:
        return DmarcResult(Verdict.PERMERROR, reason=str(error))
    try:
        record, owner = find_record(domain, lookup)
        if record is None:
            return DmarcResult(Verdict.NONE, domain)
        verdict = _verdict(record, domain, spf, dkim)
        policy = _policy(record, domain, owner, lookup)
    except UnavailableError:
        return DmarcResult(Verdict.TEMPERROR, domain, reason="policy not available")
    return DmarcResult(verdict, domain, policy)


def find_record(domain: str, lookup: Lookup) -> tuple[Record | None, str]:
    """The record that applies and its owner: the domain itself, else its organizational domain.

    Raises UnavailableError.
    """
    for owner in dict.fromkeys((domain, registrable_domain(domain))):
        texts = [text for text in lookup.txt(f"_dmarc.{owner}") if _is_policy(text)]
        # RFC 9989, 4.10: several records at one name are all discarded.
        if len(texts) == 1:
            return parse(texts[0]), owner
    return None, domain


def _is_policy(text: bytes) -> bool:
    return text.partition(b";")[0].replace(b" ", b"") == b"v=DMARC1"


def parse(text: bytes) -> Record | None:
    """Read a record; tags that cannot be read are left out (RFC 7489, 6.3).

    None when there is no usable policy, and no address for reports that would make it "none"
    (RFC 7489, 6.6.3, step 6).
    """
    # Too long ones must not fill the cache, either.
    return _parse(text) if len(text) <= MAX_RECORD else None


@lru_cache(maxsize=512)
def _parse(text: bytes) -> Record | None:
    tags = _tags(text.decode("latin-1"))
    policy = tags.get("p", "")
    if policy not in POLICIES:
        if "mailto:" not in tags.get("rua", ""):
            return None
        policy = "none"
    subdomains = tags.get("sp") if tags.get("sp") in POLICIES else policy
    nonexistent = tags.get("np") if tags.get("np") in POLICIES else subdomains
    return Record(
        policy,
        subdomains or policy,
        nonexistent or policy,
        strict_dkim=tags.get("adkim") == "s",
        strict_spf=tags.get("aspf") == "s",
        # RFC 9989 has no pct any more; pct=0 was used to say what t=y says now.
        testing=tags.get("t") == "y" or tags.get("pct") == "0",
    )


def _tags(text: str) -> dict[str, str]:
    pairs = (part.partition("=") for part in text.split(";"))
    return {name.strip().lower(): value.strip().lower() for name, equals, value in pairs if equals}


def _verdict(record: Record, domain: str, spf: SpfResult, dkim: Iterable[DkimResult]) -> Verdict:
    """PASS when any aligned identifier passed, TEMPERROR when one might have."""
    found = [(spf.verdict, spf.domain, record.strict_spf)]
    found += [(each.verdict, each.domain, record.strict_dkim) for each in dkim]
    aligned = {
        verdict for verdict, other, strict in found if other and is_aligned(domain, other, strict)
    }
    if Verdict.PASS in aligned:
        return Verdict.PASS
    return Verdict.TEMPERROR if Verdict.TEMPERROR in aligned else Verdict.FAIL


def is_aligned(author: str, other: str, strict: bool) -> bool:
    """Whether two domains are aligned (RFC 9989, 3.2.10): equal, or of one organization."""
    if author == other:
        return True
    return not strict and registrable_domain(author) == registrable_domain(other)


def _policy(record: Record, domain: str, owner: str, lookup: Lookup) -> str:
    """The policy for this author domain (RFC 9989, 4.7: p, sp, np and t)."""
    policy = record.policy
    if owner != domain:
        policy = record.subdomains
        if record.nonexistent != policy and not lookup.query(domain, "A").exists:
            policy = record.nonexistent
    if record.testing:
        # RFC 9989, 4.7: in test mode the policy below the one named applies.
        return POLICIES[max(POLICIES.index(policy) - 1, 0)]
    return policy
