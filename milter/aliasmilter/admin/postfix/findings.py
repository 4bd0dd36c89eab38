"""`alias-milter check --postfix`: all that is missing or dangerous in a Postfix configuration."""

from collections.abc import Iterator

from aliasmilter.admin.ours import Ours
from aliasmilter.admin.postfix import bounces, lines, maps, milters, recipients, relaying
from aliasmilter.admin.postfix.values import PostfixSetup
from aliasmilter.admin.report import Finding, warning


def findings(setup: PostfixSetup, ours: Ours) -> list[Finding]:
    """What is wrong, each once, in the order of docs/postfix.md."""
    return list(dict.fromkeys(_findings(setup, ours)))


def _findings(setup: PostfixSetup, ours: Ours) -> Iterator[Finding]:
    for complaint in setup.complaints:
        yield warning(f"postconf -c {setup.folder}", complaint)
    reinject = setup.listener(ours.reinject) if ours.reinject else None
    fronts = [
        service
        for service in setup.servers
        if service is not reinject and milters.ours_among(ours, service) is not None
    ]
    yield from milters.check(setup, ours, reinject)
    yield from lines.check(setup, ours)
    yield from relaying.check(setup, ours, reinject)
    yield from recipients.check(setup, ours, fronts or setup.servers[:1])
    yield from bounces.check(setup, ours)
    yield from maps.check(setup, ours)
