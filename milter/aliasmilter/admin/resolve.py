"""`alias-milter resolve ADDRESS`: where an address goes and why, step by step."""

import time
from pathlib import Path

import click

from aliasmilter import config as configuration
from aliasmilter.forwarding.decider import Decider
from aliasmilter.forwarding.srs import make_rewriter
from aliasmilter.mail.address import Address
from aliasmilter.mail.replies import REPLIES, Reason
from aliasmilter.routing.decision import Decision, Final
from aliasmilter.routing.lookup import Unavailable
from aliasmilter.store.redis import AliasStore

_SOMEBODY = Address("somebody", "sender.invalid")
"""A sender whom no rule names: the store has to look who is blocked, as for any mail."""


def run(path: Path, address: Address) -> int:
    """Decide the address as the daemon would for most senders; 0 when it is accepted, else 1.

    Raises:
        ConfigError: the configuration cannot be used.
    """
    config = configuration.load(path)
    secrets = configuration.load_secrets(config.srs.secrets_file)
    store = AliasStore(config.store.url, config.store.timeout)
    rewriter = make_rewriter(config.srs, secrets, time.time)
    decider = Decider(store.lookups, config.policy, rewriter, config.srs.domain, time.time)
    try:
        decision = decider.decide(address, _SOMEBODY, explain=True)
    except Unavailable as error:
        click.echo(f"{address}: {error}")
        click.echo(f"  answer: {REPLIES[Reason.STORE_UNAVAILABLE]}")
        return 1
    finally:
        store.close()
    _show(decision)
    return 0 if decision.reply is None else 1


def _show(decision: Decision) -> None:
    click.echo(f"{decision.address}: {decision.reason}")
    for step in decision.steps:
        rule = f"  [{step.rule}] {step.text}" if step.rule else ""
        click.echo(f"  {step.address}{rule}\n      {step.outcome}")
    if decision.problem:
        click.echo(f"  problem: {decision.problem}")
    for hit in decision.quarantined:
        click.echo(f"  quarantined: {hit.address} by {hit.rule} ({hit.reason})")
    for final in decision.finals:
        click.echo(f"  delivered to: {final.address}{_how(final)}")
    click.echo(f"  answer: {decision.reply or '250'}")


def _how(final: Final) -> str:
    notes = []
    if final.leaves:
        notes.append("leaves: SRS sender")
    if final.held:
        notes.append("held in the MTA's queue")
    return f" ({', '.join(notes)})" if notes else ""
