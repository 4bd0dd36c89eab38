"""Whether Sendmail asks the milter, on which ports, and what it does while it cannot."""

import re
from collections.abc import Iterator
from itertools import combinations

from aliasmilter.admin.ours import Ours, listed, sendmail_endpoint
from aliasmilter.admin.report import Finding, error, warning
from aliasmilter.admin.sendmail.values import Filter, Listener, SendmailSetup

_TIMES = "T=C:10s;S:10s;R:60s;E:5m"
_SUBMISSION = frozenset({465, 587})


def mine_among(setup: SendmailSetup, ours: Ours) -> Filter | None:
    """The declared filter that is alias-milter."""
    for one in setup.declared:
        if sendmail_endpoint(one.equates.get("S", "")).is_same(ours.socket):
            return one
    return None


def has_milter(setup: SendmailSetup, listener: Listener, mine: Filter | None) -> bool:
    """Whether that listener asks alias-milter."""
    if mine is None:
        return False
    if listener.filters is not None:
        return mine.name in listener.filters
    return mine.name in [one.name for one in setup.filters]


def check(setup: SendmailSetup, ours: Ours) -> Iterator[Finding]:
    """All findings about the filter and the listeners."""
    mine = mine_among(setup, ours)
    if mine is None or not any(has_milter(setup, one, mine) for one in setup.listeners):
        yield _missing(setup, ours)
    if mine is not None:
        yield from _filter(ours, mine)
        yield from _order(setup, ours, mine)
    yield from _listeners(setup, ours, mine)
    yield from _reinject(setup, ours, mine)


def _missing(setup: SendmailSetup, ours: Ours) -> Finding:
    socket = ours.config.milter.socket
    line = f"INPUT_MAIL_FILTER(`alias-milter', `S={socket}, F=T, {_TIMES}')dnl"
    for one in setup.declared:
        if "alias-milter" in one.name or "alias-milter" in one.equates.get("S", ""):
            return error(
                f"{one.where} {one.name}",
                f"S={one.equates.get('S', '')} is not where alias-milter listens, or nobody uses "
                f"this filter ([milter] socket); write: {line}",
            )
    return error(f"{setup.file} INPUT_MAIL_FILTER", f"alias-milter is not asked; write: {line}")


def _filter(ours: Ours, mine: Filter) -> Iterator[Finding]:
    where = f"{mine.where} {mine.name}"
    flag = mine.equates.get("F", "")
    if flag not in ("T", "4"):
        effect = {
            "": "everything is accepted, aliases go on unexpanded",
            "R": "mail is refused for good",
        }.get(flag, "Sendmail does not know it")
        yield error(where, f"F={flag}: while alias-milter is away {effect}; write F=T")
    for letter in ("R", "E"):
        limit = mine.timeouts[letter]
        if limit <= ours.longest_answer:
            yield error(
                where,
                f"T=...{letter}:{limit:g}s, but alias-milter may need {ours.longest_answer:g} s "
                f"([store], [dns] and [reinject] timeout); write {_TIMES}",
            )


def _order(setup: SendmailSetup, ours: Ours, mine: Filter) -> Iterator[Finding]:
    names = [one.name for one in setup.filters]
    if mine.name not in names:
        return
    number = names.index(mine.name)
    where = f"{mine.where} {mine.name}"
    if after := names[number + 1 :]:
        yield warning(
            where,
            f"{listed(after)} comes after alias-milter and can change what it has sealed; put "
            "alias-milter's line last",
        )
    before = setup.filters[:number]
    sealers = [one.name for one in before if "openarc" in f"{one.name} {one.equates}".lower()]
    if sealers and ours.seals:
        yield warning(
            where,
            f"{listed(sealers)} seals as well, all mail: let it verify only (Mode v), or take "
            "[arc] out of alias-milter.toml",
        )
    if not before and ours.config.authentication.mode == "trust":
        yield warning(
            where,
            'no filter comes before alias-milter, and [authentication] mode = "trust" reads what '
            "one has found: put the verifying filters first, or set it to verify",
        )
    for one in setup.filters:
        if re.search(r"postsrsd", f"{one.name} {one.equates}", re.IGNORECASE):
            yield error(
                f"{one.where} {one.name}",
                "PostSRSd rewrites senders too, of all mail; take it away",
            )


