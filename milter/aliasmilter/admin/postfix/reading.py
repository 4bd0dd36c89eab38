"""Reading a Postfix configuration, by Postfix's own commands: postconf and postmap.

postconf knows the defaults, continuation lines, `$name` and what an `-o` of master.cf does to the
others; nothing of it is done again here.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from aliasmilter.admin.postfix.values import (
    Lookup,
    PostfixSetup,
    Service,
    TableError,
    keys_of,
    words,
)
from aliasmilter.config import ConfigError

_TIMEOUT = 15.0  # seconds for one command
_SBIN = "/usr/sbin:/sbin:/usr/local/sbin"  # not on everybody's PATH
_LABEL = re.compile(r"^(\S*/)?(postconf|postmap): (warning|error|fatal|panic): ", re.MULTILINE)
_FATAL = re.compile(r"(\S*/)?postmap: (error|fatal|panic): ")
_LISTS = (
    "mydestination", "virtual_alias_domains", "virtual_mailbox_domains", "relay_domains",
    "mynetworks",
)  # fmt: skip


def read(folder: Path, domains: Iterable[str] = ()) -> PostfixSetup:
    """Read main.cf and master.cf of a folder.

    Args:
        folder: where they are.
        domains: those that tables will be asked about, thousands of them perhaps.

    Raises:
        ConfigError: there is no postconf, or it cannot read them; says which and why.
    """
    for name in ("main.cf", "master.cf"):
        _readable(folder / name)
    main_text, complaints = _postconf(folder, "-x")
    main = _with_files(_parameters(main_text))
    return PostfixSetup(
        folder=folder,
        main=main,
        services=tuple(_services(folder, main)),
        complaints=tuple(dict.fromkeys(_complaint(line) for line in complaints.splitlines())),
        lookup=_tables(folder, main, [key for domain in domains for key in keys_of(domain)]),
    )


def _readable(file: Path) -> None:
    try:
        file.open("rb").close()
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from None


def _program(name: str) -> str:
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), _SBIN])
    found = shutil.which(name, path=path)
    if not found:
        raise ConfigError(f"--postfix: there is no {name} on this host: Postfix is not installed")
    return found


def _run(
    name: str, folder: Path, *args: str, stdin: str = "", cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    command = [_program(name), "-c", str(folder.absolute()), *args]
    # The folder that was asked for, not another instance's out of the environment.
    environment = {key: value for key, value in os.environ.items() if key != "MAIL_CONFIG"}
    try:
        return subprocess.run(  # noqa: S603  # no shell
            command, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT,
            check=False, env=environment, input=stdin, cwd=cwd,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(
            command, 75, "", f"{name}: fatal: no answer in {_TIMEOUT:g} s"
        )


def _postconf(folder: Path, *args: str) -> tuple[str, str]:
    """What postconf prints, and what it warns of."""
    done = _run("postconf", folder, *args)
    if done.returncode:
        raise ConfigError(f"{folder}: {_complaint(done.stderr.strip())}")
    return done.stdout, done.stderr


def _complaint(text: str) -> str:
    return _LABEL.sub("", text)


def _parameters(text: str) -> dict[str, str]:
    lines = (line.partition("=") for line in text.splitlines())
    return {name.strip(): value.strip() for name, equals, value in lines if equals}


def _with_files(values: Mapping[str, str]) -> dict[str, str]:
    """Lists of domains and networks, with what stands in the files that they name."""
    return {**values, **{name: _with_file(values.get(name, "")) for name in _LISTS}}


def _with_file(value: str) -> str:
    found = []
    for word in words(value):
        if not word.startswith("/"):
            found.append(word)
            continue
        try:
            lines = Path(word).read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError as error:
            raise ConfigError(f"{word}: {error.strerror}") from None
        found += [pattern for line in lines if line[:1] != "#" for pattern in words(line)]
    return ", ".join(found)


def _services(folder: Path, main: Mapping[str, str]) -> Iterator[Service]:
    fields: dict[str, dict[str, str]] = {}
    for name, value in _parameters(_postconf(folder, "-F")[0]).items():
        service, _, field = name.rpartition("/")
        fields.setdefault(service, {})[field] = value
    overrides: dict[str, dict[str, str]] = {}
    for name, value in _parameters(_postconf(folder, "-P")[0]).items():
        service, _, parameter = name.rpartition("/")
        overrides.setdefault(service, {})[parameter] = value
    for service, line in fields.items():
        own = overrides.get(service, {})
        yield Service(
            name=service,
            chroot=_chroot(line["chroot"], main),
            program=line["command"].split()[0],
            overrides=frozenset(own),
            values=_overridden(folder, own) if own else main,
        )


def _overridden(folder: Path, own: Mapping[str, str]) -> dict[str, str]:
    options = [part for name, value in own.items() for part in ("-o", f"{name}={value}")]
    return _with_files(_parameters(_postconf(folder, "-x", *options)[0]))


def _chroot(field: str, main: Mapping[str, str]) -> bool:
    """Of that column of master.cf; the default has changed with Postfix 3.0."""
    level = main.get("compatibility_level", "0").partition(".")[0]
    return field == "y" or (field == "-" and level == "0")


def _tables(folder: Path, main: Mapping[str, str], expected: Iterable[str]) -> Lookup:
    """Ask tables by postmap: for all expected keys at once, for any other one by one."""
    # Where Postfix's processes are: a path without a leading slash begins there.
    queue = Path(main.get("queue_directory", ""))
    place = queue if queue.is_dir() else None
    keys = "".join(f"{key}\n" for key in dict.fromkeys(expected))
    answers: dict[str, dict[str, str | None]] = {}
    # A table that did not answer once is not waited for again.
    failed: dict[str, TableError] = {}

    def ask(table: str, key: str, stdin: str = "") -> str:
        # Without proxymap, which only a running Postfix has.
        name = table.removeprefix("proxy:")
        done = _run("postmap", folder, "-q", key, name, stdin=stdin, cwd=place)
        # Not found is status 1 without a word; but main.cf may make it warn of other things.
        problems = [line for line in done.stderr.splitlines() if _FATAL.match(line)]
        if problems:
            failed[table] = TableError(f"{table}: {_complaint(problems[-1])}")
            raise failed[table]
        return done.stdout if done.returncode == 0 else ""

    def lookup(table: str, key: str) -> str | None:
        if table in failed:
            raise failed[table]
        if table not in answers:
            pairs = (line.partition("\t") for line in ask(table, "-", keys).splitlines())
            found = {name: value.strip() for name, _, value in pairs}
            answers[table] = {name: found.get(name) for name in keys.splitlines()}
        known = answers[table]
        if key not in known:
            known[key] = ask(table, key).strip() or None
        return known[key]

    return lookup
