"""The commands that look after rules: they read and change what stands in Redis."""

import sys
from io import TextIOWrapper
from pathlib import Path
from typing import TextIO

import click

from aliasmilter.admin import edit as admin_edit
from aliasmilter.admin import history as admin_history
from aliasmilter.admin import listing as admin_listing
from aliasmilter.admin import suggest as admin_suggest
from aliasmilter.admin.arguments import (
    DomainType,
    Owner,
    OwnerType,
    SubjectType,
    config_option,
)
from aliasmilter.admin.edit import Wish
from aliasmilter.admin.formats import FORMATS, format_of
from aliasmilter.admin.formats.ruleset import RuleSet
from aliasmilter.admin.output import Form, progress_bar

dry_run_option = click.option(
    "-n", "--dry-run", is_flag=True, help="Show what would change, and write nothing."
)
create_option = click.option(
    "--create-domains",
    is_flag=True,
    help="Manage domains that are not yet (HSET domain:DOMAIN unknown reject).",
)
format_option = click.option(
    "-f",
    "--format",
    "file_format",
    type=click.Choice(sorted(FORMATS)),
    help="Of the file; default: what its name tells (*.redis, *.csv, virtual*).",
)
json_option = click.option("--json", "as_json", is_flag=True, help="A JSON array.")
domain_argument = click.argument("domain", required=False, type=DomainType())


@click.command()
@config_option
@dry_run_option
@create_option
@click.option("--replace", is_flag=True, help="Change a rule that is there already.")
@click.argument("owner", metavar="ADDRESS", type=OwnerType())
@click.argument("words", metavar="RULE...", nargs=-1, required=True)
def add(
    path: Path,
    owner: Owner,
    words: tuple[str, ...],
    *,
    dry_run: bool,
    create_domains: bool,
    replace: bool,
) -> None:
    """Add a rule for ADDRESS: targets, or an action, with options.

    \b
    alias-milter add sales@example.com bob@example.com carol@example.com
    alias-milter add hub@example.com bob@example.com vendor=hub.example
    alias-milter add dave@example.com disabled Dave has left
    alias-milter add '*@example.com' quarantine
    """  # noqa: D301  # the \b of click
    rules = RuleSet()
    rules.add(*owner, " ".join(words).encode("utf-8", "surrogateescape"))
    wish = Wish("add", rules, overwrite=replace, create_domains=create_domains, dry_run=dry_run)
    with progress_bar() as bar:
        sys.exit(admin_edit.run(path, wish, bar))


@click.command()
@config_option
@dry_run_option
@click.argument("owners", metavar="ADDRESS...", nargs=-1, required=True, type=OwnerType())
def remove(path: Path, owners: tuple[Owner, ...], *, dry_run: bool) -> None:
    """Remove the rules for each ADDRESS ('*@example.com' for a catch-all).

    All of them or none: none when other rules would lead to nothing then.
    """
    with progress_bar() as bar:
        sys.exit(admin_edit.run(path, Wish("remove", removed=owners, dry_run=dry_run), bar))


@click.command("list")
@config_option
@json_option
@domain_argument
def list_rules(path: Path, domain: str | None, *, as_json: bool) -> None:
    """List the rules of DOMAIN, or of all domains.

    A table on a terminal; elsewhere lines with address, tab, rule.
    """
    sys.exit(admin_listing.show(path, domain, as_json=as_json))


