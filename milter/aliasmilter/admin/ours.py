"""What alias-milter needs of its MTA: its own side of the set-up, for comparison with the MTA's."""

import os
import socket
from dataclasses import dataclass

from aliasmilter.config import Config
from aliasmilter.store.snapshot import Snapshot

_EVERYWHERE = frozenset({"0.0.0.0", "::", ""})  # noqa: S104  # recognised, not bound
_HERE = frozenset({"127.0.0.1", "::1", "localhost"})


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A socket: a path, or host and port. `port` is 0 for a unix socket."""

    path: str = ""
    host: str = ""
    port: int = 0

    def is_same(self, other: "Endpoint") -> bool:
        """Whether both are one socket; names of this host are all one, links are followed."""
        if self.path or other.path:
            return os.path.realpath(self.path) == os.path.realpath(other.path)
        return self.port == other.port and _same_host(self.host, other.host)

    @property
    def is_local(self) -> bool:
        """Whether only this host reaches it."""
        return bool(self.path) or is_loopback(self.host)

    def __str__(self) -> str:
        return self.path or f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Ours:
    """alias-milter's side.

    Attributes:
        config: its configuration.
        managed: the domains with rules in Redis; empty when Redis is away.
        srs_domains: the domains of its SRS senders.
    """

    config: Config
    managed: frozenset[str]
    srs_domains: frozenset[str]

    @property
    def socket(self) -> Endpoint:
        """Where the milter listens."""
        return sendmail_endpoint(self.config.milter.socket)

    @property
    def reinject(self) -> Endpoint | None:
        """The listener of the MTA that takes copies, if there is one."""
        server = self.config.reinject.server
        return host_port(server) if server else None

    @property
    def socketmap(self) -> Endpoint | None:
        """Where the lookup tables are served, if they are."""
        listen = self.config.socketmap.listen
        return sendmail_endpoint(listen) if listen else None

    @property
    def domains(self) -> list[str]:
        """All domains whose recipients alias-milter has to see."""
        return sorted(self.managed | self.srs_domains)

    @property
    def seals(self) -> bool:
        """Whether mail that leaves gets an ARC set."""
        return self.config.arc.enabled

    @property
    def longest_answer(self) -> float:
        """Seconds that the end of a message may take."""
        copies = self.config.reinject.timeout if self.config.reinject.server else 0.0
        return self.config.dns.timeout + self.config.store.timeout + copies


def ours(config: Config, snapshot: Snapshot) -> Ours:
    """alias-milter's side, out of its configuration and what stands in Redis."""
    chosen = {
        fields[b"srs_domain"].decode("ascii", "replace").lower()
        for fields in snapshot.settings.values()
        if fields.get(b"srs_domain")
    }
    return Ours(config, frozenset(snapshot.settings), frozenset({config.srs.domain, *chosen}))


def sendmail_endpoint(text: str) -> Endpoint:
    """Parse `unix:PATH`, `local:PATH` or `inet:PORT@HOST`, as here and in Sendmail."""
    kind, colon, rest = text.partition(":")
    if kind.startswith("inet"):
        port, _, host = rest.partition("@")
        return Endpoint(host=host.strip("[]"), port=port_number(port))
    return Endpoint(path=rest if colon else text)


def host_port(text: str) -> Endpoint:
    """Parse `HOST:PORT`, `[HOST]:PORT` or a port alone."""
    host, _, port = text.rpartition(":")
    return Endpoint(host=host.strip("[]"), port=port_number(port))


def port_number(text: str) -> int:
    """The port of a number or a service name; -1 when there is none of that name."""
    if text.isdecimal():
        return int(text)
    try:
        return socket.getservbyname(text, "tcp")
    except OSError:
        return -1


def is_loopback(host: str) -> bool:
    """Whether that address or name is reached from this host alone."""
    return host in _HERE or host.startswith("127.")


def listed(names: list[str], limit: int = 5) -> str:
    """Names for a message, the first of them when there are many."""
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {more} more" if more > 0 else "")


def _same_host(one: str, other: str) -> bool:
    return one == other or bool({one, other} & _EVERYWHERE) or {one, other} <= _HERE
