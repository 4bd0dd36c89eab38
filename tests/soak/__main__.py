"""`make soak`: see run.py. Exit status 1 when the account does not balance."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.harness.postfix import why_no_postfix
from tests.soak.account import Account, tables
from tests.soak.crowd import Crowd
from tests.soak.faults import FAULTS
from tests.soak.run import Run, at_random, make_stream
from tests.soak.scene import Scene

SHOWN = 40  # problems on the screen; the file has them all


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="make soak")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long things break")
    parser.add_argument("--seed", type=int, help="repeats the faults and messages of a run")
    parser.add_argument("--rate", type=float, default=20.0, help="new messages a second")
    parser.add_argument("--clients", type=int, default=6, help="how many send at a time")
    parser.add_argument(
        "--crowd", type=float, default=1200.0, help="questions a second past Postfix, or 0"
    )
    parser.add_argument(
        "--only", nargs="+", metavar="FAULT", choices=FAULTS, default=list(FAULTS),
        help=f"those faults alone, out of: {'; '.join(FAULTS)}",
    )  # fmt: skip
    parser.add_argument("--keep", action="store_true", help="keep the logs of a good run, too")
    return parser.parse_args()


def main() -> int:
    """Run it; the exit status."""
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    if reason := why_no_postfix():
        console.print(f"It starts a private Postfix: {reason}")
        return 2
    chosen = options()
    seed = random.randrange(1_000_000) if chosen.seed is None else chosen.seed
    console.print(f"{chosen.minutes:g} minutes, {chosen.rate:g} messages/s, SEED={seed}")
    try:
        return soak(chosen, seed, console)
    except KeyboardInterrupt:
        return 130


def soak(chosen: argparse.Namespace, seed: int, console: Console) -> int:
    """Break things until the time is over, and print the account; the exit status."""
    chance = random.Random(seed)
    with (
        Scene(dmarc_fail=("reject", "forward")[seed % 2]) as scene,
        make_stream(scene, seed, chosen.rate, chosen.clients) as stream,
        Crowd(lambda: scene.daemon.socket, chosen.crowd, seed) as crowd,
    ):
        run = Run(scene, stream, console.print)
        end = time.monotonic() + 60 * chosen.minutes
        try:
            for faults in at_random(seed, chosen.only):
                if time.monotonic() > end:
                    break
                run.strike(faults, attempts=10, seconds=chance.uniform(0.5, 6.0))
                stream.wait_for_attempts(int(chance.uniform(5, 40)), 120)
        except Exception as error:  # noqa: BLE001  # whatever it was: the account tells more
            scene.complaints.append(f"the run ended early: {error}")
        crowd.leave()
        scene.complaints += crowd.wrong
        account = run.settle()
        console.print(f"The crowd got {crowd.asked:,} answers, {len(crowd.wrong)} of them wrong")
        for table in (*tables(account), recoveries(run)):
            console.print(table)
        show_problems(account, console)
        if chosen.keep or not account.balances:
            folder = Path(tempfile.mkdtemp(prefix="alias-milter-soak-"))
            run.keep(folder, account)
            console.print(f"Logs, transactions and problems: {folder}")
    console.print(f"{'It balances' if account.balances else 'It does NOT balance'}. SEED={seed}")
    return 0 if account.balances else 1


def show_problems(account: Account, console: Console) -> None:
    """List the first ones."""
    for entry in account.entries[:SHOWN]:
        console.print(f"  {entry}", style="red", markup=False)
    if len(account.entries) > SHOWN:
        console.print(f"  ... and {len(account.entries) - SHOWN} more")


def recoveries(run: Run) -> Table:
    """Each fault: how often, and how long it took at most until mail went again."""
    shown = Table("fault", "times", "mail goes again after", title="Faults", title_justify="left")
    worst: dict[str, list[float]] = {}
    for struck in run.struck:
        for name in struck.names:
            worst.setdefault(name, []).append(struck.recovery)
    for name, seconds in sorted(worst.items()):
        shown.add_row(name, str(len(seconds)), f"{max(seconds):.1f} s at most")
    return shown


if __name__ == "__main__":
    sys.exit(main())
