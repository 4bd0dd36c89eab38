"""All the rules at once, for the commands that look at the whole."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError
from redis.retry import Retry

from aliasmilter.mail.address import Address
from aliasmilter.routing.lookup import (
    Absent,
    Answer,
    Found,
    Unavailable,
    Unreadable,
    fields_for,
)
from aliasmilter.store.schema import ALIAS_PREFIX, DOMAIN_PREFIX, alias_key, domain_key

_BATCH = 1000


@dataclass(slots=True)
class Snapshot:
    """What Redis held when it was read.

    Attributes:
        settings: domain -> hash of its settings.
        rules: domain -> local part -> rule text.
        unreadable: keys that hold something else than they should -> what is wrong.
    """

    settings: dict[str, dict[bytes, bytes]] = field(default_factory=dict)
    rules: dict[str, dict[str, bytes]] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)

    def lookup(self, addresses: Sequence[Address]) -> list[Answer]:
        """Answer as the store itself would."""
        return [self._answer(address) for address in addresses]

    def _answer(self, address: Address) -> Answer:
        for key in (domain_key(address.domain), alias_key(address.domain)):
            if key in self.unreadable:
                return Unreadable(key, self.unreadable[key])
        settings = self.settings.get(address.domain)
        if not settings:
            return Absent()
        rules = self.rules.get(address.domain, {})
        return Found(settings, {f: rules[f] for f in fields_for(address.local) if f in rules})


def read(url: str, timeout: float, only: str | None = None) -> Snapshot:
    """Read all domains and rules.

    Args:
        url: as in `[store] url`.
        timeout: seconds for each reply.
        only: the one domain that is wanted.

    Raises:
        Unavailable: Redis does not answer, or refuses; the message says why.
    """
    snapshot = Snapshot()
    client = redis.Redis.from_url(
        url, socket_timeout=timeout, socket_connect_timeout=timeout, retry=Retry(NoBackoff(), 0)
    )
    try:
        for domain in [only] if only else _names(client, DOMAIN_PREFIX):
            snapshot.settings[domain] = _settings(client, domain, snapshot)
        for domain in [only] if only else _names(client, ALIAS_PREFIX):
            snapshot.rules[domain] = _rules(client, domain, snapshot)
    except (RedisError, OSError) as error:
        raise Unavailable(f"Redis: {error}") from error
    finally:
        client.close()
    return snapshot


def _names(client: Any, prefix: str) -> Iterator[str]:  # noqa: ANN401  # sync or cluster client
    for key in client.scan_iter(match=prefix + "*", count=_BATCH):
        yield key.decode("utf-8", "backslashreplace").removeprefix(prefix)


def _settings(client: Any, domain: str, snapshot: Snapshot) -> dict[bytes, bytes]:  # noqa: ANN401
    try:
        return dict(client.hgetall(domain_key(domain)))
    except ResponseError as error:
        snapshot.unreadable[domain_key(domain)] = _wrong_type(error)
        return {}


def _rules(client: Any, domain: str, snapshot: Snapshot) -> dict[str, bytes]:  # noqa: ANN401
    try:
        return {
            field.decode("utf-8", "backslashreplace"): rule
            for field, rule in client.hscan_iter(alias_key(domain), count=_BATCH)
        }
    except ResponseError as error:
        snapshot.unreadable[alias_key(domain)] = _wrong_type(error)
        return {}


def _wrong_type(error: ResponseError) -> str:
    if str(error).startswith("WRONGTYPE"):
        return "holds another type than a hash"
    raise error
