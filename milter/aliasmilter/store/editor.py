"""Changing rules: all of a change or nothing of it, with a trace of who did it.

Theory of operation. The keys that will change are watched *before* anything is read, so that what
was checked is what is changed: whoever edits one of them in between, by whatever means, makes the
change fail as a whole. Then one transaction (MULTI/EXEC) writes it, over all domains, the rules,
settings and sets of blocked senders alike.

A transaction blocks Redis, and with it the mail, for as long as it runs: seconds for a million
fields. So a large change is prepared in keys of its own, in batches, and the transaction only puts
them in place (RENAME takes no time, whatever the size). What they replace is removed in the
background (UNLINK), and their details go into the audit stream afterwards; the transaction itself
leaves one entry for each hash or set there.
"""

import uuid
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Self, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.exceptions import RedisError, WatchError
from redis.retry import Retry
from redis.sentinel import Sentinel

from aliasmilter import redisurl
from aliasmilter.redisurl import Endpoint, Kind, Target
from aliasmilter.routing.lookup import Unavailable
from aliasmilter.store.audit import MAX_ENTRIES, Change, Subject
from aliasmilter.store.schema import AUDIT_KEY, alias_key, block_key, domain_key, staged_key
from aliasmilter.store.snapshot import Snapshot, octets

DIRECT = 10_000  # fields that one transaction writes; about 50 ms
_BATCH = 1000
# Redis looks for each key among all that the connection watches already, which takes a
# millisecond where these are 60,000: in between it has to answer the mail.
_WATCHED = 10
_STAGED_FOR = 3600  # seconds; what an import that was killed has prepared goes by itself

Progress = Callable[[int], None]
"""Told of the number of fields that have been written since the last time."""

_T = TypeVar("_T")


class Conflict(Exception):  # noqa: N818  # an answer, not a mistake
    """Somebody else has changed one of the domains meanwhile; nothing was written."""


class AuditIncomplete(Exception):  # noqa: N818
    """The change is in place, but not all of its details are in the audit stream."""


def connect(url: str, timeout: float) -> Any:  # noqa: ANN401  # sync or cluster client
    """A client for the commands.

    Args:
        url: as in `[store] url`.
        timeout: seconds for each reply.

    Raises:
        ValueError: there is something wrong with the URL.
        Unavailable: a Redis Cluster does not answer.
    """
    target = redisurl.parse(url)
    options = _options(target, timeout)
    first = target.endpoints[0]
    if target.kind is Kind.UNIX:
        return redis.Redis(unix_socket_path=first.path, db=target.db, **options)
    if target.kind is Kind.SENTINEL:
        return _master(target, options)
    if target.kind is Kind.SERVER:
        return redis.Redis(first.host, first.port, target.db, **options)
    nodes = [_node(endpoint) for endpoint in target.endpoints]
    try:
        return RedisCluster(startup_nodes=nodes, **options)
    except (RedisError, OSError) as error:
        raise Unavailable(f"Redis: {error}") from error


def _node(endpoint: Endpoint) -> ClusterNode:
    return ClusterNode(endpoint.host, endpoint.port)  # type: ignore[no-untyped-call]


def _options(target: Target, timeout: float) -> dict[str, Any]:
    options: dict[str, Any] = {
        "username": target.login.username or None,
        "password": target.login.password or None,
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        # No second try: a command that was sent twice could be carried out twice.
        "retry": Retry(NoBackoff(), 0),
    }
    return options | _tls_options(target)


def _tls_options(target: Target) -> dict[str, Any]:
    tls = target.tls
    if tls is None:
        return {}
    return {
        "ssl": True,
        "ssl_ca_certs": tls.ca_certs or None,
        "ssl_certfile": tls.certfile or None,
        "ssl_keyfile": tls.keyfile or None,
        "ssl_check_hostname": tls.check_hostname,
    }


def _master(target: Target, options: dict[str, Any]) -> Any:  # noqa: ANN401  # as `connect`
    """A client that asks the Sentinels who the master is, whenever it connects."""
    sentinels = Sentinel(  # type: ignore[no-untyped-call]
        [(endpoint.host, endpoint.port) for endpoint in target.endpoints],
        sentinel_kwargs=_tls_options(target)
        | {
            "username": target.sentinel_login.username or None,
            "password": target.sentinel_login.password or None,
            "socket_timeout": options["socket_timeout"],
        },
    )
    return sentinels.master_for(  # type: ignore[no-untyped-call]
        target.master, db=target.db, **options
    )


