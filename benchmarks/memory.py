"""Memory of processes, as the kernel counts it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

MEGABYTE = 1_000_000


def private(pid: int) -> float:
    """What the process alone has, in megabytes: what one more of it costs."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(kb) for kb in re.findall(r"^Private_\w+: +(\d+) kB", text, re.M)) * 1024 / 1e6


def resident(pid: int, name: str = "VmRSS") -> float:
    """What the process has in memory, in megabytes; "VmHWM": at most since `forget_peak`."""
    text = Path(f"/proc/{pid}/status").read_text()
    found = re.search(rf"^{name}:\s+(\d+) kB", text, re.M)
    return int(found[1]) * 1024 / 1e6 if found else 0.0


def forget_peak(pid: int) -> None:
    """Let VmHWM begin anew (proc(5), clear_refs)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def processor_seconds(pids: Sequence[int]) -> float:
    """User and system time that these processes have had."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / 100
