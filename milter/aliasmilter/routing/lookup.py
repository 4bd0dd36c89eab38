"""What the resolver asks of a store, and the three answers it can get.

Absent is a fact about the rules; Unavailable is a fact about the store. They are never
mixed up: an answer that did not come must not look like an address that does not exist.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from aliasmilter.mail.address import Address, local_key
from aliasmilter.routing.rules import CATCH_ALL

MAX_PATTERN_SUBJECT = 64  # characters of a local part that patterns are tried on
MAX_INNER_PATTERNS = 200
MAX_KEPT = 2048  # local parts of which the fields are remembered, and the patterns
MAX_KEPT_OCTETS = 4096  # that those of one may take
MAX_AT_WORK = 32  # local parts of any kind


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Found:
    """The domain is managed.

    Attributes:
        settings: the hash `domain:<domain>`, as stored.
        rules: of `alias:<domain>`, at least those of the fields asked for that exist.
        has_blocks: there is a set `block:<domain>`.
        blocked: and the sender is in it.
        has_patterns: False when there is known to be no pattern among the rules.
    """

    settings: Mapping[bytes, bytes]
    rules: Mapping[str, bytes]
    has_blocks: bool = False
    blocked: bool = False
    has_patterns: bool = True


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


Fields = Callable[[str], tuple[str, ...]]


def _kept(make: Fields) -> Fields:
    """Remember what `make` says of ordinary local parts, and of any for as long as it is at work.

    A long one with many marks has fields of 30 KB: functools.lru_cache counts, but does not weigh.
    """
    kept: dict[str, tuple[str, ...]] = {}
    just_made = functools.lru_cache(maxsize=MAX_AT_WORK)(make)

    @functools.wraps(make)
    def recall(local: str) -> tuple[str, ...]:
        fields = kept.get(local)
        if fields is None:
            fields = just_made(local)
            # The first one is the longest, or nearly.
            if fields and len(fields) * (fields[0].__sizeof__() + 8) <= MAX_KEPT_OCTETS:
                if len(kept) >= MAX_KEPT:
                    kept.clear()
                kept[local] = fields
        return fields

    return recall


@_kept
def fields_for(local: str) -> tuple[str, ...]:
    """The fields of `alias:<domain>` that can hold the rule for a local part, exact one first.

    The delimiter is a setting of the domain, which is only known once it is read: so every part
    before a possible delimiter is asked for, and every pattern that could match, and one round
    trip is enough. The catch-all comes last.
    """
    return (*dict.fromkeys((*own_fields(local), *patterns_for(local))), CATCH_ALL)


def own_fields(local: str) -> tuple[str, ...]:
    """Those of `fields_for` that are neither patterns nor the catch-all."""
    exact = local_key(local)
    # `*` stands for the catch-all; a local part of that name has no rule of its own.
    fields = {} if exact == CATCH_ALL else {exact: None}
    if not exact.isalnum():
        seen: set[str] = set()
        for position, character in enumerate(exact):
            if position and not character.isalnum() and character not in seen:
                fields[exact[:position]] = None
            seen.add(character)
    return tuple(f for f in fields if f != CATCH_ALL)


@_kept
def patterns_for(local: str) -> tuple[str, ...]:
    """The patterns that match a local part, the one with the longest literal part first.

    A pattern has one `*`: at its end, at its beginning, or between two characters that are no
    letters or digits (`sales-*-eu`), so that their number stays linear in the length of ordinary
    local parts.
    """
    name = local_key(local)
    if len(name) > MAX_PATTERN_SUBJECT:
        return ()
    size = len(name)
    # Of two that are equally long the one with the longer beginning.
    found = [p for i in range(size) for p in (f"{name[: size - i]}*", f"*{name[i:]}")]
    inner = _inner_patterns(name)
    return tuple(sorted(found + inner, key=len, reverse=True) if inner else found)


def _inner_patterns(name: str) -> list[str]:
    marks = [position for position, character in enumerate(name) if not character.isalnum()]
    found = [f"{name[: p + 1]}*{name[s:]}" for p in marks for s in marks if p < s]
    return found[:MAX_INNER_PATTERNS]


def is_pattern(field: str) -> bool:
    """Whether a field of `alias:<domain>` is a pattern."""
    return "*" in field and field != CATCH_ALL


def is_usable_pattern(field: str) -> bool:
    """Whether a pattern is one that `patterns_for` finds."""
    before, star, after = field.partition("*")
    if not star or "*" in after or len(before) + len(after) > MAX_PATTERN_SUBJECT:
        return False
    return not (before and after) or not (before[-1].isalnum() or after[0].isalnum())
