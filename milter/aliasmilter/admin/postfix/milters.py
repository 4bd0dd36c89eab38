"""Whether Postfix asks the milter, and what it does while it cannot."""

import grp
import os
import pwd
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from aliasmilter.admin.ours import Endpoint, Ours, host_port, listed
from aliasmilter.admin.postfix.values import PostfixSetup, Service, unbraced, words
from aliasmilter.admin.report import Finding, error, warning

# milter(3): what happens to mail while the milter is away.
_SAFE_ACTIONS = frozenset({"tempfail", "shutdown"})
_ACTIONS = {
    "accept": "aliases go on unexpanded and unknown recipients are accepted",
    "reject": "mail is refused for good",
    "quarantine": "everything is accepted, and held",
}
_VERSION = 6  # of the milter protocol: senders replaced, header fields byte for byte
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


@dataclass(frozen=True, slots=True)
class Milter:
    """An entry of smtpd_milters: where it is, and its own settings in braces."""

    text: str
    options: dict[str, str] = field(default_factory=dict)

    def setting(self, name: str, service: Service) -> str:
        """A `milter_...` setting as it holds for this milter."""
        return self.options.get(name, service.values.get(f"milter_{name}", ""))


def milters(service: Service, parameter: str = "smtpd_milters") -> list[Milter]:
    """The milters of a service, in their order."""
    if "no_milters" in words(service.values.get("receive_override_options", "")):
        return []
    return [_milter(word) for word in words(service.values.get(parameter, ""))]


def _milter(word: str) -> Milter:
    name, *settings = words(unbraced(word))
    pairs = (unbraced(setting).partition("=") for setting in settings)
    return Milter(name, {key.strip(): value.strip() for key, _, value in pairs})


def seen(milter: Milter, service: Service) -> Endpoint:
    """The socket that this entry means for this service."""
    kind, _, rest = milter.text.partition(":")
    if kind == "inet":
        return host_port(rest)
    return Endpoint(path=seen_path(rest, service))


def seen_path(path: str, service: Service) -> str:
    """A path as this service sees it: within the queue directory when that is its root."""
    queue = service.values.get("queue_directory", "/var/spool/postfix")
    return os.path.normpath(f"{queue}/{path}") if service.chroot else os.path.join(queue, path)  # noqa: PTH118  # a leading slash counts


def ours_among(ours: Ours, service: Service, parameter: str = "smtpd_milters") -> int | None:
    """Which of the milters is alias-milter; None when it is not among them."""
    for number, milter in enumerate(milters(service, parameter)):
        if seen(milter, service).is_same(ours.socket):
            return number
    return None


def spelling(ours: Ours, service: Service | None = None) -> str:
    """`[milter] socket` as smtpd_milters has it."""
    socket = ours.socket
    if not socket.path:
        return f"inet:{socket.host}:{socket.port}"
    queue = service.values.get("queue_directory", "") if service else ""
    inside = queue and socket.path.startswith(f"{queue}/")
    return f"unix:{os.path.relpath(socket.path, queue) if inside else socket.path}"


def check(setup: PostfixSetup, ours: Ours, reinject: Service | None) -> Iterator[Finding]:
    """Everything about the milter itself, for all listeners but that for copies."""
    servers = [service for service in setup.servers if service is not reinject]
    if not servers:
        yield error(f"{setup.folder}/master.cf", "no smtpd takes mail: add smtp inet ... smtpd")
        return
    asked = [service for service in servers if ours_among(ours, service) is not None]
    for service in servers:
        if service in asked:
            yield from _entry(setup, ours, service)
        elif service.is_public or not asked:
            yield from _missing(setup, ours, service)
        yield from _content(setup, service)
    yield from _group(setup, ours)


def _missing(setup: PostfixSetup, ours: Ours, service: Service) -> Iterator[Finding]:
    line = f"smtpd_milters = {spelling(ours, service)}"
    if "no_milters" in words(service.values.get("receive_override_options", "")):
        where = setup.where("receive_override_options", service)
        yield error(where, "no_milters: alias-milter is not asked here; take no_milters away")
        return
    where = setup.where("smtpd_milters", service)
    for milter in milters(service):
        kind, _, path = milter.text.partition(":")
        if kind == "unix" and service.chroot and Endpoint(path=path).is_same(ours.socket):
            yield _out_of_reach(setup, ours, service)
            return
    others = [milter.text for milter in milters(service)]
    if alike := [text for text in others if re.search(r"alias-?milter", text)]:
        is_at = f"{listed(alike)} is not where alias-milter listens, {ours.config.milter.socket}"
        yield error(where, f"{is_at} ([milter] socket); write: {line}")
        return
    last = f", after {listed(others)}" if others else ""
    yield error(where, f"{service.name} does not ask alias-milter; write: {line}{last}")


def _out_of_reach(setup: PostfixSetup, ours: Ours, service: Service) -> Finding:
    queue = service.values.get("queue_directory", "")
    if ours.socket.path.startswith(f"{queue}/"):
        return error(
            setup.where("smtpd_milters", service),
            f"{service.name} runs chrooted, and for it {queue} is /; write: smtpd_milters = "
            + spelling(ours, service),
        )
    return error(
        f"{setup.folder}/master.cf {service.name} chroot",
        f"this smtpd sees nothing but {queue}, and {ours.socket} is outside: write n in the "
        f'chroot column, or set [milter] socket = "unix:{queue}/alias-milter/milter.sock" and '
        "smtpd_milters = unix:alias-milter/milter.sock",
    )


