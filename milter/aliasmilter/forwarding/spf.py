"""SPF (RFC 7208) by pyspf, with our resolver, our deadline and bounds on what a record may cost.

For a null sender the identity is postmaster@HELO (RFC 7208, 2.4), which is also what DMARC means
by the MAIL FROM identity then (RFC 9989, 4.4.2). With any other sender HELO is not looked at.
"""

import math
import re
from collections.abc import Iterable, Iterator
from ipaddress import ip_address

import spf as pyspf

from aliasmilter.forwarding.dns import Lookup, UnavailableError
from aliasmilter.forwarding.names import to_a_label
from aliasmilter.forwarding.results import Identity, SpfResult, Verdict

# RFC 7208, 3.4 wants records within 512 octets. pyspf's patterns take quadratic time on a term.
MAX_RECORD = 4096
MAX_TERM = 512
_MODIFIER = re.compile(r"([a-z][a-z0-9_.-]*)=", re.IGNORECASE)
_IMPLICIT_EXISTS = re.compile(r"[-+~?]?exists", re.IGNORECASE)
# A macro that asks for the last no parts of a name; an escaped "%" begins none.
_NO_PARTS = re.compile(r"%%|%\{[a-z](0+)(?![0-9])", re.IGNORECASE)


def evaluate(ip: str, helo: str, mail_from: str, lookup: Lookup) -> SpfResult:
    """The result for MAIL FROM, or for HELO when the sender is null. Never raises.

    `mail_from` is the address without brackets, "" for the null sender.
    """
    identity = Identity.MAIL_FROM if mail_from else Identity.HELO
    domain = to_a_label(mail_from.rpartition("@")[2] if mail_from else helo)
    # RFC 7208, 4.3: no domain, or an address literal, gives "none".
    if domain is None or "." not in domain:
        return SpfResult(Verdict.NONE, "", identity, "no domain to check")
    try:
        # A scope says by which interface the client is reached (RFC 4007, 11): no address has one.
        client = str(ip_address(ip.removeprefix("IPv6:").partition("%")[0]))
    except ValueError:
        return SpfResult(Verdict.NONE, domain, identity, "no client address")
    key = ("spf", client, domain, identity)
    known = lookup.conclusions.get(key)
    if isinstance(known, SpfResult):
        return known
    local = mail_from.rpartition("@")[0] or "postmaster"
    query = _Query(client, f"{local}@{domain}", helo, lookup)
    verdict, reason = _check(query)
    result = SpfResult(verdict, domain, identity, reason)
    if verdict is not Verdict.TEMPERROR and not query.has_macros:
        lookup.conclusions.put(key, result, query.expires)
    return result


def _check(query: "_Query") -> tuple[Verdict, str]:
    try:
        result = query.check()[0]
    except UnavailableError:
        return Verdict.TEMPERROR, "DNS gave no answer"
    except Exception as error:  # noqa: BLE001
        # pyspf lets several errors of its own through for records that are broken enough
        # (RFC 7208, 4.6: permerror); a sender's record must not become our exception.
        return Verdict.PERMERROR, f"broken record ({type(error).__name__})"
    reason = {"temperror": "DNS gave no answer", "permerror": "broken record"}.get(result, "")
    return Verdict(result), reason


