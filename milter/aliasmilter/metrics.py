"""Counters that all the processes of the daemon share, for Prometheus.

A metric is declared where it is counted, with every value that its labels can have; none of them
is an address or a domain. All series are there from the start, at 0, so that rate() sees the
first event. Until `start` is called, counting does nothing and prometheus_client is not imported.

Each process counts in files of its own, memory-mapped, in a private folder; whoever serves the
metrics adds them up (prometheus_client's multiprocess mode). Three hazards of that are met here:

- Files named by pid would pile up with every worker that is replaced. They are named by a slot
  instead, which the supervisor gives to one living process at a time; the next one counts on.
- A write to a mapped file with no room on its disk ends the process (SIGBUS). So the room is
  taken before, and a process that gets none goes on without metrics.
- After a crash a folder would be left for good. Each is locked for as long as a process of its
  daemon lives; `start` removes those that nobody locks.
"""

import fcntl
import functools
import itertools
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from aliasmilter import __version__, log, logstream

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Metric

P = ParamSpec("P")
T = TypeVar("T")

PREFIX = "alias_milter_"
SUPERVISOR = "supervisor"  # its slot; the workers have numbers
FILE_SIZE = 128 * 1024  # octets; the file of all the counters is far smaller
_FILES = ("counter", "histogram", "gauge_livesum")  # as prometheus_client names them
_FOLDER = "alias-milter-metrics."

_declared: list["_Declared"] = []
_folder: Path | None = None
_slot = SUPERVISOR


class _Declared:
    """A metric and its children, one for each combination of label values; none while off.

    Args:
        name: without the prefix, and for counters without `_total`.
        text: what it counts, for people.
        labels: the names of the labels.
        values: all combinations of their values that there can be.
    """

    def __init__(
        self,
        name: str,
        text: str,
        labels: Sequence[str] = (),
        values: Iterable[tuple[str, ...]] = ((),),
    ) -> None:
        self.name = name
        self.text = text
        self.labels = tuple(labels)
        self.values = tuple(tuple(str(part) for part in value) for value in values)
        self.children: dict[tuple[str, ...], Any] = {}
        _declared.append(self)

    def bind(self) -> None:
        """Make the series; prometheus_client is ready for that."""
        made = self._make()
        self.children = {v: made.labels(*v) if v else made for v in self.values}

    def _make(self) -> Any:  # noqa: ANN401  # Counter, Gauge or Histogram
        raise NotImplementedError

    @property
    def _full_name(self) -> str:
        return PREFIX + self.name


class Counter(_Declared):
    """Something that happens."""

    def inc(self, *labels: str) -> None:
        """It happened once more; labels that were not declared count nowhere."""
        child = self.children.get(labels)
        if child is not None:
            child.inc()

    def _make(self) -> Any:  # noqa: ANN401
        from prometheus_client import Counter as Made  # noqa: PLC0415  # only where it is used

        return Made(self._full_name, self.text, self.labels, registry=None)


class Gauge(_Declared):
    """Something that there is so much of now, in all living processes together."""

    def inc(self, *labels: str, by: float = 1) -> None:
        """There is one more."""
        child = self.children.get(labels)
        if child is not None:
            child.inc(by)

    def dec(self, *labels: str) -> None:
        """There is one less."""
        self.inc(*labels, by=-1)

    def set(self, value: float, *labels: str) -> None:
        """There is so much of it in this process."""
        child = self.children.get(labels)
        if child is not None:
            child.set(value)

    def _make(self) -> Any:  # noqa: ANN401
        from prometheus_client import Gauge as Made  # noqa: PLC0415  # only where it is used

        mode: Any = "livesum"
        return Made(self._full_name, self.text, self.labels, registry=None, multiprocess_mode=mode)


class Histogram(_Declared):
    """How long something takes."""

    buckets = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

    def timed(self, function: Callable[P, T]) -> Callable[P, T]:
        """A decorator: each call is observed, also one that raises."""

        @functools.wraps(function)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
            child = self.children.get(())
            if child is None:
                return function(*args, **kwargs)
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                child.observe(time.perf_counter() - started)

        return wrapper

    def _make(self) -> Any:  # noqa: ANN401
        from prometheus_client import Histogram as Made  # noqa: PLC0415  # only where it is used

        return Made(
            self._full_name, self.text, self.labels, registry=None, buckets=self.buckets
        )


def one_label(values: Iterable[str]) -> list[tuple[str, ...]]:
    """Values of one label, as `values` of a metric."""
    return [(value,) for value in values]


def product(*values: Iterable[str]) -> list[tuple[str, ...]]:
    """Every combination of the values of several labels."""
    return list(itertools.product(*values))


ROLES = ("milter", "socketmap", "metrics")

store_errors = Counter(
    "store_errors",
    "Questions to Redis that got no answer.",
    ["cause"],
    one_label(("timeout", "error")),
)
store_cache_hits = Counter("store_cache_hits", "Lookups answered without asking Redis.")
store_cache_misses = Counter("store_cache_misses", "Lookups for which Redis had to be asked.")
dns_lookups = Counter(
    "dns_lookups",
    "DNS questions, by where the answer came from, or failed when there was none.",
    ["result"],
    one_label(("answered", "cached", "failed")),
)
exceptions = Counter(
    "exceptions",
    "Unexpected exceptions: mistakes in alias-milter. Each has a traceback in the log.",
    ["place"],
    one_label(ROLES),
)
workers = Gauge("workers", "Processes that serve now.", ["role"], one_label(ROLES))
workers_started = Counter(
    "workers_started", "Processes that were started.", ["role"], one_label(ROLES)
)
workers_died = Counter(
    "workers_died", "Processes that ended without being told to.", ["role"], one_label(ROLES)
)
log_lines_lost = Counter("log_lines_lost", "Log lines that could not be written.")


