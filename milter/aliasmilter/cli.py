"""The commands.

Exit status: 0; 1 when the answer is no; 2 for a mistake in usage or configuration.
"""

import errno
import ipaddress
import os
import sys
from contextlib import suppress
from io import BufferedWriter, FileIO, TextIOWrapper
from pathlib import Path
from typing import TextIO, cast

import click

from aliasmilter import __version__, cli_quarantine, cli_rules
from aliasmilter.admin import arc as admin_arc
from aliasmilter.admin import check as admin_check
from aliasmilter.admin import keygen as admin_keygen
from aliasmilter.admin import resolve as admin_resolve
from aliasmilter.admin import srs as admin_srs
from aliasmilter.admin.arguments import AddressType, DomainType, config_option
from aliasmilter.admin.source import MessageFile
from aliasmilter.config import ConfigError
from aliasmilter.forwarding.authentication import Client
from aliasmilter.mail.address import Address
from aliasmilter.mail.message import Message

_STDOUT = "standard output"

message_argument = click.argument("message", metavar="FILE", type=MessageFile())
address_argument = click.argument("address", type=AddressType())


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="alias-milter")
@click.pass_context
def commands(context: click.Context) -> None:
    """Aliases and forwarding for Postfix and Sendmail, with the rules in Redis."""
    if os.environ.get("NO_COLOR"):  # no-color.org; rich obeys by itself
        context.color = False


@commands.command()
@config_option
def run(path: Path) -> None:
    """Serve the MTA, in the foreground, until SIGTERM."""
    from aliasmilter.mta import server  # noqa: PLC0415  # only this command needs libmilter

    sys.exit(server.run(path))


@commands.command()
@config_option
@click.option(
    "--postfix",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    help="Check main.cf and master.cf there too: /etc/postfix.",
)
@click.option(
    "--sendmail",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Check that sendmail.mc too.",
)
def check(path: Path, postfix: Path | None, sendmail: Path | None) -> None:
    """Check the configuration, its files, every rule in Redis, and the MTA's set-up."""
    sys.exit(admin_check.run(path, postfix, sendmail))


@commands.command()
@config_option
@address_argument
def resolve(path: Path, address: Address) -> None:
    """Say where ADDRESS goes and why, step by step."""
    sys.exit(admin_resolve.run(path, address))


@commands.group()
def srs() -> None:
    """Make and undo return addresses (Sender Rewriting Scheme)."""


@srs.command()
@config_option
@address_argument
def forward(path: Path, address: Address) -> None:
    """Print the SRS sender that mail from ADDRESS is forwarded with."""
    sys.exit(admin_srs.forward(path, address))


@srs.command()
@config_option
@address_argument
def reverse(path: Path, address: Address) -> None:
    """Print the address that the SRS ADDRESS was made of."""
    sys.exit(admin_srs.reverse(path, address))


@commands.group()
def arc() -> None:
    """Verify and seal messages (ARC, RFC 8617)."""


@arc.command()
@config_option
@message_argument
def verify(path: Path, message: Message) -> None:
    """Say of each ARC set in FILE (- for standard input) whether it holds, and why."""
    sys.exit(admin_arc.verify(path, message))


@arc.command()
@config_option
@message_argument
def seal(path: Path, message: Message) -> None:
    """Print the message in FILE (- for standard input) with an ARC set of ours on top."""
    sys.exit(admin_arc.seal(path, message))


@commands.command()
@config_option
@click.option("--ip", required=True, help="IP address of the client.")
@click.option("--helo", required=True, help="The name it gave in HELO.")
@click.option("--from", "mail_from", required=True, help="MAIL FROM; '' for the null sender.")
@message_argument
def auth(path: Path, ip: str, helo: str, mail_from: str, message: Message) -> None:
    """Say what SPF, DKIM, ARC and DMARC make of the message in FILE (- for standard input)."""
    client = Client(_ip(ip), helo)
    sender = mail_from.strip().removeprefix("<").removesuffix(">")
    sys.exit(admin_arc.authenticate(path, message, client, sender))


@commands.command()
@config_option
@click.argument("domain", type=DomainType())
@click.argument("selector", type=DomainType())
def keygen(path: Path, domain: str, selector: str) -> None:
    """Make a key for ARC seals of DOMAIN and print the DNS record for SELECTOR."""
    sys.exit(admin_keygen.run(path, domain, selector))


cli_rules.add_to(commands)
cli_quarantine.add_to(commands)


def _ip(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--ip") from None


def main() -> None:
    """The entry point of `alias-milter`."""
    _prepare_streams()
    try:
        try:
            commands()
        finally:
            sys.stdout.flush()  # what is left there must not be lost without a word
    except ConfigError as error:
        _say(*error.problems)
        sys.exit(2)
    except OSError as error:
        if error.filename == _STDOUT:
            # Python itself would try again at its end, and complain.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno != errno.EPIPE:  # who reads a part, as `head` does, knows that it is one
            _say(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        sys.exit(1)


class _Output(FileIO):
    """Standard output; its errors say that they are of it."""

    def write(self, data: bytes | memoryview, /) -> int:  # type: ignore[override]
        """See FileIO."""
        try:
            return super().write(data)
        except OSError as error:
            error.filename = _STDOUT
            raise


def _prepare_streams() -> None:
    """See that all three are there, and that each character can be written."""
    # In this order: each gets the lowest number that is free.
    sys.stdin = sys.stdin or _devnull("r")
    sys.stdout = sys.stdout or _devnull("w")
    sys.stderr = sys.stderr or _devnull("w")
    known = sys.stdout
    if isinstance(known, TextIOWrapper):
        sys.stdout = TextIOWrapper(
            BufferedWriter(_Output(known.fileno(), "wb", closefd=False)),
            encoding=known.encoding,
            errors="backslashreplace",
            line_buffering=known.line_buffering,
        )


def _devnull(mode: str) -> TextIO:
    """A stream that is nowhere; its file stays open, whatever becomes of the stream."""
    return cast("TextIO", os.fdopen(os.open(os.devnull, os.O_RDWR), mode, closefd=False))


def _say(*problems: str) -> None:
    with suppress(OSError):
        for problem in problems:
            click.echo(f"alias-milter: {problem}", err=True)
