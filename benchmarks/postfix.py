"""Messages through a whole Postfix: smtp-source, Postfix, smtp-sink."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.machine import Watch
from tests.harness.ports import accepts, reserved_port
from tests.harness.postfix import Postfix
from tests.harness.service import Service
from tests.harness.wait import wait_until

SESSIONS = 20
# Postfix's own limits, so that it works as fast as it can in both cases.
SETTINGS = {"smtpd_client_message_rate_limit": "0", "default_process_limit": "100"}
ALIAS_MAP = {"virtual_alias_maps": "inline:{ {out@example.com = me@gmail.example} }"}


class Sink(Service):
    """smtp-sink: takes all mail, and counts it."""

    name = "sink"

    def __init__(self, port: int) -> None:
        self.port = port

    def command(self) -> Sequence[str]:
        """smtp-sink, which prints how many messages it has got."""
        return ["smtp-sink", "-u", "postfix", "-c", f"127.0.0.1:{self.port}", "1000"]

    def is_ready(self) -> bool:
        """Whether it takes connections."""
        return accepts(self.port)

    @property
    def count(self) -> int:
        """Messages so far."""
        with self.log_file.open("rb") as log:
            log.seek(max(self.log_file.stat().st_size - 1000, 0))
            found = re.findall(rb"mesg=(\d+)\r", log.read())
        return int(found[-1]) if found else 0


def delivered(folder: Path, message: Path, count: int, milter: str = "") -> tuple[float, float]:
    """Delivered messages a second, with the milter or with an alias map instead.

    Also the share of the processors that others had meanwhile. Postfix's own processes are ours
    for as long as it runs.

    Args:
        folder: for smtp-source's input.
        message: what is sent.
        count: how often.
        milter: as in smtpd_milters.
    """
    text = folder / "lf.eml"
    text.write_bytes(message.read_bytes().replace(b"\r\n", b"\n"))
    with reserved_port() as port, Sink(port) as sink:
        main = SETTINGS if milter else SETTINGS | ALIAS_MAP
        milters = [milter] if milter else []
        with Postfix(milters=milters, next_hop=port, main=main) as server:
            _send(server, text, 40)
            wait_until(lambda: sink.count >= 40, "the first mail arrives", 30)
            watch, begun = Watch(), time.monotonic()
            _send(server, text, count)
            wait_until(lambda: sink.count >= 40 + count, "all mail arrives", 120)
            return count / (time.monotonic() - begun), watch.others()


def _send(server: Postfix, text: Path, count: int) -> None:
    subprocess.run(
        ["smtp-source", "-s", str(SESSIONS), "-m", str(count), "-f", "alice@bank1.example",
         "-t", "out@example.com", "-F", str(text), f"127.0.0.1:{server.port}"],
        check=True, capture_output=True, timeout=300,
    )  # fmt: skip
