"""The commands that look after mail kept away from inboxes."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from aliasmilter.admin import quarantine as admin_quarantine
from aliasmilter.admin.arguments import AddressType, config_option
from aliasmilter.admin.quarantine import Chosen
from aliasmilter.mail.address import Address

_QUEUE_ID = re.compile(r"[A-Za-z0-9]{5,40}")


class QueueIdType(click.ParamType[str]):
    """A queue id; it becomes part of file names and of other programs' arguments."""

    name = "id"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> str:
        """Check its form; a usage error (exit status 2) when it is none."""
        if not _QUEUE_ID.fullmatch(str(value)):
            self.fail(f"{value}: not a queue id", param, ctx)
        return str(value)


id_argument = click.argument("queue_id", metavar="ID", type=QueueIdType())


def mta_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say which MTA holds the mail."""
    for option in (
        click.option(
            "--mta-config",
            type=click.Path(path_type=Path, exists=True),
            help="Of another than the default instance: the directory of Postfix's main.cf, or"
            " Sendmail's sendmail.cf.",
        ),
        click.option(
            "--mta",
            type=click.Choice(["postfix", "sendmail"]),
            help="Which MTA holds the mail; default: the one that is there.",
        ),
    ):
        command = option(command)
    return command


@click.group()
def quarantine() -> None:
    """Look at mail kept away from inboxes, release it, or delete it.

    With `[quarantine] action = "hold"` it is in the MTA's queue: run these as root. With "mailbox"
    it is in the quarantine mailbox; `list` tells how much each domain got.
    """


@quarantine.command("list")
@config_option
@mta_options
@click.option("--held/--hits", default=None, help="What to list; default: by the configuration.")
@click.option("--all", "everything", is_flag=True, help="Also what others have put on hold.")
@click.option("--json", "as_json", is_flag=True, help="A JSON array.")
def list_all(
    path: Path,
    mta: str | None,
    mta_config: Path | None,
    *,
    held: bool | None,
    everything: bool,
    as_json: bool,
) -> None:
    """List held messages, or the hits of each domain's quarantine mailbox.

    A message comes with the recipient as the sender wrote it, the rule, and the reason.
    """
    if held is None:
        held = bool(mta or mta_config or everything) or admin_quarantine.holds(path)
    if not held:
        sys.exit(admin_quarantine.list_hits(path, as_json=as_json))
    chosen = Chosen(mta, mta_config)
    sys.exit(admin_quarantine.list_held(path, chosen, everything=everything, as_json=as_json))


@quarantine.command()
@config_option
@mta_options
@id_argument
def show(path: Path, mta: str | None, mta_config: Path | None, queue_id: str) -> None:
    """Print the held message ID (and what is known of it on standard error)."""
    sys.exit(admin_quarantine.show(path, Chosen(mta, mta_config), queue_id))


@quarantine.command()
@config_option
@mta_options
@click.option("--to", type=AddressType(), help="Send it to this address instead.")
@id_argument
def release(
    path: Path, mta: str | None, mta_config: Path | None, to: Address | None, queue_id: str
) -> None:
    """Let the held message ID go on to its recipient.

    With --to it is handed to the MTA anew, with the same sender, for that address alone; then the
    held one is deleted.
    """
    sys.exit(admin_quarantine.release(path, Chosen(mta, mta_config), queue_id, to))


@quarantine.command()
@config_option
@mta_options
@id_argument
def delete(path: Path, mta: str | None, mta_config: Path | None, queue_id: str) -> None:
    """Delete the held message ID for good; nobody is told."""
    sys.exit(admin_quarantine.delete(path, Chosen(mta, mta_config), queue_id))


def add_to(commands: click.Group) -> None:
    """Add them to the commands of `alias-milter`."""
    commands.add_command(quarantine)
