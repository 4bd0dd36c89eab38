"""Whether every recipient of a managed domain reaches the milter, and no stranger's does.

Postfix makes its own checks before it asks a milter about a recipient:

    class of the domain       its table               when the table has no such recipient
    mydestination             local_recipient_maps    550 unless the check is off
    virtual_alias_domains     virtual_alias_maps      550; what the milter puts in bounces, too
    virtual_mailbox_domains   virtual_mailbox_maps    550 unless the check is off
    relay_domains             relay_recipient_maps    550 unless the check is off, or no table
    none of them                                      554 Relay access denied
"""

from collections.abc import Iterator
from typing import NamedTuple

from aliasmilter.admin.ours import Ours, listed
from aliasmilter.admin.postfix.maps import is_own_map
from aliasmilter.admin.postfix.values import (
    PROBE,
    PostfixSetup,
    Service,
    TableError,
    in_list,
    literal_domains,
    restrictions,
    words,
)
from aliasmilter.admin.report import Finding, error, warning

# In the order in which Postfix asks (trivial-rewrite), with the tables of their recipients.
CLASSES = {
    "mydestination": "local_recipient_maps",
    "virtual_alias_domains": "virtual_alias_maps",
    "virtual_mailbox_domains": "virtual_mailbox_maps",
    "relay_domains": "relay_recipient_maps",
}
_REWRITING = ("recipient_canonical_maps", "canonical_maps", "virtual_alias_maps")
_LISTS = tuple(
    f"smtpd_{stage}_restrictions"
    for stage in ("client", "helo", "sender", "relay", "recipient", "data")
)
_UNLISTED = "reject_unlisted_recipient"
_UNVERIFIED = "reject_unverified_recipient"


class _Check(NamedTuple):
    """A check of Postfix's that a recipient meets: where it is set, and what it asks."""

    where: str
    kind: str


def check(setup: PostfixSetup, ours: Ours, fronts: list[Service]) -> Iterator[Finding]:
    """All findings about recipients; `fronts` are the listeners that ask alias-milter."""
    classes: dict[str, list[str]] = {}
    for domain in ours.domains:
        try:
            classes.setdefault(_class(setup, domain), []).append(domain)
        except TableError as problem:
            yield warning(f"{setup.folder}/main.cf", f"{domain}: not checked: {problem}")
    for name, domains in classes.items():
        yield from _membership(setup, ours, name, domains)
    for service in fronts:
        for name, domains in classes.items():
            yield from _refused(setup, ours, service, (name, domains))
        yield from _senders(setup, service)
    if fronts:
        yield from _unmanaged(setup, ours, _entrance(fronts))


def _entrance(fronts: list[Service]) -> Service:
    """The listener for the world; the others are for own users and own bounces."""
    for service in fronts:
        if service.endpoint is None or service.endpoint.port == 25:
            return service
    return fronts[0]


def _class(setup: PostfixSetup, domain: str) -> str:
    for name in CLASSES:
        if in_list(setup, name, domain):
            return name
    return ""


def _membership(
    setup: PostfixSetup, ours: Ours, name: str, domains: list[str]
) -> Iterator[Finding]:
    if name == "virtual_alias_domains":
        yield error(
            setup.where(name),
            f"{listed(domains)}: such a domain has no mailboxes, what alias-milter puts in "
            "bounces; move it to relay_domains or virtual_mailbox_domains",
        )
    if name:
        return
    for group, kind in (
        ([one for one in domains if one in ours.managed], "managed in Redis"),
        ([one for one in domains if one not in ours.managed], "an SRS domain"),
    ):
        if group:
            yield error(
                setup.where("relay_domains"),
                f"{listed(group)}: {kind}, but Postfix refuses its mail (554 Relay access denied)"
                f"; add: relay_domains = {listed(group)}, or virtual_mailbox_domains if its "
                "mailboxes are here",
            )


