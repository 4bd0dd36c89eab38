"""Reading a sendmail.mc, the files that it includes, and the domain files beside it."""

import re
from pathlib import Path

from aliasmilter.admin.sendmail import m4
from aliasmilter.admin.sendmail.m4 import M4Error
from aliasmilter.admin.sendmail.values import SendmailSetup
from aliasmilter.config import ConfigError

# Sendmail's own machinery, which needs its cf folder and says nothing about this host.
_MACHINERY = re.compile(r"(^|/)(cf|cfhead|proto|autoconf)\.m4$")


def read(file: Path) -> SendmailSetup:
    """Read a .mc file.

    Raises:
        ConfigError: it is not there or cannot be read; says why.
    """
    text = _text(file)
    if text is None:
        raise ConfigError(f"{file}: No such file")
    folder = file.parent

    def include(name: str) -> str | None:
        return "" if _MACHINERY.search(name) else _text(folder / name)

    try:
        reading = m4.read(text, str(file), include, {"MAIL_SETTINGS_DIR": f"{folder}/"})
    except M4Error as error:
        raise ConfigError(str(error)) from None
    files = {
        "relay-domains": reading.expand("confCR_FILE") or "relay-domains",
        "local-host-names": reading.expand("confCW_FILE") or "local-host-names",
        "access": "access",
        "virtusertable": "virtusertable",
    }
    found = {name: _lines(folder / _path(place)) for name, place in files.items()}
    return SendmailSetup(
        file, reading, {name: lines for name, lines in found.items() if lines is not None}
    )


def _path(place: str) -> str:
    """Of a file class: "-o" for one that need not be there, "%" and a format (op.me, F)."""
    return place.strip().removeprefix("-o").split("%")[0].strip()


def _text(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8", errors="surrogateescape")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from None


def _lines(file: Path) -> tuple[str, ...] | None:
    text = _text(file)
    if text is None:
        return None
    return tuple(line for line in text.splitlines() if line.strip() and line[:1] != "#")
