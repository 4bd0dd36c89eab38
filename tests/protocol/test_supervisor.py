"""One socket, several workers: dying, stopping, starting again."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from miltertest import MilterError

from tests.harness.daemon import Daemon
from tests.harness.mta_client import Mta, dial
from tests.harness.ports import reserved_port
from tests.harness.redis import RedisServer
from tests.harness.wait import LabError, wait_until
from tests.protocol.conftest import load_rules
from tests.protocol.shim import BORN_DEAD, NO_FORK, WAITS, ShimmedDaemon

Start = Callable[..., Daemon]

ADDED = [("<bob@example.com>",)]


@contextmanager
def paused(pid: int) -> Iterator[None]:
    """A process that is stopped while the block runs."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def added(mta: Mta) -> list[tuple[str, ...]]:
    """The recipients added to a whole new message to an alias."""
    mta.mail()
    assert mta.rcpt("<sales@example.com>").kind == "continue"
    return mta.message().of("addrcpt")


def session_of(daemon: Daemon, worker: int) -> Mta:
    """A session that this one of two workers serves."""
    (other,) = set(daemon.workers) - {worker}
    with paused(other):
        return Mta(daemon.socket)


def gone(*pids: int) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


# Workers


def test_two_workers_share_one_socket_and_both_serve(start: Start) -> None:
    daemon = start()
    first, second = daemon.workers
    for worker in (first, second, first):
        with session_of(daemon, worker) as mta:
            assert added(mta) == ADDED
    assert daemon.workers == [first, second]


def test_a_worker_that_is_killed_is_replaced_and_the_sessions_of_the_other_go_on(
    start: Start,
) -> None:
    daemon = start()
    first, second = daemon.workers
    with session_of(daemon, first) as lost, session_of(daemon, second) as kept:
        lost.mail()
        kept.mail()
        os.kill(first, signal.SIGKILL)
        with pytest.raises((MilterError, OSError)):
            lost.rcpt("<sales@example.com>")
        assert kept.rcpt("<sales@example.com>").kind == "continue"
        assert kept.message().of("addrcpt") == ADDED
        wait_until(lambda: len(daemon.workers) == 2, "the worker is replaced")
        assert f"error: worker died pid={first} status=-9" in daemon.log
    (new,) = set(daemon.workers) - {second}
    with session_of(daemon, new) as mta:
        assert added(mta) == ADDED


@contextmanager
def no_process_left(daemon: Daemon) -> Iterator[None]:
    """While it lasts, the daemon cannot fork."""
    (daemon.folder / "full").touch()
    yield
    (daemon.folder / "full").unlink()


def test_a_worker_that_cannot_be_replaced_at_once_is_replaced_later(redis: RedisServer) -> None:
    load_rules(redis)
    with ShimmedDaemon(redis.url, NO_FORK) as daemon:
        first, second = daemon.workers
        with no_process_left(daemon):
            os.kill(first, signal.SIGKILL)
            wait_until(lambda: "error: worker not started role=milter" in daemon.log, "it fails")
            with Mta(daemon.socket) as mta:
                assert added(mta) == ADDED
            assert daemon.workers == [second]
        wait_until(lambda: len(daemon.workers) == 2, "the worker is replaced")


def test_at_a_reload_the_old_workers_stay_until_there_are_new_ones(redis: RedisServer) -> None:
    load_rules(redis)
    with ShimmedDaemon(redis.url, NO_FORK) as daemon:
        old = daemon.workers
        with no_process_left(daemon):
            daemon.reload()
            wait_until(lambda: "worker not started" in daemon.log, "it fails")
            with Mta(daemon.socket) as mta:
                assert added(mta) == ADDED
            assert daemon.workers == old
        wait_until(lambda: gone(*old), "the old workers leave")
        assert len(daemon.workers) == 2
        assert "worker died" not in daemon.log
        with Mta(daemon.socket) as mta:
            assert added(mta) == ADDED
        assert daemon.stop() == 0


def cores_of(worker: int) -> set[int]:
    """The cores on which all threads of a worker run."""
    threads = [int(task.name) for task in Path(f"/proc/{worker}/task").iterdir()]
    return set().union(*map(os.sched_getaffinity, threads))


needs_two_cores = pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="on one core all stay there"
)


@needs_two_cores
def test_workers_for_all_cores_stay_on_one_each_and_who_replaces_one_stays_there(
    start: Start,
) -> None:
    ours = os.sched_getaffinity(0)
    daemon = start({"milter": {"workers": len(ours)}})
    wait_until(lambda: all(len(cores_of(w)) == 1 for w in daemon.workers), "the workers stay")
    assert set().union(*map(cores_of, daemon.workers)) == ours
    first, *others = daemon.workers
    left = cores_of(first)
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: set(daemon.workers) - {first, *others}, "the worker is replaced")
    (new,) = set(daemon.workers) - {first, *others}
    wait_until(lambda: cores_of(new) == left, "it takes the place")


