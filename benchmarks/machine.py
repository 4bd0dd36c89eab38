"""The machine: its cores, what it can sign, and whether others use it meanwhile."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

KTHREADD = 2  # the parent of the kernel's threads
TICK = os.sysconf("SC_CLK_TCK")


def cpu_count() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0))


def rsa_limit(seconds: int) -> float:
    """RSA-2048 signatures a second of all cores, as `openssl speed` measures them."""
    cores = str(cpu_count())
    command = ["openssl", "speed", "-seconds", str(seconds), "-multi", cores, "rsa2048"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    # rsa 2048 bits 0.000114s 0.000007s 8786.0 151543.5
    (line,) = [x for x in done.stdout.splitlines() if re.match(r"rsa +2048 bits ", x)]
    return float(line.split()[5])


class Watch:
    """How busy the processors are with other people's work, from `Watch()` to `others()`."""

    def __init__(self) -> None:
        self._busy, self._total = _machine()
        self._own = _own()

    def others(self) -> float:
        """The share of all processor time that went to processes that are not ours, 0 to 1."""
        busy, total = _machine()
        own = _own() - self._own
        return max(busy - self._busy - own, 0.0) / max(total - self._total, 1e-9)


def _machine() -> tuple[float, float]:
    """Seconds that the processors were busy, and seconds in all (proc(5), stat)."""
    line = Path("/proc/stat").read_text().splitlines()[0]
    user, nice, system, idle, iowait, irq, softirq, steal = map(int, line.split()[1:9])
    busy = user + nice + system + irq + softirq + steal
    return busy / TICK, (busy + idle + iowait) / TICK


def _own() -> float:
    """Processor seconds of this process, its descendants, and those that it has waited for.

    And of the kernel's threads: who writes a mail queue to the disk has them work.
    """
    return sum(_seconds(pid) for root in (os.getpid(), KTHREADD) for pid in _tree(root))


def _tree(root: int) -> Iterator[int]:
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int(_fields(int(folder.name))[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(folder.name))
    waiting = [root]
    while waiting:
        pid = waiting.pop()
        yield pid
        waiting += children.get(pid, [])


def _seconds(pid: int) -> float:
    try:
        fields = _fields(pid)
    except OSError:
        return 0.0
    # Own time, and that of children which were waited for.
    return sum(int(ticks) for ticks in fields[11:15]) / TICK


def _fields(pid: int) -> list[str]:
    """From the state on; the name before it may hold anything."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