@click.command("import")
@config_option
@dry_run_option
@create_option
@format_option
@click.option(
    "--replace",
    is_flag=True,
    help="Make the rules of each domain in the file exactly those in the file; likewise settings"
    " and blocked senders.",
)
@click.option(
    "--origin", type=DomainType(), help="For names without a domain in a virtual table."
)
@click.option("--skip", is_flag=True, help="Leave out what cannot be taken over.")
@click.argument("file", type=click.Path(allow_dash=True, dir_okay=False))
def import_rules(
    path: Path,
    file: str,
    file_format: str | None,
    origin: str | None,
    *,
    dry_run: bool,
    create_domains: bool,
    replace: bool,
    skip: bool,
) -> None:
    """Import the rules in FILE (- for standard input): all of them, or none.

    Everything is checked first, together with the rules that are there. Rules are merged into those
    of their domain unless --replace is given. Formats:

    \b
    redis    HSET alias:example.com sales bob@example.com, as for redis-cli
    csv      sales@example.com,"bob@example.com, carol@example.com"
    virtual  sales@example.com bob@example.com, as Postfix's virtual(5)
    """  # noqa: D301
    file_format = file_format or format_of(file)
    if file_format is None:
        raise click.UsageError(f"{file}: its name tells no format: give --format")
    rules = RuleSet(source="standard input" if file == "-" else file, origin=origin)
    with progress_bar() as bar, admin_edit.without_collector():
        with _opened(file) as lines:
            FORMATS[file_format].read(bar.counted("reading", lines), rules)
        wish = Wish(
            "import",
            rules,
            replace=replace,
            create_domains=create_domains,
            skip=skip,
            dry_run=dry_run,
        )
        sys.exit(admin_edit.run(path, wish, bar))


@click.command()
@config_option
@format_option
@domain_argument
def export(path: Path, domain: str | None, file_format: str | None) -> None:
    """Print the rules of DOMAIN, or of all domains, as `import` reads them (default: redis).

    Only the format redis has the settings and the blocked senders of domains as well. Exit status 1
    when something is missing.
    """
    sys.exit(admin_listing.export(path, domain, file_format or "redis"))


@click.command()
@config_option
@json_option
@click.option(
    "-n", "count", type=click.IntRange(min=0), default=50, show_default=True,
    help="At most so many; 0 for all.",
)  # fmt: skip
@click.argument("subject", metavar="[ADDRESS|DOMAIN]", required=False, type=SubjectType())
def log(path: Path, subject: str | None, count: int, *, as_json: bool) -> None:
    """Show who changed what with these commands, the newest last."""
    sys.exit(admin_history.run(path, subject, count, as_json=as_json))


@click.command()
@config_option
@click.option("--check", is_flag=True, help="Look each up: a tick, or what is there.")
@click.argument("domain", type=DomainType())
def dns(path: Path, domain: str, *, check: bool) -> None:
    """Print the DNS records that DOMAIN needs, ready for a zone file.

    DOMAIN is a managed domain (those of its SRS senders and its ARC key are shown too), a domain of
    SRS senders, or one that seals. With --check the exit status is 1 while anything is missing.
    """
    from aliasmilter.admin import dns as admin_dns  # noqa: PLC0415  # SPF and DMARC take a while

    sys.exit(admin_dns.run(path, domain, check=check))


@click.command()
@config_option
@click.option("--json", "form", flag_value=Form.JSON.value, help="A JSON array.")
@click.option("--csv", "form", flag_value=Form.CSV.value, help="CSV with a heading.")
@domain_argument
def leaks(path: Path, domain: str | None, form: str | None) -> None:
    """Show which addresses with vendor= got mail from somebody else: who, how often, since when."""
    from aliasmilter.admin import leaks as admin_leaks  # noqa: PLC0415  # suffixes take a while

    sys.exit(admin_leaks.run(path, domain, Form(form or Form.TABLE)))


@click.command()
@config_option
@click.option("--apply", is_flag=True, help="Ask for each whether to add it.")
@domain_argument
def suggest(path: Path, domain: str | None, *, apply: bool) -> None:
    """Show addresses that were asked for and look like a typo of one of DOMAIN, or of any domain.

    As lines for redis-cli or `import`, the likeliest first, the reason before each. They are
    remembered when [suggest] remember_days is set.
    """
    with progress_bar() as bar:
        sys.exit(admin_suggest.run(path, domain, bar, apply=apply))


def add_to(commands: click.Group) -> None:
    """Add them to the commands of `alias-milter`."""
    for command in (add, remove, list_rules, import_rules, export, log, dns, leaks, suggest):
        commands.add_command(command)


def _opened(file: str) -> TextIO:
    """A file as text; octets that are no UTF-8 go through as surrogate escapes.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        data = sys.stdin.buffer if file == "-" else Path(file).open("rb")  # noqa: SIM115
    except OSError as error:
        raise click.UsageError(f"{file}: {error.strerror}") from None
    # Excel marks its CSV files with a BOM.
    return TextIOWrapper(data, encoding="utf-8-sig", errors="surrogateescape", newline="")
