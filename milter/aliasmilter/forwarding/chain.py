"""The ARC chain of a message: its structure and its verdict (RFC 8617, 4.2 and 5.2).

The structure is checked first, without DNS. A chain with gaps, repetitions, instances out of
range or more than 50 sets fails there, whatever it costs its sender to make.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

from aliasmilter.forwarding import canonical
from aliasmilter.forwarding.dns import Lookup, UnavailableError
from aliasmilter.forwarding.resinfo import read_results
from aliasmilter.forwarding.results import ArcResult, ArcSetResult, Verdict
from aliasmilter.forwarding.signature import (
    MAX_FIELD,
    Signature,
    UnusableError,
    check_tags,
    fetch_key,
    read_signature,
    signed_names,
    verify,
    verify_message,
    without_b,
)
from aliasmilter.mail.message import HeaderField, Message

# RFC 8617, 4.2.1: the instance is 1 to 50.
MAX_SETS = 50
AAR = "ARC-Authentication-Results"
AMS = "ARC-Message-Signature"
AS = "ARC-Seal"
NAMES = (AAR, AMS, AS)
_KEYS = tuple(name.lower().encode() for name in NAMES)
Step = Literal["message signature", "seal"]
_INSTANCE = re.compile(rb"(?:\A|;)\s*i\s*=\s*(\d{1,2})\s*(?:;|\Z)")
_ENDED = re.compile(rb"(?:\A|;)\s*cv\s*=\s*fail\s*(?:;|\Z)", re.IGNORECASE)


class MalformedError(Exception):
    """ARC fields that form no chain; `highest` is the greatest instance seen, 0 if none is."""

    def __init__(self, reason: str, highest: int = 0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.highest = highest


@dataclass(frozen=True, slots=True)
class ArcSet:
    """The three fields of one instance, as they stand in the message."""

    instance: int
    results: HeaderField
    signature: HeaderField
    seal: HeaderField

    @property
    def fields(self) -> tuple[HeaderField, HeaderField, HeaderField]:
        """In the order in which a seal covers them (RFC 8617, 5.1.1)."""
        return self.results, self.signature, self.seal


def collect(message: Message, max_sets: int = MAX_SETS) -> tuple[ArcSet, ...]:
    """The ARC sets of a message, oldest first; empty when it has none. Raises MalformedError.

    RFC 8617, 5.2, step 3: each set is whole, and the instances run from 1 without gaps.
    """
    groups = [message.by_name.get(key, ()) for key in _KEYS]
    if not any(groups):
        return ()
    if max(len(group) for group in groups) > max_sets:
        raise MalformedError(f"more than {max_sets} ARC sets", MAX_SETS)
    numbered = [[(instance_of(field), field) for field in group] for group in groups]
    highest = max((number for group in numbered for number, _ in group), default=0)
    by_instance = [dict(group) for group in numbered]
    if any(0 in group for group in by_instance):
        raise MalformedError("an ARC field has no instance from 1 to 50", highest)
    wanted = set(range(1, highest + 1))
    for group, fields in zip(by_instance, numbered, strict=True):
        if len(group) != len(fields):
            raise MalformedError("an ARC instance stands twice", highest)
        if set(group) != wanted:
            raise MalformedError("an ARC set is not whole", highest)
    results, signatures, seals = by_instance
    return tuple(
        ArcSet(number, results[number], signatures[number], seals[number])
        for number in range(1, highest + 1)
    )


def instance_of(field: HeaderField) -> int:
    """The instance of an ARC field, 0 when it has none from 1 to 50."""
    match = _INSTANCE.search(field.unfolded)
    number = int(match[1]) if match else 0
    return number if number <= MAX_SETS else 0


def has_ended(message: Message) -> bool:
    """Whether a seal says cv=fail: an earlier hop has ended the chain (RFC 8617, 5.1.3)."""
    return any(_ENDED.search(field.unfolded) for field in message.fields(AS))


def named_sets(message: Message) -> tuple[ArcSetResult, ...]:
    """The sets with the domains and selectors of their seals, nothing verified.

    Empty when the fields form no chain, or a seal cannot be read.
    """
    try:
        sets = collect(message)
        seals = [read_signature(each.seal) for each in sets]
    except (MalformedError, UnusableError):
        return ()
    return tuple(
        ArcSetResult(each.instance, seal.domain, seal.selector, passed=_passed(each))
        for each, seal in zip(sets, seals, strict=True)
    )


def _passed(each: ArcSet) -> frozenset[str]:
    """The methods that passed by what the set's sealer says; of several results all have to."""
    text = each.results.unfolded
    results = read_results(text.decode("latin-1")) if len(text) <= MAX_FIELD else []
    others = {one.method for one in results if one.verdict != "pass"}
    return frozenset(one.method for one in results) - others


