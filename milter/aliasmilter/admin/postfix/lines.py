"""What Postfix does to mail after the milter has sealed it."""

from collections.abc import Iterator

from aliasmilter.admin.ours import Ours
from aliasmilter.admin.postfix.values import PostfixSetup
from aliasmilter.admin.report import Finding, Severity, warning

_CHANGING = (
    "smtp_header_checks",
    "smtp_mime_header_checks",
    "smtp_nested_header_checks",
    "smtp_body_checks",
    "smtp_generic_maps",
)


def check(setup: PostfixSetup, ours: Ours) -> Iterator[Finding]:
    """All findings about the clients that send mail on."""
    severity = Severity.ERROR if ours.seals else Severity.WARNING
    for service in setup.services:
        if service.program != "smtp":
            continue
        limit = service.values.get("smtp_line_length_limit", "")
        if limit != "0":
            yield Finding(
                severity,
                setup.where("smtp_line_length_limit", service),
                f"{limit}: longer lines are broken when mail is sent on, and its DKIM and ARC "
                "signatures with them; write 0",
            )
        for parameter in _CHANGING if ours.seals else ():
            if tables := service.values.get(parameter):
                yield warning(
                    setup.where(parameter, service),
                    f"{tables} can change mail that alias-milter has sealed",
                )
    for service in setup.servers:
        if ours.seals and (content_filter := service.values.get("content_filter")):
            yield warning(
                setup.where("content_filter", service),
                f"{content_filter} gets mail that alias-milter has sealed and must not change it; "
                "a filter that does belongs before alias-milter, as a milter",
            )
