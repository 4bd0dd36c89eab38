"""What the commands take on their command line."""

from abc import abstractmethod
from pathlib import Path
from typing import TypeVar

import click

from aliasmilter.admin.formats.ruleset import parse_owner
from aliasmilter.config import DEFAULT_PATH
from aliasmilter.mail.address import Address, AddressError, parse_address, parse_domain
from aliasmilter.store.audit import rule_address

Owner = tuple[str, str]
"""Domain and field of a rule."""

T = TypeVar("T")

config_option = click.option(
    "-c",
    "--config",
    "path",
    type=click.Path(path_type=Path),
    default=DEFAULT_PATH,
    show_default=True,
    help="The configuration file.",
)


class _ParsedType(click.ParamType[T]):
    """Something on the command line that has to do with addresses."""

    @abstractmethod
    def parse(self, text: str) -> T:
        """Bring it into its one form.

        Raises:
            AddressError: it is none.
        """

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> T:
        """Parse it; a usage error (exit status 2) when it is none."""
        try:
            return self.parse(str(value))
        except AddressError as error:
            self.fail(f"{value}: {error}", param, ctx)


class AddressType(_ParsedType[Address]):
    """An e-mail address."""

    name = "address"

    def parse(self, text: str) -> Address:
        """See the base."""
        return parse_address(text)


class DomainType(_ParsedType[str]):
    """A domain name; a selector has the same form (RFC 6376 3.1)."""

    name = "domain"

    def parse(self, text: str) -> str:
        """See the base."""
        return parse_domain(text)


class OwnerType(_ParsedType[Owner]):
    """The address of a rule; `*@example.com` is a catch-all."""

    name = "address"

    def parse(self, text: str) -> Owner:
        """See the base."""
        return parse_owner(text)


class SubjectType(_ParsedType[str]):
    """An address, as `OwnerType`, or a domain."""

    name = "address or domain"

    def parse(self, text: str) -> str:
        """See the base."""
        return rule_address(*parse_owner(text)) if "@" in text else parse_domain(text)
