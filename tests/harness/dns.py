"""A little DNS server for tests: UDP and TCP on one free port of 127.0.0.1.

    zone = {"example.com": {"TXT": ["v=spf1 -all"], "MX": ["10 mx.example.com"]}}
    with DnsServer(zone) as server:
        resolver = Resolver([server.address])

The zone is a dict name -> type -> records, and may be changed while the server runs. CNAMEs are
followed inside it. A name that is not in it is NXDOMAIN, a type that is not there is NODATA.
`server.faults[name]` makes the answers for a name go wrong; "*" stands for every name.
"""

import socket
import socketserver
import threading
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from enum import Enum
from time import monotonic
from types import TracebackType

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rdtypes.ANY.TXT
import dns.rrset

from aliasmilter.forwarding.dns import Answer, Resolver, UnavailableError

Zone = MutableMapping[str, MutableMapping[str, Sequence[str | bytes]]]


class Fault(Enum):
    """What can be wrong with the answers for a name."""

    SERVFAIL = "servfail"
    REFUSED = "refused"
    SILENCE = "silence"
    TRUNCATED = "truncated"  # over UDP: an empty answer with TC set; TCP answers in full
    CUT = "cut"  # the same over TCP, too
    GARBAGE = "garbage"
    LOST = "lost"  # the first question gets no answer, the next ones do


@dataclass(frozen=True)
class Delay:
    """The right answer, so many seconds late."""

    seconds: float


class DnsServer:
    """Serves a zone; counts the questions in `queries` as (name, type, transport)."""

    def __init__(self, zone: Zone | None = None, ttl: int = 300) -> None:
        self.zone: Zone = zone if zone is not None else {}
        self.ttl = ttl
        self.faults: dict[str, Fault | Delay] = {}
        self.queries: list[tuple[str, str, str]] = []
        self.closing = threading.Event()
        self._tcp, self._udp = _bind(self)

    @property
    def port(self) -> int:
        return int(self._tcp.server_address[1])

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def count(self, name: str | None = None) -> int:
        """How many questions were asked, in all or about one name."""
        return sum(1 for query in list(self.queries) if name is None or query[0] == name)

    def __enter__(self) -> "DnsServer":
        for server in (self._tcp, self._udp):
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.closing.set()
        for server in (self._tcp, self._udp):
            server.shutdown()
            server.server_close()

    def answer(self, wire: bytes, transport: str) -> bytes | None:
        """The wire form of the answer, or None for silence."""
        query = dns.message.from_wire(wire)
        name = query.question[0].name.to_text(omit_final_dot=True).lower()
        rdtype = dns.rdatatype.to_text(query.question[0].rdtype)
        self.queries.append((name, rdtype, transport))
        fault = self.faults.get(name, self.faults.get("*"))
        if isinstance(fault, Delay):
            self.closing.wait(fault.seconds)
        if fault is Fault.SILENCE or (fault is Fault.LOST and self.count(name) == 1):
            return None
        if fault is Fault.GARBAGE:
            return wire[:2] + b"\xff" * 20
        reply = self._reply(query, name, rdtype, fault)
        if fault is Fault.CUT or (transport == "udp" and fault is Fault.TRUNCATED):
            reply.answer.clear()
            reply.flags |= dns.flags.TC
        return _to_wire(reply, 1232 if transport == "udp" else 65535)

    def _reply(
        self, query: dns.message.Message, name: str, rdtype: str, fault: Fault | Delay | None
    ) -> dns.message.Message:
        reply = dns.message.make_response(query, recursion_available=True)
        if fault in {Fault.SERVFAIL, Fault.REFUSED}:
            reply.set_rcode(dns.rcode.SERVFAIL if fault is Fault.SERVFAIL else dns.rcode.REFUSED)
            return reply
        exists = False
        for owner, found, records in self._follow(name, rdtype):
            exists = True
            if records:
                reply.answer.append(_rrset(owner, found, records, self.ttl))
        if not exists:
            reply.set_rcode(dns.rcode.NXDOMAIN)
        if not reply.answer:
            reply.authority.append(
                dns.rrset.from_text(".", self.ttl, "IN", "SOA", f". . 1 1 1 1 {self.ttl}")
            )
        return reply

    def _follow(self, name: str, rdtype: str) -> Iterator[tuple[str, str, Sequence[str | bytes]]]:
        for _ in range(16):
            node: Mapping[str, Sequence[str | bytes]] | None = self.zone.get(name)
            if node is None:
                return
            if "CNAME" not in node or rdtype == "CNAME":
                yield name, rdtype, node.get(rdtype, ())
                return
            yield name, "CNAME", node["CNAME"]
            name = str(node["CNAME"][0]).rstrip(".").lower()