@needs_two_cores
@pytest.mark.parametrize("settings", [{"workers": 1}, {"pin_workers": False}], ids=str)
def test_workers_run_on_all_cores_where_that_would_leave_one_idle_or_is_not_wanted(
    start: Start, settings: dict[str, object]
) -> None:
    daemon = start({"milter": settings})
    with Mta(daemon.socket) as mta:  # it has begun its work
        assert added(mta) == ADDED
    assert [cores_of(w) for w in daemon.workers] == [os.sched_getaffinity(0)] * len(daemon.workers)


def test_when_all_workers_are_killed_at_once_the_next_session_only_waits(start: Start) -> None:
    daemon = start()
    for worker in daemon.workers:
        os.kill(worker, signal.SIGKILL)
    with Mta(daemon.socket) as mta:
        assert added(mta) == ADDED


def test_the_worker_of_the_maps_is_replaced_too(start: Start) -> None:
    daemon = start({"milter": {"workers": 1}, "socketmap": {"listen": "unix:map.sock"}})

    def answer() -> bytes:
        with dial(f"{daemon.folder}/map.sock") as connection:
            connection.sendall(b"25:relay-domains example.com,")
            return connection.recv(100)

    assert answer() == b"14:OK example.com,"
    for worker in daemon.workers:
        os.kill(worker, signal.SIGKILL)
    assert answer() == b"14:OK example.com,"
    wait_until(lambda: len(daemon.workers) == 2, "both workers are replaced")


# Stopping


def test_sigterm_ends_all_in_order_and_removes_the_socket(start: Start) -> None:
    daemon = start()
    workers = daemon.workers
    with Mta(daemon.socket) as mta:
        assert added(mta) == ADDED
    assert daemon.stop() == 0
    assert gone(*workers)
    assert not (daemon.folder / "milter.sock").exists()
    assert daemon.log.splitlines()[-1] == "stopped"
    assert "worker killed" not in daemon.log
    assert "unfinished" not in daemon.log


def test_a_message_that_is_being_decided_is_finished_before_the_end(redis: RedisServer) -> None:
    load_rules(redis)
    with ShimmedDaemon(redis.url, WAITS) as daemon:
        with Mta(daemon.socket) as mta:
            mta.mail()
            mta.rcpt("<sales@example.com>")
            mta.content([("From", " alice@bank.example")])
            mta.send("E", b"")
            wait_until((daemon.folder / "waiting").exists, "the end of the message is decided")
            daemon.signal(signal.SIGTERM)
            wait_until(lambda: len(daemon.workers) == 1, "the idle worker ends", 15)
            (daemon.folder / "go").touch()
            ending = mta.ending()
        assert daemon.process is not None
        assert daemon.process.wait(20) == 0
        assert ending.answer.kind == "continue"
        assert ending.of("delrcpt") == [("<sales@example.com>",)]
        assert ending.of("addrcpt") == ADDED
        assert "accepted" in daemon.log
        assert "unfinished" not in daemon.log


def test_a_message_that_is_coming_in_is_finished_before_the_end_and_a_silent_session_is_not(
    start: Start,
) -> None:
    daemon = start({"milter": {"workers": 1}})
    with Mta(daemon.socket) as mta, Mta(daemon.socket) as silent:
        assert added(silent) == ADDED
        mta.mail()
        assert mta.rcpt("<sales@example.com>").kind == "continue"
        daemon.signal(signal.SIGTERM)
        wait_until(lambda: "stopping" in daemon.log, "the daemon knows")
        assert mta.rcpt("<team@example.com>").kind == "continue"
        assert mta.message().of("addrcpt") == [*ADDED, ("<carol@example.com>",)]
        assert daemon.process is not None
        assert daemon.process.wait(10) == 0
    assert "unfinished" not in daemon.log


def test_a_message_that_does_not_come_to_its_end_is_waited_for_as_long_as_drain_says(
    start: Start,
) -> None:
    daemon = start({"milter": {"workers": 1, "drain": 1.0}})
    with Mta(daemon.socket) as mta:
        mta.mail()
        mta.rcpt("<sales@example.com>")
        assert daemon.stop() == 0
        with pytest.raises((MilterError, OSError)):
            mta.message()
    assert "worker leaves messages unfinished" in daemon.log
    assert "transactions=1" in daemon.log


