"""SIGHUP: a new configuration as a whole, or the old one. And what a configuration must hold."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.harness.daemon import Config, Daemon
from tests.harness.mta_client import Mta
from tests.harness.redis import RedisServer
from tests.harness.wait import LabError, wait_until

Start = Callable[..., Daemon]


def reload(daemon: Daemon, config: Config, says: str) -> str:
    """Write the configuration, SIGHUP, wait for these words; the log lines since."""
    before = len(daemon.log)
    daemon.write_config(config)
    daemon.reload()
    wait_until(lambda: says in daemon.log[before:], says, 15, daemon.log_tail)
    return daemon.log[before:]


def answer(daemon: Daemon, recipient: str) -> str:
    """The reply to RCPT in a new session."""
    with Mta(daemon.socket) as mta:
        mta.mail()
        return str(mta.rcpt(recipient))


def test_a_good_configuration_holds_for_new_sessions_without_a_restart(start: Start) -> None:
    daemon = start()
    supervisor, workers = daemon.pid, daemon.workers
    assert answer(daemon, "<bob-x@example.com>").startswith("550 5.1.1")
    log = reload(daemon, {"mail": {"delimiter": "-", "hostname": "mx.example.net"}}, "reloaded")
    assert "not reloaded" not in log
    # Workers of before may still take a connection until they have noticed.
    wait_until(lambda: not set(daemon.workers) & set(workers), "the old workers end", 15)
    assert answer(daemon, "<bob-x@example.com>") == "continue"
    assert answer(daemon, "<bob+x@example.com>").startswith("550 5.1.1")
    assert daemon.pid == supervisor
    assert daemon.running
    assert len(daemon.workers) == 2


def test_every_new_session_is_served_while_the_old_workers_leave(start: Start) -> None:
    daemon = start()
    workers = daemon.workers
    reload(daemon, {"milter": {"workers": 3, "socket_mode": "0666"}}, "reloaded")
    served = 0
    while set(daemon.workers) & set(workers):
        with Mta(daemon.socket) as mta:
            mta.mail()
            assert mta.rcpt("<sales@example.com>").kind == "continue"
            assert mta.message().of("addrcpt") == [("<bob@example.com>",)]
        served += 1
    assert served
    wait_until(lambda: len(daemon.workers) == 3, "there are three workers")
    assert "worker died" not in daemon.log


@pytest.mark.parametrize(
    ("broken", "problem"),
    [
        ({"mail": {"delimeter": "-"}}, "[mail] delimeter: no such key"),
        ({"store": {"url": "http://127.0.0.1/"}}, "[store] url: "),
        ({"store": {"url": "redis://127.0.0.1:nonsense/0"}}, "[store] url: "),
        ({"dns": {"nameservers": ["999.1.1.1"]}}, "[dns] nameservers.0: "),
        ({"srs": {"secrets_file": "missing"}}, "[srs] secrets_file: "),
    ],
)
def test_a_broken_configuration_changes_nothing_and_the_log_names_file_and_key(
    start: Start, broken: Config, problem: str
) -> None:
    daemon = start()
    workers = daemon.workers
    log = reload(daemon, broken, "not reloaded")
    (line,) = log.splitlines()
    assert line.startswith("error: not reloaded problem=")
    assert problem in line
    file = daemon.folder / ("missing" if "srs" in broken else "alias-milter.toml")
    assert str(file) in line
    assert daemon.workers == workers
    assert answer(daemon, "<sales@example.com>") == "continue"


def test_a_configuration_that_is_no_toml_or_is_gone_changes_nothing(start: Start) -> None:
    daemon = start()
    workers = daemon.workers
    for spoilt in (b"[mail", b"\xff", None):
        before = len(daemon.log)
        if spoilt is None:
            daemon.config_file.unlink()
        else:
            daemon.config_file.write_bytes(spoilt)
        daemon.reload()
        wait_until(lambda at=before: "not reloaded" in daemon.log[at:], "the log says so")  # type: ignore[misc]
        assert f'problem="{daemon.config_file}: ' in daemon.log[before:]
    assert daemon.workers == workers
    assert answer(daemon, "<sales@example.com>") == "continue"


def test_a_new_socket_needs_a_restart_and_the_rest_of_the_configuration_holds(
    start: Start,
) -> None:
    daemon = start()
    workers = daemon.workers
    elsewhere = f"unix:{daemon.folder}/other.sock"
    log = reload(daemon, {"milter": {"socket": elsewhere}, "mail": {"delimiter": "-"}}, "reloaded")
    assert "warning: a new socket needs a restart" in log.splitlines()
    wait_until(lambda: not set(daemon.workers) & set(workers), "the old workers end", 15)
    assert answer(daemon, "<bob-x@example.com>") == "continue"
    assert not (daemon.folder / "other.sock").exists()


def test_a_new_mode_of_the_socket_is_not_left_out_without_a_word(start: Start) -> None:
    daemon = start()
    log = reload(daemon, {"milter": {"socket_mode": "0600"}}, "reloaded")
    assert "warning: a new socket_mode or socket_group needs a restart" in log.splitlines()
    log = reload(daemon, {"milter": {"socket_mode": "0600", "workers": 3}}, "reloaded")
    assert "restart" not in log


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"milter": {"sokcet": "x"}}, "alias-milter.toml: [milter] sokcet: no such key"),
        ({"milter": {"workers": "two"}}, "alias-milter.toml: [milter] workers: "),
        ({"milter": {"socket": "local:/x"}}, "alias-milter.toml: [milter] socket: 'local:/x'"),
        ({"milter": {"socket_group": "no such group"}}, "[milter] socket_group: "),
        ({"nonsense": {"a": 1}}, "alias-milter.toml: [nonsense]: no such section"),
        ({"srs": {"secrets_file": "missing"}}, "[srs] secrets_file: "),
        ({"store": {"url": "redis://127.0.0.1:nonsense/0"}}, "alias-milter.toml: [store] url: "),
        ({"store": {"url": "redis://127.0.0.1:99999/0"}}, "alias-milter.toml: [store] url: "),
        ({"store": {"url": "redis://127.0.0.1/0?foo=bar"}}, "alias-milter.toml: [store] url: "),
        ({"store": {"url": "unix:///redis.sock?db=x"}}, "alias-milter.toml: [store] url: "),
        ({"arc": {"enabled": True}}, "alias-milter.toml: [arc]: "),
        (
            {"milter": {"workers": -1}, "mail": {"hostname": "-"}, "dns": {"timeout": 0}},
            "[milter] workers: .*[mail] hostname: .*[dns] timeout: ",
        ),
    ],
)
def test_a_mistake_in_the_configuration_ends_with_2_and_names_file_and_key(
    start: Start, config: Config, problem: str
) -> None:
    with pytest.raises(LabError, match="ended with status 2\n") as caught:
        start(config)
    text = str(caught.value)
    for part in problem.split(".*"):
        assert part in text
        text = text[text.index(part) + len(part) :]
    assert "Traceback" not in str(caught.value)


def test_an_empty_secrets_file_ends_with_2_and_is_named(start: Start) -> None:
    with pytest.raises(LabError, match="ended with status 2\n") as caught:
        start(secrets=())
    assert "srs.secrets: no secret in it" in str(caught.value)


def test_a_missing_configuration_file_ends_with_2_and_is_named(
    redis: RedisServer, start: Start
) -> None:
    daemon = start()
    daemon.config_file.unlink()
    done = daemon.run("run")
    assert done.returncode == 2
    assert done.stderr == f"alias-milter: {daemon.config_file}: No such file or directory\n"
