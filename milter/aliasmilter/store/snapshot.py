"""All the rules at once, for the commands that look at the whole."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from aliasmilter.mail.address import Address
from aliasmilter.routing.lookup import (
    Absent,
    Answer,
    Found,
    Unreadable,
    fields_for,
)
from aliasmilter.store.connect import connect
from aliasmilter.store.deadline import Deadline, GarbledError
from aliasmilter.store.link import Command, Reply, check
from aliasmilter.store.questions import NO_ANSWER, pairs, unreadable
from aliasmilter.store.schema import (
    ALIAS_PREFIX,
    BLOCK_PREFIX,
    DOMAIN_PREFIX,
    alias_key,
    block_key,
    domain_key,
)
from aliasmilter.store.servers import Servers

_BATCH = 1000


@dataclass(slots=True)
class Snapshot:
    """What Redis held when it was read.

    Names that are no UTF-8 have surrogate escapes, so that nothing is lost of them: see `octets`.

    Attributes:
        settings: domain -> hash of its settings.
        rules: domain -> local part -> rule text.
        blocks: domain -> the set of senders that it blocks.
        unreadable: keys that hold something else than they should -> what is wrong.
    """

    settings: dict[str, dict[bytes, bytes]] = field(default_factory=dict)
    rules: dict[str, dict[str, bytes]] = field(default_factory=dict)
    blocks: dict[str, set[bytes]] = field(default_factory=dict)
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
    """Read all domains, rules and blocked senders, of all the masters.

    Args:
        url: as in `[store] url`.
        timeout: seconds for each step.
        only: the one domain that is wanted.

    Raises:
        Unavailable: Redis does not answer, or refuses; the message says why.
    """
    servers = connect(url)
    reader = _Reader(servers, timeout, Snapshot())
    try:
        if only:
            reader.read_settings([domain_key(only).encode()])
            reader.read_rules([alias_key(only).encode()])
            reader.read_blocks([block_key(only).encode()])
            return reader.snapshot
        for master in servers.each(Deadline(timeout)):
            for keys in reader.keys(master, DOMAIN_PREFIX):
                reader.read_settings(keys)
            for keys in reader.keys(master, ALIAS_PREFIX):
                reader.read_rules(keys)
            for keys in reader.keys(master, BLOCK_PREFIX):
                reader.read_blocks(keys)
    finally:
        servers.close()
    return reader.snapshot


@dataclass(frozen=True, slots=True)
class _Reader:
    servers: Servers
    timeout: float
    snapshot: Snapshot

    def keys(self, master: Servers, prefix: str) -> Iterator[list[bytes]]:
        """The keys on one master, a batch at a time; one may come twice."""
        cursor = b"0"
        while True:
            command = ("SCAN", cursor, "MATCH", prefix + "*", "COUNT", _BATCH)
            (reply,) = master.ask([command], Deadline(self.timeout))
            cursor, keys = page(reply)
            if keys:
                yield keys
            if cursor == b"0":
                return

    def read_settings(self, keys: Sequence[bytes]) -> None:
        """Read the hashes of domains."""
        for key, reply in self._ask(keys, lambda key: ("HGETALL", key), "hash"):
            self.snapshot.settings[_domain(key, DOMAIN_PREFIX)] = pairs(reply) if reply else {}

    def read_rules(self, keys: Sequence[bytes]) -> None:
        """Read the rules of domains, of large ones a batch at a time."""
        for key, reply in self._ask(keys, lambda key: _scan("HSCAN", key), "hash"):
            rules = self.snapshot.rules[_domain(key, ALIAS_PREFIX)] = {}
            for words in self._pages("HSCAN", key, reply):
                rules.update((_text(f), rule) for f, rule in pairs(words).items())

    def read_blocks(self, keys: Sequence[bytes]) -> None:
        """Read the sets of blocked senders, of large ones a batch at a time."""
        for key, reply in self._ask(keys, lambda key: _scan("SSCAN", key), "set"):
            members = {member for words in self._pages("SSCAN", key, reply) for member in words}
            if members:
                self.snapshot.blocks[_domain(key, BLOCK_PREFIX)] = members

    def _pages(self, name: str, key: bytes, reply: Reply) -> Iterator[list[bytes]]:
        """What is in a key, beginning with the first reply; nothing when there is none."""
        while reply:
            cursor, words = page(reply)
            yield words
            if cursor == b"0":
                return
            (reply,) = self.servers.ask([_scan(name, key, cursor)], Deadline(self.timeout))

    def _ask(
        self, keys: Sequence[bytes], question: Callable[[bytes], Command], kind: str
    ) -> Iterator[tuple[bytes, Reply]]:
        """Ask about all the keys at once; None for one that cannot be read, which is noted."""
        replies = self.servers.ask([question(key) for key in keys], Deadline(self.timeout))
        for key, reply in zip(keys, replies, strict=True):
            problem = unreadable(_text(key), reply, kind)
            if problem:
                self.snapshot.unreadable[problem.key] = problem.problem
            yield key, None if problem else reply


def _scan(name: str, key: bytes, cursor: bytes = b"0") -> Command:
    return (name, key, cursor, "COUNT", _BATCH)


def page(reply: Reply) -> tuple[bytes, list[bytes]]:
    """A reply to SCAN, HSCAN or SSCAN: where it goes on, and what was there."""
    if not isinstance(check(reply), list) or len(reply) != 2 or not isinstance(reply[1], list):
        raise GarbledError(NO_ANSWER)
    return reply[0], reply[1]


def octets(name: str) -> bytes:
    """A name of a snapshot, or a key made of one, as Redis has it."""
    return name.encode("utf-8", "surrogateescape")


def _domain(key: bytes, prefix: str) -> str:
    return _text(key).removeprefix(prefix)


def _text(word: bytes) -> str:
    return word.decode("utf-8", "surrogateescape")
