"""Sendmail's queue as files: what is read, and what is said when it cannot be."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from aliasmilter.admin.held import QueueError
from aliasmilter.admin.sendmail_queue import SendmailQueue
from tests.harness.service import private_folder

CONTROL = "T1700000000\nS<alice@bank.example>\nRPFD:<guess@example.com>\nH??Subject: x\n.\n"


def queue_of(folder: Path, directory: Path | str) -> SendmailQueue:
    file = folder / "sendmail.cf"
    file.write_text(f"O QueueDirectory={directory}\n")
    return SendmailQueue(file)


@contextmanager
def no_longer_root() -> Iterator[None]:
    """Root reads everything."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.mark.parametrize("place", ["", "qf"])
def test_a_queue_or_several_are_read(tmp_path: Path, place: str) -> None:
    for name, queue_id in (("q1", "AAAAA1"), ("q2", "AAAAA2")):
        (tmp_path / name / place).mkdir(parents=True)
        (tmp_path / name / place / f"hf{queue_id}").write_text(CONTROL)
        (tmp_path / name / place / "qfAAAAA3").write_text(CONTROL)
    (tmp_path / "q.lock").touch()
    several = queue_of(tmp_path, tmp_path / "q*").held()
    assert [held.queue_id for held in several] == ["AAAAA1", "AAAAA2"]
    assert several[0].recipients == ("guess@example.com",)
    [held] = queue_of(tmp_path, tmp_path / "q2").held()
    assert held.queue_id == "AAAAA2"


@pytest.mark.parametrize("name", ["queue", "queue/q*"])
def test_a_queue_that_may_not_be_read_is_not_an_empty_one(name: str) -> None:
    with private_folder("queue") as folder:
        queue = queue_of(folder, folder / name)
        (folder / "queue").mkdir(mode=0o000)
        with no_longer_root(), pytest.raises(QueueError, match=r"queue(/qf)?: Permission denied"):
            queue.held()


@pytest.mark.parametrize("name", ["queue", "queue/q*"])
def test_a_queue_that_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(QueueError, match="queue: No such file or directory"):
        queue_of(tmp_path, tmp_path / name).held()
