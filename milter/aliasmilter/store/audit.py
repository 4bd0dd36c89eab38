"""The audit stream: who changed what with our commands, and when.

An entry has the fields `who`, `command`, `address`, and, where there is one, the value `before` and
`after`. `address` is a rule's (`*@example.com` for a catch-all), a setting's
(`domain:example.com unknown`) or a set's (`block:example.com`). A change of more than `DIRECT`
fields has one entry for each domain or set in the transaction itself, whose address is the domain
(`@example.com`) or the set and whose `after` counts them, and then its details.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum, auto
from typing import Any, NamedTuple

from redis.exceptions import RedisError

from aliasmilter.mail.address import Address
from aliasmilter.routing.lookup import Unavailable
from aliasmilter.routing.rules import CATCH_ALL
from aliasmilter.store.schema import AUDIT_KEY, alias_key, block_key, domain_key

MAX_ENTRIES = 1_000_000
_PAGE = 1000


class Subject(Enum):
    """What a change is of."""

    RULE = auto()  # a field of `alias:<domain>`
    SETTING = auto()  # a field of `domain:<domain>`
    BLOCK = auto()  # a member of `block:<domain>`


_KEYS = {Subject.RULE: alias_key, Subject.SETTING: domain_key, Subject.BLOCK: block_key}


class Change(NamedTuple):
    """One field of a hash with rules or settings, or one member of a set, before and after.

    Attributes:
        domain: lower-case A-labels.
        name: a local part, `*`, or the name of a setting; "" for a member of a set.
        before: the value (the member itself), or None where there was none.
        after: the value (the member itself), or None where there will be none.
        kind: what it is of.
    """

    domain: str
    name: str
    before: bytes | None
    after: bytes | None
    kind: Subject = Subject.RULE

    @property
    def key(self) -> str:
        """The key of the hash or set."""
        return _KEYS[self.kind](self.domain)

    @property
    def address(self) -> str:
        """What people call it."""
        if self.kind is Subject.RULE:
            return rule_address(self.domain, self.name)
        return f"{self.key} {self.name}".rstrip()


@dataclass(frozen=True, slots=True)
class Entry:
    """One change as the stream tells it; `before` and `after` as in `Change`."""

    when: datetime
    who: str
    command: str
    address: str
    before: str | None
    after: str | None

    def concerns(self, subject: str) -> bool:
        """Whether it is about an address (`bob@example.com`) or a domain (`example.com`)."""
        if "@" in subject:
            return self.address == subject
        if self.address == block_key(subject):
            return True
        return self.address.endswith("@" + subject) or self.address.startswith(
            domain_key(subject) + " "
        )


def rule_address(domain: str, name: str) -> str:
    """The address of a rule, quoted where it must be; `*@example.com` for a catch-all."""
    if name == CATCH_ALL:
        return f"*@{domain}"
    if "" in name.split("."):
        # RFC 5321 section 4.1.2: no Dot-string; senders may write it so, rules may not.
        quoted = re.sub(r'(["\\])', r"\\\1", name)
        return f'"{quoted}"@{domain}'
    return str(Address(name, domain))


def entries(client: Any) -> Iterator[Entry]:  # noqa: ANN401  # sync or cluster client
    """All entries, the newest first.

    Raises:
        Unavailable: Redis does not answer, or refuses.
    """
    last = "+"
    try:
        while page := client.xrevrange(AUDIT_KEY, max=last, count=_PAGE):
            for identifier, fields in page:
                yield _entry(identifier, fields)
            last = "(" + page[-1][0].decode("ascii")
    except (RedisError, OSError) as error:
        raise Unavailable(f"Redis: {error}") from error


def _entry(identifier: bytes, fields: dict[bytes, bytes]) -> Entry:
    text = {_text(name): _text(value) for name, value in fields.items()}
    when = datetime.fromtimestamp(int(identifier.partition(b"-")[0]) / 1000, UTC)
    who, command, address = (text.get(name, "") for name in ("who", "command", "address"))
    return Entry(when, who, command, address, text.get("before"), text.get("after"))


def _text(value: bytes) -> str:
    return value.decode("utf-8", "backslashreplace")
