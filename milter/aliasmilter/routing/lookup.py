"""What the resolver asks of a store, and the three answers it can get.

Absent is a fact about the rules; Unavailable is a fact about the store. They are never
mixed up: an answer that did not come must not look like an address that does not exist.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from aliasmilter.mail.address import Address, local_key
from aliasmilter.routing.rules import CATCH_ALL


@dataclass(frozen=True, slots=True)
class Found:
    """The domain is managed.

    Attributes:
        settings: the hash `domain:<domain>`, as stored.
        rules: of `alias:<domain>`, those of the fields asked for that exist.
    """

    settings: Mapping[bytes, bytes]
    rules: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Absent:
    """The domain is not managed."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """The key holds something else than it should; this address alone cannot be decided.

    Attributes:
        key: the Redis key.
        problem: what is wrong with it.
    """

    key: str
    problem: str


Answer = Found | Absent | Unreadable


class Unavailable(Exception):  # noqa: N818  # one of the store's answers, not a mistake
    """The store did not answer (in time); nothing is known, the sender has to keep the mail."""


Lookup = Callable[[Sequence[Address]], Sequence[Answer]]
"""Answers for the addresses, in their order, in one round trip; raises Unavailable."""


def fields_for(local: str) -> tuple[str, ...]:
    """The fields of `alias:<domain>` that can hold the rule for a local part, exact one first.

    The delimiter is a setting of the domain, which is only known once it is read: so every part
    before a possible delimiter is asked for, and one round trip is enough.
    """
    exact = local_key(local)
    # `*` stands for the catch-all; a local part of that name has no rule of its own.
    fields = {} if exact == CATCH_ALL else {exact: None}
    seen: set[str] = set()
    for position, character in enumerate(exact):
        if position and not character.isalnum() and character not in seen:
            fields[exact[:position]] = None
        seen.add(character)
    return (*(f for f in fields if f != CATCH_ALL), CATCH_ALL)
