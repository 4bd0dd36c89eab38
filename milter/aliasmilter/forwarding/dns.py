"""DNS for the forwarding room: one cache for the process, one deadline for a message.

A `Resolver` is shared by all threads. For each message it gives out a `Lookup`, which holds the
deadline and counts the queries. Three outcomes, never mixed up:

    records        found
    no records     absent: the name does not exist, or has no such record
    UnavailableError    nobody knows: SERVFAIL, silence, garbage, the deadline, too many queries
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.query
import dns.rcode
import dns.rdatatype
import dns.resolver
from dns.rdata import Rdata
from dns.rdtypes.ANY.MX import MX
from dns.rdtypes.ANY.PTR import PTR
from dns.rdtypes.ANY.TXT import TXT

from aliasmilter import metrics
from aliasmilter.endpoints import DNS_PORT, parse_nameserver

Clock = Callable[[], float]

MIN_TTL = 1
MAX_TTL = 3600
# RFC 2308, 5: no negative answer is kept for long, and one without SOA only briefly.
MAX_NEGATIVE_TTL = 900
DEFAULT_NEGATIVE_TTL = 30
# How the time for a question is divided: the second try is for slow servers, too.
ROUNDS = (0.25, 0.75)
UDP_PAYLOAD = 1232


class UnavailableError(Exception):
    """DNS gave no answer that can be relied on; the same question may be answered later."""


class _RefusalError(Exception):
    """A server said SERVFAIL, REFUSED, or the like; the text says what."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What DNS says about a name and type: `records` empty means absent.

    TXT records are their joined strings (RFC 7208, 3.3; RFC 6376, 3.6.2.2); A, AAAA and PTR are
    text; MX is preference, space, host. Until `expires`, on the resolver's clock, it holds.
    """

    records: tuple[bytes, ...]
    exists: bool = True
    expires: float = field(default=0.0, compare=False)

    @property
    def size(self) -> int:
        """Octets that the answer takes in the cache, roughly."""
        return 200 + sum(len(record) for record in self.records)


class Conclusions:
    """What was concluded from answers, for as long as all of those hold; for all threads."""

    def __init__(self, clock: Clock, max_entries: int = 10_000) -> None:
        self._clock = clock
        self._max_entries = max_entries
        self._lock = threading.Lock()
        self._entries: OrderedDict[Hashable, tuple[float, object]] = OrderedDict()

    def get(self, key: Hashable) -> object | None:
        """The conclusion, or None when there is none or an answer has expired."""
        expires, conclusion = self._entries.get(key, (0.0, None))
        if self._clock() >= expires:
            return None
        metrics.dns_lookups.inc("cached")
        return conclusion

    def put(self, key: Hashable, conclusion: object, expires: float) -> None:
        """Keep a conclusion; the oldest makes room."""
        if expires <= self._clock():
            return
        with self._lock:
            self._entries.pop(key, None)
            self._entries[key] = (expires, conclusion)
            if len(self._entries) > self._max_entries:
                self._entries.popitem(last=False)


class Cache:
    """Answers until they expire, for all threads; bounded in number and in octets."""

    def __init__(self, clock: Clock, max_entries: int = 10_000, max_octets: int = 16 << 20) -> None:
        self._clock = clock
        self._max_entries = max_entries
        self._max_octets = max_octets
        self._lock = threading.Lock()
        self._entries: OrderedDict[tuple[str, str], tuple[float, Answer]] = OrderedDict()
        self.octets = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: tuple[str, str]) -> Answer | None:
        """The answer, or None when there is none or it has expired."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            if entry[0] <= self._clock():
                self._drop(key)
                return None
            self._entries.move_to_end(key)
            return entry[1]

    def put(self, key: tuple[str, str], answer: Answer, ttl: float) -> None:
        """Keep an answer for `ttl` seconds; what was used longest ago makes room."""
        with self._lock:
            self._drop(key)
            self._entries[key] = (self._clock() + ttl, answer)
            self.octets += answer.size
            while len(self._entries) > self._max_entries or self.octets > self._max_octets:
                self._drop(next(iter(self._entries)))

    def _drop(self, key: tuple[str, str]) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.octets -= entry[1].size


