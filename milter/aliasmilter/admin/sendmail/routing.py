"""Whether recipients reach the milter, strangers get nothing relayed, and bounces come back."""

from collections.abc import Iterator

from aliasmilter.admin.ours import Endpoint, Ours, listed
from aliasmilter.admin.report import Finding, error, warning
from aliasmilter.admin.sendmail.milters import has_milter, mine_among
from aliasmilter.admin.sendmail.values import Route, SendmailSetup

_OPEN = {
    "promiscuous_relay": "an open relay for everybody",
    "relay_local_from": "whoever says that he is one of yours may relay: senders are forged",
    "relay_mail_from": "whoever says that he is one of yours may relay: senders are forged",
}
_DOUBTFUL = {
    "relay_based_on_MX": "whoever points an MX record here may relay through this host",
    "loose_relay_check": "user%elsewhere@example.com is relayed to elsewhere",
    "accept_unresolvable_domains": "bounces to senders in domains that do not exist stay in the "
    "queue",
}
# The tables of docs/socketmap.md, as Sendmail has to call them.
_DOMAINS, _REVERSE = "relay_domains", "srs_reverse"
# mailer/local.m4, before MODIFY_MAILER_FLAGS.
_LOCAL_FLAGS = "lsDFMAw5:/|@q"


def check(setup: SendmailSetup, ours: Ours) -> Iterator[Finding]:
    """All findings about domains and where their mail goes."""
    yield from _features(setup)
    yield from _tables(setup, ours)
    yield from _domains(setup, ours)
    yield from _local(setup, ours)
    yield from _virtual_users(setup, ours)
    for domain in sorted(ours.srs_domains):
        yield from _way_back(setup, ours, domain)


def _features(setup: SendmailSetup) -> Iterator[Finding]:
    for name, effect in _OPEN.items():
        if call := setup.feature(name):
            yield error(f"{call.where} FEATURE(`{name}')", f"{effect}; take the line away")
    for name, effect in _DOUBTFUL.items():
        if call := setup.feature(name):
            yield warning(f"{call.where} FEATURE(`{name}')", f"{effect}; is that meant?")
    if not setup.feature("relay_hosts_only"):
        yield warning(
            f"{setup.file} FEATURE",
            "an entry of relay-domains stands for all its subdomains too, which no rules manage; "
            "write: FEATURE(`relay_hosts_only')dnl",
        )
    for name in setup.reading.missing:
        yield warning(f"{setup.file} include", f"{name} is not there: what it says was not checked")


def _tables(setup: SendmailSetup, ours: Ours) -> Iterator[Finding]:
    """Tables of docs/sendmail.md, section 6, that are asked where nobody serves them."""
    for name in (_DOMAINS, _REVERSE):
        place = setup.socketmap(name)
        if place and not _is_served(ours, place):
            yield error(
                f"{setup.file} K{name}",
                f"{place} is not where alias-milter serves it: [socketmap] listen is "
                f'"{ours.config.socketmap.listen}"',
            )


def _is_served(ours: Ours, place: Endpoint | None) -> bool:
    return bool(place and ours.socketmap and place.is_same(ours.socketmap))


def _asks_for_domains(setup: SendmailSetup, ours: Ours) -> bool:
    """Whether check_rcpt lets in what our table says (section 6)."""
    rules = setup.section("LOCAL_RULESETS")
    asked = any(f"$({_DOMAINS} " in line for line in rules)
    hooked = any(line.startswith("SLocal_check_rcpt") for line in rules)
    return asked and hooked and _is_served(ours, setup.socketmap(_DOMAINS))


def _domains(setup: SendmailSetup, ours: Ours) -> Iterator[Finding]:
    """What stands in neither class is refused before the milter is asked."""
    if _asks_for_domains(setup, ours):
        return
    known = setup.local_domains | setup.relay_domains
    covers = not setup.feature("relay_hosts_only")

    def is_known(domain: str) -> bool:
        return domain in known or (
            covers and any(domain.endswith(f".{name}") for name in setup.relay_domains)
        )

    for names, kind, file in (
        (ours.managed, "managed in Redis", "relay-domains or local-host-names"),
        (ours.srs_domains - ours.managed, "an SRS domain", "relay-domains"),
    ):
        if lost := sorted(name for name in names if not is_known(name)):
            yield error(
                f"{setup.file.parent}/relay-domains",
                f"{listed(lost)}: {kind}, but Sendmail refuses its mail (550 Relaying denied); "
                f"add it to {file}",
            )