@pytest.mark.parametrize("inet", [False, True])
def test_a_session_goes_on_with_its_worker_while_a_reload_replaces_it(
    start: Start, inet: bool
) -> None:
    daemon = start({"milter": {"workers": 1}}, inet=inet)
    (old,) = daemon.workers
    with Mta(daemon.socket) as mta:
        daemon.reload()
        wait_until(lambda: "reloaded" in daemon.log, "the daemon has reloaded")
        assert added(mta) == ADDED
        assert added(mta) == ADDED
        assert old in daemon.workers
        with Mta(daemon.socket) as other:
            assert added(other) == ADDED
    wait_until(lambda: gone(old), "the old worker leaves")


def test_the_workers_end_when_the_supervisor_is_killed_and_a_new_one_takes_over(
    start: Start,
) -> None:
    daemon = start()
    workers = daemon.workers
    with Mta(daemon.socket) as mta:
        assert added(mta) == ADDED
    os.kill(daemon.pid, signal.SIGKILL)
    wait_until(lambda: gone(*workers), "the workers end", 15)
    daemon.kill()
    assert (daemon.folder / "milter.sock").is_socket(), "nobody was left to remove it"
    daemon.start()
    with Mta(daemon.socket) as mta:
        assert added(mta) == ADDED


def test_the_next_one_starts_while_the_workers_of_one_that_was_killed_finish_messages(
    start: Start, tmp_path: Path
) -> None:
    with reserved_port() as port:
        config = {
            "milter": {"socket": f"unix:{tmp_path}/milter"},
            "metrics": {"listen": f"127.0.0.1:{port}"},
            "socketmap": {"listen": f"unix:{tmp_path}/map"},
        }
        daemon = start(config)
        with Mta(daemon.socket) as mta:
            mta.mail()
            assert mta.rcpt("<sales@example.com>").kind == "continue"
            os.kill(daemon.pid, signal.SIGKILL)
            second = start(config)
            assert mta.message().of("addrcpt") == ADDED
        with Mta(second.socket) as other:
            assert added(other) == ADDED


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("inet", [False, True], ids=["unix", "inet"])
def test_nobody_waits_for_workers_that_leave(start: Start, inet: bool, end: signal.Signals) -> None:
    daemon = start({"milter": {"workers": 1}}, inet=inet)
    with Mta(daemon.socket) as mta:
        mta.mail()
        os.kill(daemon.pid, end)

        def is_refused() -> bool:
            try:
                with dial(daemon.socket) as connection:
                    connection.settimeout(0.2)
                    return connection.recv(1) == b""  # it was closed before it was served
            except OSError as error:
                return not isinstance(error, TimeoutError)

        wait_until(is_refused, "the socket is closed", 3)
        assert mta.rcpt("<sales@example.com>").kind == "continue"
        assert mta.message().of("addrcpt") == ADDED


# Starting


def test_a_stale_socket_is_replaced(start: Start) -> None:
    daemon = start()
    daemon.kill()
    stale = (daemon.folder / "milter.sock").stat().st_ctime_ns  # an inode number may come again
    daemon.start()
    assert (daemon.folder / "milter.sock").stat().st_ctime_ns != stale
    with Mta(daemon.socket) as mta:
        assert added(mta) == ADDED


def test_the_live_socket_of_another_process_is_refused_and_left_alone(start: Start) -> None:
    daemon = start()
    identity = (daemon.folder / "milter.sock").stat()
    second = daemon.run("run")
    assert second.returncode == 2
    path = f"{daemon.folder}/milter.sock"
    assert second.stderr == f"alias-milter: socket unix:{path}: another process listens there\n"
    assert (daemon.folder / "milter.sock").stat().st_ino == identity.st_ino
    with Mta(daemon.socket) as mta:
        assert added(mta) == ADDED


def test_a_taken_port_is_refused(start: Start) -> None:
    daemon = start(inet=True)
    second = daemon.run("run")
    assert second.returncode == 2
    assert f"socket inet:{daemon.port}@127.0.0.1: Address already in use" in second.stderr
    with Mta(daemon.socket) as mta:
        assert added(mta) == ADDED


def test_sigint_leaves_a_socket_file_alone_that_is_another_process_s_by_now(start: Start) -> None:
    daemon = start()
    path = daemon.folder / "milter.sock"
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        daemon.signal(signal.SIGINT)
        assert daemon.process is not None
        assert daemon.process.wait(20) == 0
        assert path.is_socket()


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_is_no_socket_is_refused_and_left_alone(
    start: Start, tmp_path: Path, kind: str
) -> None:
    path, target = tmp_path / "m", tmp_path / "target"
    target.write_text("precious")
    if kind == "file":
        path.write_text("precious")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(target)
    with pytest.raises(LabError, match="status 2") as caught:
        start({"milter": {"socket": f"unix:{path}"}})
    assert f"socket unix:{path}: there is something that is no socket" in str(caught.value)
    assert path.is_dir() if kind == "folder" else path.read_text() == "precious"


