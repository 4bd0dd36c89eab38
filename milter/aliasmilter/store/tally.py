"""What is counted in Redis, for people to look at, in bounded space.

Who wrote to which address: a hash holds a field for each local part; its value is JSON, sending
domain to [how often, first day, last day]. One command counts, so that several hosts count together
and nothing is half done.

How many hits each domain's quarantine got: one hash, a field for each domain. It is bounded by
the number of managed domains, as others have no hits.
"""

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

from redis.exceptions import RedisError

from aliasmilter.routing.lookup import Unavailable
from aliasmilter.store.link import Command
from aliasmilter.store.schema import QUARANTINED_KEY

UNAUTHENTICATED = "unauthenticated"  # stands for whoever has not proved to be somebody
OTHERS = "others"  # domains beyond the bound are counted under this name
MAX_SENDERS = 50
MAX_FIELDS = 10_000

# When there is no room left, a few of the fields, others each time, are looked at: those that were
# last counted before the oldest day (ARGV[7]) go. Few, as a client that guesses makes it look. A
# user in Redis that may not remove them has simply no room.
_SCRIPT = """
local function is_old(raw)
  for _, entry in pairs(cjson.decode(raw)) do
    if entry[3] >= ARGV[7] then return false end
  end
  return true
end
local function make_room()
  local found, removed = redis.call('HSCAN', KEYS[1], ARGV[8], 'COUNT', 10)[2], 0
  for at = 1, #found, 2 do
    local read, old = pcall(is_old, found[at + 1])
    if read and old and redis.pcall('HDEL', KEYS[1], found[at]) == 1 then removed = 1 end
  end
  return removed > 0
end
local raw = redis.call('HGET', KEYS[1], ARGV[1])
if not raw and redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[4]) then
  if ARGV[7] == '' or not make_room() then return 0 end
end
local seen, size = raw and cjson.decode(raw) or {}, 0
for _ in pairs(seen) do size = size + 1 end
local who = ARGV[2]
if not seen[who] and size >= tonumber(ARGV[5]) then who = 'others' end
local entry = seen[who] or {0, ARGV[3], ARGV[3]}
seen[who] = {entry[1] + 1, entry[2], ARGV[3]}
redis.call('HSET', KEYS[1], ARGV[1], cjson.encode(seen))
if tonumber(ARGV[6]) > 0 then redis.call('EXPIRE', KEYS[1], ARGV[6]) end
return 1
"""


@dataclass(frozen=True, slots=True)
class Seen:
    """Mail of one domain: how often, and the first and last day (UTC, ISO 8601)."""

    count: int
    first: str
    last: str


def day(now: float) -> str:
    """The day in UTC, ISO 8601, of seconds since the epoch."""
    return datetime.fromtimestamp(now, UTC).date().isoformat()


def count(key: str, local: str, sender: str, today: str, *, seconds: int = 0) -> Command:
    """The command that counts one message.

    Args:
        key: of the hash.
        local: the local part that was written to.
        sender: the domain that wrote.
        today: in UTC, ISO 8601.
        seconds: after which the hash goes when nothing more is counted; 0: never.
    """
    bounds = (MAX_FIELDS, MAX_SENDERS - 1)
    oldest = oldest_day(today, seconds) if seconds else ""
    where = secrets.randbits(32)  # any number is a place to begin at
    return ("EVAL", _SCRIPT, 1, key, local, sender, today, *bounds, seconds, oldest, where)


def oldest_day(today: str, seconds: int) -> str:
    """The first day whose counts are not older than so many seconds, ISO 8601."""
    return (date.fromisoformat(today) - timedelta(seconds=seconds)).isoformat()


def since(seen: Mapping[str, Mapping[str, Seen]], oldest: str) -> dict[str, dict[str, Seen]]:
    """What was seen on that day (ISO 8601) or later."""
    lately = {
        local: {who: what for who, what in senders.items() if what.last >= oldest}
        for local, senders in seen.items()
    }
    return {local: senders for local, senders in lately.items() if senders}


def read(fields: Mapping[bytes, bytes]) -> dict[str, dict[str, Seen]]:
    """A hash: local part -> domain -> what was seen; what is not ours is left out."""
    found = {}
    for local, raw in fields.items():
        try:
            seen = {who: Seen(int(n), str(a), str(z)) for who, (n, a, z) in json.loads(raw).items()}
        except (ValueError, TypeError, AttributeError):
            continue
        found[local.decode("utf-8", "backslashreplace")] = seen
    return found


def read_all(
    client: Any,  # noqa: ANN401  # sync or cluster client
    prefix: str,
    domain: str | None,
) -> dict[str, dict[str, dict[str, Seen]]]:
    """The hashes of a kind: domain -> local part -> sending domain -> what was seen.

    Args:
        client: of `editor.connect`.
        prefix: VENDORS_PREFIX or MISSES_PREFIX.
        domain: that domain's alone, or None for all.

    Raises:
        Unavailable: Redis does not answer, or refuses.
    """
    try:
        keys = [f"{prefix}{domain}".encode()] if domain else client.scan_iter(match=prefix + "*")
        return {
            key.decode("utf-8", "backslashreplace").removeprefix(prefix): read(client.hgetall(key))
            for key in sorted(keys)
        }
    except (RedisError, OSError) as error:
        raise Unavailable(f"Redis: {error}") from error


def hit(domain: str) -> Command:
    """The command that counts a hit of a domain's quarantine."""
    return ("HINCRBY", QUARANTINED_KEY, domain, 1)


def read_hits(client: Any) -> dict[str, int]:  # noqa: ANN401  # sync or cluster client
    """Domain -> number of hits, since the key was last removed.

    Raises:
        Unavailable: Redis does not answer, or refuses.
    """
    try:
        found = client.hgetall(QUARANTINED_KEY)
    except (RedisError, OSError) as error:
        raise Unavailable(f"Redis: {error}") from error
    numbers = {name: int(count) for name, count in found.items() if count.isdigit()}
    return {name.decode("utf-8", "backslashreplace"): count for name, count in numbers.items()}
