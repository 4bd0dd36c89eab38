"""A log that cannot be written: mail goes on as if nothing were wrong, and so do the workers."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.harness.daemon import Daemon
from tests.harness.mta_client import Mta
from tests.harness.ports import accepts
from tests.harness.redis import RedisServer
from tests.harness.wait import wait_until
from tests.protocol.conftest import load_rules

UNKNOWN = "550 5.1.1 No such address here"
ADDED = [("<bob@example.com>",)]


class Redirected(Daemon):
    """A daemon whose standard error goes elsewhere: `redirection` in the words of the shell."""

    def __init__(self, store_url: str, redirection: str) -> None:
        super().__init__(store_url)
        self.redirection = redirection

    def command(self) -> Sequence[str]:
        return ["sh", "-c", f'exec "$@" {self.redirection}', "sh", *super().command()]

    def is_ready(self) -> bool:
        return len(self.workers) == 2 and accepts(self.socket.removeprefix("unix:"))


def serves(daemon: Daemon, sessions: int = 8) -> None:
    """Refusals and messages, each of which writes a line, get the answers they should."""
    workers = daemon.workers
    for _ in range(sessions):
        with Mta(daemon.socket) as mta:
            mta.mail()
            for _ in range(10):
                assert mta.rcpt("<nobody@example.com>").text == UNKNOWN
            assert mta.rcpt("<sales@example.com>").kind == "continue"
            ending = mta.message()
            assert ending.answer.kind == "continue"
            assert ending.of("addrcpt") == ADDED
    assert daemon.workers == workers


@contextmanager
def fifo(path: Path) -> Iterator[int]:
    """A named pipe, open for reading."""
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        yield reader
    finally:
        os.close(reader)


def fill(path: Path) -> None:
    """Leave no room in a pipe."""
    writer = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    with suppress(BlockingIOError):
        while True:
            os.write(writer, b"x\n" * 2048)
    os.close(writer)


def drain(reader: int) -> bytes:
    """All that there is in a pipe by now."""
    data = b""
    with suppress(BlockingIOError):
        while more := os.read(reader, 1 << 20):
            data += more
    return data


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-", ">&- 2>&- <&-"])
def test_mail_goes_on_when_the_disk_of_the_log_is_full_or_there_is_no_log(
    redis: RedisServer, redirection: str
) -> None:
    load_rules(redis)
    with Redirected(redis.url, redirection) as daemon:
        serves(daemon)
        old = set(daemon.workers)
        daemon.reload()
        wait_until(lambda: not old & set(daemon.workers), "the workers are replaced", 30)
        serves(daemon, 1)
        assert daemon.stop(30) == 0


def test_mail_goes_on_when_the_reader_of_the_log_is_gone(
    redis: RedisServer, tmp_path: Path
) -> None:
    load_rules(redis)
    path = tmp_path / "log"
    with fifo(path) as reader, Redirected(redis.url, f"2>{path}") as daemon:
        serves(daemon, 1)
        os.dup2(os.open(os.devnull, os.O_RDONLY), reader)
        serves(daemon)
        assert daemon.stop(30) == 0


def test_mail_goes_on_when_the_reader_of_the_log_is_stuck_and_the_loss_is_told(
    redis: RedisServer, tmp_path: Path
) -> None:
    load_rules(redis)
    path = tmp_path / "log"
    with fifo(path) as reader, Redirected(redis.url, f"2>{path}") as daemon:
        fill(path)
        serves(daemon)
        drain(reader)
        serves(daemon)
        lines = drain(reader).decode().splitlines()
        assert any(line.endswith("log lines lost") for line in lines)
        assert lines[-1].startswith("QUEUEID: accepted ")
