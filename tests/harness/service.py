"""What all servers of the lab have in common: a folder, a process, a log, an end."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import ClassVar, NamedTuple, Self

from tests.harness.wait import LabError, LabTimeoutError, wait_until

LOG_TAIL = 6000

# The guard of a server reads from a pipe that only the tests' process holds. When that dies
# without a word (kill -9), the guard ends the server and removes its folder. PR_SET_PDEATHSIG
# would not do: a server that changes its user, as Postfix does, loses that.
GUARD = 'read word; kill -s TERM -- "-$0"; sleep 0.5; kill -s KILL -- "-$0"; rm -rf "$1"'


@contextmanager
def private_folder(name: str) -> Iterator[Path]:
    """A new folder that is removed at the end.

    Not pytest's tmp_path: that is 0700, and Postfix's own user must get through to the sockets.
    The path is short: a unix socket's has at most 107 characters.
    """
    folder = Path(tempfile.mkdtemp(prefix=f"am-{name}-", dir="/tmp"))
    try:
        folder.chmod(0o755)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def children(pid: int) -> list[int]:
    """The living children of a process, in the order of their pids."""
    return sorted(one.pid for one in _processes() if one.parent == pid and one.state != "Z")


def group_members(group: int) -> list[int]:
    """The processes of a process group that may still hold a file or a socket."""
    # The first thread of a process can be dead while the others still are dying.
    return [one.pid for one in _processes() if one.group == group and one.holds_files]


class _Process(NamedTuple):
    """What /proc/PID/stat says of a process; see proc(5)."""

    pid: int
    state: str
    parent: int
    group: int
    threads: int

    @property
    def holds_files(self) -> bool:
        return self.state not in "ZX" or self.threads > 1


def _processes() -> Iterator[_Process]:
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # The name may hold spaces and parentheses: the fields start after the last ")".
            fields = status.read_text().rpartition(")")[2].split()
            numbers = (int(fields[at]) for at in (1, 2, 17))
            yield _Process(int(status.parent.name), fields[0], *numbers)


class Service:
    """A server process in a folder of its own, as a context manager.

    Subclasses give `prepare` (files and ports), `command` and `is_ready`. All processes of the
    service are in one process group, and end when this process dies, whatever it dies of.
    """

    name: ClassVar[str] = "service"
    live: ClassVar[list[Service]] = []
    start_timeout: ClassVar[float] = 20.0

    folder: Path
    process: subprocess.Popen[bytes] | None = None
    _guard: subprocess.Popen[bytes] | None = None

    def prepare(self, stack: ExitStack) -> None:
        """Take ports and write files; `stack` undoes it when the service ends."""

    def command(self) -> Sequence[str]:
        """The command line of the server, which must stay in the foreground."""
        raise NotImplementedError

    def environment(self) -> Mapping[str, str]:
        """The environment of the server."""
        return os.environ

    def is_ready(self) -> bool:
        """Whether the server does its work."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.folder = stack.enter_context(private_folder(self.name))
            self.prepare(stack)
            stack.callback(self.kill)
            self.start()
            Service.live.append(self)
            stack.callback(Service.live.remove, self)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            # Pytest reports a test after its servers are gone.
            error.add_note(self.log_tail())
        with self._stack:
            self.end()

    def end(self) -> None:
        """How the server ends with the block: in order. Tests of stopping call `stop`."""
        self.stop()

    @property
    def log_file(self) -> Path:
        """The file that the server's log, or else its output, goes to."""
        return self.folder / "log"

    @property
    def log(self) -> str:
        """The text of the log so far."""
        with suppress(FileNotFoundError):
            return self.log_file.read_text(errors="backslashreplace")
        return ""

    @property
    def pid(self) -> int:
        """The id of the server's process. Raises LabError when it does not run."""
        if self.process is None:
            raise LabError(f"{self.name} does not run")
        return self.process.pid

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        """Start the server (again), and return when it is ready.

        Raises:
            LabError: it ended, or was not ready in time; the message shows its log.
        """
        if self.running:
            raise LabError(f"{self.name} runs already")
        # A session of its own: Ctrl-C must reach the tests first, and they end the server.
        with (self.folder / "log").open("ab") as output:
            self.process = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True, env=self.environment(), cwd=self.folder,
            )  # fmt: skip
        self._guard = subprocess.Popen(
            ["sh", "-c", GUARD, str(self.process.pid), str(self.folder)],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        wait_until(
            self._ready_or_dead, f"{self.name} starts", self.start_timeout, detail=self.log_tail
        )

    def _ready_or_dead(self) -> bool:
        if not self.running:
            status = self.process.returncode if self.process else None
            raise LabError(f"{self.name} ended with status {status}\n{self.log_tail()}")
        return self.is_ready()

    def log_tail(self) -> str:
        """The end of the log, with a heading, for error messages."""
        return f"--- log of {self.name} ---\n{self.log[-LOG_TAIL:]}\n---"

    def stop(self, timeout: float = 15.0) -> int | None:
        """End the server with SIGTERM, and what it left behind by force.

        Returns:
            The exit status (negative: the signal it died of), or None if it did not run.

        Raises:
            LabTimeoutError: it did not end in time, and was killed.
        """
        if self.process is None:
            return None
        process = self.process
        self.resume()
        process.terminate()
        try:
            return process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise LabTimeoutError(
                f"{self.name} did not end within {timeout:g} s of SIGTERM\n{self.log_tail()}"
            ) from None
        finally:
            self.kill()

    def kill(self) -> None:
        """End the server and all its children with SIGKILL; fine if there are none."""
        if self.process is None:
            return
        # First the guard: the process group's number may belong to others once ours is gone.
        if self._guard is not None:
            self._guard.kill()
            self._guard.communicate()
            self._guard = None
        group = self.process.pid
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
        self.process.wait()
        self.process = None
        # Its children die a little later, and hold its listening sockets until then: who starts
        # it again, or connects, would meet them.
        wait_until(
            lambda: not group_members(group),
            f"all processes of {self.name} have ended",
            detail=lambda: str(group_members(group)),
        )

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the server's first process."""
        os.kill(self.pid, number)

    def pause(self) -> None:
        """Stop the server in its tracks (SIGSTOP): it holds its sockets and answers nothing."""
        os.killpg(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused server go on."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGCONT)
