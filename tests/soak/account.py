"""The account: what was sent, what was answered, what arrived, and whether it adds up.

The rules, for each message and each person that it has to reach:

    accepted for the person at least once             -> at least one copy
    copies beyond one for each accepted transaction   -> only as many as there were transactions
                                                         that came to the final dot and were
                                                         sent again (no answer, or a 4xx)
    nobody that no accepted recipient leads to gets one
    good recipients are never refused for good; bad ones are, with their reply, and never accepted
    while the store cannot have been asked, nothing is said that only the store can know
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from rich.table import Table

from tests.soak.mail import Arrival, Posting, Way, is_as_it_should_be, rewriter
from tests.soak.stream import Attempt


class Problem(StrEnum):
    """What must not be."""

    LOST = "lost"
    TWICE = "duplicate without a reason"
    ASTRAY = "delivered to somebody it was not for"
    ALTERED = "sender, seal or body not as it should be"
    WRONGLY_REFUSED = "wrongly refused"
    WRONGLY_ACCEPTED = "wrongly accepted"
    INVENTED = "decided without the store"
    OPEN = "neither accepted nor refused in the end"
    UPSET = "something that the scene says"


@dataclass(frozen=True)
class Entry:
    """One problem, with the number of its message (0: of none)."""

    problem: Problem
    number: int
    text: str

    def __str__(self) -> str:
        message = f"message {self.number}: " if self.number else ""
        return f"{self.problem}: {message}{self.text}"


@dataclass
class Row:
    """The sums of one kind of message; recipients and copies, except where it says messages."""

    messages: int = 0
    recipients: int = 0
    accepted: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    retried: int = 0
    arrived: int = 0
    explained: int = 0
    problems: int = 0

    def add(self, other: Row) -> None:
        """Add the sums of another row to these."""
        self.refused.update(other.refused)
        for name in ("messages", "recipients", "accepted", "retried", "arrived", "explained",
                     "problems"):  # fmt: skip
            setattr(self, name, getattr(self, name) + getattr(other, name))


class Account:
    """Settles the books of a run.

    Args:
        postings: the messages by number.
        attempts: all transactions.
        arrivals: all copies that the world got.
        blind: (from, until) in monotonic seconds: the store could not answer in between.
        others: further problems, in words.
    """

    def __init__(
        self,
        postings: Mapping[int, Posting],
        attempts: Iterable[Attempt],
        arrivals: Iterable[Arrival],
        blind: Sequence[tuple[float, float]] = (),
        others: Sequence[str] = (),
    ) -> None:
        self._blind = blind
        self._undo = rewriter()
        self.entries = [Entry(Problem.UPSET, 0, text) for text in others]
        self.rows: defaultdict[str, Row] = defaultdict(Row)
        self.deferrals: Counter[str] = Counter()
        by_number: defaultdict[int, list[Attempt]] = defaultdict(list)
        copies: defaultdict[int, list[Arrival]] = defaultdict(list)
        for attempt in attempts:
            by_number[attempt.number].append(attempt)
            self.deferrals.update(attempt.deferrals)
        for copy in arrivals:
            if copy.number is None or copy.number not in postings:
                self._book(Problem.ASTRAY, 0, f"{copy.recipient} got mail that nobody sent")
            else:
                copies[copy.number].append(copy)
        for number, posting in postings.items():
            self._settle(posting, by_number[number], copies[number])

    @property
    def balances(self) -> bool:
        """Whether all is as it has to be."""
        return not self.entries

    @property
    def total(self) -> Row:
        """The sums over all kinds."""
        total = Row()
        for row in self.rows.values():
            total.add(row)
        return total

    def count(self, problem: Problem) -> int:
        """How often there is that problem."""
        return sum(1 for entry in self.entries if entry.problem is problem)

    def _settle(
        self, posting: Posting, attempts: Sequence[Attempt], copies: Sequence[Arrival]
    ) -> None:
        before = len(self.entries)
        row = self.rows[posting.kind]
        row.messages += 1
        row.retried += max(len(attempts) - 1, 0)
        row.arrived += len(copies)
        self._settle_answers(posting, attempts, row)
        row.explained += self._settle_copies(posting, attempts, copies)
        row.problems += len(self.entries) - before

    def _settle_answers(self, posting: Posting, attempts: Sequence[Attempt], row: Row) -> None:
        accepted = {recipient for attempt in attempts for recipient in attempt.accepted}
        refused = {r: reply for attempt in attempts for r, reply in attempt.refused.items()}
        for recipient, fate in posting.fates.items():
            row.recipients += 1
            row.accepted += recipient in accepted
            reply = refused.get(recipient)
            said = f"{recipient}: {reply}"
            if reply is not None:
                row.refused[str(reply)[:9]] += 1
                if not fate.refusal or not str(reply).startswith(fate.refusal):
                    self._book(Problem.WRONGLY_REFUSED, posting.number, said)
            elif recipient not in accepted:
                self._book(Problem.OPEN, posting.number, recipient)
            if recipient in accepted and fate.refusal:
                self._book(Problem.WRONGLY_ACCEPTED, posting.number, recipient)
        for attempt in attempts:
            self._look_for_inventions(posting, attempt)

    def _look_for_inventions(self, posting: Posting, attempt: Attempt) -> None:
        """No answer to a question asked and answered while there was nobody to ask."""
        for recipient, answer in attempt.answers.items():
            knows = answer.reply.ok or answer.reply.code >= 500
            blind = any(a < answer.asked and answer.answered < b for a, b in self._blind)
            if knows and blind and posting.needs_store(recipient):
                said = f"{recipient}: {answer.reply}"
                self._book(Problem.INVENTED, posting.number, said)

    def _settle_copies(
        self, posting: Posting, attempts: Sequence[Attempt], copies: Sequence[Arrival]
    ) -> int:
        """Compare who got copies with who has to; how many copies more than one were explained."""
        certain = _transactions_for(posting, (attempt.accepted for attempt in attempts))
        possible = _transactions_for(posting, (attempt.uncertain for attempt in attempts))
        ways = {p: way for fate in posting.fates.values() for p, way in fate.reaches.items()}
        got = Counter(copy.recipient for copy in copies)
        explained = 0
        for person in {*certain, *got}:
            most = certain[person] + possible[person]
            if certain[person] and not got[person]:
                self._book(Problem.LOST, posting.number, f"{person} got nothing")
            elif not most:
                self._book(Problem.ASTRAY, posting.number, f"{person} got it")
            elif got[person] > most:
                said = f"{person} got {got[person]} copies, {most} can be explained"
                self._book(Problem.TWICE, posting.number, said)
            explained += min(got[person], most) - 1 if got[person] > 1 else 0
        for copy in copies:
            self._look_at(copy, posting, ways)
        return explained

    def _look_at(self, copy: Arrival, posting: Posting, ways: Mapping[str, Way]) -> None:
        way = ways.get(copy.recipient)
        if way and not is_as_it_should_be(copy, posting, way, self._undo):
            said = f"{copy.recipient} from <{copy.sender}>, ARC sets: {copy.seals}"
            self._book(Problem.ALTERED, posting.number, f"{said}, whole: {copy.whole}")

    def _book(self, problem: Problem, number: int, text: str) -> None:
        self.entries.append(Entry(problem, number, text))


def _transactions_for(posting: Posting, groups: Iterable[Iterable[str]]) -> Counter[str]:
    """Person -> in how many of the transactions a recipient leads there."""
    found: Counter[str] = Counter()
    for recipients in groups:
        found.update({person for r in recipients for person in posting.fates[r].reaches})
    return found


def tables(account: Account) -> list[Table]:
    """The account, for people."""
    shown = Table(title="The account", title_justify="left")
    for heading in ("kind", "messages", "sent again", "recipients", "accepted", "refused",
                    "copies arrived", "again, explained", "problems"):  # fmt: skip
        shown.add_column(heading, justify="left" if heading in ("kind", "refused") else "right")
    for kind, row in sorted(account.rows.items()):
        shown.add_row(*_cells(kind, row))
    shown.add_section()
    shown.add_row(*_cells("all", account.total))
    problems = Counter({problem.value: account.count(problem) for problem in Problem})
    return [
        shown,
        _counted("Answers that made clients try again", account.deferrals),
        _counted("Problems", problems),
    ]


def _cells(kind: str, row: Row) -> list[str]:
    refused = ", ".join(f"{reply}: {times}" for reply, times in sorted(row.refused.items()))
    numbers = (row.messages, row.retried, row.recipients, row.accepted)
    ends = (row.arrived, row.explained, row.problems)
    return [kind, *map(str, numbers), refused, *map(str, ends)]


def _counted(title: str, counts: Counter[str]) -> Table:
    shown = Table("what", "times", title=title, title_justify="left")
    for what, times in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        shown.add_row(what, str(times))
    return shown
