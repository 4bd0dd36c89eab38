"""Threads that nobody's mail depends on."""

import threading
from collections.abc import Callable
from typing import Any


def started(
    target: Callable[..., None],
    name: str,
    *arguments: Any,  # noqa: ANN401  # whatever the target takes
) -> threading.Thread | None:
    """A thread that runs, and does not keep the process alive.

    Returns:
        None when the system has no thread left: whoever needs it next is to try again.
    """
    thread = threading.Thread(target=target, args=arguments, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError:
        return None
    return thread
