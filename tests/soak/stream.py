"""Clients that send the messages, and try again as a mail server does."""

from __future__ import annotations

import heapq
import random
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Self

from tests.harness.smtp import CLOSED, Client, Reply, dot_stuffed
from tests.harness.wait import wait_until
from tests.soak.mail import Composer, Posting

REPLY_TIMEOUT = 60.0  # seconds; Postfix itself waits 30 s for a milter
MAX_OPEN = 150  # messages; no more are made while so many wait
PAUSES = (0.0, 0.0, 0.0, 0.05, 0.5)  # seconds before DATA: a fault may fall into it
IMPATIENT = 40  # one transaction in so many, whose client hangs up before the last answer


@dataclass(frozen=True)
class Answer:
    """A reply to RCPT; between `asked` and `answered` (monotonic seconds) it was decided."""

    reply: Reply
    asked: float
    answered: float


@dataclass
class Attempt:
    """One transaction.

    Attributes:
        number: of the message.
        answers: to each RCPT that was tried.
        data: after the final dot; None when it did not come to that.
        trouble: what went wrong apart from those: the reply to MAIL, a lost connection.
    """

    number: int
    answers: dict[str, Answer] = field(default_factory=dict)
    data: Reply | None = None
    trouble: str = ""

    @property
    def taken(self) -> list[str]:
        """The recipients for whom the server took the message at RCPT."""
        return [recipient for recipient, a in self.answers.items() if a.reply.ok]

    @property
    def accepted(self) -> list[str]:
        """Those for whom it took the responsibility."""
        return self.taken if self.data is not None and self.data.ok else []

    @property
    def uncertain(self) -> list[str]:
        """Those for whom the message was sent to its end, and will be sent again.

        They may get it twice: the client cannot know what became of it.
        """
        if self.data is None or self.data.ok or self.data.code >= 500:
            return []
        return self.taken

    @property
    def refused(self) -> dict[str, Reply]:
        """Those that were refused for good, and how."""
        found = {r: a.reply for r, a in self.answers.items() if a.reply.code >= 500}
        if self.data is not None and self.data.code >= 500:
            found |= dict.fromkeys(self.taken, self.data)
        return found

    @property
    def deferrals(self) -> list[str]:
        """What made the client try again: replies, "no answer", or the trouble."""
        replies = [("RCPT", a.reply) for a in self.answers.values()]
        replies += [("final dot", self.data)] if self.data is not None else []
        found = [f"{at}: {_short(reply)}" for at, reply in replies
                 if reply.code < 500 and not reply.ok]  # fmt: skip
        return found + ([self.trouble] if self.trouble else [])


