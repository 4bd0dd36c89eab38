"""`alias-milter keygen DOMAIN SELECTOR`: a key that seals, and its DNS record."""

import os
import stat
from contextlib import suppress
from pathlib import Path

import click

from aliasmilter import config as configuration
from aliasmilter.config import Config
from aliasmilter.forwarding.keys import KeyFileError, dns_record, generate_key, write_key

_AT_MOST = 0o2755  # of the rights of the folder above: nobody else writes where keys are


def run(path: Path, domain: str, selector: str) -> int:
    """Write a new key where the configuration looks for it, and print the record.

    A file that exists is never replaced: it may be in use.

    Returns:
        0, or 1 when the file could not be written.

    Raises:
        ConfigError: the configuration cannot be used.
    """
    file = key_file(configuration.load(path), path, domain, selector)
    key = generate_key()
    try:
        _make_folder(file.parent)
        write_key(file, key)
    except (KeyFileError, OSError) as error:
        click.echo(f"alias-milter: {error}", err=True)
        return 1
    click.echo(f"; The key is in {file}. The daemon's user must own it, nobody else may read it.")
    click.echo("; Publish this record, then use the key:")
    click.echo(dns_record(domain, selector, key), nl=False)
    return 0


def _make_folder(folder: Path) -> None:
    """Make a folder that is open to those whom the one above is open to: the daemon's group."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)
    above = folder.parent.stat()
    with suppress(PermissionError):  # only root gives a folder to a group that it is not in
        os.chown(folder, -1, above.st_gid)
    folder.chmod(stat.S_IMODE(above.st_mode) & _AT_MOST | stat.S_IRWXU)


def key_file(config: Config, path: Path, domain: str, selector: str) -> Path:
    """Where the key of a domain and selector is looked for.

    Args:
        config: read from `path`.
        path: its folder holds the keys when the configuration names no key file.
        domain: d= of the seals.
        selector: s= of the seals.
    """
    arc = config.arc
    if arc.key_file and (arc.domain, arc.selector) == (domain, selector):
        return arc.key_file
    folder = arc.key_file.parent if arc.key_file else path.absolute().parent
    return folder / domain / f"{selector}.pem"
