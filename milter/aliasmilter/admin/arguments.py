"""What the commands take on their command line."""

from pathlib import Path

import click

from aliasmilter.config import DEFAULT_PATH
from aliasmilter.mail.address import Address, AddressError, parse_address, parse_domain

config_option = click.option(
    "-c",
    "--config",
    "path",
    type=click.Path(path_type=Path),
    default=DEFAULT_PATH,
    show_default=True,
    help="The configuration file.",
)


class AddressType(click.ParamType[Address]):
    """An e-mail address on the command line."""

    name = "address"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> Address:
        """Parse it; a usage error (exit status 2) when it is none."""
        try:
            return parse_address(str(value))
        except AddressError as error:
            self.fail(f"{value}: {error}", param, ctx)


class DomainType(click.ParamType[str]):
    """A domain name on the command line; a selector has the same form (RFC 6376 3.1)."""

    name = "domain"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> str:
        """Bring it into its one form; a usage error (exit status 2) when it is none."""
        try:
            return parse_domain(str(value))
        except AddressError as error:
            self.fail(f"{value}: {error}", param, ctx)