def _local(setup: SendmailSetup, ours: Ours) -> Iterator[Finding]:
    here = sorted(setup.local_domains & ours.managed)
    if not here:
        return
    if setup.reading.expand("confLOCAL_MAILER") not in ("", "local"):
        return  # Another mailer delivers (Cyrus), whose flags have no "w".
    if "w" in setup.mailer_flags("LOCAL", _LOCAL_FLAGS):
        yield error(
            f"{setup.file} MODIFY_MAILER_FLAGS",
            f"{listed(here)}: the local mailer refuses aliases without a Unix account (flag w) "
            "before alias-milter is asked; write: MODIFY_MAILER_FLAGS(`LOCAL', `-w')dnl",
        )
        return
    if unmanaged := sorted(setup.local_domains - ours.managed - ours.srs_domains):
        yield warning(
            f"{setup.file.parent}/local-host-names",
            f"{listed(unmanaged)}: not managed in Redis, and without flag w nobody refuses its "
            "unknown users: they are bounced later; give it a domain: key",
        )


def _virtual_users(setup: SendmailSetup, ours: Ours) -> Iterator[Finding]:
    call = setup.feature("virtusertable")
    if call is None:
        return
    keys = (line.split()[0].lower() for line in setup.files.get("virtusertable", ()))
    taken = sorted({key for key in keys if key.rpartition("@")[2] in ours.managed})
    if taken:
        yield warning(
            f"{call.where} FEATURE(`virtusertable')",
            f"{listed(taken)}: Sendmail changes or refuses these by itself; put them into Redis "
            "and take them out",
        )


def _way_back(setup: SendmailSetup, ours: Ours, domain: str) -> Iterator[Finding]:
    """Bounces of this host to SRS addresses pass no filter unless they are looped."""
    routes = [route for route in setup.routes if domain in route.domains]
    if not routes:
        if _is_served(ours, setup.socketmap(_REVERSE)):
            return  # Our table turns them back.
        yield error(
            f"{setup.file} LOCAL_RULE_0",
            f"{domain}: bounces of this host to SRS addresses pass no filter and are lost; add "
            "C{SRS}, the rules and the mailer srsloop of docs/sendmail.md, section 2",
        )
        return
    yield from _loop(setup, ours, routes[0], domain)


def _loop(setup: SendmailSetup, ours: Ours, route: Route, domain: str) -> Iterator[Finding]:
    where = f"{setup.file} M{route.mailer}"
    if route.flags is None:
        yield error(
            f"{setup.file} MAILER_DEFINITIONS",
            f"{domain} goes to the mailer {route.mailer}, which is not defined",
        )
        return
    for flag, effect in (
        ("k", "Sendmail takes its own greeting for a mail loop, and the bounce is lost"),
        ("u", "upper case becomes lower case, and the signature in the address is broken"),
    ):
        if flag not in route.flags:
            yield error(where, f"F={route.flags}: without {flag} {effect}; add {flag}")
    mine = mine_among(setup, ours)
    loop = Endpoint(host="127.0.0.1", port=route.port)
    found = [one for one in setup.listeners if one.endpoint.is_same(loop)]
    if not found:
        yield error(
            where,
            f"A=TCP $h {route.port}: nobody listens there; write: DAEMON_OPTIONS(`Name=SRS, "
            f"Family=inet, Addr=127.0.0.1, Port={max(route.port, 0) or 10025}')dnl",
        )
    elif not has_milter(setup, found[0], mine):
        yield error(
            found[0].where,
            f"port {route.port} is where SRS bounces go, and does not ask alias-milter: they go "
            "round until they are lost; take InputMailFilters= away",
        )
