"""What the daemon has counted about the addresses of a domain, beside its rules."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from aliasmilter import config as configuration
from aliasmilter.admin.edit import TIMEOUT
from aliasmilter.store.editor import connect
from aliasmilter.store.snapshot import read
from aliasmilter.store.tally import Seen, read_all


@dataclass(frozen=True, slots=True)
class Counted:
    """A domain's counts, and its rules.

    Attributes:
        domain: the domain.
        seen: local part -> domain that wrote -> what was seen.
        rules: local part -> rule.
    """

    domain: str
    seen: Mapping[str, Mapping[str, Seen]]
    rules: Mapping[str, bytes]


def read_counted(path: Path, prefix: str, domain: str | None) -> list[Counted]:
    """Read the counts of a kind, for a domain or for all.

    Args:
        path: of the configuration.
        prefix: VENDORS_PREFIX or MISSES_PREFIX.
        domain: the one that is wanted, or None for all.

    Raises:
        ConfigError: the configuration cannot be used.
        Unavailable: Redis does not answer, or refuses.
    """
    store = configuration.load(path).store
    timeout = max(store.timeout, TIMEOUT)
    client = connect(store.url, timeout)
    try:
        found = read_all(client, prefix, domain)
    finally:
        client.close()
    rules = read(store.url, timeout, domain).rules
    return [Counted(name, seen, rules.get(name, {})) for name, seen in found.items()]
