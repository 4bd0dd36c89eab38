"""`alias-milter arc verify|seal FILE` and `alias-milter auth FILE`."""

import time
from pathlib import Path

import click

from aliasmilter import config as configuration
from aliasmilter.forwarding import chain
from aliasmilter.forwarding.arc import Unsealed
from aliasmilter.forwarding.authentication import Client
from aliasmilter.forwarding.dns import Resolver
from aliasmilter.forwarding.outbound import load_keyring, make_outbound
from aliasmilter.forwarding.results import Results, Verdict, results_header
from aliasmilter.mail.message import Message


def verify(path: Path, message: Message) -> int:
    """Print the verdict on each ARC set and on the chain; 0 when the chain passes, else 1.

    Raises:
        ConfigError: the configuration cannot be used.
    """
    config = configuration.load(path)
    lookup = Resolver(config.dns.nameservers).lookup(config.dns.timeout)
    found = chain.evaluate(message, lookup)
    for each in found.sets:
        why = f" ({each.reason})" if each.reason else ""
        click.echo(
            f"i={each.instance} d={each.domain} s={each.selector}:"
            f" seal {each.seal}, message signature {each.message_signature}{why}"
        )
    why = f" ({found.reason})" if found.reason else ""
    click.echo(f"arc={found.verdict}{why}")
    return 0 if found.verdict is Verdict.PASS else 1


def seal(path: Path, message: Message) -> int:
    """Print the message with a new ARC set on top; 1 when it gets none.

    Raises:
        ConfigError: the configuration cannot be used, or has ARC disabled.
    """
    config = configuration.load(path)
    outbound = make_outbound(config, load_keyring(config.arc), time.time)
    if outbound.keyring is None:
        raise configuration.ConfigError(f"{path}: [arc] enabled: sealing is switched off")
    results = outbound.examine(message, Client("", ""), "")
    sealed = outbound.seal(message, results, None)
    if isinstance(sealed, Unsealed):
        click.echo(f"not sealed: {sealed.value}", err=True)
        return 1
    click.echo(message.with_fields_on_top(reversed(sealed.fields)).as_bytes(), nl=False)
    return 0


def authenticate(path: Path, message: Message, client: Client, mail_from: str) -> int:
    """Print what verify mode says of a message; 0 when it is authentic, else 1.

    Authentic is what passes DMARC, or, where its domain has no policy, SPF or DKIM.

    Raises:
        ConfigError: the configuration cannot be used.
    """
    config = configuration.load(path)
    authentication = config.authentication.model_copy(update={"mode": "verify"})
    config = config.model_copy(update={"authentication": authentication})
    outbound = make_outbound(config, None, time.time)
    results = outbound.examine(message, client, mail_from)
    header = results_header(results, config.mail.hostname).decode()
    click.echo(f"Authentication-Results:{header}")
    return 0 if _is_authentic(results) else 1


def _is_authentic(results: Results) -> bool:
    if results.dmarc and results.dmarc.verdict is not Verdict.NONE:
        return results.dmarc.verdict is Verdict.PASS
    verdicts = [result.verdict for result in results.dkim]
    if results.spf:
        verdicts.append(results.spf.verdict)
    return Verdict.PASS in verdicts
