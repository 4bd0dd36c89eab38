"""What is asked of Redis about addresses, and what the replies say.

All of it is one round trip, and the same few fields however many rules there are.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

from hiredis import ReplyError

from aliasmilter.mail.address import Address
from aliasmilter.routing.lookup import Absent, Answer, Found, Unreadable, fields_for
from aliasmilter.routing.rules import SETTING_NAMES
from aliasmilter.store.deadline import GarbledError
from aliasmilter.store.link import Command, Reply, check
from aliasmilter.store.schema import alias_key, block_key, domain_key

NO_ANSWER = "Redis: an answer to another question"


class Lifetimes(IntEnum):
    """What is asked about how long rules will last, as far as the server can say."""

    NOTHING = 0
    OF_KEYS = 1  # PTTL
    OF_FIELDS = 2  # HPTTL as well: Redis 7.4 and later


@dataclass(frozen=True, slots=True)
class Asked:
    """An answer, and whether it is known to hold until somebody edits it."""

    answer: Answer
    lasts: bool


class Questions:
    """The questions about some addresses.

    Attributes:
        commands: what is to be sent.

    Args:
        addresses: none of them the MTA's alone.
        lifetimes: what is asked about how long the rules will last.
    """

    def __init__(
        self, addresses: Sequence[Address], lifetimes: Lifetimes = Lifetimes.NOTHING
    ) -> None:
        self._domains = list(dict.fromkeys([a.domain for a in addresses]))
        self._asked = [(a.domain, fields_for(a.local)) for a in addresses]
        self.commands: list[Command] = [("HGETALL", domain_key(d)) for d in self._domains]
        self.commands += [("EXISTS", block_key(d)) for d in self._domains]
        self.commands += [("HMGET", alias_key(d), *fields) for d, fields in self._asked]
        self._about = self._about_lifetimes(lifetimes) if lifetimes else []
        self.commands += [command for _, command in self._about]

    def answers(self, replies: Sequence[Reply]) -> list[Asked]:
        """The answers to the addresses, in their order.

        Args:
            replies: to `commands`.

        Raises:
            Unavailable: one of them is an error, or no answer to the question.
        """
        number = len(self._domains)
        settings = dict(zip(self._domains, replies, strict=False))
        blocks = dict(zip(self._domains, replies[number : 2 * number], strict=False))
        rules = replies[2 * number :]
        mortal = self._mortal(rules[len(self._asked) :]) if self._about else self._domains
        return [
            Asked(
                _answer(domain, fields, settings[domain], blocks[domain], reply),
                domain not in mortal,
            )
            for (domain, fields), reply in zip(self._asked, rules, strict=False)
        ]

    def _about_lifetimes(self, lifetimes: Lifetimes) -> list[tuple[str, Command]]:
        """The questions, each with the domain that it is about."""
        hashes = [(d, domain_key(d), SETTING_NAMES) for d in self._domains]
        hashes += [(d, alias_key(d), fields) for d, fields in self._asked]
        return [(d, q) for d, key, names in hashes for q in about_lifetimes(key, names, lifetimes)]

    def _mortal(self, lifetimes: Sequence[Reply]) -> set[str]:
        """The domains of which something will expire, or may."""
        answered = zip(self._about, lifetimes, strict=True)
        return {domain for (domain, _), reply in answered if not lasts(reply)}


def about_lifetimes(
    key: str, fields: Sequence[str | bytes], lifetimes: Lifetimes
) -> list[Command]:
    """The questions how long a hash and these fields of it will last."""
    commands: list[Command] = [("PTTL", key)]
    if lifetimes is Lifetimes.OF_FIELDS and fields:
        commands.append(("HPTTL", key, "FIELDS", len(fields), *fields))
    return commands


def lasts(reply: Reply) -> bool:
    """Whether PTTL or HPTTL say -1, no end, or -2, nothing there; HPTTL also nil or nothing."""
    replies = reply if isinstance(reply, list) else [reply]
    return all(one is None or one in (-1, -2) for one in replies)


def unreadable(key: str, reply: Reply, kind: str = "hash") -> Unreadable | None:
    """Whether a reply says that the key is no hash (set)."""
    if isinstance(reply, ReplyError) and str(reply).startswith("WRONGTYPE"):
        return Unreadable(key, f"holds another type than a {kind}")
    return None


def pairs(reply: Reply) -> dict[bytes, bytes]:
    """The reply to HGETALL as what it is.

    Raises:
        Unavailable: it is an error, or none.
    """
    if not isinstance(check(reply), list):
        raise GarbledError(NO_ANSWER)
    words = iter(reply)
    try:
        return dict(zip(words, words, strict=True))
    except (TypeError, ValueError):
        raise GarbledError(NO_ANSWER) from None


def about_blocks(domain: str, senders: Sequence[str]) -> list[Command]:
    """The questions whether a domain blocks one of these senders."""
    return [("SISMEMBER", block_key(domain), sender) for sender in senders]


def with_blocks(found: Found, domain: str, replies: Sequence[Reply]) -> Found | Unreadable:
    """An answer with what the replies to `about_blocks` say.

    Raises:
        Unavailable: one of them is an error, or no answer to the question.
    """
    for reply in replies:
        if problem := unreadable(block_key(domain), reply, "set"):
            return problem
        if check(reply) not in (0, 1):
            raise GarbledError(NO_ANSWER)
    return replace(found, blocked=1 in replies)


def _answer(
    domain: str, fields: tuple[str, ...], settings: Reply, blocks: Reply, rules: Reply
) -> Answer:
    problem = unreadable(domain_key(domain), settings) or unreadable(alias_key(domain), rules)
    if problem:
        return problem
    found = pairs(settings)
    # What is no answer to the question says nothing: not even that there is no such domain.
    if not isinstance(check(rules), list) or len(rules) != len(fields):
        raise GarbledError(NO_ANSWER)
    if check(blocks) not in (0, 1):
        raise GarbledError(NO_ANSWER)
    if not found:
        return Absent()
    rules_found = {f: r for f, r in zip(fields, rules, strict=True) if r is not None}
    return Found(found, rules_found, has_blocks=blocks == 1)
