"""`make bench`: measures all, prints a table, draws a picture.

python -m benchmarks [--quick] [--only NAME]...
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from matplotlib.figure import Figure
from rich.console import Console

from benchmarks import scene
from benchmarks.load import REPOSITORY
from benchmarks.machine import cpu_count
from benchmarks.measures import MEASURES, Bench, curve
from benchmarks.table import Row, save, show
from tests.harness.dns import DnsServer
from tests.harness.postfix import why_no_postfix
from tests.harness.redis import RedisServer

BUILD = REPOSITORY / "build"
PICTURE = BUILD / "throughput.png"


def measure(bench: Bench, names: list[str], console: Console) -> list[Row]:
    """The rows of these measures."""
    rows: list[Row] = []
    for name in names:
        begun = time.monotonic()
        console.print(f"  {name} ...", style="dim", end="", highlight=False)
        if name in {"postfix", "stack"} and (reason := why_no_postfix()):
            console.print(f" left out: {reason}")
            continue
        rows += MEASURES[name](bench)
        console.print(f" {time.monotonic() - begun:.0f} s", style="dim")
    return rows


def draw(found: dict[str, list[tuple[int, float]]], path: Path) -> None:
    """Throughput against connections."""
    figure = Figure(figsize=(8, 5))
    axes = figure.subplots()
    for name, points in found.items():
        axes.plot([x for x, _ in points], [y for _, y in points], marker="o", label=name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    ticks = [x for x, _ in next(iter(found.values()))]
    axes.set_xticks(ticks, [str(x) for x in ticks])
    axes.set_xlabel("connections at a time")
    axes.set_ylabel("messages a second")
    axes.set_title(f"alias-milter, {cpu_count()} cores, 2 KB messages")
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120, bbox_inches="tight")


def main() -> int:
    """Run it; the exit status."""
    options = argparse.ArgumentParser(prog="make bench")
    options.add_argument("--quick", action="store_true", help="a tenth of everything")
    options.add_argument("--only", action="append", choices=[*MEASURES, "curve"], default=[])
    chosen = options.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 140)
    load = os.getloadavg()[0]
    console.print(f"{cpu_count()} cores, load average {load:.1f} at the start")
    if load > cpu_count() / 2:
        console.print("Something else is running here: the ratios will be rough.", style="yellow")
    names = [name for name in MEASURES if name in chosen.only or not chosen.only]
    with tempfile.TemporaryDirectory() as folder, RedisServer() as redis:
        redis.cli(stdin="\n".join(scene.RULES) + "\n")
        with DnsServer(scene.zone()) as dns:
            bench = Bench(Path(folder), redis, dns, chosen.quick)
            rows = measure(bench, names, console)
            if "curve" in chosen.only or not chosen.only:
                draw(curve(bench), PICTURE)
                console.print(f"  {PICTURE}", highlight=False)
    show(rows, console)
    save(rows, BUILD / "benchmarks.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
