"""Passwords, secrets and keys stand in files; no log line and no error shows them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from aliasmilter.config import ConfigError, load
from aliasmilter.routing.lookup import Unavailable
from aliasmilter.store.redis import AliasStore
from aliasmilter.store.snapshot import read
from tests.harness.daemon import REPOSITORY, Daemon
from tests.harness.mta_client import Mta
from tests.harness.redis import RedisServer
from tests.harness.signing import key, pem
from tests.harness.wait import wait_until

Start = Callable[..., Daemon]

SECRET = "hush-Zq9"
GOOD = {
    "milter": 'socket = "unix:milter.sock"\nworkers = 1',
    "srs": 'domain = "fwd.example.net"\nsecrets_file = "srs.secrets"',
    "log": 'level = "debug"',
}


def all_output(folder: Path, *sections: str) -> str:
    """What the daemon says that cannot be started; its status must be 2."""
    file = folder / "alias-milter.toml"
    parts = [f"[{name}]\n{text}\n" for name, text in GOOD.items() if f"[{name}]" not in sections]
    file.write_text("".join(parts) + "\n".join(sections) + "\n")
    secrets = folder / "srs.secrets"
    if not secrets.exists():
        secrets.write_text(f"{SECRET}\n")
    done = subprocess.run(
        [sys.executable, "-m", "aliasmilter", "run", "-c", str(file)],
        capture_output=True, text=True, timeout=60, check=False, cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{REPOSITORY}/milter"},
    )  # fmt: skip
    assert done.returncode == 2
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    "url",
    [
        f"redis:/:{SECRET}@127.0.0.1:6379/0",
        f"http://:{SECRET}@127.0.0.1:6379/0",
        f"redis://:{SECRET}/x@127.0.0.1:6379/0",  # "/" should have been %2F
        f"redis://user:1234/{SECRET}@127.0.0.1:6379/0",
        f"redis://:x?{SECRET}@127.0.0.1:6379/0",
        f"redis://:x#{SECRET}@127.0.0.1:6379/0",
        f"redis://:{SECRET}#x@127.0.0.1:6379/0",
        f"redis://:{SECRET}?x@127.0.0.1:6379/0",
        f"redis://user:{SECRET}[x@127.0.0.1:6379/0",
        f"redis://user:{SECRET}\u2100@127.0.0.1:6379/0",
        f"redis://:x@{SECRET}:port/0",
        f"redis://127.0.0.1:6379/0?password={SECRET}&socket_timeout=x",
        f"unix://:{SECRET}@",
        f"{SECRET}@127.0.0.1",
    ],
)
def test_a_broken_store_url_is_an_error_that_does_not_show_it(tmp_path: Path, url: str) -> None:
    file = tmp_path / "alias-milter.toml"
    file.write_text(f"[srs]\n{GOOD['srs']}\n[store]\nurl = {json.dumps(url)}\n")
    with pytest.raises(ConfigError) as error:
        load(file)
    (problem,) = error.value.problems
    assert problem.startswith(f"{file}: [store] url: ")
    assert SECRET not in "".join(traceback.format_exception(error.value))


@pytest.mark.parametrize(
    "sections",
    [
        [f'[store]\nurl = "redis://:{SECRET}@h/0'],  # not closed
        [f'[store]\nurl = ["redis://:{SECRET}@h/0"]'],
        [f'[store]\nurl = "redis://:{SECRET}@h/0"\ntimeout = "{SECRET}"'],
        [f'[store]\nurl = "redis://:{SECRET}@h/0"\nurl = "redis://:{SECRET}@h/1"'],
        [f'[store]\nurl = "redis://:{SECRET}@h/0\x00"'],
        [f'[store]\npassword = "{SECRET}"'],
        [f'store = "redis://:{SECRET}@h/0"'],
    ],
)
def test_a_mistake_in_the_file_does_not_show_what_stands_there(
    tmp_path: Path, sections: list[str]
) -> None:
    output = all_output(tmp_path, *sections)
    assert "alias-milter.toml" in output
    assert SECRET not in output


def test_a_secrets_file_is_never_shown(tmp_path: Path) -> None:
    (tmp_path / "srs.secrets").write_bytes(SECRET.encode() + b"\xff\n")
    output = all_output(tmp_path)
    assert "srs.secrets: not UTF-8" in output
    assert SECRET not in output


@pytest.mark.parametrize(
    "damage", [("PRIVATE", "PUBLIC"), ("MII", "MI!"), ("-----END", ""), ("-----", "")]
)
def test_row_17_a_damaged_key_ends_with_2_is_named_and_never_shown(
    tmp_path: Path, damage: tuple[str, str]
) -> None:
    text = pem(key()).decode()
    file = tmp_path / "arc.pem"
    file.touch(0o600)
    file.write_text(text.replace(*damage))
    arc = '[arc]\ndomain = "example.net"\nselector = "a"\nkey_file = "arc.pem"'
    output = all_output(tmp_path, arc)
    assert "[arc] key_file" in output
    assert str(file) in output
    assert not any(line in output for line in text.splitlines() if len(line) > 30)


@pytest.mark.parametrize("trouble", ["missing", "open to others", "small"])
def test_row_17_a_key_that_cannot_be_used_ends_with_2(tmp_path: Path, trouble: str) -> None:
    file = tmp_path / "arc.pem"
    if trouble != "missing":
        file.touch(0o600)
        file.write_bytes(pem(key(1, 1024) if trouble == "small" else key()))
    if trouble == "open to others":
        file.chmod(0o644)
    arc = '[arc]\ndomain = "example.net"\nselector = "a"\nkey_file = "arc.pem"'
    assert f"[arc] key_file: {file}: " in all_output(tmp_path, arc)


def test_no_failure_of_a_connection_shows_the_password() -> None:
    with RedisServer(password="right") as server:
        urls = [
            server.tcp_url.replace("right", SECRET),
            f"unix://:{SECRET}@{server.socket}?db=0",
            f"redis://user:{SECRET}@127.0.0.1:{server.port}/0",
            f"redis://:{SECRET}@127.0.0.1:1/0",
            f"redis://:{SECRET}@no-such-host.invalid:6379/0",
            f"rediss://:{SECRET}@127.0.0.1:{server.port}/0",
            f"unix://:{SECRET}@/nonexistent/redis.sock",
        ]
        for url in urls:
            store = AliasStore(url, 5.0)
            for ask in (store.ping, lambda at=url: read(at, 5.0)):
                with pytest.raises(Unavailable) as error:
                    ask()
                chain = "".join(traceback.format_exception(error.value))
                assert SECRET not in chain, url
            store.close()


def test_a_password_that_is_refused_is_neither_in_the_log_nor_in_the_output_of_a_command(
    start: Start,
) -> None:
    with RedisServer(password="right") as server:
        url = server.tcp_url.replace("right", SECRET)
        daemon = start({"log": {"level": "debug"}, "store": {"timeout": 3.0}}, url=url)
        with Mta(daemon.socket) as mta:
            mta.mail()
            assert mta.rcpt("<bob@example.com>").text.startswith("451 4.3.0")
        assert "reason=store-unavailable" in daemon.log
        done = daemon.run("check")
        assert done.returncode == 1
        assert SECRET not in daemon.log + done.stdout + done.stderr


def test_a_reload_that_fails_shows_nothing_either(start: Start) -> None:
    daemon = start()
    for url in (f"redis://:{SECRET}/x@127.0.0.1:6379/0", f"redis://u:{SECRET}\u2100@h/0"):
        before = len(daemon.log)
        daemon.store_url = url
        daemon.write_config({})
        daemon.reload()
        wait_until(lambda at=before: "not reloaded" in daemon.log[at:], "the log says so")  # type: ignore[misc]
    assert SECRET not in daemon.log
    with Mta(daemon.socket) as mta:
        mta.mail()
        assert mta.rcpt("<bob@example.com>").kind == "continue"