def _rrset(owner: str, rdtype: str, records: Sequence[str | bytes], ttl: int) -> dns.rrset.RRset:
    name = dns.name.from_text(owner)
    if rdtype != "TXT":
        return dns.rrset.from_text_list(
            name, ttl, "IN", rdtype, [_absolute(str(record), rdtype) for record in records]
        )
    made = dns.rrset.RRset(name, dns.rdataclass.IN, dns.rdatatype.TXT)
    made.update_ttl(ttl)
    for record in records:
        data = record.encode() if isinstance(record, str) else record
        strings = [data[start : start + 255] for start in range(0, len(data), 255)] or [b""]
        made.add(dns.rdtypes.ANY.TXT.TXT(dns.rdataclass.IN, dns.rdatatype.TXT, strings))
    return made


def _absolute(record: str, rdtype: str) -> str:
    return record.rstrip(".") + "." if rdtype in {"MX", "PTR", "CNAME", "NS"} else record


def _to_wire(reply: dns.message.Message, size: int) -> bytes:
    try:
        return reply.to_wire(max_size=size)
    except dns.exception.TooBig:
        reply.answer.clear()
        reply.flags |= dns.flags.TC
        return reply.to_wire(max_size=size)


def _bind(server: DnsServer) -> tuple[socketserver.TCPServer, socketserver.UDPServer]:
    class Udp(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            data, sock = self.request
            wire = server.answer(data, "udp")
            if wire is not None and not server.closing.is_set():
                sock.sendto(wire, self.client_address)

    class Tcp(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            length = int.from_bytes(_read(self.request, 2))
            wire = server.answer(_read(self.request, length), "tcp") if length else None
            if wire is not None:
                self.request.sendall(len(wire).to_bytes(2) + wire)
            elif length:
                server.closing.wait(10)

    for _ in range(20):
        tcp = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Tcp)
        tcp.daemon_threads = True
        try:
            udp = socketserver.ThreadingUDPServer(("127.0.0.1", tcp.server_address[1]), Udp)
        except OSError:
            tcp.server_close()
            continue
        udp.daemon_threads = True
        tcp.block_on_close = udp.block_on_close = False
        return tcp, udp
    raise OSError("no port that is free for both UDP and TCP")


def _read(sock: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        piece = sock.recv(length - len(data))
        if not piece:
            return b""
        data += piece
    return data


class ZoneResolver(Resolver):
    """A resolver that answers out of a zone without a network.

    Names in `down` give no answer, "*" means all. `asked` holds every question.
    """

    def __init__(self, zone: Zone | None = None, clock: Callable[[], float] = monotonic) -> None:
        super().__init__(["127.0.0.1"], clock=clock)
        self.zone: Zone = zone if zone is not None else {}
        self.down: set[str] = set()
        self.asked: list[tuple[str, str]] = []

    def ask(self, name: str, rdtype: str, deadline: float) -> Answer:
        """The answer; raises UnavailableError for names that are down."""
        name = name.rstrip(".").lower()
        self.asked.append((name, rdtype))
        if self.down & {name, "*"}:
            raise UnavailableError(name)
        node = self.zone.get(name)
        records = [] if node is None else node.get(rdtype, [])
        return Answer(
            tuple(each if isinstance(each, bytes) else each.encode() for each in records),
            exists=node is not None,
        )
