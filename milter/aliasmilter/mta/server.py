"""The daemon: a supervisor and its workers, all on one listening socket.

The supervisor opens the socket, forks the workers, replaces one that dies, and stops them all.
It has no threads, so that forking is safe, and waits for signals in one place.
What the workers do, and how they leave, is in `worker`.
"""

import gc
import itertools
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from aliasmilter import log, metrics
from aliasmilter.config import Config, ConfigError
from aliasmilter.mta.assembly import Loaded, load
from aliasmilter.mta.listener import Listener
from aliasmilter.mta.manager import Status, Watchdog, notify
from aliasmilter.mta.worker import FINISH, LEAVE, WORK, Role, heartbeat

KILL_AFTER = 10.0  # seconds that a worker may take beyond [milter] drain to end
RESPAWN_DELAY = 1.0  # seconds, after a worker that died as soon as it was born, or never was
_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGALRM}


@dataclass(frozen=True, slots=True)
class Worker:
    """A child process.

    Attributes:
        role: what it serves.
        born: when it was forked, in monotonic seconds.
        core: the one that it stays on; None: the system decides.
    """

    role: Role
    born: float
    core: int | None = None

    @property
    def is_newborn(self) -> bool:
        """Whether it may still be one of those that die as soon as they are born."""
        return time.monotonic() - self.born < RESPAWN_DELAY


def run(path: Path) -> int:
    """Serve until SIGTERM or SIGINT; the exit status.

    Raises:
        ConfigError: the configuration cannot be used.
        ListenerError: the socket cannot be opened.
    """
    loaded = load(path)
    log.set_up(loaded.config.log.format, loaded.config.log.level)
    listeners = open_listeners(loaded.config)
    if Role.METRICS in listeners:
        metrics.start()
    return Supervisor(path, loaded, listeners).run()


def open_listeners(config: Config) -> dict[Role, Listener]:
    """The sockets that are served, by who serves them.

    Raises:
        ListenerError: one cannot be opened.
    """
    listeners = {Role.MILTER: Listener(config.milter.socket, config.milter)}
    if config.socketmap.listen:
        listeners[Role.SOCKETMAP] = Listener(config.socketmap.listen, config.milter)
    if config.metrics.listen:
        listeners[Role.METRICS] = Listener(config.metrics.endpoint, config.milter)
    return listeners


