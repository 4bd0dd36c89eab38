"""Answers that are kept, in bounded memory.

Two halves: answers go into the young one; when that is full, or old enough, it becomes the old
one and what was old is gone. So nothing is kept longer than twice MAX_AGE, nothing has to be
searched for, and a sender who tries a million addresses costs no more than a full memory. Only the
names of large domains are kept longer while there is room, as reading them takes seconds.
"""

import sys
from dataclasses import dataclass, field

from aliasmilter.mail.address import Address, local_key
from aliasmilter.routing.lookup import Absent, Answer, Found
from aliasmilter.store.whole import Whole

MAX_OCTETS = 16 * 2**20  # both halves, in each process
MAX_ANSWER = 8192  # octets; a longer one is not kept
MAX_AGE = 60.0  # seconds
MAX_AGE_OF_NAMES = 900.0
_ABSENT = Absent()
_OF_DOMAIN = 400  # octets that a domain costs, whatever is kept of it; measured
_OF_ANSWER = 700  # the same for an answer


@dataclass(slots=True)
class _Half:
    """Domain -> local part (as rules spell it) -> answer; whole and unmanaged domains apart.

    A whole domain stands beside the moment in which it was put here.
    """

    wholes: dict[str, tuple[Whole, float]] = field(default_factory=dict)
    answers: dict[str, dict[str, Answer]] = field(default_factory=dict)
    unmanaged: set[str] = field(default_factory=set)
    octets: int = 0
    born: float = 0.0


class Memory:
    """What is kept of each domain. The caller sees to it that one thread uses it at a time."""

    def __init__(self) -> None:
        self._young = _Half()
        self._old = _Half()

    def get(self, address: Address) -> Answer | None:
        """The answer for an address, if it is kept."""
        domain = address.domain
        for half in (self._young, self._old):
            if (kept := half.wholes.get(domain)) and (found := kept[0].answer(address)):
                return found
            if domain in half.unmanaged:
                return _ABSENT
            answers = half.answers.get(domain)
            if answers and (answer := answers.get(local_key(address.local))):
                return answer
        return None

    def put(self, address: Address, answer: Answer, now: float) -> None:
        """Keep an answer.

        Args:
            address: any that the answer is the same for.
            answer: of a domain that is unmanaged, or can be read.
            now: seconds on any clock that never goes back.
        """
        self.age(now)
        if isinstance(answer, Absent):
            self._young.unmanaged.add(address.domain)
            self._young.octets += _OF_DOMAIN
        elif isinstance(answer, Found) and (size := _size(answer)) <= MAX_ANSWER:
            answers = self._young.answers.get(address.domain)
            if answers is None:
                answers = self._young.answers[address.domain] = {}
                self._young.octets += _OF_DOMAIN
            answers[local_key(address.local)] = answer
            self._young.octets += _OF_ANSWER + size

    def put_whole(self, domain: str, whole: Whole, now: float) -> None:
        """Keep all the rules of a domain, which answer for each of its addresses."""
        self.age(now, room=whole.octets)
        self._young.wholes[domain] = whole, now
        self._young.octets += whole.octets

    def has_whole(self, domain: str) -> bool:
        """Whether all the rules of a domain are kept, or all their names."""
        return domain in self._young.wholes or domain in self._old.wholes

    def age(self, now: float, room: int = 0) -> None:
        """Let go of what is too old, or too much when so many octets are to come."""
        if self._young.octets + room > MAX_OCTETS // 2:
            self._old, self._young = self._young, _Half(born=now)
        elif now - self._young.born > MAX_AGE:
            self._old, self._young = self._young, _Half(born=now)
            for domain, (whole, since) in self._old.wholes.items():
                if whole.names and now - since < MAX_AGE_OF_NAMES:
                    self._young.wholes[domain] = whole, since
                    self._young.octets += whole.octets

    def forget(self, domain: str) -> None:
        """Let go of all that is known of a domain."""
        for half in (self._young, self._old):
            half.wholes.pop(domain, None)
            half.answers.pop(domain, None)
            half.unmanaged.discard(domain)

    def clear(self) -> None:
        """Let go of everything."""
        self._young, self._old = _Half(born=self._young.born), _Half()


def _size(answer: Found) -> int:
    parts = (*answer.settings, *answer.settings.values(), *answer.rules, *answer.rules.values())
    return sum(map(sys.getsizeof, parts))
