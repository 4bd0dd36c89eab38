"""The programs of a real Sendmail, unpacked beside the mail system that the machine has.

Debian's sendmail packages conflict with postfix, so they are downloaded and unpacked into a cache
folder and never installed. The cache is built once and is whole or absent: everything happens in a
folder beside it, under a lock, and is renamed into place when it is finished.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.harness.wait import LabError

# Sendmail itself, what builds its configuration, and the libraries a small Debian 12 lacks.
PACKAGES = (
    "sendmail-bin",
    "sendmail-cf",
    "sendmail-base",
    "sensible-mda",
    "m4",
    "libsigsegv2",
    "liblockfile1",
    "libwrap0",
    "libnsl2",
    "libtirpc3",
    "libdb5.3",
    "libldap-2.5-0",
    "libsasl2-2",
)
SHIM_SOURCE = Path(__file__).with_name("sendmail_shim.c")
LIMIT_SECONDS = 300.0


class SendmailUnavailableError(LabError):
    """Sendmail cannot be had on this machine; the text says what is missing."""


@dataclass(frozen=True)
class Programs:
    """Where the unpacked Sendmail stands."""

    root: Path

    @property
    def sendmail(self) -> Path:
        return self.root / "usr/libexec/sendmail/sendmail"

    @property
    def makemap(self) -> Path:
        return self.root / "usr/libexec/sendmail/makemap"

    @property
    def m4(self) -> Path:
        return self.root / "usr/bin/m4"

    @property
    def cf(self) -> Path:
        """The folder of the configuration macros (cf/README)."""
        return self.root / "usr/share/sendmail/cf"

    @property
    def shim(self) -> Path:
        return self.root / "shim.so"

    def environment(self, **shim: str) -> dict[str, str]:
        """Return the environment to run one of the programs in, with the shim's variables."""
        folders = [*self.root.glob("lib/*-linux-gnu*"), *self.root.glob("usr/lib/*-linux-gnu*")]
        libraries = ":".join(str(folder) for folder in folders)
        preload = {"LD_PRELOAD": str(self.shim)} if shim else {}
        return {"PATH": os.defpath, "LD_LIBRARY_PATH": libraries} | preload | shim


def programs() -> Programs:
    """Return the unpacked Sendmail, fetching it first when this machine has not got it yet.

    Safe to call from several processes at once.

    Raises:
        SendmailUnavailableError: no apt-get, no package lists, no network or no C compiler.
    """
    base = _cache_folder()
    root = base / f"sendmail-{_fingerprint()}"
    if not root.exists():
        with _locked(base / "lock"):
            if not root.exists():
                _build(base, root)
    return Programs(root)


def _cache_folder() -> Path:
    """Return a folder outside the repository that outlives this run where possible."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    temporary = Path(tempfile.gettempdir())
    for base in (home / "alias-milter", temporary / f"alias-milter-{os.getuid()}"):
        with suppress(OSError):
            base.mkdir(mode=0o700, parents=True, exist_ok=True)
            # A stranger may have made this folder in /tmp, and programs in it are going to be run.
            if base.stat().st_uid == os.getuid() and os.access(base, os.W_OK):
                return base
    raise SendmailUnavailableError(f"neither {home} nor {temporary} can be written")


def _fingerprint() -> str:
    """Return a name that changes with what is unpacked, so that an old cache is not used."""
    text = " ".join(PACKAGES).encode() + SHIM_SOURCE.read_bytes() + Path(__file__).read_bytes()
    return hashlib.sha256(text).hexdigest()[:12]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        # The kernel drops the lock when its holder dies: no stale lock stays behind.
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(base: Path, root: Path) -> None:
    # What a killed run left is never continued: under the lock nobody else works on it.
    for remains in base.glob("building-*"):
        shutil.rmtree(remains)
    work = Path(tempfile.mkdtemp(prefix="building-", dir=base))
    tree = work / "tree"
    tree.mkdir()
    for package in _download(work):
        _run(["dpkg", "-x", str(package), str(tree)], work)
    for program in (tree / "usr/libexec/sendmail").iterdir():
        # Set-group-id: with it the loader ignores LD_LIBRARY_PATH and LD_PRELOAD (ld.so(8)).
        program.chmod(0o755)
    shim = ["cc", "-O1", "-Wall", "-shared", "-fPIC", "-o", str(tree / "shim.so"), str(SHIM_SOURCE)]
    _run(shim, work)
    _check_libraries(Programs(tree))
    tree.rename(root)
    shutil.rmtree(work)


def _download(folder: Path) -> list[Path]:
    """Download all the packages; on failure once more with fresh package lists."""
    # apt's own user cannot write here, and would only warn.
    download = ["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", *PACKAGES]
    try:
        _run(download, folder)
    except SendmailUnavailableError:
        _run(["apt-get", "-q", "update"], folder)
        _run(download, folder)
    return sorted(folder.glob("*.deb"))


def _check_libraries(unpacked: Programs) -> None:
    listing = subprocess.run(
        ["ldd", str(unpacked.sendmail)],
        env=unpacked.environment(),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    missing = [line.split()[0] for line in listing.splitlines() if "not found" in line]
    if missing:
        raise SendmailUnavailableError(f"libraries that Sendmail needs are missing: {missing}")


def _run(command: Sequence[str], folder: Path) -> None:
    try:
        subprocess.run(
            command, cwd=folder, capture_output=True, text=True, check=True, timeout=LIMIT_SECONDS
        )
    except FileNotFoundError as error:
        raise SendmailUnavailableError(f"{command[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise SendmailUnavailableError(f"{command}: no end after {error.timeout} s") from error
    except subprocess.CalledProcessError as error:
        raise SendmailUnavailableError(f"{command}: {error.stderr.strip()}") from error