def _entry(setup: PostfixSetup, ours: Ours, service: Service) -> Iterator[Finding]:
    """About a listener that asks alias-milter."""
    number = ours_among(ours, service)
    entries = milters(service)
    if number is None:
        return
    mine = entries[number]
    yield from behaviour(setup, ours, service, mine, "smtpd_milters")
    yield from _order(setup, ours, service, number)


def behaviour(
    setup: PostfixSetup, ours: Ours, service: Service, mine: Milter, parameter: str
) -> Iterator[Finding]:
    """What Postfix does with this milter: while it is away, how it speaks, how long it waits."""

    def where(name: str) -> str:
        if name in mine.options:
            return f"{setup.where(parameter, service)} {{ {mine.text}, {name}= }}"
        return setup.where(f"milter_{name}", service)

    action = mine.setting("default_action", service).lower()
    if action not in _SAFE_ACTIONS:
        effect = _ACTIONS.get(action, "Postfix does not know it")
        yield error(
            where("default_action"),
            f"{action}: while alias-milter is away {effect}; write tempfail instead",
        )
    version = (words(mine.setting("protocol", service)) or [""])[0]
    if not version.isdecimal() or int(version) < _VERSION:
        yield error(
            where("protocol"),
            f"{version}: too old, senders and headers cannot be changed as they must; write 6",
        )
    for name, needed in (
        ("command_timeout", ours.config.store.timeout),
        ("content_timeout", ours.longest_answer),
    ):
        if (limit := seconds(mine.setting(name, service))) is not None and limit <= needed:
            yield error(
                where(name),
                f"{limit:g} s, but alias-milter may need {needed:g} s ([store], [dns] and "
                f"[reinject] timeout); write {needed * 2:.0f}s or more",
            )


def seconds(text: str) -> float | None:
    """A time as Postfix writes it ("30s", "1h"); None for what is none."""
    found = re.fullmatch(r"(\d+)([smhdw]?)", text.strip())
    return int(found[1]) * _SECONDS[found[2] or "s"] if found else None


def _order(setup: PostfixSetup, ours: Ours, service: Service, number: int) -> Iterator[Finding]:
    where = setup.where("smtpd_milters", service)
    texts = [milter.text for milter in milters(service)]
    if after := texts[number + 1 :]:
        yield warning(
            where,
            f"{listed(after)} comes after alias-milter and can change what it has sealed; "
            "name alias-milter last",
        )
    before = texts[:number]
    if sealers := [text for text in before if ours.seals and "openarc" in text.lower()]:
        yield warning(
            where,
            f"{listed(sealers)} seals as well, all mail: let it verify only (Mode v), or take "
            "[arc] out of alias-milter.toml",
        )
    if not before and ours.config.authentication.mode == "trust":
        yield warning(
            where,
            'no milter comes before alias-milter, and [authentication] mode = "trust" reads '
            "what one has found: name the verifying milters first, or set it to verify",
        )
    if rewriters := [text for text in texts if "postsrsd" in text.lower()]:
        yield error(
            where,
            f"{listed(rewriters)}: PostSRSd rewrites senders too, of all mail; take it away",
        )


def _content(setup: PostfixSetup, service: Service) -> Iterator[Finding]:
    if proxy := service.values.get("smtpd_proxy_filter"):
        # MILTER_README: milters see neither message nor envelope edits there.
        yield error(
            setup.where("smtpd_proxy_filter", service),
            f"{proxy}: behind a before-queue filter a milter cannot change a message; attach "
            "alias-milter to the listener that the filter sends to, or use another filter",
        )
    if setup.main.get("smtpd_milter_maps"):
        yield warning(
            setup.where("smtpd_milter_maps"),
            "clients in it have other milters than smtpd_milters; alias-milter has to be among "
            "them",
        )


def _group(setup: PostfixSetup, ours: Ours) -> Iterator[Finding]:
    """Whether Postfix's user can write the socket."""
    settings, mode = ours.config.milter, int(ours.config.milter.socket_mode, 8)
    owner = setup.main.get("mail_owner", "postfix")
    if not ours.socket.path or mode & 0o002:
        return
    what = f"Postfix connects as {owner} and has to write the socket"
    if not settings.socket_group:
        yield warning("[milter] socket_group", f'{what}; write: socket_group = "{owner}"')
    elif settings.socket_group not in _groups(owner):
        what = f"{settings.socket_group}: {what}, but is not in that group"
        yield error("[milter] socket_group", f'{what}; write: socket_group = "{owner}"')
    if not mode & 0o020:
        what = f"{settings.socket_mode}: {what}"
        yield error("[milter] socket_mode", f'{what}; write: socket_mode = "0660"')


def _groups(owner: str) -> list[str]:
    """The groups of a user, who has them all even in a chroot (initgroups)."""
    try:
        user = pwd.getpwnam(owner)
    except KeyError:
        return [owner]  # not on this host: its own group, as a guess
    names = []
    for gid in os.getgrouplist(owner, user.pw_gid):
        with suppress(KeyError):
            names.append(grp.getgrgid(gid).gr_name)
    return names
