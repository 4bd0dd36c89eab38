"""Putting the parts together that a configuration asks for."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from aliasmilter import config as configuration
from aliasmilter import log
from aliasmilter.config import Config
from aliasmilter.forwarding.decider import Decider, Lookups
from aliasmilter.forwarding.outbound import Keyring, load_keyring, make_outbound
from aliasmilter.forwarding.srs import make_rewriter
from aliasmilter.forwarding.suffixes import suffixes
from aliasmilter.forwarding.trace import Tracer
from aliasmilter.mta.harvest import make_harvest
from aliasmilter.mta.misses import make_misses
from aliasmilter.mta.reinject import Reinjector
from aliasmilter.mta.service import Service
from aliasmilter.mta.submission import make_submission
from aliasmilter.mta.throttle import make_throttle
from aliasmilter.mta.vendors import make_vendors
from aliasmilter.store.journal import Journal
from aliasmilter.store.redis import AliasStore


@dataclass(frozen=True, slots=True)
class Loaded:
    """The configuration and the files it names, read and found good."""

    config: Config
    secrets: tuple[str, ...]
    keyring: Keyring | None


def load(path: Path) -> Loaded:
    """Read all that a worker needs from files.

    Raises:
        ConfigError: names file and key.
    """
    config = configuration.load(path)
    secrets = configuration.load_secrets(config.srs.secrets_file)
    keyring = load_keyring(config.arc)
    if keyring is not None:
        suffixes()  # a megabyte that the workers share when it is read before they are forked
    return Loaded(config, tuple(secrets), keyring)


def make_decider(
    loaded: Loaded, lookups: Lookups, clock: Callable[[], float] = time.time
) -> Decider:
    """What decides addresses, by what the store knows of them."""
    config = loaded.config
    rewriter = make_rewriter(config.srs, loaded.secrets, clock)
    return Decider(lookups, config.policy, rewriter, config.srs.domain, clock)


def make_service(
    loaded: Loaded, store: AliasStore, clock: Callable[[], float] = time.time
) -> Service:
    """What the sessions of a process share."""
    config = loaded.config
    outbound = make_outbound(config, loaded.keyring, clock)
    decider = make_decider(loaded, store.lookups, clock)
    journal = Journal(store.ask, log.get())
    return Service(
        hostname=config.mail.hostname,
        decider=decider,
        tracer=Tracer(loaded.secrets),
        srs_domain=config.srs.domain,
        max_received=config.mail.max_received,
        logger=log.get(),
        outbound=outbound if outbound.is_wanted else None,
        examiner=outbound,
        journal=journal,
        vendors=make_vendors(journal, clock),
        harvest=make_harvest(config.harvest, store.ask, log.get(), clock),
        misses=make_misses(config.suggest, journal, outbound.resolver, clock),
        submission=make_submission(config.submission, loaded.secrets, decider, store),
        reinjector=make_reinjector(config, store),
        limits=config.limits,
        throttle=make_throttle(config.limits, store.count),
    )


def make_reinjector(config: Config, store: AliasStore) -> Reinjector | None:
    """None where the configuration names no listener: then one handling a message."""
    if not config.reinject.server:
        return None
    return Reinjector(
        config.reinject.server,
        config.mail.hostname,
        config.reinject.timeout,
        store,
    )
