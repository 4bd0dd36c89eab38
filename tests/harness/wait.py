"""Waiting for conditions instead of sleeping for a guess."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

POLL_SECONDS = 0.01


class LabError(RuntimeError):
    """A part of the test lab did not do what it should."""


class LabTimeoutError(LabError):
    """A condition did not come true in time."""


def wait_until(
    condition: Callable[[], T],
    what: str,
    timeout: float = 10.0,
    detail: Callable[[], str] | None = None,
) -> T:
    """Poll `condition` until it is true, and return its value.

    Args:
        condition: asked again and again; what it raises goes to the caller.
        what: what is waited for, for the error message.
        timeout: seconds.
        detail: called on failure; its text (a log, say) ends the error message.

    Raises:
        LabTimeoutError: the condition did not come true in time.
    """
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            break
        time.sleep(POLL_SECONDS)
    more = f"\n{detail()}" if detail else ""
    raise LabTimeoutError(f"waited {timeout:g} s in vain: {what}{more}")
