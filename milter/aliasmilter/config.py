"""The configuration file: TOML in, a frozen `Config` out, every mistake named.

An unknown key, a wrong type or an impossible combination is an error that names file and key;
all of them are reported at once. Nothing here has a default secret.
"""

import socket
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from aliasmilter.configvalues import (
    Delimiter,
    Domain,
    File,
    Group,
    HostPort,
    Mailbox,
    Mode,
    Nameserver,
    NotNegative,
    OptionalHostPort,
    OptionalSocket,
    Positive,
    Seconds,
    Socket,
    StoreUrl,
)
from aliasmilter.endpoints import parse_host_port
from aliasmilter.mail.address import Address, parse_address
from aliasmilter.routing.decision import Policy

DEFAULT_PATH = Path("/etc/alias-milter/alias-milter.toml")


class ConfigError(Exception):
    """The configuration cannot be used.

    Attributes:
        problems: one line each, naming file and key.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class MilterSection(_Section):
    """Where the MTA connects, and what serves it.

    Attributes:
        socket: as milters' sockets are written.
        socket_mode: of a unix socket, in octal.
        socket_group: of a unix socket; "": the daemon's own.
        workers: processes; 0 stands for one for each core.
        pin_workers: each stays on one core, when there are enough of them for all cores.
        drain: seconds that a worker which stops gives to what it has begun.
    """

    socket: Socket = "unix:/run/alias-milter/milter.sock"
    socket_mode: Mode = "0660"
    socket_group: Group = ""
    workers: Annotated[int, Field(ge=0, le=256)] = 0
    pin_workers: bool = True
    drain: Seconds = 20.0


class StoreSection(_Section):
    """The Redis that holds the rules.

    Attributes:
        url: see redisurl.
        timeout: seconds for all the lookups of one recipient, everything included.
        cache: while there are many lookups, keep answers for as long as Redis says they are true.
    """

    url: StoreUrl = "redis://127.0.0.1:6379/0"
    timeout: Seconds = 1.0
    cache: bool = True


class MailSection(_Section):
    """What this mail system is called and delivers itself."""

    hostname: Domain = Field(default_factory=socket.getfqdn, validate_default=True)
    local_domains: tuple[Domain, ...] = Field(default=(), strict=False)
    delimiter: Delimiter = "+"
    max_received: Positive = 50


class ReinjectSection(_Section):
    """A listener of the same MTA without this milter; `timeout` in seconds for all copies."""

    server: HostPort | None = None
    timeout: Seconds = 30.0


class SRSSection(_Section):
    """Return addresses of mail that leaves."""

    domain: Domain
    secrets_file: File
    # Two characters of base32 tell 1,024 days apart, one of them is tomorrow.
    max_age_days: Annotated[int, Field(gt=0, le=1022)] = 21
    hash_length: Annotated[int, Field(ge=4, le=20)] = 4


class ARCSection(_Section):
    """The key that seals mail that leaves."""

    enabled: bool = True
    domain: Domain | None = None
    selector: Domain | None = None
    key_file: File | None = None

    @model_validator(mode="after")
    def _complete(self) -> "ARCSection":
        missing = [
            name for name in ("domain", "selector", "key_file") if getattr(self, name) is None
        ]
        if self.enabled and missing:
            raise ValueError(f"{', '.join(missing)} missing, or set enabled = false")
        return self


class AuthenticationSection(_Section):
    """What is known of a message before it is sealed."""

    mode: Literal["verify", "trust"] = "verify"
    dmarc_fail: Literal["forward", "reject"] = "forward"
    trusted_sealers: tuple[Domain, ...] = Field(default=(), strict=False)


class DNSSection(_Section):
    """Name servers; `timeout` in seconds for all the DNS work of one message."""

    nameservers: tuple[Nameserver, ...] = Field(default=(), strict=False)
    timeout: Seconds = 5.0


class QuarantineSection(_Section):
    """Where catch-all hits go."""

    action: Literal["mailbox", "hold"] = "mailbox"
    mailbox: Mailbox | None = None

    @property
    def address(self) -> Address | None:
        """The mailbox, parsed."""
        return parse_address(self.mailbox) if self.mailbox else None


class SocketmapSection(_Section):
    """Lookup tables for the MTA; not served when `listen` is empty."""

    listen: OptionalSocket = ""


class LimitsSection(_Section):
    """How much a client or a message may ask for; `srs_*` and `connections` 0: no limit."""

    recipients: Positive = 1000
    headers: Positive = 20_000
    header_octets: Positive = 1_048_576
    arc_sets: Annotated[int, Field(gt=0, le=50)] = 50  # RFC 8617 section 4.2.1
    dkim_signatures: Positive = 10
    dns_queries: Positive = 150
    connections: NotNegative = 1000
    srs_address_per_hour: NotNegative = 20
    srs_client_per_hour: NotNegative = 500


class MetricsSection(_Section):
    """Where monitoring asks; nothing is counted when `listen` is empty."""

    listen: OptionalHostPort = ""

    @property
    def endpoint(self) -> str:
        """The same in the form of the other sockets: inet:PORT@ADDRESS."""
        host, port = parse_host_port(self.listen)
        return f"{'inet6' if ':' in host else 'inet'}:{port}@{host}"


class SubmissionSection(_Section):
    """What holds for sessions that have logged in.

    `logins` has the mailboxes of each login that is not its own address; `login_domain` completes
    those without a domain. `identity` is about answers that would show the mailbox behind an
    alias; what is needed for them is remembered for `remember_days`.
    """

    send_as: Literal["owners", "anyone"] = "owners"
    login_domain: Domain | None = None
    logins: dict[str, Annotated[tuple[Mailbox, ...], Field(strict=False)]] = Field(
        default_factory=dict
    )
    identity: Literal["off", "reject", "rewrite"] = "off"
    remember_days: Annotated[int, Field(gt=0, le=3650)] = 90


class HarvestSection(_Section):
    """Clients that guess addresses; `limit` 0 switches the count off, `window` is in seconds."""

    limit: NotNegative = 0
    window: Annotated[int, Field(ge=10, le=86_400)] = 3600


class SuggestSection(_Section):
    """What `alias-milter suggest` works from: kept for so many days, 0 for not at all."""

    remember_days: Annotated[int, Field(ge=0, le=3650)] = 0


class LogSection(_Section):
    """How the log is written."""

    format: Literal["text", "json"] = "text"
    level: Literal["debug", "info", "warning", "error"] = "info"


class Config(_Section):
    """The whole configuration; every path absolute."""

    milter: MilterSection = MilterSection()
    store: StoreSection = StoreSection()
    mail: MailSection = Field(default_factory=MailSection)
    reinject: ReinjectSection = ReinjectSection()
    srs: SRSSection
    arc: ARCSection = ARCSection(enabled=False)
    authentication: AuthenticationSection = AuthenticationSection()
    dns: DNSSection = DNSSection()
    quarantine: QuarantineSection = QuarantineSection()
    socketmap: SocketmapSection = SocketmapSection()
    limits: LimitsSection = LimitsSection()
    metrics: MetricsSection = MetricsSection()
    submission: SubmissionSection = SubmissionSection()
    harvest: HarvestSection = HarvestSection()
    suggest: SuggestSection = SuggestSection()
    log: LogSection = LogSection()

    @property
    def policy(self) -> Policy:
        """What the configuration says about routing."""
        return Policy(
            local_domains=frozenset(self.mail.local_domains),
            delimiter=self.mail.delimiter,
            quarantine=self.quarantine.address,
            hold=self.quarantine.action == "hold",
        )


def load(path: Path) -> Config:
    """Read the configuration file.

    Raises:
        ConfigError: names the file and each key that is wrong.
    """
    try:
        # Some editors begin a file with a BOM, of which TOML knows nothing.
        data = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except ValueError as error:  # of TOML, UTF-8, or a number of thousands of digits
        raise ConfigError(f"{path}: {error}") from None
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply") from None
    # So that a host name of the system's that is none is said to be of [mail] hostname.
    data.setdefault("mail", {})
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        raise ConfigError(*(_describe(path, dict(e)) for e in error.errors())) from None
    config = _with_absolute_paths(config, path.absolute().parent)
    _require_different_sockets(path, config)
    return config


def load_secrets(path: Path) -> list[str]:
    """Read the SRS secrets, one a line, the newest first.

    Raises:
        ConfigError: names the file; never shows what is in it.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"[srs] secrets_file: {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"[srs] secrets_file: {path}: not UTF-8") from None
    secrets = [line.strip() for line in lines if line.strip()]
    if not secrets:
        raise ConfigError(f"[srs] secrets_file: {path}: no secret in it")
    return secrets