class _Query(pyspf.query):  # type: ignore[misc]
    """A check whose DNS goes through our Lookup. pyspf's own goes through a global resolver."""

    def __init__(self, ip: str, sender: str, helo: str, lookup: Lookup) -> None:
        super().__init__(i=ip, s=sender, h=helo, strict=True)
        # pyspf splits at the first "@", which a quoted local part may hold.
        self.l, _, self.d = sender.rpartition("@")
        self.o = self.d
        self._lookup = lookup
        # Until when what it finds holds for this client and domain; with macros in a record
        # (RFC 7208, 7) it may depend on the local part, or on HELO.
        self.expires = math.inf
        self.has_macros = False

    def dns(
        self,
        name: str,
        qtype: str,
        cnames: object = None,  # noqa: ARG002
        ignore_void: bool = False,
    ) -> list[object]:
        """Records of one type; CNAMEs are followed by the resolver. Counts void lookups."""
        found = self._records(str(name), qtype)
        if not found and not ignore_void and not self._lacks_this_family(str(name), qtype):
            # RFC 7208, 4.6.4: more than two void lookups are a permerror.
            self.void_lookups += 1
            if self.void_lookups > pyspf.MAX_VOID_LOOKUPS:
                raise pyspf.PermError("too many void lookups")
        return found

    def _lacks_this_family(self, name: str, qtype: str) -> bool:
        """Whether it is no record's fault that there is no address: the name does exist.

        RFC 7208, 4.6.4 would count that, too. But MX hosts with IPv4 addresses alone are common,
        and three of them would make every IPv6 client a permerror.
        """
        return qtype in {"A", "AAAA"} and self._lookup.query(name, qtype).exists

    def _records(self, name: str, qtype: str) -> list[object]:
        answer = self._lookup.query(name, qtype)
        self.expires = min(self.expires, answer.expires)
        if qtype == "TXT":
            self.has_macros = self.has_macros or any(b"%" in each for each in answer.records)
            return [[record] for record in answer.records]
        if qtype == "MX":
            return list(self._lookup.mx(name))
        return list(self._lookup.text(name, qtype))

    def validated_ptrs(self) -> list[str]:
        """Names of the client that lead back to it; what DNS cannot tell is left out (5.5)."""
        try:
            names = self.dns_ptr(self.i)[: pyspf.MAX_PTR]
        except UnavailableError:
            self._expires_at_once()
            return []
        return [name for name in names if self._leads_back(name)]

    def _leads_back(self, name: str) -> bool:
        try:
            # What names a client has is not the fault of the record, nor void lookups of it.
            found = self.dns(name, self.A, ignore_void=True)
            return bool(self.cidrmatch(found, self.cidrmax))
        except UnavailableError:
            self._expires_at_once()
            return False

    def _expires_at_once(self) -> None:
        """What follows from no answer holds for this message alone."""
        self.expires = -math.inf

    def dns_spf(self, domain: str) -> str | None:
        """The SPF record of a domain, refused when it is too long to be read in good time."""
        record: str | None = super().dns_spf(domain)
        if not record:
            return record
        terms = record.split(" ")
        if len(record) > MAX_RECORD or any(len(term) > MAX_TERM for term in terms):
            raise pyspf.PermError("record too long")
        return " ".join(self._terms(terms))

    def _terms(self, terms: Iterable[str]) -> Iterator[str]:
        """The terms of a record as pyspf has to be given them to follow RFC 7208."""
        seen: set[str] = set()
        for term in terms:
            if _IMPLICIT_EXISTS.fullmatch(term):
                # 5.7: there is no default for its domain; pyspf notices only without a qualifier.
                raise pyspf.PermError("implicit exists not allowed", term)
            modifier = _MODIFIER.match(term)
            if modifier is None:
                yield term
                continue
            # RFC 5234, 2.3: the case of a name does not count.
            name, value = modifier[1].lower(), term[modifier.end() :]
            if name in seen and name not in {"redirect", "exp"}:
                # 6: unrecognized modifiers are ignored, no matter how often they appear.
                self.expand(value)
                continue
            seen.add(name)
            yield f"{name}={value}"

    def expand_domain(self, arg: str) -> str | None:
        """Expand a domain-spec; zero parts of a name are a syntax error (RFC 7208, 7.3)."""
        if any(macro[1] for macro in _NO_PARTS.finditer(arg)):
            raise pyspf.PermError("macro of no parts", arg)
        expanded: str | None = super().expand_domain(arg)
        return expanded

    def get_explanation(self, spec: str) -> None:  # noqa: ARG002
        """No exp= text (RFC 7208, 6.2): nobody sees it, and it would cost a query."""
        return
