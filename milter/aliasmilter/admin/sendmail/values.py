"""A Sendmail configuration as a value: what sendmail.mc and the files beside it say.

SendmailSetup   calls, defines and sections of the .mc; the domain files
  Filter        a milter
  Listener      a port, as Sendmail opens it
  Route         a mailer of one's own that a rule of LOCAL_RULE_0 sends domains to
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from aliasmilter.admin.ours import Endpoint, port_number, sendmail_endpoint
from aliasmilter.admin.sendmail.m4 import SECTIONS, Call, Reading

FILTERS = "confINPUT_MAIL_FILTERS"
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_EVERY = {"0.0.0.0": "", "::": "", "IPv6:::": "", "localhost": "127.0.0.1"}  # noqa: S104  # recognised
# libmilter's side in Sendmail (milter.h): seconds, for what T= does not say.
_TIMEOUTS = {"C": 300.0, "S": 10.0, "R": 10.0, "E": 300.0}


class Filter(NamedTuple):
    """A milter: its name, where it is declared, and its equates by their first letter."""

    name: str
    where: str
    equates: dict[str, str]

    @property
    def timeouts(self) -> dict[str, float]:
        """Seconds by letter: C(onnect), S(end), R(eceive), E(nd of message)."""
        found = dict(_TIMEOUTS)
        for part in self.equates.get("T", "").split(";"):
            letter, _, value = part.strip().partition(":")
            if parsed := re.fullmatch(r"(\d+)([smhdw]?)", value.strip()):
                found[letter.upper()] = float(parsed[1]) * _SECONDS[parsed[2] or "s"]
        return found


class Listener(NamedTuple):
    """A port of the daemon.

    Attributes:
        where: the line that opens it.
        endpoint: host "" for every interface.
        modifiers: the letters of M=.
        filters: the names in InputMailFilters=; None when it is not given: all filters.
        children: whether its processes have a limit of their own.
        family: "inet" or "inet6".
    """

    where: str
    endpoint: Endpoint
    modifiers: str
    filters: tuple[str, ...] | None
    children: bool
    family: str = "inet"

    def takes_from(self, other: "Listener") -> bool:
        """Whether both want the same port of an address: the system gives it to one of them."""
        hosts = {_EVERY.get(one.endpoint.host, one.endpoint.host) for one in (self, other)}
        same = (self.family, self.endpoint.port) == (other.family, other.endpoint.port)
        return same and self.endpoint.port > 0 and (len(hosts) == 1 or "" in hosts)

    @property
    def is_public(self) -> bool:
        """Whether other hosts reach it."""
        return not (self.endpoint.host and self.endpoint.is_local)


class Route(NamedTuple):
    """A mailer of one's own that loops domains to a port.

    Attributes:
        mailer: its name.
        domains: of the rule that takes them there.
        flags: F= of the mailer; None when the mailer is not defined.
        port: the last word of A=; -1 when there is none.
    """

    mailer: str
    domains: frozenset[str]
    flags: str | None
    port: int


@dataclass(frozen=True, slots=True)
class SendmailSetup:
    """A whole configuration.

    Attributes:
        file: the .mc.
        reading: what is in it.
        files: lines of the domain files by name (relay-domains, local-host-names, access,
            virtusertable); a name is missing when the file is.
    """

    file: Path
    reading: Reading
    files: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def calls(self, name: str) -> list[Call]:
        """The calls of a macro, in order."""
        return [call for call in self.reading.calls if call.name == name]

    def feature(self, name: str) -> Call | None:
        """FEATURE(name), if it is there."""
        return next((call for call in self.calls("FEATURE") if call.arg(0) == name), None)

    @property
    def filters(self) -> list[Filter]:
        """The milters that a connection has unless its listener says otherwise, in order."""
        declared = {
            call.arg(0): Filter(call.arg(0), call.where, _equates(call.arg(1)))
            for call in self.reading.calls
            if call.name in ("INPUT_MAIL_FILTER", "MAIL_FILTER")
        }
        used = re.split(r"[,\s]+", self.reading.expand(FILTERS))
        return [declared[name] for name in used if name in declared]

    @property
    def declared(self) -> list[Filter]:
        """All milters, also those that only InputMailFilters= or nobody uses."""
        return [
            Filter(call.arg(0), call.where, _equates(call.arg(1)))
            for call in self.reading.calls
            if call.name in ("INPUT_MAIL_FILTER", "MAIL_FILTER")
        ]

    @property
    def listeners(self) -> list[Listener]:
        """The ports that Sendmail opens, its own additions included (proto.m4)."""
        found = [_listener(call) for call in self.calls("DAEMON_OPTIONS")]
        if not found:
            found.append(Listener(str(self.file), Endpoint(port=25), "", None, children=False))
        if not self.feature("no_default_msa"):
            found.append(Listener(str(self.file), Endpoint(port=587), "E", None, children=False))
        return found

    def mailer_flags(self, name: str, flags: str) -> str:
        """The flags of a mailer whose own are `flags`, after MODIFY_MAILER_FLAGS (cfhead.m4)."""
        added = removed = ""
        fixed = None
        for call in self.calls("MODIFY_MAILER_FLAGS"):
            change = call.arg(1)
            if call.arg(0) != name or not change:
                continue
            if change[0] == "+":
                added += change[1:]
            elif change[0] == "-":
                removed += change[1:]
            else:
                fixed, added, removed = change, "", ""
        if fixed is not None:
            return fixed
        return "".join(one for one in flags if one not in removed) + added

    def section(self, name: str) -> list[str]:
        """The lines under LOCAL_CONFIG and its like; continued lines are one."""
        text = self.reading.sections.get(SECTIONS[name], "")
        lines = re.sub(r"\n[ \t]+", "\t", text).splitlines()
        return [line for line in lines if line.strip() and not line.startswith("#")]

    def domain_class(self, letter: str, macro: str, file: str) -> frozenset[str]:
        """The names in class `w` or `R`: of a macro, of LOCAL_CONFIG, and of a file."""
        names = [call.arg(0) for call in self.calls(macro)]
        names += [" ".join(self._config_class(letter))]
        names += self.files.get(file, ())
        return frozenset(word.lower() for text in names for word in text.split())

    def _config_class(self, letter: str) -> Iterator[str]:
        for line in self.section("LOCAL_CONFIG"):
            found = re.match(r"C(?:\{(\w+)\}|(\w))(.*)", line)
            if found and (found[1] or found[2]) == letter:
                yield found[3]

    @property
    def local_domains(self) -> frozenset[str]:
        """The domains that the local mailer delivers."""
        file = "local-host-names" if self.feature("use_cw_file") else ""
        return self.domain_class("w", "LOCAL_DOMAIN", file)

    @property
    def relay_domains(self) -> frozenset[str]:
        """The domains that mail is relayed for, RELAY entries of the access table included."""
        table = self.files.get("access", ()) if self.feature("access_db") else ()
        entries = (line.split() for line in table)
        allowed = [
            entry[0].lower().removeprefix("to:")
            for entry in entries
            if len(entry) == 2 and entry[1].upper() == "RELAY"
        ]
        return self.domain_class("R", "RELAY_DOMAIN", "relay-domains") | frozenset(allowed)

    def socketmap(self, name: str) -> Endpoint | None:
        """Where the table of that name is asked (K in LOCAL_CONFIG, map class socket)."""
        for line in self.section("LOCAL_CONFIG"):
            if found := re.match(rf"K{name}\s+socket\s+(?:-\S+\s+)*(\S+)", line):
                return sendmail_endpoint(found[1])
        return None

    @property
    def routes(self) -> list[Route]:
        """The rules that send domains to mailers of one's own."""
        mailers = dict(_mailers(self.section("MAILER_DEFINITIONS")))
        return [
            Route(mailer, self._rule_domains(rule), *mailers.get(mailer, (None, -1)))
            for rule in self.section("LOCAL_RULE_0")
            for mailer in re.findall(r"\$#\s*(\w+)", rule)
        ]

    def _rule_domains(self, rule: str) -> frozenset[str]:
        left = re.split(r"\$#", rule)[0]
        named = re.findall(r"@\s*([\w-]+(?:\s*\.\s*[\w-]+)+)", left)
        classes = re.findall(r"\$=(?:\{(\w+)\}|(\w))", left)
        listed = [
            word for pair in classes for text in self._config_class("".join(pair))
            for word in text.split()
        ]  # fmt: skip
        return frozenset(re.sub(r"\s", "", name).lower() for name in (*named, *listed))


def _equates(text: str) -> dict[str, str]:
    pairs = (part.partition("=") for part in text.split(","))
    return {key.strip()[:1].upper(): value.strip() for key, equals, value in pairs if equals}


def _listener(call: Call) -> Listener:
    """DAEMON_OPTIONS; Sendmail looks at the first letter of a key alone (setdaemonoptions)."""
    options = _equates(call.arg(0))
    host = options.get("A", "")
    filters = options.get("I")
    return Listener(
        where=call.where,
        endpoint=Endpoint(host=host.strip("[]"), port=port_number(options.get("P", "smtp"))),
        modifiers=options.get("M", ""),
        filters=None if filters is None else tuple(re.split(r"[;\s]+", filters.strip(" ;"))),
        children="C" in options,
        family=options.get("F", "inet").lower(),
    )


def _mailers(lines: list[str]) -> Iterator[tuple[str, tuple[str, int]]]:
    for line in lines:
        if found := re.match(r"M(\w+)\s*,(.*)", line):
            options = _equates(found[2])
            target = (options.get("A", "").split() or [""])[-1]
            yield found[1], (options.get("F", ""), port_number(target) if target else -1)
