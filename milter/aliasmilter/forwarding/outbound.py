"""What mail needs that leaves for another system: what was true when it came in, and a seal.

Mail that stays never gets here: no body is kept for it and no DNS asked.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from aliasmilter.config import ARCSection, Config, ConfigError, LimitsSection
from aliasmilter.forwarding.arc import POSTFIX, Sealed, Sealer, Transport, Unsealed, seal
from aliasmilter.forwarding.authentication import (
    Client,
    Limits,
    evaluate,
    is_refused,
    trusted_results,
)
from aliasmilter.forwarding.dns import Resolver
from aliasmilter.forwarding.keys import KeyFileError, load_key, may_hold_key
from aliasmilter.forwarding.names import is_domain
from aliasmilter.forwarding.results import Results, Verdict
from aliasmilter.mail.message import Message
from aliasmilter.mail.replies import Reason

SealChoice = tuple[str | None, str | None] | None


@dataclass(frozen=True, slots=True)
class Keyring:
    """The keys that seal, loaded once.

    Attributes:
        default: of the configuration.
        others: (domain, selector) -> key, for domains with settings of their own.
    """

    default: Sealer
    others: Mapping[tuple[str, str], Sealer]

    def choose(self, choice: SealChoice) -> Sealer | None:
        """The key for a domain's settings; None when there is none for them."""
        if choice is None:
            return self.default
        domain, selector = choice
        wanted = (domain or self.default.domain, selector or self.default.selector)
        if wanted == (self.default.domain, self.default.selector):
            return self.default
        return self.others.get(wanted)


@dataclass(frozen=True, slots=True)
class Outbound:
    """Examines and seals mail that leaves.

    Attributes:
        authserv_id: what our results are known by (RFC 8601 section 2.5).
        resolver: the process's; one cache for all.
        dns_timeout: seconds for all the DNS work of one message.
        trust: read the results from Authentication-Results of our authserv-id instead.
        refuses_dmarc: mail that fails DMARC under p=reject is not forwarded.
        trusted_sealers: whose passing ARC chain makes up for that.
        keyring: None when nothing is sealed.
        clock: seconds since the epoch.
        limits: how much of a message is looked at.
    """

    authserv_id: str
    resolver: Resolver
    dns_timeout: float
    trust: bool
    refuses_dmarc: bool
    trusted_sealers: Collection[str]
    keyring: Keyring | None
    clock: Callable[[], float]
    limits: LimitsSection = field(default_factory=LimitsSection)

    @property
    def is_wanted(self) -> bool:
        """Whether mail that leaves has to pass here at all."""
        return self.keyring is not None or self.refuses_dmarc

    def examine(self, message: Message, client: Client, mail_from: str) -> Results:
        """What is true of the message as it came in; never raises for what a sender wrote.

        Args:
            message: as received.
            client: who delivered it.
            mail_from: the reverse-path without brackets, "" for the null one.
        """
        if self.trust:
            return trusted_results(message, self.authserv_id, client.ip)
        limits = Limits(self.limits.dkim_signatures, self.limits.arc_sets)
        lookup = self.resolver.lookup(self.dns_timeout, self.limits.dns_queries)
        return evaluate(message, client, mail_from, lookup, now=self.clock(), limits=limits)

    def refusal(self, results: Results) -> Reason | None:
        """Why the message may not be forwarded, or None."""
        if not self.refuses_dmarc:
            return None
        if results.dmarc and results.dmarc.verdict is Verdict.TEMPERROR:
            return Reason.DNS_UNAVAILABLE
        return Reason.DMARC_FAILED if is_refused(results, self.trusted_sealers) else None

    def seal(
        self, message: Message, results: Results, choice: SealChoice, transport: Transport = POSTFIX
    ) -> Sealed | Unsealed:
        """The ARC set for the message as it leaves, or why it gets none.

        Args:
            message: with the header fields that the MTA will send.
            results: of `examine`.
            choice: (d=, s=) where the recipient's domain sets them.
            transport: what the MTA does to the message after us.
        """
        if self.keyring is None:
            return Unsealed.DISABLED
        sealer = self.keyring.choose(choice)
        if sealer is None:
            return Unsealed.NO_KEY
        return seal(
            message,
            results,
            self.authserv_id,
            sealer,
            now=self.clock(),
            transport=transport,
            max_sets=self.limits.arc_sets,
        )


def load_keyring(settings: ARCSection) -> Keyring | None:
    """Load the key of the configuration, and those beside it: `<domain>/<selector>.pem`.

    Other software may have its files there, too: only what can be a key for a domain is looked at.

    Raises:
        ConfigError: names the file that is missing, too small, or readable by others.
    """
    if not settings.enabled:
        return None
    if settings.domain is None or settings.selector is None or settings.key_file is None:
        raise ConfigError("[arc]: domain, selector and key_file are needed")
    default = _load(settings.domain, settings.selector, settings.key_file)
    others = {}
    for path in _keys_beside(settings.key_file):
        others[path.parent.name, path.stem] = _load(path.parent.name, path.stem, path)
    return Keyring(default, others)


def _keys_beside(key_file: Path) -> list[Path]:
    """Files with private keys in folders named like domains; not `tls/`, not `conf.d/`."""
    found = sorted(key_file.parent.glob("*.??*/*.pem"))
    return [
        path
        for path in found
        if is_domain(path.parent.name) and is_domain(path.stem) and may_hold_key(path)
    ]


def make_outbound(config: Config, keyring: Keyring | None, clock: Callable[[], float]) -> Outbound:
    """What a configuration asks for."""
    return Outbound(
        authserv_id=config.mail.hostname,
        resolver=Resolver(config.dns.nameservers),
        dns_timeout=config.dns.timeout,
        trust=config.authentication.mode == "trust",
        refuses_dmarc=config.authentication.dmarc_fail == "reject",
        trusted_sealers=frozenset(config.authentication.trusted_sealers),
        keyring=keyring,
        clock=clock,
        limits=config.limits,
    )


def _load(domain: str, selector: str, path: Path) -> Sealer:
    try:
        return Sealer(domain, selector, load_key(path))
    except KeyFileError as error:
        raise ConfigError(f"[arc] key_file: {error}") from None