def start() -> Path | None:
    """Begin to count: in the supervisor, before it forks.

    Returns:
        The folder of the files; None when there is no room for them, which the log tells.
    """
    global _folder  # noqa: PLW0603  # one for the process, as prometheus_client has it
    try:
        _folder = _make_folder(_base())
        _take_room(_folder, SUPERVISOR)
        _bind(_folder)
    except Exception:  # noqa: BLE001  # mail is more important than its numbers
        stop()
        _fail()
    logstream.on_loss(log_lines_lost.inc)
    return _folder


def enter(slot: int) -> None:
    """Count in files of this process's own: in a worker, right after it was forked.

    Args:
        slot: that no other living process has.
    """
    global _slot  # noqa: PLW0603
    if _folder is None:
        return
    _slot = str(slot)
    try:
        _take_room(_folder, _slot)
        log_lines_lost.children[()].inc(0)  # has all series opened anew, under the new name
    except Exception:  # noqa: BLE001  # mail is more important than its numbers
        _fail()


def leave(slot: int) -> None:
    """Forget what is true of living processes only: in the supervisor, when a worker ended."""
    if _folder is not None:
        from prometheus_client.multiprocess import mark_process_dead  # noqa: PLC0415

        with suppress(OSError):
            mark_process_dead(slot, str(_folder))  # type: ignore[no-untyped-call]


def stop() -> None:
    """Remove the folder: in the supervisor, at the end."""
    if _folder is not None:
        shutil.rmtree(_folder, ignore_errors=True)


def exposition(accept: str) -> tuple[str, bytes] | None:
    """Content type and text of all metrics of all processes; None while nothing is counted.

    Args:
        accept: the value of the HTTP field.
    """
    if _folder is None:
        return None
    encode, content_type = _encoder_for(accept)
    return content_type, encode(_registry(_folder))


def _encoder_for(accept: str) -> "tuple[Callable[[CollectorRegistry], bytes], str]":
    """What the client asks for; the plain text format when nobody can read what it asks for."""
    from prometheus_client.exposition import choose_encoder  # noqa: PLC0415

    try:
        return choose_encoder(accept)
    except (TypeError, ValueError):  # a version that is no number
        return choose_encoder("")


def _registry(folder: Path) -> "CollectorRegistry":
    from prometheus_client import CollectorRegistry, multiprocess  # noqa: PLC0415

    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry, str(folder))  # type: ignore[no-untyped-call]
    registry.register(_Build())
    return registry


class _Build:
    """What runs here; multiprocess mode has no such kind of metric."""

    def collect(self) -> Iterator["Metric"]:
        """The one sample."""
        from prometheus_client.metrics_core import InfoMetricFamily  # noqa: PLC0415

        value = {"version": __version__, "python": platform.python_version()}
        yield InfoMetricFamily(PREFIX + "build", "Versions of what runs.", value)


def _bind(folder: Path) -> None:
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)
    # Not before the variable is set; and all that is used later, while it is there: a new version
    # may be installed in its place before we are started anew.
    from prometheus_client import exposition, metrics_core, multiprocess, values  # noqa: F401, PLC0415
    from prometheus_client.openmetrics import exposition as openmetrics  # noqa: F401, PLC0415

    values.ValueClass = values.MultiProcessValue(lambda: _slot)  # type: ignore[no-untyped-call]
    for metric in _declared:
        metric.bind()


def _fail() -> None:
    """Go on without metrics in this process."""
    global _folder  # noqa: PLW0603
    log.get().exception("no metrics in this process", pid=os.getpid())
    _folder = None
    for metric in _declared:
        metric.children = {}


def _take_room(folder: Path, slot: str) -> None:
    """Have the disk set aside what the files of a slot will take. Raises OSError."""
    for kind in _FILES:
        path = folder / f"{kind}_{slot}.db"
        if path.exists():
            continue
        # Whoever adds the files up must not find one without content.
        fresh = path.with_suffix(".new")
        with fresh.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, FILE_SIZE)
        fresh.rename(path)


def _base() -> Path:
    """Where the folder goes: systemd's RuntimeDirectory, which is in memory, if there is one."""
    return Path(os.environ.get("RUNTIME_DIRECTORY", "").split(":")[0] or tempfile.gettempdir())


def _make_folder(base: Path) -> Path:
    """A new private folder, locked; those of daemons that are gone are removed."""
    for remains in base.glob(f"{_FOLDER}*"):
        with suppress(OSError):
            _remove_if_abandoned(remains)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_FOLDER, dir=base))
        # Never closed: the lock is held until the last process that inherits it has ended.
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if folder.exists():
            return folder
        os.close(descriptor)  # another daemon that starts now took it for an abandoned one


def _remove_if_abandoned(folder: Path) -> None:
    """Raises OSError when it is somebody else's, in use, or no folder."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if os.fstat(descriptor).st_uid != os.geteuid():
            return
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder)
    finally:
        os.close(descriptor)
