"""The real daemon with a mistake put into it from outside, to see what it does about mistakes."""

from __future__ import annotations

from collections.abc import Mapping

from tests.harness.daemon import Config, Daemon

# Raises for whoever has "boom" in the argument of the callback, in any of them.
RAISES = """
from aliasmilter.mta.session import Session

def trapped(name):
    method = getattr(Session, name)
    def wrapper(self, *arguments, **options):
        if any("boom-" + name in str(argument) for argument in arguments):
            raise RuntimeError("boom\\nQUEUEID: accepted \\x1b[2J \\u202e")
        return method(self, *arguments, **options)
    setattr(Session, name, wrapper)

for name in ("connected", "helo", "mail", "rcpt", "header", "body", "end_of_message"):
    trapped(name)
"""

# The end of a message waits until there is a file "go" beside this one.
WAITS = """
import pathlib, time
from aliasmilter.mta.session import Session

folder = pathlib.Path(__file__).parent
end_of_message = Session.end_of_message

def wrapper(self, queue_id):
    (folder / "waiting").touch()
    while not (folder / "go").exists():
        time.sleep(0.01)
    return end_of_message(self, queue_id)

Session.end_of_message = wrapper
"""

# While there is a file "boom" beside this one, RCPT raises where nobody catches it, and standard
# error is full.
ESCAPES = """
import os, pathlib
from aliasmilter.mta.filter import Filter
from aliasmilter.mta.session import Session

folder = pathlib.Path(__file__).parent
rcpt = Session.rcpt

def wrapper(self, *arguments):
    if not (folder / "boom").exists():
        return rcpt(self, *arguments)
    os.dup2(os.open("/dev/full", os.O_WRONLY), 2)
    raise RuntimeError("boom")

def failed(self, where, error):
    raise error

Session.rcpt, Filter.failed = wrapper, failed
"""

# The end of a session raises, where nobody catches it.
RAISES_AT_THE_END = """
from aliasmilter.mta.filter import Filter

def closed(self):
    raise RuntimeError("boom\\nQUEUEID: accepted")

Filter.closed = closed
"""

# The file "live" beside this one holds the number of sessions that are in memory.
COUNTS_SESSIONS = """
import gc, pathlib, weakref
from aliasmilter.mta.filter import Filter

live = weakref.WeakSet()
begin, helo = Filter.__init__, Filter.helo

def counted(self, *arguments):
    begin(self, *arguments)
    live.add(self)

def telling(self, name):
    gc.collect()
    (pathlib.Path(__file__).parent / "live").write_text(str(len(live)))
    return helo(self, name)

Filter.__init__, Filter.helo = counted, telling
"""

# Every worker that serves an MTA ends as soon as it is born.
BORN_DEAD = """
import os
from aliasmilter.mta.worker import WORK, Role

WORK[Role.MILTER] = lambda *_: os._exit(1)
"""

# While there is a file "full" beside this one, there is no process left.
NO_FORK = """
import errno, os, pathlib

folder = pathlib.Path(__file__).parent
real = os.fork

def fork():
    if (folder / "full").exists():
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
    return real()

os.fork = fork
"""


class ShimmedDaemon(Daemon):
    """A daemon that runs some code of the test's before its own.

    Args:
        store_url: the Redis server.
        shim: Python code.
        config: settings by section.
    """

    def __init__(self, store_url: str, shim: str, config: Config | None = None) -> None:
        super().__init__(store_url, config, files={"sitecustomize.py": shim})

    def environment(self) -> Mapping[str, str]:
        """The environment, in which Python finds the shim first."""
        environment = dict(super().environment())
        environment["PYTHONPATH"] = f"{self.folder}:{environment['PYTHONPATH']}"
        return environment
