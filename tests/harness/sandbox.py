"""Runs a command under the restrictions of a systemd unit, without systemd.

What the unit's settings make the kernel refuse is refused here in the same way: mounts of its own,
all read-only but FOLDER; a /tmp, /dev and /proc of its own; no capabilities and no new privileges;
the same system calls, as `systemd-analyze syscall-filter` lists them. Not done: User=, because the
tests' Python may stand where only root can read it; root without capabilities takes its place.
"""

from __future__ import annotations

import errno
import grp
import os
import socket
import subprocess
import sys
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import pyseccomp as seccomp

REPOSITORY = Path(__file__).parents[2]

MOUNTS = r"""
set -eu
folder=$1
shift
mount --make-rprivate /
awk '{print $5}' /proc/self/mountinfo | while read -r place; do
  mount -o remount,bind,ro "$place" 2>/dev/null || true
done
mount --bind "$folder" /mnt
mount -o remount,bind,rw /mnt
if [ -z "$SANDBOX_KEEP_TMP" ]; then
  mount -t tmpfs -o mode=1777 tmpfs /tmp
  mkdir -p "$folder"
fi
mount --bind /mnt "$folder"
umount /mnt
mount -t tmpfs -o mode=755 tmpfs /dev
mknod -m 666 /dev/null c 1 3
mknod -m 666 /dev/zero c 1 5
mknod -m 666 /dev/random c 1 8
mknod -m 666 /dev/urandom c 1 9
ln -s /proc/self/fd /dev/fd
mount -o remount,ro /dev
mount -t proc -o subset=pid,hidepid=2 proc /proc
exec setpriv --no-new-privs --bounding-set=-all --inh-caps=-all --groups "$SANDBOX_GROUPS" -- "$@"
"""
PROT_WRITE, PROT_EXEC = 2, 4
CLONE_NAMESPACES = (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000,
                    0x40000000, 0x00000080)  # fmt: skip
SUID_SGID = (0o4000, 0o2000)


def why_no_sandbox() -> str:
    """Why this machine cannot make one; "" when it can."""
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", "mount -t tmpfs tmpfs /mnt && mknod /mnt/n c 1 3"],
        capture_output=True,
        text=True,
        check=False,
    )
    return "" if done.returncode == 0 else f"no mounts of one's own: {done.stderr.strip()}"


def command(folder: Path, inner: Sequence[str]) -> list[str]:
    """The command line that runs `inner` in the sandbox; exec all the way, the pid stays.

    Args:
        folder: the only one that can be written to.
        inner: an absolute path, and arguments; to be run in `environment`.
    """
    return [
        "unshare", "--mount", "sh", "-c", MOUNTS, "sh", str(folder),
        sys.executable, "-m", "tests.harness.sandbox", *inner,
    ]  # fmt: skip


def environment(unit: Path, group: str) -> dict[str, str]:
    """What `command` needs in its environment.

    Args:
        unit: the restrictions.
        group: a supplementary group.
    """
    ours = (REPOSITORY, Path(sys.prefix), Path(sys.base_prefix))
    under_tmp = any(Path("/tmp") in path.parents for path in ours)
    return {
        "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY}/milter",
        "PYTHONDONTWRITEBYTECODE": "1",
        "SANDBOX_CALLS": " ".join(sorted(allowed(unit))),
        "SANDBOX_GROUPS": str(grp.getgrnam(group).gr_gid),
        "SANDBOX_KEEP_TMP": "1" if under_tmp else "",
    }


def settings(unit: Path, key: str) -> list[str]:
    """The values of a setting, in order."""
    lines = (line.partition("=") for line in unit.read_text().splitlines())
    return [value for name, _, value in lines if name == key]


@cache
def members(group: str) -> frozenset[str]:
    """The system calls of a group such as @system-service, those of groups in it included."""
    done = subprocess.run(
        ["systemd-analyze", "syscall-filter", group], capture_output=True, text=True, check=True
    )
    return expand(line.strip() for line in done.stdout.splitlines()[1:])


def expand(names: Iterable[str]) -> frozenset[str]:
    """Names of system calls and of groups, as names of system calls."""
    found: set[str] = set()
    for name in names:
        if name.startswith("@"):
            found |= members(name)
        elif name and not name.startswith("#"):
            found.add(name)
    return frozenset(found)


def allowed(unit: Path) -> set[str]:
    """What SystemCallFilter= leaves; systemd adds @default to every list of what is allowed."""
    calls = set(members("@default"))
    for value in settings(unit, "SystemCallFilter"):
        if value.startswith("~"):
            calls -= expand(value[1:].split())
        else:
            calls |= expand(value.split())
    return calls


def restrict(calls: Iterable[str]) -> None:
    """Have the kernel refuse what the unit forbids, for this process and its children."""
    _forbid_details()
    only = seccomp.SyscallFilter(seccomp.ERRNO(errno.EPERM))
    for name in sorted(calls):
        try:
            only.add_rule(seccomp.ALLOW, name)
        except (ValueError, OSError):
            continue  # a system call of another architecture
    only.load()


def _forbid_details() -> None:
    """What depends on arguments: systemd.exec(5) names each setting's."""
    some = seccomp.SyscallFilter(seccomp.ALLOW)
    no, arg = seccomp.ERRNO(errno.EPERM), seccomp.Arg
    both = PROT_WRITE | PROT_EXEC
    # MemoryDenyWriteExecute=
    some.add_rule(no, "mmap", arg(2, seccomp.MASKED_EQ, both, both))
    some.add_rule(no, "mprotect", arg(2, seccomp.MASKED_EQ, PROT_EXEC, PROT_EXEC))
    # RestrictNamespaces=; glibc falls back when there is no clone3
    some.add_rule(no, "unshare")
    some.add_rule(no, "setns")
    some.add_rule(seccomp.ERRNO(errno.ENOSYS), "clone3")
    for flag in CLONE_NAMESPACES:
        some.add_rule(no, "clone", arg(0, seccomp.MASKED_EQ, flag, flag))
    # RestrictAddressFamilies=
    families = seccomp.ERRNO(errno.EAFNOSUPPORT)
    kept = {socket.AF_UNIX, socket.AF_INET, socket.AF_INET6}
    for family in set(range(max(kept))) - kept:
        some.add_rule(families, "socket", arg(0, seccomp.EQ, family))
    some.add_rule(families, "socket", arg(0, seccomp.GT, max(kept)))
    # RestrictSUIDSGID=, RestrictRealtime=, LockPersonality=
    for bit in SUID_SGID:
        some.add_rule(no, "chmod", arg(1, seccomp.MASKED_EQ, bit, bit))
        some.add_rule(no, "fchmod", arg(1, seccomp.MASKED_EQ, bit, bit))
        some.add_rule(no, "fchmodat", arg(2, seccomp.MASKED_EQ, bit, bit))
    some.add_rule(no, "sched_setscheduler", arg(1, seccomp.GT, 0))
    some.add_rule(no, "personality", arg(0, seccomp.NE, 0))
    some.load()


def main() -> None:
    """Restrict ourselves, and become the command."""
    restrict(os.environ["SANDBOX_CALLS"].split())
    os.execv(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