@dataclass(slots=True)
class Supervisor:
    """Keeps the workers running.

    Attributes:
        path: the configuration file, read again on SIGHUP.
        loaded: what is in force.
        listeners: the sockets, open until the daemon is to stop.
        workers: by pid.
    """

    path: Path
    loaded: Loaded
    listeners: Mapping[Role, Listener]
    workers: dict[int, Worker] = field(default_factory=dict)
    _outdated: dict[int, Worker] = field(default_factory=dict)  # serve until there are new ones
    _leaving: dict[int, Worker] = field(default_factory=dict)
    _respawn_at: float = 0.0
    _lifeline: tuple[int, int] = field(default_factory=os.pipe)
    _slots: dict[int, int] = field(default_factory=dict)  # by pid; see metrics.py
    _watchdog: Watchdog = field(default_factory=Watchdog)
    _status: Status = field(default_factory=Status)
    _problem: str = ""  # with the configuration on the disk

    def run(self) -> int:
        """Serve until told to stop; the exit status."""
        # The workers inherit this: a signal that comes early waits for them.
        signal.pthread_sigmask(signal.SIG_BLOCK, {*_SIGNALS, LEAVE, FINISH})
        logger = log.get()
        self._fill()
        notify("READY=1")
        self._report()
        sockets = [listener.name for listener in self.listeners.values()]
        logger.info("ready", sockets=sockets, workers=len(self.workers), pid=os.getpid())
        while True:
            received = _next_signal(0.5)
            if received in (signal.SIGTERM, signal.SIGINT):
                break
            if received == signal.SIGHUP:
                self._reload()
            self._reap()
            self._fill()
            self._report()
        notify("STOPPING=1")
        logger.info("stopping", workers=len(self.workers))
        self._stop()
        metrics.stop()
        logger.info("stopped")
        return 0

    def _missing(self) -> list[Role]:
        milters = self.loaded.config.milter.workers or len(_cores())
        wanted = {Role.MILTER: milters, Role.SOCKETMAP: 1, Role.METRICS: 1}
        running = Counter(worker.role for worker in self.workers.values())
        return [role for role in self.listeners for _ in range(wanted[role] - running[role])]

    def _fill(self) -> None:
        """Fork the workers that are missing; slowly when they die at once, or cannot be forked."""
        if time.monotonic() < self._respawn_at:
            return
        for role in self._missing():
            try:
                self._fork(role)
            except OSError as error:  # no process left, or no memory for one
                self._respawn_at = time.monotonic() + RESPAWN_DELAY
                log.get().error("worker not started", role=role.value, problem=str(error))
                return
        self._dismiss()

    def _fork(self, role: Role) -> None:
        slot = next(n for n in itertools.count() if n not in self._slots.values())
        # What is here now is here for good: the worker need not look at it again, nor copy
        # its pages by writing marks into them.
        gc.freeze()
        worker = Worker(role, time.monotonic(), self._core_for(role))
        pid = os.fork()
        if pid == 0:
            self._work(worker, slot)
        self.workers[pid] = worker
        self._slots[pid] = slot
        metrics.workers_started.inc(role.value)

    def _dismiss(self) -> None:
        """Tell those who work by an old configuration to leave: there are others now."""
        for pid in self._outdated:
            os.kill(pid, LEAVE)
        self._leaving.update(self._outdated)
        self._outdated.clear()

    def _core_for(self, role: Role) -> int | None:
        """The core that a new worker stays on, if it is to stay on one: the one with the fewest.

        Only one thread of a worker runs Python at a time. On several cores its threads wake each
        other up for a lock that is taken again before they come; on one, each works until it
        waits. With fewer workers than cores that would leave a core idle.
        """
        settings, cores = self.loaded.config.milter, _cores()
        if role is not Role.MILTER or not settings.pin_workers:
            return None
        if 0 < settings.workers < len(cores):
            return None
        taken = Counter(worker.core for worker in self.workers.values())
        return min(cores, key=lambda core: taken[core])

    def _report(self) -> None:
        """Say how we are: to the service manager, and to monitoring."""
        heartbeat.beat()
        working = (*self.workers.values(), *self._outdated.values())
        serving = Counter(worker.role for worker in working)
        for role in Role:
            metrics.workers.set(serving[role], role.value)
        # Where all die at once there are some right after each attempt.
        if any(worker.role is Role.MILTER and not worker.is_newborn for worker in working):
            self._watchdog.ping()
        missing = len(self._missing())
        status = f"{len(self.workers)} of {len(self.workers) + missing} processes serve"
        if self._outdated:
            status += f", and {len(self._outdated)} by the old configuration"
        self._status.tell(f"{status}; not reloaded: {self._problem}" if self._problem else status)

    def _work(self, worker: Worker, slot: int) -> None:
        """In the child: never returns."""
        try:
            os.close(self._lifeline[1])
            metrics.enter(slot)
            for role, listener in self.listeners.items():
                if role is not worker.role:
                    # Who takes a while to leave must not keep the sockets of the others.
                    listener.close()
            _stay_on(worker.core)
            WORK[worker.role](self.loaded, self.listeners, self._lifeline[0])
        except BaseException:  # noqa: BLE001  # the child must not run on in the supervisor's code
            log.get().exception("worker failed", pid=os.getpid())
            os._exit(1)
        os._exit(0)

    def _reap(self) -> None:
        """Take note of workers that have ended."""
        for pid, status in _ended():
            metrics.leave(self._slots.pop(pid, -1))
            worker = self.workers.pop(pid, None) or self._outdated.pop(pid, None)
            if worker is None:
                self._leaving.pop(pid, None)
                continue
            log.get().error("worker died", pid=pid, status=os.waitstatus_to_exitcode(status))
            metrics.workers_died.inc(worker.role.value)
            if worker.is_newborn:
                self._respawn_at = time.monotonic() + RESPAWN_DELAY

    def _reload(self) -> None:
        """Take a new configuration: all of it, or, when anything is wrong, nothing."""
        notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        problems: tuple[str, ...] = ()
        try:
            self._take_over(load(self.path))
        except ConfigError as error:
            problems = error.problems
        self._problem = problems[0] if problems else ""
        for problem in problems:
            log.get().error("not reloaded", problem=problem)
        notify("READY=1")

    def _take_over(self, loaded: Loaded) -> None:
        old, new = self.loaded.config, loaded.config
        sockets = [(each.milter.socket, each.socketmap, each.metrics) for each in (old, new)]
        if sockets[0] != sockets[1]:
            log.get().warning("a new socket needs a restart")
        rights = [(each.milter.socket_mode, each.milter.socket_group) for each in (old, new)]
        if rights[0] != rights[1]:
            log.get().warning("a new socket_mode or socket_group needs a restart")
        self.loaded = loaded
        log.set_up(loaded.config.log.format, loaded.config.log.level)
        self._replace_workers()
        log.get().info("reloaded", workers=len(self.workers))

    def _replace_workers(self) -> None:
        self._outdated.update(self.workers)
        self.workers = {}
        self._fill()

    def _stop(self) -> None:
        """End all workers: politely, and after a while by force."""
        left = {*self.workers, *self._outdated, *self._leaving}
        for pid in left:
            os.kill(pid, FINISH)
        # The workers accept nothing more: whoever connects from now on would wait for nobody.
        for listener in self.listeners.values():
            listener.close()
        deadline = time.monotonic() + self.loaded.config.milter.drain + KILL_AFTER
        while left:
            if time.monotonic() > deadline:
                log.get().error("workers killed", pids=sorted(left))
                for pid in left:
                    os.kill(pid, signal.SIGKILL)
            signal.sigtimedwait({signal.SIGCHLD}, 0.5)
            left -= {pid for pid, _ in _ended()}


def _cores() -> list[int]:
    """The cores that we may use."""
    return sorted(os.sched_getaffinity(0))


def _stay_on(core: int | None) -> None:
    """Have this process, and all threads that it starts, run on one core."""
    if core is None:
        return
    try:
        os.sched_setaffinity(0, {core})
    except OSError as error:  # a sandbox forbids it, or the core was switched off
        log.get().warning("worker runs on any core", pid=os.getpid(), problem=str(error))


def _ended() -> Iterator[tuple[int, int]]:
    """The children that have ended: pid and wait status."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        yield pid, status


def _next_signal(seconds: float) -> int:
    """The next signal; SIGALRM when none came for so long.

    Not sigtimedwait: when SIGSTOP and SIGCONT interrupt it past its time, Python returns a signal
    out of memory that nobody has written to, and that may well be SIGTERM.
    """
    signal.setitimer(signal.ITIMER_REAL, seconds)
    return signal.sigwait(_SIGNALS)
