"""The settings of all managed domains, without their rules."""

from itertools import islice
from typing import Any

from redis.exceptions import RedisError, ResponseError

from aliasmilter.routing.lookup import Unavailable
from aliasmilter.routing.rules import RuleError, Settings, parse_settings
from aliasmilter.store.schema import DOMAIN_PREFIX

_BATCH = 1000


def read_settings(client: Any) -> dict[str, Settings | None]:  # noqa: ANN401  # sync or cluster
    """Read them all.

    Args:
        client: of `editor.connect`.

    Returns:
        domain -> its settings, None where they mean nothing (`check` says why).

    Raises:
        Unavailable: Redis does not answer, or refuses.
    """
    found: dict[str, Settings | None] = {}
    try:
        keys = client.scan_iter(match=DOMAIN_PREFIX + "*", count=_BATCH)
        while batch := list(islice(keys, _BATCH)):
            pipeline = client.pipeline(transaction=False)
            for key in batch:
                pipeline.hgetall(key)
            for key, fields in zip(batch, pipeline.execute(raise_on_error=False), strict=True):
                name = key.decode("utf-8", "backslashreplace").removeprefix(DOMAIN_PREFIX)
                found[name] = _parsed(fields)
    except (RedisError, OSError) as error:
        raise Unavailable(f"Redis: {error}") from error
    return found


def _parsed(fields: Any) -> Settings | None:  # noqa: ANN401  # a reply, or an error of its own
    if isinstance(fields, ResponseError):
        return None
    if isinstance(fields, Exception):
        raise fields
    try:
        return parse_settings(fields)
    except RuleError:
        return None