def evaluate(
    message: Message, lookup: Lookup, max_sets: int = MAX_SETS, *, now: float | None = None
) -> ArcResult:
    """The chain validation status of RFC 8617, 5.2, and what was found for each set.

    Never raises. TEMPERROR says that DNS gave no answer: RFC 8617, 5.2.1 counts that as "fail",
    which would end a chain that may be good; so it is told apart, and nothing is sealed then.
    `now` is Unix time, None for a message out of a file, which may have expired since it came.
    """
    try:
        sets = collect(message, max_sets)
    except MalformedError as error:
        return ArcResult(Verdict.FAIL, reason=error.reason)
    if not sets:
        return ArcResult(Verdict.NONE)
    found = [ArcSetResult(each.instance) for each in sets]
    try:
        _verify_chain(message, sets, found, lookup, now)
    except UnusableError as error:
        return ArcResult(Verdict.FAIL, tuple(found), error.reason)
    except UnavailableError:
        return ArcResult(Verdict.TEMPERROR, tuple(found), "key not available")
    passed = [replace(one, passed=_passed(each)) for one, each in zip(found, sets, strict=True)]
    return ArcResult(Verdict.PASS, tuple(passed))


def _verify_chain(
    message: Message,
    sets: Sequence[ArcSet],
    found: list[ArcSetResult],
    lookup: Lookup,
    now: float | None,
) -> None:
    if has_ended(message):
        raise UnusableError(Verdict.FAIL, "an earlier hop has marked the chain as failed")
    seals = [_read_seal(each, found) for each in sets]
    newest = len(sets) - 1
    with _noting(found, newest, "message signature"):
        # RFC 8617, 5.2, step 4: only the newest message signature must verify.
        signature = _read_message_signature(sets[newest], now)
        # c= is seldom left out; where it is, ARC sealers mean relaxed, other than DKIM's.
        verify_message(message, signature, lookup, default_canonicalization=b"relaxed/relaxed")
    covered = [cover((each,)) for each in sets]
    for index in range(newest, -1, -1):
        with _noting(found, index, "seal"):
            data = b"".join([*covered[:index], *seal_input(sets[index])])
            verify(fetch_key(seals[index], lookup), seals[index], data)


def seal_input(newest: ArcSet) -> tuple[bytes, bytes, bytes]:
    """What a seal signs of its own set, itself without b= and line end (RFC 8617, 5.1.1)."""
    seal = _canonical(without_b(newest.seal)).removesuffix(b"\r\n")
    return _canonical(newest.results), _canonical(newest.signature), seal


def cover(sets: Sequence[ArcSet]) -> bytes:
    """What a seal signs of the sets before its own, oldest first (RFC 8617, 5.1.1)."""
    return b"".join(_canonical(field) for each in sets for field in each.fields)


def _canonical(field: HeaderField) -> bytes:
    # RFC 8617, 4.1.3: a seal is always made over relaxed header fields.
    return canonical.header(field, relaxed=True)


def _read_seal(each: ArcSet, found: list[ArcSetResult]) -> Signature:
    index = each.instance - 1
    try:
        seal = read_signature(each.seal)
        found[index] = replace(found[index], domain=seal.domain, selector=seal.selector)
        _check_seal(seal, each.instance)
    except UnusableError as error:
        found[index] = replace(found[index], seal=Verdict.FAIL, reason=error.reason)
        raise
    return seal


def _check_seal(seal: Signature, instance: int) -> None:
    if b"h" in seal.tags:
        # RFC 8617, 4.1.3: h= in a seal makes the chain fail.
        raise UnusableError(Verdict.FAIL, "a seal has h=")
    if seal.tag(b"cv").lower() != (b"none" if instance == 1 else b"pass"):
        # RFC 8617, 5.2, step 3: cv is none in the first set, pass in all others.
        raise UnusableError(Verdict.FAIL, "a seal has the wrong cv=")


def _read_message_signature(each: ArcSet, now: float | None) -> Signature:
    signature = read_signature(each.signature)
    # RFC 8617, 4.1.2: as in DKIM, but for i=, and for v=, which is ignored.
    check_tags(signature, now)
    if b"arc-seal" in signed_names(signature):
        # RFC 8617, 4.1.2: ARC fields are not signed by a message signature.
        raise UnusableError(Verdict.FAIL, "ARC-Seal is signed by ARC-Message-Signature")
    return signature


@contextmanager
def _noting(found: list[ArcSetResult], index: int, step: Step) -> Iterator[None]:
    """Notes in `found` how a step ended: good, failed and why, or without an answer from DNS."""
    verdict, reason = Verdict.PASS, ""
    try:
        yield
    except UnusableError as error:
        verdict, reason = Verdict.FAIL, error.reason
        raise
    except UnavailableError:
        verdict, reason = Verdict.TEMPERROR, "key not available"
        raise
    finally:
        old = found[index]
        if step == "seal":
            found[index] = replace(old, seal=verdict, reason=reason)
        else:
            found[index] = replace(old, message_signature=verdict, reason=reason)
