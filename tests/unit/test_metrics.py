"""The metrics by themselves: closed, bounded, and nothing at all while off."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from aliasmilter import metrics
from aliasmilter.forwarding.arc import Unsealed
from aliasmilter.mail.replies import REPLIES, Reason
from aliasmilter.mta import measures, worker

PROMETHEUS_NAME = re.compile(r"[a-z][a-z_]*[a-z]")


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
    )


def test_while_off_the_library_is_not_imported_and_counting_does_nothing() -> None:
    code = (
        "import sys\n"
        "import aliasmilter.mta.server\n"
        "from aliasmilter import metrics\n"
        "metrics.store_cache_hits.inc()\n"
        "metrics.enter(1); metrics.leave(1); metrics.stop()\n"
        "assert metrics.exposition('') is None\n"
        "assert not any(name.startswith('prometheus') for name in sys.modules)\n"
    )
    done = python(code)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_role_of_a_process_has_its_series() -> None:
    assert [role.value for role in worker.Role] == list(metrics.ROLES)


def test_names_are_those_that_prometheus_asks_for() -> None:
    for metric in metrics._declared:
        assert PROMETHEUS_NAME.fullmatch(metric.name), metric.name
        assert not metric.name.endswith("_total"), "the library adds it"
        assert metric.text.endswith(".")
        for label in metric.labels:
            assert PROMETHEUS_NAME.fullmatch(label)
        if isinstance(metric, metrics.Histogram):
            assert metric.name.endswith("_seconds")


def test_every_number_is_in_the_document() -> None:
    document = Path(__file__).parents[2] / "docs" / "monitoring" / "README.md"
    told = re.findall(r"`([a-z_]+)`", document.read_text())
    for metric in metrics._declared:
        suffix = "_total" if isinstance(metric, metrics.Counter) else ""
        assert metric.name + suffix in told


def test_labels_are_few_and_can_hold_no_address_and_no_domain() -> None:
    for metric in metrics._declared:
        assert len(set(metric.values)) == len(metric.values) <= 60
        for value in metric.values:
            assert len(value) == len(metric.labels)
            for part in value:
                assert re.fullmatch(r"[a-z0-9-]+", part), part


def test_what_was_not_declared_makes_no_series() -> None:
    counter = metrics.Counter("x", "X.", ["result"], metrics.one_label(("ok",)))
    metrics._declared.remove(counter)
    made: list[float] = []

    class Child:
        def inc(self) -> None:
            made.append(1)

    counter.children = {("ok",): Child()}
    counter.inc("alice@bank.example")
    counter.inc()
    counter.inc("ok")
    assert made == [1]


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_is_accepted_rejected_or_deferred_as_its_reply_says(reason: Reason) -> None:
    reply = REPLIES.get(reason)
    verdict = "accepted" if reply is None else {4: "deferred", 5: "rejected"}[reply.code // 100]
    assert measures.verdict_of(reason) == verdict


def test_every_cause_of_an_unsealed_message_has_a_name_for_labels() -> None:
    names = [measures.name_of(cause) for cause in Unsealed]
    assert "several-from" in names
    assert len(set(names)) == len(Unsealed)


STARTED = (
    "import sys, pathlib\n"
    "from aliasmilter import log, metrics\n"
    "from aliasmilter.mta import measures\n"
    "log.set_up('text', 'info')\n"
    "folder = metrics.start()\n"
)


def test_all_series_are_there_at_0_and_the_room_taken_for_them_is_enough(tmp_path: Path) -> None:
    code = STARTED + (
        "metrics.enter(7)\n"
        "used = {p.name: int.from_bytes(p.read_bytes()[:4], 'little') for p in folder.iterdir()}\n"
        "assert len(used) == 6, used\n"
        "assert max(used.values()) < metrics.FILE_SIZE / 2, used\n"
        "assert all(p.stat().st_blocks * 512 >= metrics.FILE_SIZE for p in folder.iterdir())\n"
        "assert folder.stat().st_mode & 0o777 == 0o700\n"
        "kind, text = metrics.exposition('')\n"
        "print(text.decode())\n"
    )
    done = python(code, RUNTIME_DIRECTORY=str(tmp_path))
    assert done.stderr == ""
    lines = [line for line in done.stdout.splitlines() if line and not line.startswith("#")]
    names = {line.partition("{")[0].partition(" ")[0] for line in lines}
    for metric in metrics._declared:
        ending = "_total" if isinstance(metric, metrics.Counter) else ""
        ending = "_count" if isinstance(metric, metrics.Histogram) else ending
        assert f"alias_milter_{metric.name}{ending}" in names
    values = [line.rpartition(" ")[2] for line in lines if "build_info" not in line]
    assert set(values) == {"0.0"}


def test_all_that_is_used_later_is_there_when_the_installation_is_replaced(tmp_path: Path) -> None:
    code = STARTED + (
        "sys.path[:] = []\n"
        "sys.path_importer_cache.clear()\n"
        "metrics.enter(1)\n"
        "metrics.leave(1)\n"
        "for accept in ('', 'application/openmetrics-text; version=1.0.0'):\n"
        "    assert b'alias_milter_sessions_total' in metrics.exposition(accept)[1]\n"
        "metrics.stop()\n"
    )
    done = python(code, RUNTIME_DIRECTORY=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")


def test_a_slot_counts_on_where_its_last_holder_ended(tmp_path: Path) -> None:
    code = STARTED + (
        "import os\n"
        "for _ in range(5):\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        metrics.enter(0)\n"
        "        metrics.store_cache_hits.inc()\n"
        "        measures.open_sessions.inc()\n"
        "        os._exit(0)\n"
        "    os.waitpid(pid, 0)\n"
        "    metrics.leave(0)\n"
        "print(len(list(folder.iterdir())))\n"
        "text = metrics.exposition('')[1].decode().splitlines()\n"
        "print([line for line in text if line.startswith('alias_milter_store_cache_hits_total')])\n"
        "print([line for line in text if line.startswith('alias_milter_open_sessions')])\n"
        "metrics.stop(); assert not folder.exists()\n"
    )
    done = python(code, RUNTIME_DIRECTORY=str(tmp_path))
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "5",  # the gauge of a process that is gone is gone
        "['alias_milter_store_cache_hits_total 5.0']",
        "['alias_milter_open_sessions 0.0']",
    ]


@pytest.mark.parametrize("place", ["/nonexistent", "/proc"])
def test_without_room_for_its_files_the_daemon_goes_on_without_metrics(place: str) -> None:
    code = STARTED + (
        "assert folder is None\n"
        "metrics.store_cache_hits.inc(); metrics.enter(1)\n"
        "assert metrics.exposition('') is None\n"
    )
    done = python(code, RUNTIME_DIRECTORY=place)
    assert done.returncode == 0
    assert done.stderr.startswith("error: no metrics in this process ")


def test_a_worker_without_room_goes_on_without_metrics(tmp_path: Path) -> None:
    code = STARTED + (
        "def full(*_): raise OSError(28, 'No space left on device')\n"
        "import os; os.posix_fallocate = full\n"
        "metrics.enter(1)\n"
        "metrics.store_cache_hits.inc()\n"
        "assert not list(folder.glob('*_1.db'))\n"
    )
    done = python(code, RUNTIME_DIRECTORY=str(tmp_path))
    assert done.returncode == 0
    assert "No space left on device" in done.stderr


def test_folders_of_daemons_that_are_gone_are_removed_and_no_others(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    left, live = base / "alias-milter-metrics.a", base / "alias-milter-metrics.b"
    left.mkdir()
    (left / "counter_0.db").touch()
    live.mkdir()
    (base / "alias-milter-metrics.link").symlink_to(tmp_path)
    (base / "alias-milter-metrics.file").touch()
    holder = os.open(live, os.O_RDONLY)
    try:
        fcntl.flock(holder, fcntl.LOCK_EX)
        made = metrics._make_folder(base)
    finally:
        os.close(holder)
    assert made.is_dir()
    assert not left.exists()
    assert live.is_dir()
    assert tmp_path.is_dir()
    assert (base / "alias-milter-metrics.link").is_symlink()
    assert (base / "alias-milter-metrics.file").exists()