def system_nameservers() -> list[tuple[str, int]]:
    """The name servers of this host; the local one when the host names none, as libc does it."""
    try:
        return [(str(server), DNS_PORT) for server in dns.resolver.Resolver().nameservers]
    except dns.resolver.NoResolverConfiguration:
        return [("127.0.0.1", DNS_PORT)]


class Resolver:
    """Asks the configured name servers and keeps what they said. Safe for threads and forks."""

    def __init__(
        self,
        nameservers: Sequence[str] = (),
        *,
        clock: Clock = time.monotonic,
        cache: Cache | None = None,
    ) -> None:
        """Raises ValueError for a name server that cannot be read."""
        self.servers = [parse_nameserver(text) for text in nameservers] or system_nameservers()
        self.clock = clock
        self.cache = cache or Cache(clock)
        self.conclusions = Conclusions(clock)

    def lookup(self, timeout: float, max_queries: int = 150) -> "Lookup":
        """A message's own view: one deadline from now on, a bounded number of queries."""
        return Lookup(self, timeout, max_queries)

    def ask(self, name: str, rdtype: str, deadline: float) -> Answer:
        """The answer, from the cache or from a name server before the deadline.

        Raises UnavailableError. A name that cannot stand in DNS is absent.
        """
        key = (name.rstrip(".").lower(), rdtype)
        answer = self.cache.get(key)
        if answer is not None:
            metrics.dns_lookups.inc("cached")
            return answer
        qname = _dns_name(key[0])
        if qname is None:
            return Answer((), exists=False)
        try:
            answer, ttl = _read(self._exchange(qname, rdtype, deadline), rdtype)
        except UnavailableError:
            metrics.dns_lookups.inc("failed")
            raise
        metrics.dns_lookups.inc("answered")
        answer = replace(answer, expires=self.clock() + ttl)
        self.cache.put(key, answer, ttl)
        return answer

    def _exchange(
        self, qname: dns.name.Name, rdtype: str, deadline: float
    ) -> dns.message.QueryMessage:
        """Ask each server in turn, and once more: a packet may get lost, a server be slow."""
        time_left = max(deadline - self.clock(), 0.0)
        trouble = "no time left"
        for share in ROUNDS:
            failed = 0
            for server in self.servers:
                patience = min(time_left * share / len(self.servers), deadline - self.clock())
                if patience <= 0:
                    break
                try:
                    return _send(qname, rdtype, server, patience, deadline - self.clock())
                except dns.exception.Timeout:
                    trouble = "timed out"
                except (OSError, EOFError, dns.exception.DNSException, _RefusalError) as error:
                    trouble = str(error) or type(error).__name__
                    failed += 1
            if failed == len(self.servers):
                break  # they did answer, and will not say anything else in a second
        raise UnavailableError(f"{qname} {rdtype}: {trouble}")


