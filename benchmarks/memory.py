"""Memory of processes, as the kernel counts it."""

from __future__ import annotations

import re
from pathlib import Path


def private(pid: int) -> float:
    """What the process alone has, in megabytes: what one more of it costs."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    found = re.findall(r"^Private_\w+: +(\d+) kB", text, re.MULTILINE)
    return sum(map(int, found)) * 1024 / 1e6


def resident(pid: int, name: str = "VmRSS") -> float:
    """What the process has in memory, in megabytes; "VmHWM": at most since `forget_peak`."""
    text = Path(f"/proc/{pid}/status").read_text()
    found = re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 / 1e6 if found else 0.0


def forget_peak(pid: int) -> None:
    """Let VmHWM begin anew (proc(5), clear_refs)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