@dataclass(frozen=True, slots=True)
class _Part:
    """A hash or set that a large change replaces.

    Attributes:
        key: its name.
        changes: of it, at least one.
        content: all that it will hold: fields with values, or members.
    """

    key: str
    changes: Sequence[Change]
    content: Collection[tuple[str, bytes] | bytes]

    @property
    def command(self) -> str:
        """What writes the content."""
        return "SADD" if self.changes[0].kind is Subject.BLOCK else "HSET"

    @property
    def address(self) -> str:
        """What the audit stream calls it as a whole."""
        first = self.changes[0]
        return first.address if first.kind is Subject.BLOCK else f"@{first.domain}"

    @property
    def was_there(self) -> bool:
        """Whether it held anything before."""
        added, _, removed = self._counts
        return len(self.content) - added + removed > 0

    @property
    def told(self) -> str:
        """The changes in numbers."""
        return "{} added, {} changed, {} removed".format(*self._counts)

    @property
    def _counts(self) -> tuple[int, int, int]:
        added = sum(change.before is None for change in self.changes)
        removed = sum(change.after is None for change in self.changes)
        return added, len(self.changes) - added - removed, removed


def _content(change: Change, snapshot: Snapshot) -> Collection[tuple[str, bytes] | bytes]:
    """All that the hash or set of a change will hold."""
    if change.kind is Subject.BLOCK:
        return snapshot.blocks.get(change.domain, set())
    return snapshot.rules.get(change.domain, {}).items()


def _words(item: tuple[str, bytes] | bytes) -> tuple[bytes, ...]:
    """A piece of content as HSET or SADD take it."""
    return (item,) if isinstance(item, bytes) else (octets(item[0]), item[1])