def test_a_folder_that_is_not_there_is_named(start: Start) -> None:
    with pytest.raises(LabError, match="status 2") as caught:
        start({"milter": {"socket": "unix:/nonexistent/milter.sock"}})
    where = "unix:/nonexistent/milter.sock: No such file or directory"
    assert where in str(caught.value)


def test_the_socket_has_the_mode_and_the_group_of_the_configuration(
    start: Start, redis: RedisServer, a_group: tuple[str, int]
) -> None:
    name, number = a_group
    daemon = start({"milter": {"socket_mode": "0620", "socket_group": name}})
    status = (daemon.folder / "milter.sock").stat()
    assert status.st_mode & 0o777 == 0o620
    assert status.st_gid == number


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[socket.socket]:
    """The service manager's side of sd_notify."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(15)
        manager.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield manager


def told(manager: socket.socket, *kinds: bytes) -> bytes:
    """The next message of one of these kinds, READY= and so on; others are passed over."""
    while True:
        message = manager.recv(1000)
        if message.startswith(kinds):
            return message


STATES = (b"READY=", b"RELOADING=", b"STOPPING=")


def test_the_service_manager_is_told_of_start_reload_and_stop(
    redis: RedisServer, manager: socket.socket
) -> None:
    with Daemon(redis.url, {"milter": {"workers": 1}}) as daemon:
        assert told(manager, *STATES) == b"READY=1"
        daemon.reload()
        assert told(manager, *STATES).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
        assert told(manager, *STATES) == b"READY=1"
        daemon.signal(signal.SIGTERM)
        assert told(manager, *STATES) == b"STOPPING=1"


def test_the_service_manager_shows_how_many_serve_and_what_was_not_reloaded(
    redis: RedisServer, manager: socket.socket
) -> None:
    with Daemon(redis.url, {"milter": {"workers": 2}}) as daemon:
        assert told(manager, b"STATUS=") == b"STATUS=2 of 2 processes serve"
        good = daemon.config_file.read_text()
        daemon.config_file.write_text(f"{good}\n[milters]\n")
        daemon.reload()
        status = told(manager, b"STATUS=").decode()
        assert status.startswith("STATUS=2 of 2 processes serve; not reloaded: ")
        assert "[milters]: no such section" in status
        daemon.config_file.write_text(good)
        daemon.reload()
        assert told(manager, b"STATUS=") == b"STATUS=2 of 2 processes serve"


def test_the_watchdog_is_fed_while_the_supervisor_runs_and_a_worker_lives(
    redis: RedisServer, manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "2000000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    with Daemon(redis.url, {"milter": {"workers": 1}}) as daemon:
        for _ in range(3):
            assert told(manager, b"WATCHDOG=") == b"WATCHDOG=1"
        with paused(daemon.pid):
            manager.settimeout(3)
            # What was under way when it stopped may still be there: one, and then no more.
            with pytest.raises(TimeoutError):
                for _ in range(2):
                    told(manager, b"WATCHDOG=")
        manager.settimeout(15)
        assert told(manager, b"WATCHDOG=") == b"WATCHDOG=1"


def test_the_watchdog_is_not_fed_while_all_workers_die_at_once(
    redis: RedisServer, manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "2000000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    with ShimmedDaemon(redis.url, BORN_DEAD, {"milter": {"workers": 1}}) as daemon:
        seen = told(manager, b"WATCHDOG=", b"STATUS=1 of")
        while daemon.log.count("worker died") < 4:
            assert seen == b"STATUS=1 of 1 processes serve"
            seen = told(manager, b"WATCHDOG=", b"STATUS=1 of")


def test_a_watchdog_that_is_meant_for_another_process_is_not_fed(
    redis: RedisServer, manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "2000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    with Daemon(redis.url, {"milter": {"workers": 1}}) as daemon:
        told(manager, b"STATUS=")
        manager.settimeout(3)
        with pytest.raises(TimeoutError):
            told(manager, b"WATCHDOG=")
        assert daemon.running


def test_a_service_manager_that_does_not_listen_is_no_trouble(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    load_rules(redis)
    with Daemon(redis.url) as daemon, Mta(daemon.socket) as mta:
        assert added(mta) == ADDED
