"""The daemon under the restrictions of its systemd unit, with real mail through it."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.harness import sandbox
from tests.harness.daemon import REPOSITORY, Config, Daemon
from tests.harness.lab import Lab
from tests.harness.monitoring import request, scrape, sealing_config
from tests.harness.mta_client import dial
from tests.harness.wait import wait_until

UNIT = REPOSITORY / "systemd" / "alias-milter.service"
GROUP = "postfix"
RULES = (
    "HSET domain:example.com unknown reject",
    "HSET alias:example.com bob bob@example.com sales bob@example.com out me@gmail.example",
)


@pytest.fixture(autouse=True)
def possible() -> None:
    """Skip, loudly, where the kernel or the container cannot do it."""
    if reason := sandbox.why_no_sandbox():
        pytest.skip(f"NO SANDBOX HERE, the unit is not proven: {reason}")


class SandboxedDaemon(Daemon):
    """A daemon as the unit runs it."""

    def command(self) -> Sequence[str]:
        return sandbox.command(self.folder, super().command())

    def environment(self) -> Mapping[str, str]:
        restrictions = sandbox.environment(UNIT, GROUP)
        return {**super().environment(), **restrictions, "RUNTIME_DIRECTORY": str(self.folder)}


class SandboxedLab(Lab):
    """The whole scene with such a daemon."""

    def make_daemon(self) -> Daemon:
        return SandboxedDaemon(self.redis.tcp_url, self.config, files=self.files)


def test_all_that_the_daemon_does_works_under_the_restrictions_of_the_unit() -> None:
    with sealing_config() as (config, files, port):
        place = {"socket_mode": "0660", "socket_group": GROUP}
        more: Config = {"milter": place, "socketmap": {"listen": "unix:map.sock"}}
        with SandboxedLab({**config, **more}, files=files, reinject=True) as lab:
            lab.rules(*RULES)
            sent = lab.send(
                "alice@bank.example",
                "sales@example.com",
                "out@example.com",
                xclient={"ADDR": "192.0.2.10", "NAME": "client.example"},
            )
            assert sent.accepted
            assert lab.world.wait_for("bob@example.com")
            (left,) = lab.world.wait_for("me@gmail.example")
            assert b"ARC-Seal: i=1" in left.content
            assert not lab.send("alice@bank.example", "nobody@example.com").accepted
            with dial(f"unix:{lab.daemon.folder}/map.sock") as connection:
                connection.sendall(b"25:relay-domains example.com,")
                assert connection.recv(100) == b"14:OK example.com,"
            assert request(port, "/readyz").text == "ok\n"
            assert scrape(port).value("reinjections_total", result="submitted") == 1
            assert scrape(port).value("arc_sealed_total") == 1
            old = set(lab.daemon.workers)
            lab.daemon.reload()
            wait_until(lambda: not old & set(lab.daemon.workers), "it is reloaded", 30)
            assert lab.send("alice@bank.example", "sales@example.com").accepted
            status = Path(f"/proc/{lab.daemon.workers[0]}/status").read_text()
            assert "NoNewPrivs:\t1" in status
            assert "Seccomp:\t2" in status
            assert "CapEff:\t0000000000000000" in status
            assert lab.daemon.stop(40) == 0
            for trouble in ("Traceback", "error:", "Operation not permitted", "Read-only"):
                assert trouble not in lab.daemon.log


LIBC = "import ctypes\nif ctypes.CDLL(None, use_errno=True)."
CHECK = ": raise OSError(ctypes.get_errno(), '')"
# What must not be possible in it, and what is said then.
FORBIDDEN = {
    "write to the system": ("open('/etc/alias-milter-test', 'w')", errno.EROFS),
    "write beside the daemon's folder": ("open('/var/tmp/alias-milter-test', 'w')", errno.EROFS),
    "a packet socket": ("import socket; socket.socket(17, 3)", errno.EAFNOSUPPORT),
    "netlink": ("import socket; socket.socket(16, 3)", errno.EAFNOSUPPORT),
    "memory to write and run": ("import mmap; mmap.mmap(-1, 4096, prot=7)", errno.EPERM),
    "another user": ("import os; os.setuid(12345)", errno.EPERM),
    "a name space": (LIBC + "unshare(0x10000000)" + CHECK, errno.EPERM),
    "mounting": (LIBC + "mount(b'none', b'/tmp', b'tmpfs', 0, None)" + CHECK, errno.EPERM),
    "the kernel's settings": ("open('/proc/sys/kernel/hostname').read()", errno.ENOENT),
    "a device": ("open('/dev/vda', 'rb')", errno.ENOENT),
    "another process": ("open('/proc/1/environ', 'rb')", errno.EACCES),
    "a root program": ("import os; os.chmod(FOLDER + '/x', 0o4755)", errno.EPERM),
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_the_sandbox_of_this_test_is_one(tmp_path: Path, what: str) -> None:
    code, number = FORBIDDEN[what]
    (tmp_path / "x").touch()
    program = (
        f"FOLDER = {str(tmp_path)!r}\ntry:\n"
        + "".join(f"    {line}\n" for line in code.split("\n"))
        + "except OSError as error:\n    print(error.errno)\nelse:\n    print('possible')\n"
    )
    done = subprocess.run(
        sandbox.command(tmp_path, [sys.executable, "-c", program]),
        env=sandbox.environment(UNIT, GROUP),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == (f"{number}\n", "")


def test_the_unit_forbids_what_a_milter_never_needs_and_allows_to_hand_over_the_socket() -> None:
    calls = sandbox.allowed(UNIT)
    assert {"chown", "accept4", "fork", "execve", "sendto", "flock", "fallocate"} <= calls
    never = {"ptrace", "mount", "reboot", "init_module", "bpf", "setuid", "chroot", "kexec_load"}
    assert not never & calls
