"""A Postfix configuration as a value, and the forms that its parameters have.

    PostfixSetup      main.cf as postconf expands it, and the services of master.cf
      Service         a line of master.cf; its values are main.cf's with its -o on top

Nothing here asks a running Postfix: what has to be looked up in a table is asked of
`PostfixSetup.lookup`, which a test can play.
"""

import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from aliasmilter.admin.ours import Endpoint, host_port, is_loopback

PROBE = "alias-milter-check"
SRS_PROBE = "SRS0=check"
_MAX_CLASSES = 10  # restriction classes within restriction classes
_TABLE = re.compile(r"[a-z]+:[^:]")  # and no IPv6 address
_PROBES = ("192.0.2.1", "198.51.100.1", "203.0.113.1")  # RFC 5737: nobody's networks

Lookup = Callable[[str, str], str | None]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class TableError(Exception):
    """A table cannot be read; the message names it and says why."""


class Restriction(NamedTuple):
    """A word of a list of restrictions, and the table behind it."""

    name: str
    table: str


@dataclass(frozen=True, slots=True)
class Service:
    """A line of master.cf.

    Attributes:
        name: "smtp/inet", as postconf -M takes it.
        chroot: whether it sees nothing but the queue directory.
        program: the first word of its command.
        overrides: the parameters that its -o options set.
        values: every parameter as this service sees it.
    """

    name: str
    chroot: bool
    program: str
    overrides: frozenset[str]
    values: Mapping[str, str]

    @property
    def endpoint(self) -> Endpoint | None:
        """Where it listens, when that is TCP; host "" for every interface."""
        address, _, kind = self.name.rpartition("/")
        return host_port(address) if kind == "inet" else None

    @property
    def is_public(self) -> bool:
        """Whether other hosts reach it."""
        endpoint = self.endpoint
        if endpoint is None:
            # Connections that postscreen passes on are the world's.
            return self.name.endswith("/pass")
        interfaces = words(self.values.get("inet_interfaces", "all"))
        here = all(word == "loopback-only" or is_loopback(word) for word in interfaces)
        return not (is_loopback(endpoint.host) or (here and not endpoint.host))


def _no_tables(table: str, key: str) -> str | None:
    raise TableError(f"{table}: cannot be asked for {key}")


@dataclass(frozen=True, slots=True)
class PostfixSetup:
    """A whole configuration.

    Attributes:
        folder: where main.cf and master.cf are.
        main: every parameter, expanded.
        services: the lines of master.cf.
        complaints: what postconf itself says is wrong.
        lookup: asks a table ("hash:/etc/postfix/x") for a key; None when it is not there;
            raises TableError.
    """

    folder: Path
    main: Mapping[str, str]
    services: tuple[Service, ...]
    complaints: tuple[str, ...] = ()
    lookup: Lookup = field(default=_no_tables)

    @property
    def servers(self) -> list[Service]:
        """The services that take mail by SMTP."""
        return [service for service in self.services if service.program == "smtpd"]

    def where(self, parameter: str, service: Service | None = None) -> str:
        """The file, and the service if it is its own, that gives a parameter its value."""
        if service is None or service.values.get(parameter) == self.main.get(parameter):
            return f"{self.folder}/main.cf {parameter}"
        option = "-o " if parameter in service.overrides else ""
        return f"{self.folder}/master.cf {service.name} {option}{parameter}"

    def listener(self, endpoint: Endpoint) -> Service | None:
        """The SMTP server that listens there."""
        for service in self.servers:
            if service.endpoint and service.endpoint.is_same(endpoint):
                return service
        return None

    def find(self, tables: str, *keys: str) -> str | None:
        """The first answer of several tables to the first key that has one."""
        for key in keys:
            for table in words(tables):
                if (answer := self.lookup(table, key)) is not None:
                    return answer
        return None


def words(value: str) -> list[str]:
    """Split at commas and white space; what stands in braces is one word."""
    found, word, depth = [], "", 0
    for character in value:
        if depth == 0 and (character == "," or character.isspace()):
            found.append(word)
            word = ""
            continue
        depth += {"{": 1, "}": -1}.get(character, 0)
        word += character
    return [one for one in (*found, word) if one]


def unbraced(word: str) -> str:
    """What stands between the outer braces."""
    return word[1:-1].strip() if word.startswith("{") and word.endswith("}") else word


def restrictions(values: Mapping[str, str], parameter: str) -> Iterator[Restriction]:
    """The restrictions of a list, its classes taken apart (smtpd_restriction_classes)."""
    classes = set(words(values.get("smtpd_restriction_classes", "")))
    yield from _restrictions(values, values.get(parameter, ""), classes, _MAX_CLASSES)


def _restrictions(
    values: Mapping[str, str], text: str, classes: set[str], depth: int
) -> Iterator[Restriction]:
    listed = words(text)
    for number, word in enumerate(listed):
        name = word.lower()
        if word in classes and depth:
            yield from _restrictions(values, values.get(word, ""), classes, depth - 1)
        else:
            following = listed[number + 1] if number + 1 < len(listed) else ""
            yield Restriction(name, following if name.startswith("check_") else "")


def keys_of(domain: str) -> Iterator[str]:
    """All keys by which tables are asked about a domain here."""
    labels = domain.split(".")
    parents = [".".join(labels[at:]) for at in range(1, len(labels))]
    yield from (domain, f"@{domain}", f"{PROBE}@{domain}", f"{SRS_PROBE}@{domain}")
    yield from (*parents, *(f".{parent}" for parent in parents))


def in_list(setup: PostfixSetup, parameter: str, domain: str) -> bool:
    """Whether a list of domains holds this one (match_list(3): the first match decides).

    Raises:
        TableError: a table in it cannot be asked.
    """
    inherited = parameter in words(setup.main.get("parent_domain_matches_subdomains", ""))
    for word in words(setup.main.get(parameter, "")):
        pattern = word.removeprefix("!")
        if _matches(setup, pattern, domain, inherited=inherited):
            return not word.startswith("!")
    return False


def _matches(setup: PostfixSetup, pattern: str, domain: str, *, inherited: bool) -> bool:
    labels = domain.split(".")
    parents = [".".join(labels[at:]) for at in range(1, len(labels))]
    keys = [domain, *(parents if inherited else (f".{parent}" for parent in parents))]
    if ":" in pattern:
        return any(setup.lookup(pattern, key) is not None for key in keys)
    return pattern.lower() in keys


def literal_domains(value: str) -> list[str]:
    """The domains that a list names itself, in the order of the list."""
    return [word.lower() for word in words(value) if not set(word) & set(":/![{")]


def networks(value: str) -> list[Network]:
    """The networks that mynetworks names itself."""
    found = []
    for word in words(value):
        address, slash, bits = word.partition("/")
        try:
            found.append(ipaddress.ip_network(address.strip("[]") + slash + bits, strict=False))
        except ValueError:
            continue  # a table, or an exception with "!": see trusts()
    return found


def trusts(setup: PostfixSetup, service: Service, address: str) -> bool:
    """Whether mynetworks holds that address.

    Raises:
        TableError: a table in it cannot be asked.
    """
    value = service.values.get("mynetworks", "")
    if any(ipaddress.ip_address(address) in network for network in networks(value)):
        return True
    tables = [word for word in words(value) if _TABLE.match(word)]
    return any(setup.lookup(table, address) is not None for table in tables)


def trusts_everybody(setup: PostfixSetup, service: Service) -> bool:
    """Whether mynetworks holds addresses that are nobody's. Raises TableError as `trusts`."""
    return all(trusts(setup, service, address) for address in _PROBES)
