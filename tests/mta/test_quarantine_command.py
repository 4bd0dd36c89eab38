"""`alias-milter quarantine` with the hold queue of a real Postfix and a real Sendmail."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.harness.daemon import REPOSITORY, Daemon
from tests.harness.lab import Lab
from tests.harness.postfix import Postfix, Queued
from tests.harness.sendmail import Sendmail
from tests.harness.smtp import message, send
from tests.harness.wait import wait_until
from tests.harness.world import World
from tests.mta.test_sendmail_daemon import start

ALICE = "alice@bank.example"
GUESS = "guess@example.com"
FORGED = b"X-Alias-Milter-Quarantine: recipient=fake@example.com; rule=x; reason=y\r\n"
HOLD = {"quarantine": {"action": "hold", "mailbox": "quarantine@example.net"}}


class Bench:
    """A daemon in hold mode, an MTA that has a message on hold, and the command."""

    def __init__(
        self, daemon: Daemon, mta: Postfix | Sendmail, world: World, options: list[str], path: str
    ) -> None:
        self.daemon = daemon
        self.mta = mta
        self.world = world
        self.options = options
        self.path = path

    def run(self, *args: str) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", "aliasmilter", "quarantine", args[0], *self.options]
        return subprocess.run(
            [*command, "-c", str(self.daemon.config_file), *args[1:]],
            capture_output=True, timeout=60, check=False,
            env={**os.environ, "PYTHONPATH": f"{REPOSITORY}/milter", "PATH": self.path},
        )  # fmt: skip

    def hold(self, sender: str = ALICE) -> Queued:
        """Have a message held that claims to have been quarantined before."""
        content = FORGED + message(sender=sender, to=GUESS)
        assert send(self.mta.port, sender, [GUESS], content).accepted
        (held,) = self.mta.queue()
        assert held.queue == "hold"
        return held


@pytest.fixture(scope="module")
def postfix_bench() -> Iterator[Bench]:
    with Lab(HOLD) as lab:
        lab.rules("HSET domain:example.com unknown reject", "HSET alias:example.com * quarantine")
        options = ["--mta-config", str(lab.postfix.folder / "etc")]
        yield Bench(lab.daemon, lab.postfix, lab.world, options, os.environ["PATH"])


@pytest.fixture(scope="module")
def sendmail_bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with ExitStack() as stack:
        scene = start(stack, quarantine={"action": "hold"})
        folder = tmp_path_factory.mktemp("bin")
        write_wrapper(folder / "sendmail", scene.sendmail)
        options = ["--mta", "sendmail", "--mta-config", f"{scene.sendmail.folder}/etc/sendmail.cf"]
        path = f"{folder}:{os.environ['PATH']}"
        yield Bench(scene.daemon, scene.sendmail, scene.world, options, path)


def write_wrapper(file: Path, server: Sendmail) -> None:
    """A `sendmail` that runs the unpacked one, in the environment that it needs."""
    words = [f"{name}={value}" for name, value in server.environment().items()]
    line = shlex.join(["exec", "env", *words, str(server.programs.sendmail)])
    file.write_text(f'#!/bin/sh\n{line} "$@"\n')
    file.chmod(0o755)


@pytest.fixture(params=["postfix", "sendmail"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    bench: Bench = request.getfixturevalue(f"{request.param}_bench")
    empty(bench)
    yield bench
    empty(bench)


def empty(bench: Bench) -> None:
    if isinstance(bench.mta, Postfix):
        bench.mta.purge()
    else:
        bench.mta.purge()
    bench.world.reset()


def test_list_shows_recipient_rule_and_reason_and_believes_no_forgery(bench: Bench) -> None:
    held = bench.hold()
    done = bench.run("list")
    assert done.returncode == 0, done.stderr
    [line] = done.stdout.decode().splitlines()
    cells = line.split("\t")
    assert cells[0] == held.id
    assert cells[2:] == [f"<{ALICE}>", GUESS, "*@example.com", "catch-all"]
    [told] = json.loads(bench.run("list", "--json").stdout)
    assert told["recipients"] == [GUESS]
    assert told["hits"] == [
        {"recipient": GUESS, "rule": "*@example.com", "reason": "catch-all"}
    ]


def test_show_prints_the_message(bench: Bench) -> None:
    held = bench.hold()
    done = bench.run("show", held.id)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"X-Alias-Milter-Quarantine: recipient=guess@example.com;")
    assert done.stdout.endswith(b"\n\nHello there.\n")
    assert b"Return-Path" not in done.stdout
    assert f"came to {GUESS} by *@example.com (catch-all)" in done.stderr.decode()


def test_release_lets_it_go_to_its_recipient_unchanged(bench: Bench) -> None:
    held = bench.hold()
    done = bench.run("release", held.id)
    assert done.returncode == 0, done.stderr
    (got,) = bench.world.wait_for(GUESS)
    assert got.sender == ALICE
    bench.mta.wait_until_empty()
    assert bench.run("release", held.id).returncode == 1


@pytest.mark.parametrize("sender", [ALICE, ""])
def test_release_to_another_address_sends_it_there_and_nowhere_else(
    bench: Bench, sender: str
) -> None:
    held = bench.hold(sender)
    done = bench.run("release", held.id, "--to", "carol@mailbox.example")
    assert done.returncode == 0, done.stderr
    (got,) = bench.world.wait_for("carol@mailbox.example")
    assert got.sender == sender
    assert got.message["Subject"] == "Hello"
    assert b"Hello there." in got.content
    bench.mta.wait_until_empty()
    assert len(bench.world.deliveries) == 1


def test_a_message_that_the_mta_does_not_take_stays_held(bench: Bench, tmp_path: Path) -> None:
    held = bench.hold()
    (tmp_path / "sendmail").write_text("#!/bin/sh\necho queue file write error >&2\nexit 75\n")
    (tmp_path / "sendmail").chmod(0o755)
    broken = Bench(bench.daemon, bench.mta, bench.world, bench.options, f"{tmp_path}:{bench.path}")
    done = broken.run("release", held.id, "--to", "carol@mailbox.example")
    assert done.returncode == 1
    assert b"queue file write error" in done.stderr
    assert [each.id for each in bench.mta.queue()] == [held.id]


def test_delete_removes_it_and_nothing_that_is_not_held(bench: Bench) -> None:
    held = bench.hold()
    done = bench.run("delete", held.id)
    assert done.returncode == 0, done.stderr
    assert bench.mta.queue() == []
    again = bench.run("delete", held.id)
    assert again.returncode == 1
    assert f"{held.id}: not held" in again.stderr.decode()
    bench.mta.wait_until_empty()
    for name in ("../../etc/passwd", "-d", "ALL*"):
        assert bench.run("delete", "--", name).returncode == 2


def test_a_message_in_the_ordinary_queue_is_not_deleted(bench: Bench) -> None:
    bench.hold()
    bench.world.refuse("451 4.3.0 Later", recipient=GUESS)
    (held,) = bench.mta.queue()
    assert bench.run("release", held.id).returncode == 0
    wait_until(lambda: bench.mta.queue()[0].queue != "hold", "it is released")
    assert bench.run("delete", held.id).returncode == 1
    bench.world.reset()
    bench.world.wait_for(GUESS)


def test_what_others_have_put_on_hold_is_listed_on_demand(postfix_bench: Bench) -> None:
    empty(postfix_bench)
    postfix = postfix_bench.mta
    assert isinstance(postfix, Postfix)
    postfix_bench.world.refuse("451 4.3.0 Later", recipient="x@mailbox.example")
    postfix.run("sendmail", "-f", ALICE, "x@mailbox.example", stdin="Subject: other\n\nx\n")
    wait_until(lambda: [q for q in postfix.queue() if q.queue == "deferred"], "it is deferred")
    postfix.postsuper("-h", "ALL")
    assert postfix_bench.run("list").stdout == b""
    assert b"x@mailbox.example" in postfix_bench.run("list", "--all").stdout
    empty(postfix_bench)


def test_sendmail_that_works_on_a_message_is_waited_for_by_the_administrator(
    sendmail_bench: Bench, make_locked: Callable[[Path], None]
) -> None:
    empty(sendmail_bench)
    held = sendmail_bench.hold()
    make_locked(sendmail_bench.mta.folder / "queue" / f"hf{held.id}")
    done = sendmail_bench.run("delete", held.id)
    assert done.returncode == 1
    assert b"Sendmail is working on it" in done.stderr
    assert sendmail_bench.mta.queue()


@pytest.fixture
def make_locked() -> Iterator[Callable[[Path], None]]:
    """Lock a file as Sendmail does, until the test ends."""
    import fcntl

    with ExitStack() as stack:

        def lock(file: Path) -> None:
            fcntl.flock(stack.enter_context(file.open("rb+")), fcntl.LOCK_EX)

        yield lock


def test_tools_that_are_missing_are_named(postfix_bench: Bench, tmp_path: Path) -> None:
    options = ["--mta", "sendmail", "--mta-config", str(tmp_path)]
    away = Bench(postfix_bench.daemon, postfix_bench.mta, postfix_bench.world, options, "/bin")
    done = away.run("list")
    assert done.returncode == 1
    assert b"sendmail.cf: No such file" in done.stderr
