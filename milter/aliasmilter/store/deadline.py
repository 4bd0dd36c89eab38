"""The time there is for a lookup, and the ways in which it can fail.

    Unavailable                what the rest of the program knows
      LateError                the deadline has passed
      BrokenLinkError          no connection, or none any more: another one may do
      GarbledError             the server does not speak Redis, or answers another question
      RefusedError             the server answered with an error

All of these are answers for the sender to keep the mail: 451.
"""

import time

from aliasmilter.routing.lookup import Unavailable


class LateError(Unavailable):
    """No answer within the time limit."""


class BrokenLinkError(Unavailable):
    """There is no connection, or it has ended."""


class GarbledError(Unavailable):
    """What came is no answer to what was asked."""


class RefusedError(Unavailable):
    """The server answered with an error; the message is its."""


class Deadline:
    """A point in time by which everything must be done.

    Args:
        limit: seconds from now.
    """

    __slots__ = ("_end", "limit")

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._end = time.monotonic() + limit

    @property
    def left(self) -> float:
        """Seconds that are left, more than none.

        Raises:
            LateError: none are.
        """
        left = self._end - time.monotonic()
        if left <= 0:
            raise LateError(f"Redis: no answer within {self.limit:g} s")
        return left

    def share(self, of: int) -> "Deadline":
        """An earlier deadline, for one of several attempts that are still possible."""
        part = Deadline(self.left / of)
        part.limit = self.limit if of == 1 else part.limit
        return part
