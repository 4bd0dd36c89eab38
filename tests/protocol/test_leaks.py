"""Passwords, secrets and keys stand in files; no log line and no error shows them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness.daemon import REPOSITORY, Daemon
from tests.harness.mta_client import Mta
from tests.harness.redis import RedisServer
from tests.harness.signing import key, pem
from tests.harness.wait import wait_until
from tests.protocol.conftest import load_rules

Start = Callable[..., Daemon]

SECRET = "hush-Zq9"
GOOD = {
    "milter": 'socket = "unix:milter.sock"\nworkers = 1',
    "srs": 'domain = "fwd.example.net"\nsecrets_file = "srs.secrets"',
    "log": 'level = "debug"',
}


def all_output(folder: Path, *sections: str, command: str = "run") -> str:
    """What a command says that cannot do its work; its status must say so too."""
    file = folder / "alias-milter.toml"
    parts = [f"[{name}]\n{text}\n" for name, text in GOOD.items() if f"[{name}]" not in sections]
    file.write_text("".join(parts) + "\n".join(sections) + "\n")
    secrets = folder / "srs.secrets"
    if not secrets.exists():
        secrets.write_text(f"{SECRET}\n")
    done = subprocess.run(
        [sys.executable, "-m", "aliasmilter", command, "-c", str(file)],
        capture_output=True, text=True, timeout=30, check=False, cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{REPOSITORY}/milter"},
    )  # fmt: skip
    assert done.returncode != 0
    return done.stdout + done.stderr


@pytest.mark.parametrize("command", ["run", "check"])
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
def test_a_broken_store_url_is_an_error_that_does_not_show_it(
    tmp_path: Path, url: str, command: str
) -> None:
    output = all_output(tmp_path, f'[store]\nurl = "{url}"', command=command)
    assert "[store] url" in output
    assert SECRET not in output


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


def test_no_failure_of_a_connection_shows_the_password(start: Start) -> None:
    with RedisServer(password="right") as server:
        load_rules(server)
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
            daemon = start({"log": {"level": "debug"}, "store": {"timeout": 3.0}}, url=url)
            with Mta(daemon.socket) as mta:
                mta.mail()
                assert mta.rcpt("<bob@example.com>").text.startswith("451 4.3.0"), url
            for command in ("check", "resolve"):
                arguments = [command, *(["bob@example.com"] if command == "resolve" else [])]
                done = daemon.run(*arguments)
                assert done.returncode != 0
                assert SECRET not in done.stdout + done.stderr, url
            assert "reason=store-unavailable" in daemon.log
            assert SECRET not in daemon.log, url


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
