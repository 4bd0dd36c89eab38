"""What a process of the daemon does once it is forked: serve, and leave in good order.

A worker leaves when it is told to, or when its supervisor is gone: it takes no further
connections, lets those it has come to their end (LEAVE), or at least the messages that are coming
in (FINISH), and ends; after `[milter] drain` seconds in any case.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from enum import Enum

import Milter

from aliasmilter import log
from aliasmilter.mta import monitor, socketmap
from aliasmilter.mta.activity import Activity
from aliasmilter.mta.assembly import Loaded, make_decider, make_service
from aliasmilter.mta.filter import register
from aliasmilter.mta.listener import BACKLOG, Listener
from aliasmilter.mta.service import Service
from aliasmilter.store.redis import AliasStore

# libmilter waits for the rest of a command in a thread that others may need. In between commands
# a session may be silent for as long as its client is.
COMMAND_TIMEOUT = 10  # seconds
COUNTING = 1.0  # seconds that what was counted last may take to be written
SETTLE = 0.25  # seconds for an answer to be sent, and for a new connection to be negotiated

LEAVE, FINISH = signal.SIGUSR1, signal.SIGUSR2
WAKE = signal.SIGURG  # which nobody sends: it only ends the system call that a thread is in
_ENDS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, LEAVE, FINISH}

heartbeat = monitor.Heartbeat()
"""Of the supervisor; its children inherit the memory."""


class Role(Enum):
    """What a worker serves."""

    MILTER = "milter"
    SOCKETMAP = "socketmap"
    METRICS = "metrics"


Listeners = Mapping[Role, Listener]
"""The sockets of the daemon; a worker has only its own open."""


def serve_milter(loaded: Loaded, listeners: Listeners, lifeline: int) -> None:
    """Be a milter worker, until told to leave.

    The caller has SIGTERM, SIGINT and SIGHUP blocked, and so has every thread started here:
    libmilter waits for them in a thread of its own, and a thread that took one would kill us.
    """
    activity, drain = Activity(), loaded.config.milter.drain
    listener = listeners[Role.MILTER]
    _watch(lifeline)
    store = AliasStore(
        loaded.config.store.url, loaded.config.store.timeout, cached=loaded.config.store.cache
    )
    threading.Thread(target=store.learn, daemon=True).start()
    service = make_service(loaded, store)
    signal.signal(WAKE, lambda *_: None)
    leaving = (activity, listener, drain, service)
    threading.Thread(target=_leave, args=leaving, daemon=True).start()
    register(service, activity)
    Milter.setbacklog(BACKLOG)
    Milter.settimeout(COMMAND_TIMEOUT)
    # Debian's libmilter takes over a descriptor; others call this an unknown protocol.
    Milter.setconn(f"fd:{listener.descriptor}")
    Milter.opensocket(False)
    Milter.main()
    # Somebody else than the supervisor has sent SIGTERM. libmilter waits five seconds at most; a
    # message that is being decided may take longer.
    if not activity.wait_until(lambda now: not now.callbacks, drain):
        log.get().error("worker stops with callbacks unfinished", pid=os.getpid())


def _leave(activity: Activity, listener: Listener, drain: float, service: Service) -> None:
    """Wait to be told to leave, then let what has begun come to its end, and end the process."""
    told = signal.sigwait({LEAVE, FINISH})
    listener.stop_accepting()
    # libmilter's poll() holds the socket that it was called with, and looks again after five
    # seconds: until then whoever connects would wait for nobody.
    signal.pthread_kill(threading.main_thread().ident or 0, WAKE)
    _let_end(activity, told, drain)
    if activity.transactions:
        left = activity.transactions
        log.get().error("worker leaves messages unfinished", pid=os.getpid(), transactions=left)
    if service.journal:
        service.journal.written(COUNTING)
    # Not by way of libmilter, which looks every five seconds whether it is to stop.
    os._exit(0)


def _let_end(activity: Activity, told: int, drain: float) -> None:
    """Wait until what may go on has come to its end: all sessions, or with FINISH all messages."""
    deadline = time.monotonic() + drain
    quiet = 0
    while quiet < 2 and time.monotonic() < deadline:
        again = signal.sigtimedwait({LEAVE, FINISH}, SETTLE)
        # Only what was sent: see _next_signal in server.py.
        told = FINISH if again and again.si_signo == FINISH else told
        busy = activity.transactions if told == FINISH else activity.sessions
        quiet = 0 if busy else quiet + 1


def serve_maps(loaded: Loaded, listeners: Listeners, lifeline: int) -> None:
    """Be the socketmap worker, until told to leave.

    Its connections may come to their end, as those of a milter worker: Postfix would connect
    again, but Sendmail goes on with the one that it has, and every lookup for the rest of that
    session would fail.
    """
    activity, listener = Activity(), listeners[Role.SOCKETMAP]
    _watch(lifeline)
    store = AliasStore(loaded.config.store.url, loaded.config.store.timeout)
    threading.Thread(target=store.learn, daemon=True).start()
    # "Not found" makes the MTA refuse for good, so it has to be true now.
    maps = socketmap.Maps(make_decider(loaded, store.lookups_now))
    server = socketmap.Server(listener.socket, maps, activity)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    told = signal.sigwait(_ENDS)
    server.shutdown()
    listener.close()
    if told == LEAVE:
        _let_end(activity, told, loaded.config.milter.drain)


def serve_metrics(loaded: Loaded, listeners: Listeners, lifeline: int) -> None:
    """Be the process that monitoring asks, until told to leave."""
    _watch(lifeline)
    config = loaded.config
    store = AliasStore(config.store.url, config.store.timeout)
    # The one that is open: a reload may have read of another, which takes a restart.
    pages = monitor.Monitor(heartbeat, listeners[Role.MILTER].name, store.ping)
    server = monitor.Server(listeners[Role.METRICS].socket, pages)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    signal.sigwait(_ENDS)
    server.shutdown()


WORK: dict[Role, Callable[[Loaded, Listeners, int], None]] = {
    Role.MILTER: serve_milter,
    Role.SOCKETMAP: serve_maps,
    Role.METRICS: serve_metrics,
}
"""What serves each role, until it is told to leave."""


def _watch(lifeline: int) -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    threading.Thread(target=_end_with_supervisor, args=(lifeline,), daemon=True).start()


def _end_with_supervisor(lifeline: int) -> None:
    os.read(lifeline, 1)  # returns when the supervisor's end is closed, however it ended
    os.kill(os.getpid(), FINISH)
