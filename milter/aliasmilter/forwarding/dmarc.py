"""DMARC (RFC 9989): alignment, policy and verdict.

Whose policy applies, and which domains belong together, is found by DNS tree walks (section 4.10).
The `dmarc` package is not used: it takes any parent domain for aligned (d=co.uk for
example.co.uk), gives up on a record with one bad tag, and knows neither `np` nor temporary errors.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from aliasmilter.forwarding.author import NoAuthorError, author_domain
from aliasmilter.forwarding.dns import Lookup, UnavailableError
from aliasmilter.forwarding.results import DkimResult, DmarcResult, SpfResult, Verdict
from aliasmilter.mail.message import Message

MAX_RECORD = 8192
MAX_WALK = 8
POLICIES = ("none", "quarantine", "reject")

# RFC 9989, 4.8: "v" *WSP "=" *WSP %s"DMARC1", then *WSP and a separator, or the end.
_VERSION = re.compile(rb"[ \t]*[vV][ \t]*=[ \t]*DMARC1[ \t]*(?:;|\Z)")


@dataclass(frozen=True, slots=True)
class Record:
    """A policy record (RFC 9989, 4.7) as far as a receiver acts on it.

    `policy` is empty when there is none to apply; `psd` is "y", "n", or "u" for undeclared.
    """

    policy: str
    subdomains: str
    nonexistent: str
    strict_dkim: bool = False
    strict_spf: bool = False
    testing: bool = False
    psd: str = "u"


_TOO_LONG = Record("", "", "")


@dataclass(frozen=True, slots=True)
class Walk:
    """What a DNS tree walk (RFC 9989, 4.10) from a domain has found.

    `record` is the one that applies to the domain, at `owner`; None when there is none.
    """

    organizational_domain: str
    owner: str
    record: Record | None


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
        verdict = _verdict(record, domain, spf, dkim, lookup)
        policy = _policy(record, domain, owner, verdict, lookup)
    except UnavailableError:
        return DmarcResult(Verdict.TEMPERROR, domain, reason="policy not available")
    return DmarcResult(verdict, domain, policy)


def find_record(domain: str, lookup: Lookup) -> tuple[Record | None, str]:
    """The record that applies to an author domain and its owner (RFC 9989, 4.10.1).

    None when there is none, or no policy in it. Raises UnavailableError.
    """
    # RFC 9989, 4.10.1: the author domain's own comes first, without a walk.
    record, owner = _record(lookup.txt(f"_dmarc.{domain}")), domain
    if record is None:
        found = walk(domain, lookup)
        record, owner = found.record, found.owner
    return (record if record and record.policy else None), owner


def walk(domain: str, lookup: Lookup) -> Walk:
    """Walk the DNS tree up from a domain (RFC 9989, 4.10). Raises UnavailableError.

    What a walk has found is kept for as long as all its answers hold.
    """
    key = ("dmarc", domain)
    known = lookup.conclusions.get(key)
    if isinstance(known, Walk):
        return known
    records: list[tuple[str, Record]] = []
    expires = math.inf
    for name in walk_names(domain):
        answer = lookup.query(f"_dmarc.{name}", "TXT")
        expires = min(expires, answer.expires)
        record = _record(answer.records)
        if record:
            records.append((name, record))
            # RFC 9989, 4.10, steps 2 and 6: whoever says what it is ends the walk.
            if record.psd != "u":
                break
    found = _conclude(domain, records)
    lookup.conclusions.put(key, found, expires)
    return found


def walk_names(domain: str) -> list[str]:
    """The names that a walk asks about, the longest first."""
    labels = domain.split(".")
    # RFC 9989, 4.10, step 4: a name of eight labels or more is cut to seven after the first query.
    start = max(1, len(labels) - (MAX_WALK - 1))
    return [domain, *(".".join(labels[cut:]) for cut in range(start, len(labels)))]


def _conclude(domain: str, records: list[tuple[str, Record]]) -> Walk:
    """The organizational domain (RFC 9989, 4.10.2) and the record that applies (4.10.1)."""
    if not records:
        return Walk(domain, domain, None)
    # psd=n (rule 1) and psd=y (rule 2) have ended the walk; else it is the shortest name (rule 3).
    organizational, last = records[-1]
    if last.psd == "y":
        # Rule 2: the domain one label below; where the walk began there is none, and it stays.
        labels = organizational.count(".") + 1
        organizational = ".".join(domain.split(".")[-labels - 1 :])
    # 4.10.1: of the author domain, else of its organizational domain, else of the public suffix.
    found = dict(records)
    owner = next((name for name in (domain, organizational) if name in found), records[-1][0])
    return Walk(organizational, owner, found[owner])


def _record(texts: tuple[bytes, ...]) -> Record | None:
    """The policy record among the TXT records of a name."""
    found = [text for text in texts if _VERSION.match(text)]
    # RFC 9989, 4.10, steps 2 and 6: several records at one name are all discarded.
    return parse(found[0]) if len(found) == 1 else None


def parse(text: bytes) -> Record:
    """Read a record; tags that cannot be read are left out (RFC 9989, 4.7).

    There is no policy in it when `p` is not usable, or `sp` or `np` says what is none, and there
    is no address for reports that would make it "none" (RFC 9989, 4.10.1).
    """
    # Too long ones must not fill the cache, either.
    return _parse(text) if len(text) <= MAX_RECORD else _TOO_LONG


@lru_cache(maxsize=512)
def _parse(text: bytes) -> Record:
    tags = _tags(text.decode("latin-1"))
    policy = tags.get("p", "")
    subdomains = tags.get("sp", policy)
    nonexistent = tags.get("np", subdomains)
    if not {policy, subdomains, nonexistent} <= set(POLICIES):
        policy = "none" if "mailto:" in tags.get("rua", "") else ""
        subdomains = nonexistent = policy
    return Record(
        policy,
        subdomains,
        nonexistent,
        strict_dkim=tags.get("adkim") == "s",
        strict_spf=tags.get("aspf") == "s",
        # RFC 9989 has no pct any more; pct=0 was used to say what t=y says now.
        testing=tags.get("t") == "y" or tags.get("pct") == "0",
        psd=tags["psd"] if tags.get("psd") in {"y", "n"} else "u",
    )


def _tags(text: str) -> dict[str, str]:
    pairs = (part.partition("=") for part in text.split(";"))
    return {name.strip().lower(): value.strip().lower() for name, equals, value in pairs if equals}


def _verdict(
    record: Record, domain: str, spf: SpfResult, dkim: Iterable[DkimResult], lookup: Lookup
) -> Verdict:
    """PASS when any aligned identifier passed, TEMPERROR when one might have."""
    found = [(spf.verdict, spf.domain, record.strict_spf)]
    found += [(each.verdict, each.domain, record.strict_dkim) for each in dkim]
    # RFC 9989, 4.10.2: the author domain itself needs no walk; a pass of it ends the search.
    found.sort(key=lambda identifier: identifier[1] != domain)
    result = Verdict.FAIL
    for verdict, other, strict in found:
        if verdict not in {Verdict.PASS, Verdict.TEMPERROR}:
            continue
        try:
            aligned = is_aligned(domain, other, lookup, strict=strict)
        except UnavailableError:
            result = Verdict.TEMPERROR
            continue
        if aligned and verdict is Verdict.PASS:
            return Verdict.PASS
        if aligned:
            result = Verdict.TEMPERROR
    return result


def is_aligned(author: str, other: str, lookup: Lookup, *, strict: bool) -> bool:
    """Whether two domains are aligned (RFC 9989, 3.2.10): equal, or of one organization.

    Raises UnavailableError when that takes a walk, and DNS gives no answer.
    """
    if author == other:
        return True
    # An organizational domain is a name itself or stands above it: under another top-level domain
    # there is none in common, and whoever is not below the author's need not be asked about.
    if strict or author.rpartition(".")[2] != other.rpartition(".")[2]:
        return False
    common = walk(author, lookup).organizational_domain
    if other != common and not other.endswith(f".{common}"):
        return False
    return walk(other, lookup).organizational_domain == common


def _policy(record: Record, domain: str, owner: str, verdict: Verdict, lookup: Lookup) -> str:
    """The policy for this author domain (RFC 9989, 4.7: p, sp, np and t)."""
    policy = record.policy
    if owner != domain:
        policy = record.subdomains
        # RFC 9989, 3.2.13: NXDOMAIN. Of mail that passes the policy is only told, never applied.
        if verdict is not Verdict.PASS and record.nonexistent != policy:
            policy = policy if lookup.query(domain, "A").exists else record.nonexistent
    if record.testing:
        # RFC 9989, 4.7: in test mode the policy below the one named applies.
        return POLICIES[max(POLICIES.index(policy) - 1, 0)]
    return policy
