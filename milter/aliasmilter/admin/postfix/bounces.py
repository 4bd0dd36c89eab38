"""Bounces of this host to SRS addresses find their way back, and nobody else rewrites senders."""

from collections.abc import Iterator

from aliasmilter.admin.ours import Endpoint, Ours, host_port, is_loopback, listed, port_number
from aliasmilter.admin.postfix.maps import REVERSE, is_own_map, is_postsrsd, socketmap_of
from aliasmilter.admin.postfix.milters import behaviour, milters, ours_among, spelling
from aliasmilter.admin.postfix.values import SRS_PROBE, PostfixSetup, Service, TableError, words
from aliasmilter.admin.report import Finding, error, warning

_CANONICAL = ("sender_canonical_maps", "recipient_canonical_maps", "canonical_maps")
# canonical(5): what Postfix has without a line.
_SENDER_CLASSES = {"envelope_sender", "header_sender"}


def check(setup: PostfixSetup, ours: Ours) -> Iterator[Finding]:
    """All findings about return addresses."""
    yield from _postsrsd(setup, ours)
    internal = list(_internal(setup, ours))
    yield from internal
    reversed_here = _maps_reverse(setup, ours) or (_shows_bounces(setup) and not internal)
    for domain in sorted(ours.srs_domains):
        try:
            yield from _route(setup, ours, domain, reversed_here=reversed_here)
        except TableError as problem:
            yield warning(setup.where("transport_maps"), f"{domain}: not checked: {problem}")


def _postsrsd(setup: PostfixSetup, ours: Ours) -> Iterator[Finding]:
    rewriting = False
    for parameter in _CANONICAL:
        tables = words(setup.main.get(parameter, ""))
        for table in tables:
            if is_own_map(setup, ours, table):
                continue
            if (spelt := socketmap_of(table)) and spelt[1] == REVERSE:
                yield error(
                    setup.where(parameter),
                    f"{table} is not where alias-milter serves it: [socketmap] listen is "
                    f'"{ours.config.socketmap.listen}"',
                )
            elif is_postsrsd(table):
                yield error(
                    setup.where(parameter),
                    f"{table} is PostSRSd's: it rewrites all mail, also what stays here, and "
                    "what alias-milter has rewritten; take it away",
                )
        rewriting = rewriting or (bool(tables) and parameter != "recipient_canonical_maps")
    classes = set(words(setup.main.get("sender_canonical_classes", "")))
    if classes and classes != _SENDER_CLASSES and not rewriting:
        yield warning(
            setup.where("sender_canonical_classes"),
            "left over from PostSRSd, there are no sender_canonical_maps; take it away",
        )


def _maps_reverse(setup: PostfixSetup, ours: Ours) -> bool:
    """Whether Postfix itself turns SRS addresses back, by our table."""
    tables = words(setup.main.get("recipient_canonical_maps", ""))
    return any(is_own_map(setup, ours, table, REVERSE) for table in tables)


def _shows_bounces(setup: PostfixSetup) -> bool:
    return "bounce" in words(setup.main.get("internal_mail_filter_classes", ""))


def _internal(setup: PostfixSetup, ours: Ours) -> Iterator[Finding]:
    """Bounces are shown to non_smtpd_milters, by the cleanup service."""
    for service in setup.services:
        if service.program != "cleanup":
            continue
        number = ours_among(ours, service, "non_smtpd_milters")
        if number is not None:
            mine = milters(service, "non_smtpd_milters")[number]
            yield from behaviour(setup, ours, service, mine, "non_smtpd_milters")
        elif _shows_bounces(setup):
            yield error(
                setup.where("non_smtpd_milters", service),
                "bounces are shown to the milters named here (internal_mail_filter_classes), and "
                f"alias-milter is not; write: non_smtpd_milters = {spelling(ours, service)}",
            )


def _route(
    setup: PostfixSetup, ours: Ours, domain: str, *, reversed_here: bool
) -> Iterator[Finding]:
    where = setup.where("transport_maps")
    labels = domain.split(".")
    parents = [f".{'.'.join(labels[at:])}" for at in range(1, len(labels))]
    keys = [f"{SRS_PROBE}@{domain}", domain, *parents]
    route = setup.find(setup.main.get("transport_maps", ""), *keys)
    if route is None:
        if not reversed_here:
            yield error(
                where,
                f"{domain}: bounces of this host to SRS addresses pass no milter and are lost; "
                f"write: transport_maps = inline:{{ {{ {domain} = smtp:[127.0.0.1]:10027 }} }} and "
                "a listener on 127.0.0.1:10027 in master.cf (docs/postfix.md, section 4)",
            )
        return
    next_hop = _next_hop(route)
    if not is_loopback(next_hop.host):
        if not reversed_here:
            yield warning(where, f"{domain} goes to {route}: alias-milter has to be attached there")
        return
    yield from _through(setup, ours, f"{where}: {domain} = {route}", next_hop)


def _next_hop(route: str) -> Endpoint:
    """The host and port of `transport:[host]:port` (transport(5)); port 25 without one."""
    host = route.partition(":")[2]
    bare, bracket, after = host.partition("]")
    if bracket:
        return Endpoint(host=bare.strip("["), port=port_number(after.lstrip(":") or "25"))
    return host_port(host) if ":" in host else Endpoint(host=host, port=25)


def _through(setup: PostfixSetup, ours: Ours, where: str, next_hop: Endpoint) -> Iterator[Finding]:
    if next_hop.port == 25:
        yield error(where, "Postfix takes its own port 25 for a loop and the bounce is lost; "
                    "write another port, such as 10027")  # fmt: skip
        return
    listener = setup.listener(next_hop)
    if listener is None:
        yield error(where, f"no smtpd listens there; add to master.cf: {_line(next_hop)}")
    elif ours_among(ours, listener) is None:
        yield error(
            setup.where("smtpd_milters", listener),
            f"{listener.name} is where SRS bounces go, and does not ask alias-milter: they go "
            "round until they are lost; " + _attach(ours, listener),
        )


def _line(next_hop: Endpoint) -> str:
    return f"{next_hop.host}:{next_hop.port} inet n - n - - smtpd"


def _attach(ours: Ours, listener: Service) -> str:
    others = [milter.text for milter in milters(listener)]
    after = f", after {listed(others)}" if others else ""
    return f"write: smtpd_milters = {spelling(ours, listener)}{after}"