def _listeners(setup: SendmailSetup, ours: Ours, mine: Filter | None) -> Iterator[Finding]:
    mta = [one for one in setup.listeners if one.endpoint.port == 25]
    line = "DAEMON_OPTIONS(`Name=MTA, Family=inet, Port=25')dnl"
    if not mta:
        yield error(
            f"{setup.file} DAEMON_OPTIONS",
            "no listener on port 25: Sendmail opens it by itself only while there is no "
            f"DAEMON_OPTIONS at all; write: {line}",
        )
    elif not any(one.is_public for one in mta):
        yield warning(mta[0].where, f"port 25 is open for this host alone; write: {line}")
    yield from _twice(setup)
    for one in setup.listeners:
        if one.is_public and mine and not has_milter(setup, one, mine) and not _copies(one, ours):
            yield error(
                f"{one.where} port {one.endpoint.port}",
                f"InputMailFilters leaves {mine.name} out: mail comes in past it; take "
                "InputMailFilters= away",
            )
        if one.is_public and one.endpoint.port in _SUBMISSION and "a" not in one.modifiers:
            yield _no_login(one, setup)
    limit = setup.reading.expand("confMAX_DAEMON_CHILDREN").strip()
    private = ours.reinject or len(setup.listeners) > len(mta)
    if limit not in ("", "0") and private and not all(one.children for one in mta):
        yield warning(
            f"{setup.file} confMAX_DAEMON_CHILDREN",
            f"{limit} processes for all listeners together: busy clients close the private ones "
            "too, and mail that needs them gets 451; limit the public port by children=",
        )


def _twice(setup: SendmailSetup) -> Iterator[Finding]:
    """Ports that two lines want, such as one of Debian's own and one of docs/sendmail.md."""
    for one, other in combinations(setup.listeners, 2):
        if other.takes_from(one):
            yield error(
                f"{other.where} port {other.endpoint.port}",
                f"{one.where} has that port already: one of the two stays closed (Address already "
                "in use); take the line away that is not meant",
            )


def _no_login(one: Listener, setup: SendmailSetup) -> Finding:
    if one.where == str(setup.file):
        return warning(
            f"{setup.file} FEATURE",
            "Sendmail opens port 587 by itself, and asks for no login there; write: "
            "FEATURE(`no_default_msa')dnl",
        )
    return warning(one.where, f"port {one.endpoint.port} asks for no login; write M=Ea")


def _copies(one: Listener, ours: Ours) -> bool:
    return ours.reinject is not None and one.endpoint.is_same(ours.reinject)


def _reinject(setup: SendmailSetup, ours: Ours, mine: Filter | None) -> Iterator[Finding]:
    server = ours.reinject
    if server is None:
        return
    line = (
        f"DAEMON_OPTIONS(`Name=REINJECT, Family=inet, Addr={server.host}, Port={server.port}, "
        "InputMailFilters=')dnl"
    )
    found = [one for one in setup.listeners if _copies(one, ours)]
    if not found:
        yield error(
            f"{setup.file} DAEMON_OPTIONS",
            f"nobody listens on {server} ([reinject] server): mail for several kinds of "
            f"recipients gets 451; write: {line}",
        )
    for one in found:
        if has_milter(setup, one, mine):
            yield error(
                one.where,
                f"takes alias-milter's copies ([reinject] server) and asks alias-milter again: a "
                f"loop; write: {line}",
            )
        if one.is_public:
            yield error(one.where, f"takes mail from everywhere, past alias-milter; write: {line}")
