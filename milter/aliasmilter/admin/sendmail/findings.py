"""`alias-milter check --sendmail`: all that is missing or dangerous in a sendmail.mc."""

from aliasmilter.admin.ours import Ours
from aliasmilter.admin.report import Finding
from aliasmilter.admin.sendmail import lines, milters, routing
from aliasmilter.admin.sendmail.values import SendmailSetup


def findings(setup: SendmailSetup, ours: Ours) -> list[Finding]:
    """What is wrong, each once, in the order of docs/sendmail.md."""
    checks = (milters.check, routing.check, lines.check)
    return list(dict.fromkeys(one for check in checks for one in check(setup, ours)))
