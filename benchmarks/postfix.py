"""Messages through a whole Postfix: smtp-source, Postfix, smtp-sink."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.machine import Watch
from tests.harness.ports import accepts, reserved_port
from tests.harness.postfix import Postfix
from tests.harness.service import Service
from tests.harness.wait import wait_until

SESSIONS = 20
WARM = 40  # messages before those that count
LEAVES_FOR = "me@gmail.example"  # as scene.RULES have it
# Postfix's own limits, so that it works as fast as it can whatever is measured.
SETTINGS = {"smtpd_client_message_rate_limit": "0", "default_process_limit": "100"}
ALIAS_MAP = {"virtual_alias_maps": f"inline:{{ {{out@example.com = {LEAVES_FOR}}} }}"}


class Setup(NamedTuple):
    """A Postfix that is measured.

    Attributes:
        milter: as in smtpd_milters; "" for none.
        main: lines of main.cf.
    """

    milter: str
    main: Mapping[str, str]


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


def running(setup: Setup, next_hop: int) -> Postfix:
    """That Postfix, to be entered; all mail leaves for the port."""
    milters = [setup.milter] if setup.milter else []
    return Postfix(milters=milters, next_hop=next_hop, main={**SETTINGS, **setup.main})


def delivered(setup: Setup, message: Path, count: int) -> tuple[float, float]:
    """Delivered messages a second.

    Also the share of the processors that others had meanwhile. Postfix's own processes are ours
    for as long as it runs.

    Args:
        setup: what is measured.
        message: what is sent.
        count: how often.
    """
    with reserved_port() as port, Sink(port) as sink, running(setup, port) as server:
        send(server, message, WARM)
        wait_until(lambda: sink.count >= WARM, "the first mail arrives", 30)
        watch, begun = Watch(), time.monotonic()
        send(server, message, count)
        wait_until(lambda: sink.count >= WARM + count, "all mail arrives", 120)
        return count / (time.monotonic() - begun), watch.others()


def send(server: Postfix, message: Path, count: int) -> None:
    """Send a message so often, each time in a session of its own."""
    text = message.with_suffix(".lf")
    text.write_bytes(message.read_bytes().replace(b"\r\n", b"\n"))
    subprocess.run(
        ["smtp-source", "-s", str(SESSIONS), "-m", str(count), "-f", "alice@bank1.example",
         "-t", "out@example.com", "-F", str(text), f"127.0.0.1:{server.port}"],
        check=True, capture_output=True, timeout=300,
    )  # fmt: skip
