"""DKIM signatures of a message (RFC 6376, 8301, 8463): a bounded number of them, from the top."""

from aliasmilter.forwarding.dns import Lookup, UnavailableError
from aliasmilter.forwarding.results import DkimResult, Verdict
from aliasmilter.forwarding.signature import (
    Signature,
    UnusableError,
    check_tags,
    identity_domain,
    read_signature,
    verify_message,
)
from aliasmilter.mail.message import HeaderField, Message


def evaluate(
    message: Message, lookup: Lookup, now: float, max_signatures: int = 10
) -> tuple[DkimResult, ...]:
    """A result for each signature, the topmost first; those past the bound get none.

    Never raises. A message without signatures has the one result NONE (RFC 8601, 2.7.1).
    """
    fields = message.fields("dkim-signature")[:max_signatures]
    if not fields:
        return (DkimResult(Verdict.NONE),)
    return tuple(_evaluate(message, field, lookup, now) for field in fields)


def _evaluate(message: Message, field: HeaderField, lookup: Lookup, now: float) -> DkimResult:
    try:
        signature = read_signature(field)
    except UnusableError as error:
        return DkimResult(error.verdict, reason=error.reason)
    try:
        _check_tags(signature, now)
        verify_message(message, signature, lookup)
    except UnusableError as error:
        return _result(signature, error.verdict, error.reason)
    except UnavailableError:
        return _result(signature, Verdict.TEMPERROR, "key not available")
    return _result(signature, Verdict.PASS)


def _result(signature: Signature, verdict: Verdict, reason: str = "") -> DkimResult:
    algorithm = signature.algorithm.decode("ascii")
    return DkimResult(
        verdict, signature.domain, signature.selector, algorithm, signature.prefix, reason
    )


def _check_tags(signature: Signature, now: float) -> None:
    """What RFC 6376, 6.1.1 asks of a DKIM-Signature beside d=, s=, a= and b=."""
    if signature.tag(b"v") != b"1":
        raise UnusableError(Verdict.NEUTRAL, "unknown version")
    if b"i" in signature.tags and b"@" not in signature.tags[b"i"]:
        # RFC 6376, 3.5: what stands before the "@" may be missing, the "@" may not.
        raise UnusableError(Verdict.NEUTRAL, "malformed i=")
    if not _is_own_identity(signature):
        raise UnusableError(Verdict.PERMERROR, "i= is not in d=")
    check_tags(signature, now)


def _is_own_identity(signature: Signature) -> bool:
    """Whether the domain of i= is d= or below it (RFC 6376, 3.5)."""
    domain = identity_domain(signature)
    return domain is not None and f".{domain}".endswith(f".{signature.domain}")