_SHAPES = {
    "model_type": "should be a section",
    "dict_type": "should be a table: { name = value }",
    "tuple_type": 'should be a list: ["value"]',
}


def _describe(path: Path, error: Mapping[str, Any]) -> str:
    section, *rest = (str(part) for part in error["loc"])
    where = f"[{section}] {'.'.join(rest)}".rstrip()
    if error["type"] == "extra_forbidden":
        what = "no such key" if rest else "no such section"
    elif error["type"] == "missing":
        what = "missing"
    elif error["type"] in _SHAPES:
        what = _SHAPES[error["type"]]
    else:
        what = str(error["msg"]).removeprefix("Value error, ")
    return f"{path}: {where}: {what}"


def _with_absolute_paths(config: Config, folder: Path) -> Config:
    milter, srs, arc, socketmap = config.milter, config.srs, config.arc, config.socketmap
    milter = milter.model_copy(update={"socket": _absolute(milter.socket, folder)})
    socketmap = socketmap.model_copy(update={"listen": _absolute(socketmap.listen, folder)})
    srs = srs.model_copy(update={"secrets_file": folder / srs.secrets_file})
    if arc.key_file:
        arc = arc.model_copy(update={"key_file": folder / arc.key_file})
    return config.model_copy(
        update={"milter": milter, "srs": srs, "arc": arc, "socketmap": socketmap}
    )


def _require_different_sockets(path: Path, config: Config) -> None:
    taken = {config.milter.socket: "[milter] socket"}
    metrics = config.metrics.endpoint if config.metrics.listen else ""
    for key, name in (("socketmap", config.socketmap.listen), ("metrics", metrics)):
        if name and (other := taken.setdefault(name, f"[{key}] listen")) != f"[{key}] listen":
            raise ConfigError(f"{path}: [{key}] listen: {name} is {other} already")


def _absolute(endpoint: str, folder: Path) -> str:
    kind, _, path = endpoint.partition(":")
    return f"unix:{folder / path}" if kind == "unix" else endpoint
