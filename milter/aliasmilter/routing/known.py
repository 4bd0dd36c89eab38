"""Decisions that were made before, for as long as the store says the same.

`resolve` is a function of its question and of the answers that it gets. So nothing in here can be
out of date: the store is asked again, and only when each answer is the very object that it was is
the decision the same. That takes an eighth of the time when the store has its answers in memory, as
most mail goes to few addresses.
"""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

from aliasmilter.mail.address import Address
from aliasmilter.routing.decision import Decision
from aliasmilter.routing.lookup import Absent, Answer, Found, Lookup

MAX_DECISIONS = 2048
MAX_ANSWERS = 20  # that a decision follows from; what longer lists come to is worked out anew
MAX_ALL_ANSWERS = 8192  # that all of them follow from: each takes a kilobyte or less
MAX_LOCAL_PART = 64  # characters; a longer one was made up for one message, as a subaddress

Level = tuple[Sequence[Address], Sequence[Answer]]
"""What the store was asked at once, and what it said."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """A decision, and what it follows from: what the store said of these addresses, of all levels.

    It does not keep the store's answers alive: all the rules of a domain may be in one of them.
    None stands for a domain that is not managed.
    """

    decision: Decision
    today: date
    addresses: tuple[Address, ...]
    answers: tuple["weakref.ref[Found] | None", ...]


class Known:
    """Keeps decisions that the sender has no part in. For any number of threads."""

    def __init__(self) -> None:
        self._entries: dict[tuple[str, str, bool], _Entry] = {}
        self._answers = 0  # of all entries; that two threads count at once may get lost
        self._last: weakref.ref[Found] | None = None  # answer that something was to be kept for

    def recall(
        self, address: Address, today: date, lookup: Lookup, *, is_target: bool
    ) -> tuple[Decision | None, Sequence[Answer]]:
        """The decision that `resolve` would come to now, if it is known.

        Args:
            address: the recipient.
            today: the day, for `expires`.
            lookup: the store's.
            is_target: as in the question.

        Returns:
            Also what the store says of the address itself, so that it need not be asked again when
            the decision is not known after all; nothing where it was not asked.

        Raises:
            Unavailable: the lookup did.
        """
        entry = self._entries.get((address.local, address.domain, is_target))
        if entry is None or entry.today != today:
            return None, ()
        # All at once: each of these was asked for the last time, and mostly will be now.
        answers = lookup(entry.addresses)
        for answer, same in zip(answers, entry.answers, strict=True):
            if not (isinstance(answer, Absent) if same is None else same() is answer):
                return None, answers[:1]
        return entry.decision, answers[:1]

    def keep(
        self, decision: Decision, today: date, levels: Sequence[Level], *, is_target: bool
    ) -> None:
        """Keep a decision, unless it is one of too many, or its answers will not be seen again.

        Args:
            decision: that nothing but these levels has led to, whoever the sender is.
            today: the day it was made for.
            levels: all that the store was asked, and said.
            is_target: as in the question.
        """
        address = decision.address
        addresses = tuple(asked for level, _ in levels for asked in level)
        size = len(addresses)
        # There is no end of unknown addresses.
        if not decision.finals or size > MAX_ANSWERS or len(address.local) > MAX_LOCAL_PART:
            return
        answers = [answer for _, said in levels for answer in said]
        if not all(map(_is_for_everybody, answers)):
            return
        kept = tuple(weakref.ref(a) if isinstance(a, Found) else None for a in answers)
        if not self._will_recur(kept):
            return
        if len(self._entries) >= MAX_DECISIONS or self._answers + size > MAX_ALL_ANSWERS:
            self._entries.clear()
            self._answers = 0
        self._answers += size
        key = address.local, address.domain, is_target
        self._entries[key] = _Entry(decision, today, addresses, kept)

    def _will_recur(self, answers: Sequence["weakref.ref[Found] | None"]) -> bool:
        """Whether the store has these answers in memory, as far as that shows by the last ones.

        In a process that keeps no answers they are gone as soon as the decision is made.
        """
        found = [answer for answer in answers if answer]
        if not found:
            return True  # each of these is like any other
        last, self._last = self._last, found[0]
        return last is None or last() is not None


def _is_for_everybody(answer: Answer) -> bool:
    """Whether it says the same of each sender, and can be compared."""
    return isinstance(answer, Absent) or (isinstance(answer, Found) and not answer.has_blocks)
