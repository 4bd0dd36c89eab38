"""The log's way out: whoever reads it may be gone, stuck or full, and nothing else notices."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from aliasmilter import log, logstream
from aliasmilter.logstream import Stream


@contextmanager
def standard_error(descriptor: int) -> Iterator[None]:
    """Standard error goes there while the block runs."""
    kept = os.dup(2)
    os.dup2(descriptor, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def stream() -> Stream:
    return logstream.open_stream(lambda lost: f"{lost} lost")


@pytest.fixture
def losses() -> Iterator[list[None]]:
    counted: list[None] = []
    logstream.on_loss(lambda: counted.append(None))
    yield counted
    logstream.on_loss(lambda: None)


Ends = tuple[Callable[[int], bytes], int]


@pytest.fixture(params=["pipe", "socket"])
def ends(request: pytest.FixtureRequest) -> Iterator[Ends]:
    """How to read, and the descriptor to write to."""
    if request.param == "pipe":
        reader, writer = os.pipe()
    else:
        one, other = socket.socketpair()
        reader, writer = one.detach(), other.detach()
    yield lambda size: os.read(reader, size), writer
    os.close(reader)
    os.close(writer)


def read_all(read: Callable[[int], bytes], until: bytes) -> bytes:
    data = b""
    while not data.endswith(until):
        data += read(1 << 20)
    return data


def test_a_full_reader_costs_one_moment_and_lines_and_says_so_when_it_reads_again(
    ends: Ends, losses: list[None]
) -> None:
    read, writer = ends
    with standard_error(writer):
        assert os.get_blocking(writer), "shared with whoever started us"
        out = stream()
        lines = 0
        while not out.lost:
            out.msg(f"{lines} " + "x" * 1000)
            lines += 1
        for _ in range(1000):
            out.msg("x" * 5000)
        assert out.lost == 1001
        assert len(losses) == 1001
        assert os.get_blocking(writer)
        emptied = read(1 << 20)
        out.msg("back")
        text = (emptied + read_all(read, b"back\n")).decode()
    found = text.splitlines()
    assert found[-2:] == ["1001 lost", "back"]
    # Every line is whole; the one that broke off in the middle stands alone.
    whole = [f"{n} " + "x" * 1000 for n in range(lines - 1)]
    assert found[: len(whole)] == whole
    assert len(found) <= len(whole) + 3


def test_a_slow_reader_loses_nothing(ends: Ends) -> None:
    read, writer = ends
    lines = [f"{n} " + "x" * 3000 for n in range(300)]
    seen = b""

    def reader() -> None:
        nonlocal seen
        seen = read_all(read, b"end\n")

    thread = threading.Thread(target=reader)
    thread.start()
    with standard_error(writer):
        out = stream()
        for line in lines:
            out.msg(line)
        out.msg("end")
    thread.join(20)
    assert seen.decode().splitlines() == [*lines, "end"]


def test_a_reader_that_is_gone_and_a_full_disk_raise_nothing(losses: list[None]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    full = os.open("/dev/full", os.O_WRONLY)
    for descriptor in (writer, full):
        with standard_error(descriptor):
            out = stream()
            for _ in range(100):
                out.msg("line")
            assert out.lost == 100
        os.close(descriptor)
    assert len(losses) == 200


def test_several_threads_write_whole_lines() -> None:
    reader, writer = os.pipe()
    with standard_error(writer):
        out = stream()
        texts = [str(n) * 2000 for n in range(5)]
        threads = [threading.Thread(target=out.msg, args=(text,)) for text in texts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    os.close(writer)
    text = b""
    while text.count(b"\n") < len(texts):
        text += os.read(reader, 1 << 16)
    os.close(reader)
    assert sorted(text.decode().splitlines()) == texts


@pytest.mark.parametrize("style", ["text", "json"])
def test_the_line_about_lost_lines_is_in_the_form_of_the_log(style: str) -> None:
    notice = log._loss_in[style](7)
    expected = {
        "text": "error: 7 log lines lost",
        "json": '{"level": "error", "event": "log lines lost", "lost": 7}',
    }
    assert notice == expected[style]


def test_when_standard_error_is_closed_no_other_file_ever_gets_the_lines() -> None:
    code = (
        "import os, socket\n"
        "from aliasmilter import log\n"
        "log.set_up('text', 'info')\n"
        "one, other = socket.socketpair()\n"
        "assert min(one.fileno(), other.fileno()) > 2, one\n"
        "log.get().info('into the void')\n"
        "other.setblocking(False); one.setblocking(False)\n"
        "for each in (one, other):\n"
        "    try: print(each.recv(100))\n"
        "    except BlockingIOError: print('nothing')\n"
    )
    command = ["sh", "-c", 'exec "$@" 2>&- <&-', "sh", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "nothing\nnothing\n"
