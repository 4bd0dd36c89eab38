"""`alias-milter srs forward|reverse ADDRESS`."""

import time
from pathlib import Path

import click

from aliasmilter import config as configuration
from aliasmilter.forwarding.srs import CannotRewrite, Rewriter, SRSError, make_rewriter
from aliasmilter.mail.address import Address


def forward(path: Path, address: Address) -> int:
    """Print the SRS sender of an address; 1 when there can be none.

    Raises:
        ConfigError: the configuration cannot be used.
    """
    rewriter, domain = _rewriter(path)
    try:
        click.echo(rewriter.forward(address, domain))
    except CannotRewrite as error:
        click.echo(f"{address}: not rewritten: {error}", err=True)
        return 1
    return 0


def reverse(path: Path, address: Address) -> int:
    """Print the address that an SRS address was made of; 1 when it is forged or expired.

    Raises:
        ConfigError: the configuration cannot be used.
    """
    rewriter, _ = _rewriter(path)
    try:
        click.echo(rewriter.reverse(address))
    except SRSError as error:
        click.echo(f"{address}: {error.reason}: {error}", err=True)
        return 1
    return 0


def _rewriter(path: Path) -> tuple[Rewriter, str]:
    config = configuration.load(path)
    secrets = configuration.load_secrets(config.srs.secrets_file)
    return make_rewriter(config.srs, secrets, time.time), config.srs.domain
