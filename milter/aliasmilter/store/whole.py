"""A domain with all its rules: read piece by piece, when it is worth while.

A guessing client asks for another address each time, of which nothing can be kept. But when all
rules of a domain are in memory, an address that is not among them is known to be unknown. Of a
domain too large for that the names are enough (`names`), with the patterns and the catch-all.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from aliasmilter.mail.address import Address
from aliasmilter.routing.lookup import Found, is_pattern, own_fields
from aliasmilter.routing.rules import CATCH_ALL, SETTING_NAMES
from aliasmilter.store.deadline import GarbledError
from aliasmilter.store.link import Command, Reply, check
from aliasmilter.store.names import Names
from aliasmilter.store.questions import NO_ANSWER, Lifetimes, about_lifetimes, lasts, pairs
from aliasmilter.store.schema import alias_key, block_key, domain_key
from aliasmilter.store.snapshot import page

MAX_RULES = 10_000  # that are kept; of more than that, the names
MAX_NAMES = 2_000_000
MAX_OCTETS = 4 * 2**20  # that a domain may take in the process
FIRST = 50  # lookups in a domain before it is read for the first time
RULES_A_LOOKUP = 64  # to read a rule with all others takes a 64th of a lookup
_FIRST_PAGE = 16  # rules, each of which may have 64 KB
_PAGE = 1000  # rules at most: a page keeps the server for less than a millisecond
_PAGE_OCTETS = 2**18  # that a page should have
_STAR = CATCH_ALL.encode()  # in patterns, too
_MAX_DOMAINS = 10_000
_OF_DOMAIN = 1000  # octets that a domain takes beside its rules; measured
_OF_RULE = 150  # octets that a rule takes beside its name and text; measured

Ask = Callable[[Sequence[Command]], Sequence[Reply]]
"""Sends commands to the one server that announces; raises Unavailable."""


@dataclass(frozen=True, slots=True)
class Whole:
    """All rules of a domain, or, when it has names, only that there are no others than those.

    Attributes:
        found: the answer for each of its addresses that has no rule of its own.
        octets: what that takes in memory.
        names: the addresses that may have one; None: `found` is the answer for all.
    """

    found: Found
    octets: int
    names: Names | None = None

    def answer(self, address: Address) -> Found | None:
        """The answer for an address of the domain; None: the server has to be asked."""
        if self.names is None:
            return self.found
        for name in own_fields(address.local):
            if self.names.may_hold(name.encode()):
                return None
        return self.found


class Demand:
    """Counts the lookups of each domain, so that reading costs less than it saves.

    Whoever calls sees to it that one thread does so at a time.
    """

    def __init__(self) -> None:
        self._asked: dict[str, int] = {}
        self._price: dict[str, float] = {}

    def note(self, domain: str) -> bool:
        """Count one; whether all rules of the domain are to be read now.

        Args:
            domain: that is managed.
        """
        asked = self._asked[domain] = self._asked.get(domain, 0) + 1
        if len(self._asked) > _MAX_DOMAINS:
            self._asked.clear()
            self._price.clear()
        return asked >= self._price.get(domain, FIRST)

    def edited(self, domain: str) -> None:
        """Begin anew: what was read is not true any more, and to read it costs as much again."""
        self._asked.pop(domain, None)
        self._price.pop(domain, None)

    def affords(self, domain: str) -> int:
        """How many rules may be read for the lookups that there were."""
        return min(self._asked.get(domain, 0) * RULES_A_LOOKUP, MAX_NAMES)

    def found(self, domain: str, rules: float) -> None:
        """So many rules there are; infinitely many when they cannot be kept before an edit."""
        self._price[domain] = max(FIRST, rules / RULES_A_LOOKUP)

    def served(self, domain: str) -> None:
        """The rules were read, or could not be. To read them again has to be paid for again."""
        self._asked.pop(domain, None)


def read_whole(domain: str, ask: Ask, lifetimes: Lifetimes, most: int) -> Whole | float:
    """Read all rules of a domain.

    Args:
        domain: that is managed.
        ask: who is asked.
        lifetimes: what the server can say of how long rules last.
        most: rules that are read at most.

    Returns:
        Them; or how many there are, when there are more; or infinity when they cannot be kept:
        they are too many altogether, or something will expire.

    Raises:
        Unavailable: no answer.
    """
    rules_key, settings_key = alias_key(domain), domain_key(domain)
    count, settings, blocks, *ends = ask(
        [
            ("HLEN", rules_key),
            ("HGETALL", settings_key),
            ("EXISTS", block_key(domain)),
            *about_lifetimes(settings_key, SETTING_NAMES, lifetimes),
        ]
    )
    size = check(count)
    if not isinstance(size, int) or check(blocks) not in (0, 1):
        raise GarbledError(NO_ANSWER)
    found = pairs(settings)
    if size > MAX_NAMES or not found or not all(map(lasts, ends)):
        return math.inf
    if size > most:
        return size
    names = Names(size) if size > MAX_RULES else None
    rules = _read_rules(rules_key, ask, lifetimes, names)
    if rules is None:
        return math.inf
    octets = _OF_DOMAIN + sum(_OF_RULE + len(name) + len(text) for name, text in rules.items())
    octets += names.octets if names else 0
    has_patterns = any(map(is_pattern, rules))
    answer = Found(found, rules, has_blocks=blocks == 1, has_patterns=has_patterns)
    return Whole(answer, octets, names)


def _read_rules(
    key: str, ask: Ask, lifetimes: Lifetimes, names: Names | None
) -> dict[str, bytes] | None:
    """The fields of the hash; None when one of them will expire, or there are too many octets.

    Where there are `names` these get all of them, and only patterns and the catch-all are returned.
    """
    rules: dict[str, bytes] = {}
    cursor, octets, count = b"0", 0, _FIRST_PAGE
    while True:
        (reply,) = ask([("HSCAN", key, cursor, "COUNT", count)])
        cursor, words = page(reply)
        count = _next_count(count, sum(map(len, words)))
        fields = pairs(words)
        if names:
            # That one of these expires makes nothing wrong: what is not there is still not there.
            names.update(fields)
            fields = {name: text for name, text in fields.items() if _STAR in name}
        octets += sum(len(name) + len(text) + _OF_RULE for name, text in fields.items())
        ends = ask(about_lifetimes(key, [*fields], lifetimes))
        if octets > MAX_OCTETS or not all(map(lasts, ends)):
            return None
        for name, text in fields.items():
            try:
                rules[name.decode()] = text
            except UnicodeDecodeError:
                continue  # no address is spelt like that
        if cursor == b"0":
            return rules


def _next_count(count: int, octets: int) -> int:
    """How many rules to ask for next, when so many had so many octets."""
    fitting = count * _PAGE_OCTETS // max(octets, 1)
    return max(1, min(fitting, 8 * count, _PAGE))
