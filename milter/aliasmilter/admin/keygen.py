"""`alias-milter keygen DOMAIN SELECTOR`: a key that seals, and its DNS record."""

from pathlib import Path

import click

from aliasmilter import config as configuration
from aliasmilter.config import Config
from aliasmilter.forwarding.keys import KeyFileError, dns_record, generate_key, write_key


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
        file.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        write_key(file, key)
    except (KeyFileError, OSError) as error:
        click.echo(f"alias-milter: {error}", err=True)
        return 1
    click.echo(f"; The key is in {file}. The daemon's user must own it, nobody else may read it.")
    click.echo("; Publish this record, then use the key:")
    click.echo(dns_record(domain, selector, key), nl=False)
    return 0


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