class Stream:
    """A steady stream of messages from several clients at once, as a context manager.

    Args:
        port: of the server.
        composer: makes the messages.
        before: told of each message before it is first sent.
        rate: new messages a second.
        clients: how many send at a time.
        seed: of the pauses.
    """

    def __init__(
        self,
        port: int,
        composer: Composer,
        before: Callable[[Posting], None],
        *,
        rate: float,
        clients: int,
        seed: int,
    ) -> None:
        self.port = port
        self.postings: dict[int, Posting] = {}
        self.attempts: list[Attempt] = []
        self._composer = composer
        self._before = before
        self._rate = rate
        self._random = random.Random(seed)
        self._due: list[tuple[float, int, tuple[str, ...], int]] = []
        self._open: set[int] = set()
        self._changed = threading.Condition()
        self._making = self._sending = True
        self._threads = [threading.Thread(target=self._make, daemon=True)]
        self._threads += [threading.Thread(target=self._send, daemon=True) for _ in range(clients)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._making = self._sending = False
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(2 * REPLY_TIMEOUT)

    def accepted_since(self, moment: float) -> bool:
        """Whether a recipient in a managed domain, asked about since then, has been accepted."""
        with self._changed:
            recent = self.attempts[-200:]
        return any(
            attempt.answers[recipient].asked > moment
            and self.postings[attempt.number].needs_store(recipient)
            for attempt in recent
            for recipient in attempt.accepted
        )

    @property
    def open(self) -> set[int]:
        """The numbers of the messages that are not done with."""
        with self._changed:
            return set(self._open)

    def finish(self, timeout: float) -> bool:
        """Make no more messages; wait until each has been accepted or refused for good.

        Returns:
            False when some still are not after `timeout` seconds.
        """
        with self._changed:
            self._making = False
            self._changed.notify_all()
            return self._changed.wait_for(lambda: not self._open, timeout)

    def wait_for_attempts(self, count: int, timeout: float) -> None:
        """Wait until so many more transactions are over. Raises LabTimeoutError."""
        wanted = len(self.attempts) + count
        wait_until(lambda: len(self.attempts) >= wanted, f"{count} transactions", timeout)

    def _make(self) -> None:
        """Until told to stop: one message after the other."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: not self._making, 1 / self._rate)
                if not self._making:
                    return
                if len(self._open) >= MAX_OPEN:
                    continue
                posting = self._composer.next()
                self._before(posting)
                self.postings[posting.number] = posting
                self._open.add(posting.number)
                self._enqueue(0.0, posting.number, tuple(posting.fates), 0)

    def _enqueue(self, delay: float, number: int, recipients: tuple[str, ...], tries: int) -> None:
        heapq.heappush(self._due, (time.monotonic() + delay, number, recipients, tries))
        self._changed.notify()

    def _send(self) -> None:
        """One client: until told to stop, what is due."""
        connection = _Connection(self.port)
        while task := self._next():
            number, recipients, tries = task
            pause, impatient = self._manners()
            attempt = connection.attempt(self.postings[number], recipients, pause, impatient)
            self._record(attempt, recipients, tries)
        connection.close()

    def _next(self) -> tuple[int, tuple[str, ...], int] | None:
        with self._changed:
            while self._sending:
                wait = self._due[0][0] - time.monotonic() if self._due else 1.0
                if wait <= 0:
                    return heapq.heappop(self._due)[1:]
                self._changed.wait(wait)
        return None

    def _manners(self) -> tuple[float, bool]:
        """How long the client waits before DATA, and whether it leaves before the answer."""
        with self._changed:
            return self._random.choice(PAUSES), not self._random.randrange(IMPATIENT)

    def _record(self, attempt: Attempt, recipients: tuple[str, ...], tries: int) -> None:
        done = {*attempt.accepted, *attempt.refused}
        left = tuple(recipient for recipient in recipients if recipient not in done)
        with self._changed:
            self.attempts.append(attempt)
            if left:
                delay = min(0.3 * 1.5**tries, 3.0) * (1 + self._random.random())
                self._enqueue(delay, attempt.number, left, tries + 1)
            else:
                self._open.discard(attempt.number)
            self._changed.notify_all()


class _Connection:
    """What one client says, over one connection as long as all goes well on it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._client: Client | None = None
        self._used = 0

    def attempt(
        self, posting: Posting, recipients: tuple[str, ...], pause: float, impatient: bool
    ) -> Attempt:
        """One transaction; after `pause` seconds DATA; an impatient client sees no answer to it."""
        attempt = Attempt(posting.number)
        try:
            client = self._connected()
            if self._talk(client, posting, recipients, attempt):
                time.sleep(pause)
                self._send_content(client, posting, attempt, impatient)
        except OSError as error:
            attempt.trouble = attempt.trouble or type(error).__name__
        self._used += 1
        if attempt.deferrals or self._used > posting.number % 5:
            self.close(polite=attempt.data != CLOSED)
        return attempt

    def close(self, *, polite: bool = True) -> None:
        """End the connection; politely means with QUIT."""
        if self._client is not None:
            with suppress(OSError):
                if polite:
                    self._client.command("QUIT")
                self._client.close()
        self._client, self._used = None, 0

    def _connected(self) -> Client:
        if self._client is None:
            self._client = Client(self._port, timeout=REPLY_TIMEOUT)
        return self._client

    @staticmethod
    def _talk(
        client: Client, posting: Posting, recipients: tuple[str, ...], attempt: Attempt
    ) -> bool:
        """MAIL and RCPT; whether anybody was accepted."""
        mail = client.command(f"MAIL FROM:<{posting.sender}>")
        if not mail.ok:
            attempt.trouble = f"MAIL: {_short(mail)}"
            return False
        for recipient in recipients:
            asked = time.monotonic()
            reply = client.command(f"RCPT TO:<{recipient}>")
            attempt.answers[recipient] = Answer(reply, asked, time.monotonic())
        if not attempt.taken:
            client.command("RSET")
        return bool(attempt.taken)

    @staticmethod
    def _send_content(client: Client, posting: Posting, attempt: Attempt, impatient: bool) -> None:
        go_on = client.command("DATA")
        if go_on.code != 354:
            attempt.trouble = f"DATA: {_short(go_on)}"
            return
        attempt.data = CLOSED  # from here on the server may have it, whatever we hear
        client.write(dot_stuffed(posting.content))
        if not impatient:
            attempt.data = client.reply()


def _short(reply: Reply) -> str:
    """The codes of a reply."""
    if reply == CLOSED:
        return "no answer"
    enhanced = reply.text.split(" ", 1)[0]
    return f"{reply.code} {enhanced}"


def codes(attempt: Attempt) -> Mapping[str, str]:
    """What each recipient was told, for the journal."""
    return {r: _short(answer.reply) for r, answer in attempt.answers.items()}