def _refused(
    setup: PostfixSetup, ours: Ours, service: Service, group: tuple[str, list[str]]
) -> Iterator[Finding]:
    name, domains = group
    if name in ("", "virtual_alias_domains"):
        return
    found: dict[_Check, list[str]] = {}
    for domain in domains:
        try:
            takes_all = _takes_all(setup, ours, name, domain)
            for one in dict.fromkeys(_checks(setup, service, domain)):
                if one.kind == _UNVERIFIED or not takes_all:
                    found.setdefault(one, []).append(domain)
        except TableError as problem:
            yield warning(f"{setup.folder}/main.cf", f"{domain}: not checked: {problem}")
    for one, refused in found.items():
        yield error(one.where, _refusal(one.kind, name, refused))


def _refusal(kind: str, name: str, domains: list[str]) -> str:
    if kind == _UNVERIFIED:
        return (
            f"{listed(domains)}: {_UNVERIFIED} asks the mailbox server, which knows no aliases; "
            "take it away for these domains"
        )
    if name == "relay_domains":
        remedy = "write: relay_recipient_maps = (empty), or smtpd_reject_unlisted_recipient = no"
    else:
        remedy = "write: smtpd_reject_unlisted_recipient = no"
    if kind == _UNLISTED:
        remedy = f"take {_UNLISTED} away for these domains"
    return (
        f"{listed(domains)}: aliases that are not in {CLASSES[name]} are refused before "
        f"alias-milter is asked; {remedy}"
    )


def _takes_all(setup: PostfixSetup, ours: Ours, name: str, domain: str) -> bool:
    """Whether Postfix's own tables know every address of that domain."""
    tables = setup.main.get(CLASSES[name], "")
    if not words(tables):
        return True
    # The tables that rewrite come first: what is in one of them is taken for known.
    every = " ".join([*(setup.main.get(one, "") for one in _REWRITING), tables])
    if any(is_own_map(setup, ours, table) for table in words(every)):
        return True
    return setup.find(every, f"{PROBE}@{domain}", f"@{domain}") is not None


def _checks(setup: PostfixSetup, service: Service, domain: str) -> Iterator[_Check]:
    if service.values.get("smtpd_reject_unlisted_recipient") == "yes":
        parameter = "smtpd_reject_unlisted_recipient"
        yield _Check(setup.where(parameter, service), "")
    for parameter in _LISTS:
        where = setup.where(parameter, service)
        for name, table in restrictions(service.values, parameter):
            if name in (_UNLISTED, _UNVERIFIED, "check_recipient_maps"):
                yield _Check(where, _UNVERIFIED if name == _UNVERIFIED else _UNLISTED)
            elif name == "check_recipient_access" and table:
                answer = setup.find(table, f"{PROBE}@{domain}", domain) or ""
                for word in words(answer):
                    if word in (_UNLISTED, _UNVERIFIED):
                        yield _Check(f"{where} {name} {table}", word)


def _unmanaged(setup: PostfixSetup, ours: Ours, service: Service) -> Iterator[Finding]:
    """Domains that no rules manage, and whose recipients nobody checks."""
    found: dict[str, list[str]] = {}
    for name in ("mydestination", "virtual_mailbox_domains", "relay_domains"):
        for domain in literal_domains(setup.main.get(name, "")):
            if domain in ours.domains or not ours.managed:
                continue
            try:
                checked = words(setup.main.get(CLASSES[name], "")) and any(
                    _checks(setup, service, domain)
                )
            except TableError:
                continue
            if not checked:
                found.setdefault(name, []).append(domain)
    for name, domains in found.items():
        yield warning(
            setup.where(name),
            f"{listed(domains)}: not managed in Redis, and {service.name} does not check its "
            f"recipients: unknown ones are accepted and bounced later; give it a domain: key, or "
            f"write in smtpd_recipient_restrictions: check_recipient_access inline:{{ {{ "
            f"{domains[0]} = {_UNLISTED} }} }} and list its recipients in {CLASSES[name]}",
        )


def _senders(setup: PostfixSetup, service: Service) -> Iterator[Finding]:
    if service.values.get("smtpd_reject_unlisted_sender") == "yes":
        yield warning(
            setup.where("smtpd_reject_unlisted_sender", service),
            "users cannot send from their aliases, which no table of Postfix holds; write no",
        )