class Lookup:
    """The DNS work of one message: one deadline, so many queries, each question asked once."""

    def __init__(self, resolver: Resolver, timeout: float, max_queries: int) -> None:
        self._resolver = resolver
        self._deadline = resolver.clock() + timeout
        # One silent zone must not use up the time of all the others.
        self._patience = timeout * 0.4
        self._left = max_queries
        self._seen: dict[tuple[str, str], Answer | UnavailableError] = {}

    @property
    def conclusions(self) -> Conclusions:
        """The resolver's."""
        return self._resolver.conclusions

    def query(self, name: str, rdtype: str) -> Answer:
        """The answer for a name and a type ("TXT", "A", ...). Raises UnavailableError."""
        key = (name.rstrip(".").lower(), rdtype)
        known = self._seen.get(key)
        if known is None:
            known = self._seen[key] = self._ask(name, rdtype)
        if isinstance(known, UnavailableError):
            raise known
        return known

    def _ask(self, name: str, rdtype: str) -> Answer | UnavailableError:
        if self._left <= 0:
            return UnavailableError("too many DNS queries for one message")
        self._left -= 1
        deadline = min(self._deadline, self._resolver.clock() + self._patience)
        try:
            return self._resolver.ask(name, rdtype, deadline)
        except UnavailableError as error:
            return error

    def txt(self, name: str) -> tuple[bytes, ...]:
        """TXT records, their strings joined; empty when absent. Raises UnavailableError."""
        return self.query(name, "TXT").records

    def text(self, name: str, rdtype: str) -> tuple[str, ...]:
        """A, AAAA or PTR records; empty when absent. Raises UnavailableError."""
        return tuple(
            record.decode("ascii", "replace") for record in self.query(name, rdtype).records
        )

    def mx(self, name: str) -> tuple[tuple[int, str], ...]:
        """MX records as preference and host; empty when absent. Raises UnavailableError."""
        pairs = (record.partition(" ") for record in self.text(name, "MX"))
        return tuple((int(preference), host) for preference, _, host in pairs)


def _dns_name(name: str) -> dns.name.Name | None:
    """The name, or None when it cannot stand in DNS; a backslash would be an escape."""
    if not name.isascii() or "\\" in name:
        return None
    try:
        return dns.name.from_text(name)
    except dns.exception.DNSException:
        return None


def _send(
    qname: dns.name.Name, rdtype: str, server: tuple[str, int], patience: float, remaining: float
) -> dns.message.QueryMessage:
    """One question to one server by UDP, by TCP when the answer was truncated (RFC 7766, 5).

    Raises Timeout, OSError, EOFError, another DNSException, or _RefusalError.
    """
    query = dns.message.make_query(qname, rdtype, use_edns=0, payload=UDP_PAYLOAD)
    host, port = server
    started = time.monotonic()
    reply = dns.query.udp(query, host, patience, port, ignore_unexpected=True, ignore_errors=True)
    if reply.flags & dns.flags.TC:
        left = max(remaining - (time.monotonic() - started), 0.001)
        reply = dns.query.tcp(query, host, left, port)
        if reply.flags & dns.flags.TC:  # what was cut off is not absent
            raise _RefusalError("truncated")
    if not isinstance(reply, dns.message.QueryMessage):
        raise dns.query.BadResponse
    if reply.rcode() not in {dns.rcode.NOERROR, dns.rcode.NXDOMAIN}:
        raise _RefusalError(dns.rcode.to_text(reply.rcode()))
    return reply


def _read(reply: dns.message.QueryMessage, rdtype: str) -> tuple[Answer, float]:
    """The records at the end of the CNAMEs, and how long they may be kept."""
    try:
        chain = reply.resolve_chaining()
    except dns.exception.DNSException as error:
        raise UnavailableError(f"{rdtype}: {type(error).__name__}") from error
    if chain.answer is None:
        ttl = chain.minimum_ttl if reply.authority else DEFAULT_NEGATIVE_TTL
        exists = reply.rcode() != dns.rcode.NXDOMAIN
        return Answer((), exists), min(max(ttl, MIN_TTL), MAX_NEGATIVE_TTL)
    records = tuple(_record(rdata) for rdata in chain.answer)
    return Answer(records), min(max(chain.minimum_ttl, MIN_TTL), MAX_TTL)


def _record(rdata: Rdata) -> bytes:
    if isinstance(rdata, TXT):
        return b"".join(rdata.strings)
    if isinstance(rdata, MX):
        return b"%d %b" % (rdata.preference, _host(rdata.exchange))
    if isinstance(rdata, PTR):
        return _host(rdata.target)
    return rdata.to_text().encode("ascii")


def _host(name: dns.name.Name) -> bytes:
    return name.to_text(omit_final_dot=True).encode("ascii")
