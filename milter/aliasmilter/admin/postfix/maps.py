"""Tables of other programs and our own, by how Postfix spells them."""

import re
from collections.abc import Iterator

from aliasmilter.admin.ours import Endpoint, Ours, host_port, listed
from aliasmilter.admin.postfix.milters import seen_path
from aliasmilter.admin.postfix.values import PostfixSetup, Service, words
from aliasmilter.admin.report import Finding, error

# PostSRSd 1.x speaks tcp_table(5) on 10001 and 10002, 2.x socketmap.
_POSTSRSD = re.compile(
    r"tcp:.*:(10001|10002)|(tcp|socketmap|unix):.*srs(d\b|:)|.*postsrsd", re.IGNORECASE
)
REVERSE = "srs-reverse"
# Who asks which tables.
_DOMAINS = frozenset({"smtpd", "trivial-rewrite"})
_REWRITING = frozenset({"smtpd", "cleanup"})
_ASKED_BY = {
    "mydestination": _DOMAINS,
    "relay_domains": _DOMAINS,
    "virtual_mailbox_domains": _DOMAINS,
    "recipient_canonical_maps": _REWRITING,
    "virtual_alias_maps": _REWRITING,
    "relay_recipient_maps": frozenset({"smtpd"}),
    "virtual_mailbox_maps": frozenset({"smtpd"}),
    "smtpd_sender_login_maps": frozenset({"smtpd"}),
}


def check(setup: PostfixSetup, ours: Ours) -> Iterator[Finding]:
    """Our tables where chrooted services look for them in vain."""
    for parameter, programs in _ASKED_BY.items():
        lost: dict[tuple[str, str], list[str]] = {}
        for service in setup.services:
            if service.chroot and service.program in programs:
                for table in _lost(setup, ours, service, parameter):
                    place = setup.where(parameter, service)
                    lost.setdefault((place, table), []).append(service.name)
        for (place, table), names in lost.items():
            yield error(place, _out_of_reach(setup, table, names))


def _lost(setup: PostfixSetup, ours: Ours, service: Service, parameter: str) -> Iterator[str]:
    for table in words(service.values.get(parameter, "")):
        # proxymap is not chrooted.
        if table.startswith("socketmap:unix:") and is_own_map(setup, ours, table):
            path = table.removeprefix("socketmap:unix:").rpartition(":")[0]
            if not Endpoint(path=seen_path(path, service)).is_same(ours.socketmap or Endpoint()):
                yield table


def _out_of_reach(setup: PostfixSetup, table: str, services: list[str]) -> str:
    queue = setup.main.get("queue_directory", "")
    inside = table.replace(f"socketmap:unix:{queue}/", "socketmap:unix:")
    remedy = f"proxy:{table}" if inside == table else inside
    return (
        f"{table}: chrooted, {listed(services)} sees nothing but {queue}, and lookups fail (451); "
        f"write: {remedy}"
    )


def socketmap_of(table: str, queue_directory: str = "/") -> tuple[Endpoint, str] | None:
    """The socket and the name of a `socketmap:` table (socketmap_table(5)); None for others."""
    found = re.fullmatch(r"(?:proxy:)?socketmap:(unix|inet):(.+):([^:]+)", table)
    if not found:
        return None
    kind, place, name = found.groups()
    if kind == "inet":
        return host_port(place), name
    path = place if place.startswith("/") else f"{queue_directory}/{place}"
    return Endpoint(path=path), name


def is_own_map(setup: PostfixSetup, ours: Ours, table: str, name: str | None = None) -> bool:
    """Whether a table is one of alias-milter's, and of that name if one is given."""
    found = socketmap_of(table, setup.main.get("queue_directory", "/var/spool/postfix"))
    if found is None or ours.socketmap is None:
        return False
    return found[0].is_same(ours.socketmap) and name in (None, found[1])


def is_postsrsd(table: str) -> bool:
    """Whether a table looks like one of PostSRSd's."""
    return bool(_POSTSRSD.match(table))
