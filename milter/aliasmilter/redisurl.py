"""What a `[store] url` says: which servers, how to log in, how to trust them.

    redis://[USER:PASSWORD@]HOST[:PORT][/DB]                      one server
    unix://[USER:PASSWORD@]/PATH[?db=DB]                          one server, on this machine
    redis+sentinel://[USER:PASSWORD@]HOST[:PORT],.../NAME[/DB]    the master that Sentinels name
    redis+cluster://[USER:PASSWORD@]HOST[:PORT],.../              a Redis Cluster, by some nodes

`rediss://`, `rediss+sentinel://` and `rediss+cluster://` are the same over TLS.
No I/O but for reading the certificates that the options name.
"""

import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

REDIS_PORT = 6379
SENTINEL_PORT = 26379


class Kind(Enum):
    """How the servers are found."""

    SERVER = "redis"
    UNIX = "unix"
    SENTINEL = "redis+sentinel"
    CLUSTER = "redis+cluster"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a server listens: a unix socket's `path`, or host and port."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return self.path or f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Login:
    """Who we are to a server; without a password nobody in particular."""

    username: str = ""
    password: str = ""


NOBODY = Login()


@dataclass(frozen=True, slots=True)
class TLS:
    """How servers are trusted; files are absolute paths, "" where there is none."""

    ca_certs: str = ""
    certfile: str = ""
    keyfile: str = ""
    check_hostname: bool = True

    def context(self) -> ssl.SSLContext:
        """Read the files.

        Raises:
            ValueError: one cannot be used; the message names it.
        """
        for file in (self.ca_certs, self.certfile, self.keyfile):
            if file and not Path(file).is_file():
                raise ValueError(f"{file}: no such file")
        try:
            context = ssl.create_default_context(cafile=self.ca_certs or None)
            if self.certfile:
                context.load_cert_chain(self.certfile, self.keyfile or None)
        except OSError as error:
            files = ", ".join(filter(None, (self.ca_certs, self.certfile, self.keyfile)))
            raise ValueError(f"{files}: {error.strerror or error}") from None
        context.check_hostname = self.check_hostname
        return context


@dataclass(frozen=True, slots=True)
class Target:
    """A parsed URL.

    Attributes:
        kind: how the servers are found.
        endpoints: the server, or the Sentinels, or some of the Cluster's nodes.
        login: for the servers with the rules.
        db: the database number.
        master: the name that Sentinels know the master by.
        sentinel_login: for the Sentinels themselves.
        tls: None for connections in the clear.
    """

    kind: Kind
    endpoints: tuple[Endpoint, ...]
    login: Login = NOBODY
    db: int = 0
    master: str = ""
    sentinel_login: Login = NOBODY
    tls: TLS | None = None


def parse(text: str) -> Target:
    """Take a URL apart.

    Raises:
        ValueError: says what is wrong with it. It shows nothing of the URL but names of files: what
            stands in a wrong place may be a part of the password.
    """
    try:
        parts = urlsplit(text)
    except ValueError:
        raise ValueError("not a URL: in a password write %2F for /, %5B for [") from None
    kind, is_tls = _kind(parts.scheme)
    credentials, at, hosts = parts.netloc.rpartition("@")
    options = _options(parts.query, kind, is_tls=is_tls)
    if parts.fragment:
        raise ValueError("a # in it; write %23 in a password")
    username, _, password = credentials.partition(":")
    login = Login(unquote(username), unquote(password)) if at else NOBODY
    tls = _tls(options) if is_tls else None
    sentinel = Login(options.get("sentinel_username", ""), options.get("sentinel_password", ""))
    endpoints, master, db = _PLACES[kind](hosts, unquote(parts.path))
    if "db" in options:
        db = _db(options["db"])
    return Target(kind, endpoints, login, db, master, sentinel, tls)


def _kind(scheme: str) -> tuple[Kind, bool]:
    is_tls = scheme.startswith("rediss")
    try:
        return Kind(scheme.replace("rediss", "redis", 1)), is_tls
    except ValueError:
        names = ", ".join(f"{kind.value}://" for kind in Kind)
        raise ValueError(f"not a URL that begins with {names} or rediss for redis") from None


def _options(query: str, kind: Kind, *, is_tls: bool) -> dict[str, str]:
    known = set(_TLS_OPTIONS) if is_tls else set()
    known |= {"db"} if kind in (Kind.SERVER, Kind.UNIX) else set()
    known |= _SENTINEL_OPTIONS if kind is Kind.SENTINEL else set()
    try:
        options = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError:
        raise ValueError("what follows the ? is not NAME=VALUE") from None
    for name, _ in options:
        if name not in known:
            raise ValueError(f"an option that is none of {', '.join(sorted(known)) or 'nothing'}")
    return dict(options)


def _tls(options: Mapping[str, str]) -> TLS:
    files = {name: options.get(f"ssl_{name}", "") for name in ("ca_certs", "certfile", "keyfile")}
    for name, file in files.items():
        if file and not Path(file).is_absolute():
            raise ValueError(f"ssl_{name} is not an absolute path")
    choice = options.get("ssl_check_hostname", "true")
    if choice not in ("true", "false"):
        raise ValueError("ssl_check_hostname is neither true nor false")
    tls = TLS(**files, check_hostname=choice == "true")
    tls.context()
    return tls


Place = tuple[tuple[Endpoint, ...], str, int]
"""Endpoints, name of the master, database."""


def _server(hosts: str, path: str) -> Place:
    endpoints = _endpoints(hosts or "127.0.0.1", REDIS_PORT)
    if len(endpoints) > 1:
        raise ValueError("several hosts: that is redis+sentinel:// or redis+cluster://")
    return endpoints, "", _db(path.strip("/") or "0")


def _unix(hosts: str, path: str) -> Place:
    if hosts or not path.strip("/"):
        raise ValueError("no path in it: unix:///run/redis/redis.sock")
    return (Endpoint(path=path),), "", 0


def _sentinel(hosts: str, path: str) -> Place:
    name, _, db = path.strip("/").partition("/")
    if not name:
        raise ValueError("no name of a master in it: redis+sentinel://HOST:26379/NAME")
    return _endpoints(hosts, SENTINEL_PORT), name, _db(db or "0")


def _cluster(hosts: str, path: str) -> Place:
    if path.strip("/") not in ("", "0"):
        raise ValueError("a Redis Cluster has no database but 0")
    return _endpoints(hosts, REDIS_PORT), "", 0


def _endpoints(hosts: str, port: int) -> tuple[Endpoint, ...]:
    return tuple(_endpoint(host, port) for host in hosts.split(","))


def _endpoint(text: str, default_port: int) -> Endpoint:
    if text.startswith("["):  # RFC 3986 section 3.2.2: an IPv6 address
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError("a host that begins with [ is not [ADDRESS]:PORT")
        port = rest[1:] if rest else str(default_port)
    else:
        host, colon, port = text.partition(":")
        port = port if colon else str(default_port)
    if not host:
        raise ValueError("no host in it")
    if not (port.isascii() and port.isdigit()) or not 0 < int(port) < 65_536:
        raise ValueError("a port is no number from 1 to 65535")
    return Endpoint(unquote(host), int(port))


def _db(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError("the database is no number")
    return int(text)


_TLS_OPTIONS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname")
_SENTINEL_OPTIONS = {"sentinel_username", "sentinel_password"}
_PLACES: Mapping[Kind, Callable[[str, str], Place]] = {
    Kind.SERVER: _server,
    Kind.UNIX: _unix,
    Kind.SENTINEL: _sentinel,
    Kind.CLUSTER: _cluster,
}
