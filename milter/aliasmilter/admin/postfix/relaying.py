"""Whether Postfix relays for strangers, and whether it takes alias-milter's own copies."""

from collections.abc import Iterator

from aliasmilter.admin.ours import Ours, listed
from aliasmilter.admin.postfix.milters import ours_among
from aliasmilter.admin.postfix.values import (
    Network,
    PostfixSetup,
    Restriction,
    Service,
    TableError,
    networks,
    restrictions,
    trusts,
    trusts_everybody,
)
from aliasmilter.admin.report import Finding, error, warning

_LISTS = ("smtpd_relay_restrictions", "smtpd_recipient_restrictions")
_REFUSALS = frozenset({"reject_unauth_destination", "defer_unauth_destination", "reject", "defer"})
_FORGED = frozenset({"check_sender_access", "check_helo_access"})
# A network of more addresses than that is not one's own: /16 and /32.
_WIDEST = {4: 16, 6: 32}
_EVERYBODY = {4: 7, 6: 15}


def check(setup: PostfixSetup, ours: Ours, reinject: Service | None) -> Iterator[Finding]:
    """All findings about relaying."""
    for service in setup.servers:
        yield from _networks(setup, service)
        if service is not reinject:
            yield from _open_relay(setup, service)
    yield from _reinject(setup, ours, reinject)


def _networks(setup: PostfixSetup, service: Service) -> Iterator[Finding]:
    where = setup.where("mynetworks", service)
    for network in networks(service.values.get("mynetworks", "")):
        if network.is_private and network.prefixlen > _EVERYBODY[network.version]:
            continue
        if network.prefixlen <= _EVERYBODY[network.version]:
            yield error(
                where,
                f"{network} is the whole Internet, and may relay: an open relay; write your own "
                "networks, or 127.0.0.0/8",
            )
        elif network.prefixlen < _WIDEST[network.version]:
            yield warning(where, _wide(network))
    try:
        everybody = trusts_everybody(setup, service)
    except TableError as problem:
        yield warning(where, f"not checked: {problem}")
        return
    if everybody and not any(n.prefixlen == 0 for n in networks(service.values["mynetworks"])):
        yield error(where, "strangers' addresses are in it, and may relay: an open relay")


def _wide(network: Network) -> str:
    return f"{network} may relay, {network.num_addresses} addresses: are all of them yours?"


def _open_relay(setup: PostfixSetup, service: Service) -> Iterator[Finding]:
    lists = [list(restrictions(service.values, name)) for name in _LISTS]
    if not any(_refuses_strangers(one) for one in lists):
        where = setup.where("smtpd_relay_restrictions", service)
        yield error(
            where,
            f"{service.name} relays for everybody: an open relay; write: smtpd_relay_restrictions "
            "= permit_mynetworks, permit_sasl_authenticated, reject_unauth_destination",
        )
        return
    # In the list that alone keeps strangers out, what strangers can say must not let them in.
    only = [name for name, one in zip(_LISTS, lists, strict=True) if _refuses_strangers(one)]
    for name in only if len(only) == 1 else ():
        if forged := sorted({one.name for one in _before(restrictions(service.values, name))}):
            yield warning(
                setup.where(name, service),
                f"{listed(forged)} comes before reject_unauth_destination: whoever forges what "
                "it permits may relay; write it behind",
            )


def _refuses_strangers(listed_: list[Restriction]) -> bool:
    """Whether a client that is nobody is refused by this list for a foreign recipient."""
    warn = False
    for name, _ in listed_:
        if name in _REFUSALS and not warn:
            return True
        if name == "permit":
            return False
        warn = name == "warn_if_reject"
    return False


def _before(listed_: Iterator[Restriction]) -> Iterator[Restriction]:
    """The restrictions before the refusal that look at what a client can make up."""
    for one in listed_:
        if one.name in _REFUSALS:
            return
        if one.name in _FORGED:
            yield one


def _reinject(setup: PostfixSetup, ours: Ours, service: Service | None) -> Iterator[Finding]:
    server = ours.reinject
    if server is None:
        return
    if service is None:
        if server.is_local:
            yield error(
                f"{setup.folder}/master.cf",
                f"no smtpd listens on {server} ([reinject] server): mail for several kinds of "
                f"recipients gets 451; add: {server} inet n - n - - smtpd -o smtpd_milters=",
            )
        else:
            yield warning("[reinject] server", f"{server} is not in {setup.folder}/master.cf")
        return
    if ours_among(ours, service) is not None:
        yield error(
            setup.where("smtpd_milters", service),
            f"{service.name} takes alias-milter's copies ([reinject] server) and asks "
            "alias-milter again: a loop; write: -o smtpd_milters=",
        )
    yield from _takes_copies(setup, service)
    if service.is_public and not _refuses_clients(service):
        yield error(
            f"{setup.folder}/master.cf {service.name}",
            f"takes mail from everywhere, past alias-milter; write 127.0.0.1:{server.port} in "
            f"the place of {service.name.rpartition('/')[0]}",
        )


def _refuses_clients(service: Service) -> bool:
    return _refuses_strangers(list(restrictions(service.values, "smtpd_client_restrictions")))


def _takes_copies(setup: PostfixSetup, service: Service) -> Iterator[Finding]:
    try:
        lists = [list(restrictions(service.values, name)) for name in _LISTS]
        taken = all(_permits_here(setup, service, one) for one in lists)
    except TableError as problem:
        yield warning(setup.where("mynetworks", service), f"not checked: {problem}")
        return
    if not taken:
        yield error(
            f"{setup.folder}/master.cf {service.name}",
            "refuses alias-milter's copies for other systems (Relay access denied); write: "
            "-o mynetworks=127.0.0.0/8 -o smtpd_relay_restrictions=permit_mynetworks,reject",
        )


def _permits_here(setup: PostfixSetup, service: Service, listed_: list[Restriction]) -> bool:
    """Whether a client on this host gets past this list."""
    for name, _ in listed_:
        if name == "permit" or (
            name == "permit_mynetworks" and trusts(setup, service, "127.0.0.1")
        ):
            return True
        if name in _REFUSALS:
            return False
    return True
