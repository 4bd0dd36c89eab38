"""What Sendmail does to mail after the milter has sealed it, and forms that it misreads."""

import re
from collections.abc import Iterator

from aliasmilter.admin.ours import Ours
from aliasmilter.admin.report import Finding, Severity, error, warning
from aliasmilter.admin.sendmail.values import SendmailSetup

# docs/sendmail.md, section 4: what to define, and what happens without it.
_DEFINES = {
    "SMTP_MAILER_LL": ("0", "body lines over 990 octets are broken"),
    "RELAY_MAILER_LL": ("0", "body lines over 2040 octets are broken"),
    "confMAX_MIME_HEADER_LENGTH": ("0/0", "multipart messages get a last boundary"),
}
_HEADERS = 131_072
_ESMTP_FLAGS = "mDFMuXa"


def check(setup: SendmailSetup, ours: Ours) -> Iterator[Finding]:
    """All findings about the bytes of a message."""
    if ours.seals:
        yield from _bytes(setup)
        yield from _doubtful(setup)
    yield from _rules(setup)


def _bytes(setup: SendmailSetup) -> Iterator[Finding]:
    for name, (value, effect) in _DEFINES.items():
        if setup.reading.expand(name).replace(" ", "") != value:
            yield _broken(setup, name, f"{effect}; write: define(`{name}', `{value}')dnl")
    if "8" not in setup.mailer_flags("ESMTP", _ESMTP_FLAGS):
        remedy = "MODIFY_MAILER_FLAGS(`ESMTP', `+8')dnl"
        yield _broken(
            setup, "MODIFY_MAILER_FLAGS", f"8-bit text is converted to 7-bit; write: {remedy}"
        )


def _broken(setup: SendmailSetup, name: str, effect: str) -> Finding:
    return Finding(
        Severity.ERROR, f"{setup.file} {name}", f"ARC and DKIM signatures are broken: {effect}"
    )


def _doubtful(setup: SendmailSetup) -> Iterator[Finding]:
    if not setup.feature("nocanonify"):
        yield warning(
            f"{setup.file} FEATURE",
            "host names in header addresses are replaced by what the DNS says (CNAME), signed or "
            "not; write: FEATURE(`nocanonify')dnl",
        )
    limit = re.match(r"\d+", setup.reading.expand("confMAX_HEADERS_LENGTH"))
    if limit is None or 0 < int(limit[0]) < _HEADERS:
        yield warning(
            f"{setup.file} confMAX_HEADERS_LENGTH",
            f"messages with several ARC sets are refused (552, {limit[0] if limit else 32768} "
            f"octets of headers); write: define(`confMAX_HEADERS_LENGTH', `{_HEADERS}')dnl",
        )
    if call := setup.feature("genericstable"):
        yield warning(
            f"{call.where} FEATURE(`genericstable')", "changes headers that alias-milter has sealed"
        )


def _rules(setup: SendmailSetup) -> Iterator[Finding]:
    for name in ("LOCAL_RULE_0", "LOCAL_RULE_3"):
        for line in setup.section(name):
            if line.startswith("R") and "\t" not in line:
                yield error(
                    f"{setup.file} {name}",
                    f"{line[:40]}...: spaces where a tab has to stand between left and right",
                )