class Editor:
    """One change, as a context manager: what it names is watched from the beginning.

    Args:
        client: of `connect`.
        domains: those whose rules, settings or blocked senders may change.
        who: for the audit stream.
        command: likewise.

    Raises:
        Unavailable: Redis does not answer, or refuses.
    """

    def __init__(self, client: Any, domains: Iterable[str], who: str, command: str) -> None:  # noqa: ANN401
        if isinstance(client, RedisCluster):
            # A transaction is one node's; `domain:` and `alias:` of a domain may be on two.
            raise Unavailable("rules in a Redis Cluster cannot be changed as a whole: redis-cli -c")
        self._client = client
        self._keys = [k for d in domains for k in (domain_key(d), alias_key(d), block_key(d))]
        self._signature = ("who", who, "command", command)
        self._run = uuid.uuid4().hex

    def __enter__(self) -> Self:
        self._pipeline = self._client.pipeline(transaction=True)
        try:
            for keys in _batches(self._keys, _WATCHED):
                self._pipeline.watch(*keys)
        except (RedisError, OSError) as error:
            self._pipeline.reset()
            raise Unavailable(f"Redis: {error}") from error
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._pipeline.reset()
        except (RedisError, OSError):
            self._client.close()  # a connection that is gone watches nothing

    def write(
        self,
        changes: Sequence[Change],
        snapshot: Snapshot,
        progress: Progress = lambda _: None,
    ) -> None:
        """Write the changes, whole or not at all.

        Args:
            changes: against what was read after the `with` began.
            snapshot: all rules, settings and blocked senders, as they will be.
            progress: told how far it is.

        Raises:
            Conflict: a domain was changed since the `with` began; nothing was written.
            Unavailable: Redis does not answer, or refuses; nothing was written, unless the
                answer to the last step itself was lost (the message says so).
            AuditIncomplete: written, but the audit stream lacks details.
        """
        if len(changes) <= DIRECT:
            self._write_directly(changes)
            progress(len(changes))
        else:
            self._write_staged(changes, snapshot, progress)

    def _write_directly(self, changes: Sequence[Change]) -> None:
        self._require_stream()
        self._pipeline.multi()
        for change in changes:
            self._write_field(change)
        self._execute()

    def _write_staged(
        self, changes: Sequence[Change], snapshot: Snapshot, progress: Progress
    ) -> None:
        by_key: dict[str, list[Change]] = defaultdict(list)
        for change in changes:
            if change.kind is not Subject.SETTING:
                by_key[change.key].append(change)
        parts = [_Part(key, some, _content(some[0], snapshot)) for key, some in by_key.items()]
        try:
            for part in parts:
                self._stage(part, progress)
        except (RedisError, OSError) as error:
            raise Unavailable(f"Redis: {error}; nothing was changed") from error
        replaced = self._put_in_place(changes, parts)
        try:
            for keys in _batches(replaced):
                self._client.unlink(*keys)
            self._write_details(change for change in changes if change.kind is not Subject.SETTING)
        except (RedisError, OSError) as error:
            raise AuditIncomplete(f"Redis: {error}") from error

    def _stage(self, part: "_Part", progress: Progress) -> None:
        """Write all that a hash or set will hold to a key of its own."""
        key = staged_key(part.key, self._run)
        pipeline = self._client.pipeline(transaction=False)
        changed, written = len(part.changes), 0
        for batch in _batches(part.content):
            words = (word for item in batch for word in _words(item))
            pipeline.execute_command(part.command, key, *words)
            # Again and again: it must not vanish while its fellows are written.
            pipeline.expire(key, _STAGED_FOR)
            pipeline.execute()
            share = changed * len(batch) // max(len(part.content), 1)
            progress(share)
            written += share
        progress(changed - written)

    def _put_in_place(self, changes: Sequence[Change], parts: Sequence["_Part"]) -> list[str]:
        """The transaction that renames the prepared keys; returns the keys they replace."""
        pipeline = self._pipeline
        self._require_stream()
        self._require_staged([part.key for part in parts if part.content])
        lifetimes = self._lifetimes([part.key for part in parts])
        replaced = []
        pipeline.multi()
        for change in changes:
            if change.kind is Subject.SETTING:
                self._write_field(change)
        for part in parts:
            staged, old = staged_key(part.key, self._run), staged_key(part.key, f"{self._run}:old")
            if part.was_there:
                pipeline.rename(part.key, old)
                pipeline.expire(old, _STAGED_FOR)
                replaced.append(old)
            if part.content:
                pipeline.persist(staged)
                pipeline.rename(staged, part.key)
                if lifetimes[part.key] >= 0:
                    pipeline.pexpire(part.key, max(lifetimes[part.key], 1))
            entry = self._entry_fields("address", part.address, "after", part.told)
            pipeline.execute_command(*entry)
        self._execute()
        return replaced

    def _lifetimes(self, keys: Sequence[str]) -> dict[str, int]:
        """How long each of the hashes and sets will last, in milliseconds; below 0: for good.

        That does not change with what is in them. They are watched, and EXPIRE is a change, too.
        """
        found: list[int] = []
        try:
            for some in _batches(keys):
                pipeline = self._client.pipeline(transaction=False)
                for key in some:
                    pipeline.pttl(key)
                found += pipeline.execute()
        except (RedisError, OSError) as error:
            raise Unavailable(f"Redis: {error}; nothing was changed") from error
        return dict(zip(keys, found, strict=True))

    def _require_staged(self, keys: Sequence[str]) -> None:
        """A transaction is not undone half-way: what it renames must be there, and stay."""
        try:
            for some in _batches([staged_key(key, self._run) for key in keys], _WATCHED):
                self._pipeline.watch(*some)
                if self._pipeline.exists(*some) != len(some):
                    raise Conflict("what was prepared has been removed")
        except (RedisError, OSError) as error:
            raise Unavailable(f"Redis: {error}; nothing was changed") from error

    def _require_stream(self) -> None:
        """A command that fails for the type of its key does not stop the rest of a transaction."""
        try:
            kind = self._client.type(AUDIT_KEY)
        except (RedisError, OSError) as error:
            raise Unavailable(f"Redis: {error}; nothing was changed") from error
        if kind not in (b"none", b"stream"):
            raise Unavailable(f"Redis: the key {AUDIT_KEY} holds another type than a stream")

    def _write_field(self, change: Change) -> None:
        if change.kind is Subject.BLOCK:
            if change.before is not None:
                self._pipeline.srem(change.key, change.before)
            if change.after is not None:
                self._pipeline.sadd(change.key, change.after)
        elif change.after is None:
            self._pipeline.hdel(change.key, octets(change.name))
        else:
            self._pipeline.hset(change.key, octets(change.name), change.after)
        self._pipeline.execute_command(*self._entry(change))

    def _write_details(self, changes: Iterable[Change]) -> None:
        pipeline = self._client.pipeline(transaction=False)
        for batch in _batches(changes):
            for change in batch:
                pipeline.execute_command(*self._entry(change))
            pipeline.execute()

    def _execute(self) -> None:
        try:
            self._pipeline.execute()
        except (RedisError, OSError) as error:
            # A client that has lost its connection calls that a WatchError, too.
            cause = error.__context__ if isinstance(error, WatchError) else error
            if cause is None:
                raise Conflict("somebody else has changed these domains meanwhile") from None
            lost = isinstance(cause, (redis.ConnectionError, redis.TimeoutError, OSError))
            doubt = "; whether the change was made is not known" if lost else ""
            raise Unavailable(f"Redis: {cause}{doubt}") from error

    def _entry(self, change: Change) -> tuple[str | int | bytes, ...]:
        fields: list[str | bytes] = ["address", octets(change.address)]
        if change.before is not None:
            fields += ["before", change.before]
        if change.after is not None:
            fields += ["after", change.after]
        return self._entry_fields(*fields)

    def _entry_fields(self, *fields: str | bytes) -> tuple[str | int | bytes, ...]:
        limit = ("MAXLEN", "~", MAX_ENTRIES)
        return ("XADD", AUDIT_KEY, *limit, "*", *self._signature, *fields)


def _batches(items: Iterable[_T], size: int = _BATCH) -> Iterator[list[_T]]:
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch
