"""Lookup tables for the MTA out of the same rules, over the socketmap protocol.

    request   netstring of "<map> <key>"              socketmap_table(5); Sendmail's socket map
    reply     netstring of "OK <value>", "NOTFOUND " or "TEMP <why>"

A store that does not answer is TEMP, never NOTFOUND: the MTA would take mail for refused.
"""

import socket
import socketserver
from collections.abc import Callable
from typing import BinaryIO

from aliasmilter import log, metrics
from aliasmilter.forwarding.decider import Decider
from aliasmilter.forwarding.srs import SRSError, looks_like_srs
from aliasmilter.mail.address import (
    Address,
    AddressError,
    parse_address,
    parse_domain,
)
from aliasmilter.mail.replies import Reason
from aliasmilter.mta.activity import Activity
from aliasmilter.mta.threaded import ThreadedServer
from aliasmilter.routing.decision import Decision
from aliasmilter.routing.lookup import Absent, Unavailable
from aliasmilter.routing.ownership import owners

MAX_REQUEST = 10_000  # octets
MAX_REPLY = 99_000  # octets; Postfix takes 100,000 with all that stands around them
# Seconds until a connection without requests is closed: more than an MTA's session is silent
# (Sendmail's Timeout.command and Timeout.datablock: an hour each), as Sendmail connects once.
IDLE = 7500.0
NOT_FOUND = "NOTFOUND "

Answer = str | None
"""What a map says of a key; None when it says nothing."""


class TemporaryError(Exception):
    """The key cannot be looked up now; the message says why."""


class Maps:
    """The maps by their names.

    Args:
        decider: decides addresses as the milter does.
    """

    def __init__(self, decider: Decider) -> None:
        self._decider = decider
        self._by_name: dict[str, Callable[[str], Answer]] = {
            "relay-domains": self._relay_domains,
            "srs-reverse": self._of_address(self._srs_reverse),
            "senders": self._of_address(self._senders),
            "aliases": self._of_address(self._aliases),
        }

    def reply(self, request: str) -> str:
        """The reply to one request; never raises."""
        name, _, key = request.partition(" ")
        # A map of Sendmail cannot have a hyphen in its name.
        lookup = self._by_name.get(name.replace("_", "-"))
        if lookup is None:
            # Not PERM: Sendmail takes that for "not found".
            return f"TEMP no map {name[:40]!r}"
        try:
            answer = lookup(key)
        except (TemporaryError, Unavailable) as error:
            log.get().error("map lookup failed", map=name, key=key, problem=str(error))
            return f"TEMP {error}"
        except Exception:  # noqa: BLE001  # a bug must not look like "not found"
            metrics.exceptions.inc("socketmap")
            log.get().exception("exception", map=name, key=key, reason=Reason.INTERNAL_ERROR.value)
            return "TEMP internal error"
        if answer is not None and len(answer.encode()) > MAX_REPLY:
            return "TEMP more than fits into a reply"
        return NOT_FOUND if answer is None else f"OK {answer}"

    def _relay_domains(self, key: str) -> Answer:
        """Whether a domain is ours; the domain itself is the value."""
        try:
            domain = parse_domain(key)
        except AddressError:
            return None
        if domain == self._decider.srs_domain:
            return domain
        (found,) = self._decider.lookups(None)([Address("postmaster", domain)])
        return None if isinstance(found, Absent) else domain

    def _srs_reverse(self, address: Address) -> Answer:
        """The sender in a return address that we made; forged ones are the milter's to refuse."""
        if not looks_like_srs(address):
            return None
        try:
            return str(self._decider.rewriter.reverse(address))
        except SRSError:
            return None

    def _senders(self, address: Address) -> Answer:
        """The logins that may send as an address: the mailboxes it leads to."""
        found = owners(self._decide(address))
        return ",".join(str(mailbox) for mailbox in found) or None

    def _aliases(self, address: Address) -> Answer:
        """All that an address leads to."""
        decision = self._decide(address)
        if decision.settings is None:
            return None
        if any(final.held for final in decision.finals):
            # Without the milter nothing would keep it from the inbox that it leads to.
            raise TemporaryError("a hit to be held, which a table cannot do")
        return ", ".join(str(final.address) for final in decision.finals) or None

    def _decide(self, address: Address) -> Decision:
        decision = self._decider.decide(address)
        if decision.reply and decision.reply.is_temporary:
            raise TemporaryError(f"{decision.reason}: {decision.problem}")
        return decision

    def _of_address(self, lookup: Callable[[Address], Answer]) -> Callable[[str], Answer]:
        """For keys that are no address (`@domain`, `user`), which MTAs also ask for."""

        def by_text(key: str) -> Answer:
            try:
                return lookup(parse_address(key, any_dots=True))
            except AddressError:
                return None

        return by_text


class Server(ThreadedServer):
    """Serves the maps.

    Args:
        listener: bound and listening.
        maps: what is served.
        activity: knows the connections that are open.
    """

    def __init__(self, listener: socket.socket, maps: Maps, activity: Activity) -> None:
        super().__init__(listener, _Handler)
        self.maps = maps
        self._activity = activity

    def get_request(self) -> tuple[socket.socket, object]:
        """See ThreadedServer."""
        connection, peer = super().get_request()
        connection.settimeout(IDLE)
        return connection, peer

    def process_request_thread(self, request: object, client_address: object) -> None:
        """In the thread: answer until the connection ends."""
        part = self._activity.begin()
        try:
            super().process_request_thread(request, client_address)  # type: ignore[arg-type]
        finally:
            self._activity.end(part)

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002
        """A connection that breaks is the MTA's business; a bug is ours."""
        metrics.exceptions.inc("socketmap")
        log.get().exception("exception", where="socketmap")


class _Handler(socketserver.BaseRequestHandler):
    server: Server

    def handle(self) -> None:
        """Answer requests until the MTA closes the connection."""
        connection: socket.socket = self.request
        with connection.makefile("rb") as stream:
            try:
                while (request := read_netstring(stream)) is not None:
                    reply = self.server.maps.reply(request.decode("utf-8", "replace"))
                    connection.sendall(netstring(reply.encode()))
            except (OSError, ValueError) as error:
                log.get().debug("socketmap connection ended", problem=str(error))


def netstring(data: bytes) -> bytes:
    """`<length>:<data>,`."""
    return b"%d:%b," % (len(data), data)


def read_netstring(stream: BinaryIO) -> bytes | None:
    """Read one netstring; None at the end of the stream.

    Raises:
        ValueError: it is none, or longer than any request.
    """
    head = b""
    while not head.endswith(b":"):
        octet = stream.read(1)
        if not octet and not head:
            return None
        head += octet
        if not octet or len(head) > 6 or not head.rstrip(b":").isdigit():
            raise ValueError("not a netstring")
    length = int(head[:-1])
    data = stream.read(length + 1) if length <= MAX_REQUEST else b""
    if len(data) != length + 1 or not data.endswith(b","):
        raise ValueError("not a netstring, or too long")
    return data[:-1]
