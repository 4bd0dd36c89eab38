"""Sealing: the ARC set that a message gets when it leaves (RFC 8617, 5.1).

What is signed must reach the receiver as it was signed, so what the MTA is known to change is
left out of h=, and a message whose body the MTA will change is not sealed at all: a seal that
breaks on its way takes the seals of all hops before with it.

DKIM-Signature fields are signed, as RFC 8617, 4.1.2 asks for (dkimpy's own signer refuses that,
as RFC 6376 does for DKIM itself). Never signed: Received and Return-Path, which MTAs add; the
ARC and Authentication-Results fields, as 4.1.2 says; absent fields, which Sendmail may add.

Chains that fail (RFC 8617, 5.1.2 and 5.1.3):
- one that fails here is sealed with cv=fail, and that seal covers its own set alone (5.1.2);
- one that an earlier hop has marked cv=fail has ended (5.1.3), and gets no further set;
- one with no instance left below 51 gets no set;
- one that could not be checked because DNS gave no answer gets no set: cv=fail (5.2.1) would end
  for ever a chain that may be good, and whoever comes next can still check it.
"""

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from aliasmilter.forwarding import canonical, chain
from aliasmilter.forwarding.results import ArcResult, Results, Verdict, results_text
from aliasmilter.forwarding.signature import DIGEST, PADDING, select
from aliasmilter.mail.message import HeaderField, Message

# RFC 6376, 5.4.1, with DKIM-Signature as RFC 8617, 4.1.2 wants it.
SIGNED = (
    "from",
    "sender",
    "reply-to",
    "subject",
    "date",
    "message-id",
    "to",
    "cc",
    "mime-version",
    "content-type",
    "content-transfer-encoding",
    "content-id",
    "content-description",
    "in-reply-to",
    "references",
    "resent-date",
    "resent-from",
    "resent-sender",
    "resent-to",
    "resent-cc",
    "resent-message-id",
    "list-id",
    "list-help",
    "list-unsubscribe",
    "list-unsubscribe-post",
    "list-subscribe",
    "list-post",
    "list-owner",
    "list-archive",
    "dkim-signature",
)
_SIGNED = tuple(name.encode() for name in SIGNED)
# A field that stands more often than this is not signed: h= would grow without bound.
MAX_REPEATED = 30
WIDTH = 72

# What Sendmail writes anew when it is not in Sendmail's own form.
ADDRESS_FIELDS = frozenset(
    (
        "from",
        "sender",
        "reply-to",
        "to",
        "cc",
        "resent-from",
        "resent-sender",
        "resent-to",
        "resent-cc",
    )
)
_ATOM = rb"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_ADDRESS = rb"%b(?:\.%b)*@%b(?:\.%b)*" % ((_ATOM,) * 4)
_PHRASE = rb'(?:"[^"\\\r\n]*"|%b)(?: (?:"[^"\\\r\n]*"|%b))*' % ((_ATOM,) * 2)
_MAILBOX = rb"(?:%b <%b>|<%b>|%b)" % (_PHRASE, _ADDRESS, _ADDRESS, _ADDRESS)
_SENDMAIL_FORM = re.compile(rb"%b(?:, %b)*" % (_MAILBOX, _MAILBOX))


class Unsealed(StrEnum):
    """Why a message gets no ARC set."""

    NO_FROM = "no From field"
    SEVERAL_FROM = "several From fields"
    FROM_CHANGES = "the MTA would change From"
    LONG_LINE = "a line is longer than the MTA sends"
    ENDED = "an earlier hop has marked the chain as failed"
    FULL = "the chain has no instance left"
    UNKNOWN = "the state of the chain is not known"
    NO_KEY = "no key for the domain's arc_domain and arc_selector"
    DISABLED = "ARC is not enabled"


@dataclass(frozen=True, slots=True)
class Transport:
    """What the MTA does to a message after the milter.

    `line_limit`: longer lines are broken (0: never). `rewrites_addresses`: address fields are
    written anew when they are not in the MTA's own form.
    """

    line_limit: int
    rewrites_addresses: bool


POSTFIX = Transport(line_limit=998, rewrites_addresses=False)
SENDMAIL = Transport(line_limit=990, rewrites_addresses=True)


@dataclass(frozen=True, slots=True)
class Sealer:
    """Who seals: the domain, the selector of its key in DNS, and the key, loaded once."""

    domain: str
    selector: str
    private_key: RSAPrivateKey


@dataclass(frozen=True, slots=True)
class Sealed:
    """The set: `fields` are AAR, AMS and AS, to be inserted at the top one after the other."""

    fields: tuple[HeaderField, HeaderField, HeaderField]
    instance: int
    cv: Verdict


def seal(
    message: Message,
    results: Results,
    authserv_id: str,
    sealer: Sealer,
    *,
    now: float,
    transport: Transport = POSTFIX,
    max_sets: int = chain.MAX_SETS,
) -> Sealed | Unsealed:
    """Make the next ARC set for a message as it will leave; Unsealed says why there is none.

    `results` are what was found when the message came in; their `arc` decides about cv=.
    Values start with a space and fold with LF and TAB, as a milter inserts them.
    """
    names = signable(message, transport)
    if isinstance(names, Unsealed):
        return names
    place = _place(message, results, max_sets)
    if isinstance(place, Unsealed):
        return place
    if is_too_long(message.body, transport.line_limit):
        return Unsealed.LONG_LINE
    instance, cv, before = place
    stamp = b"d=%b; s=%b; t=%d" % (sealer.domain.encode(), sealer.selector.encode(), now)
    # Results read from a field may say something else of the chain than its structure does.
    if results.arc is None or results.arc.verdict is not cv:
        results = replace(results, arc=ArcResult(cv))
    aar = HeaderField(
        chain.AAR.encode(), b" i=%d; %b" % (instance, results_text(results, authserv_id))
    )
    ams = _sign(_message_signature(message, instance, stamp, names), sealer, message, names)
    made = chain.ArcSet(instance, aar, ams, _seal_without_b(instance, cv, stamp))
    # RFC 8617, 5.1.2: the seal of a failed chain covers its own set alone.
    earlier = b"" if cv is Verdict.FAIL else chain.cover(before)
    data = earlier + b"".join(chain.seal_input(made))
    return Sealed((aar, ams, _with_b(made.seal, sealer, data)), instance, cv)


def _place(
    message: Message, results: Results, max_sets: int
) -> tuple[int, Verdict, Sequence[chain.ArcSet]] | Unsealed:
    """The instance of the new set, its cv=, and the sets before it (RFC 8617, 5.1)."""
    try:
        before = chain.collect(message, max_sets)
        highest = len(before)
    except chain.MalformedError as error:
        before, highest = (), error.highest
        cv = Verdict.FAIL
    else:
        if before and (results.arc is None or results.arc.verdict not in _SEALABLE):
            return Unsealed.UNKNOWN
        cv = results.arc.verdict if before and results.arc else Verdict.NONE
    if chain.has_ended(message):
        return Unsealed.ENDED
    if highest >= max_sets:
        return Unsealed.FULL
    return highest + 1, cv, before


_SEALABLE = {Verdict.PASS, Verdict.FAIL}


def signable(message: Message, transport: Transport) -> list[bytes] | Unsealed:
    """The names for h=, or why the message cannot be signed.

    A name stands there as often as the field stands in the message; From once more, so that no
    second one can be added (RFC 6376, 8.15).
    """
    count = message.count("from")
    if count != 1:
        # RFC 5322, 3.6: exactly one. dkimpy and others refuse to verify anything else.
        return Unsealed.SEVERAL_FROM if count else Unsealed.NO_FROM
    names: list[bytes] = []
    by_name = message.by_name
    for name in _SIGNED:
        fields = by_name.get(name, ())
        if (
            fields
            and len(fields) <= MAX_REPEATED
            and all(is_stable(field, transport) for field in fields)
        ):
            names.extend([name] * len(fields))
    if b"from" not in names:
        return Unsealed.FROM_CHANGES
    return [*names, b"from"]


def is_stable(field: HeaderField, transport: Transport) -> bool:
    """Whether the field reaches the next hop as every verifier will see it.

    Not stable: lines that the MTA breaks; control characters, which verifiers strip or not; a
    value that starts with a colon (Postfix shows "Name : x" like that); on Sendmail address
    fields that are not in its own form.
    """
    value = field.value
    if value.startswith(b":") or value.translate(None, _CONTROLS) != value:
        return False
    if len(field.name) + len(value) >= transport.line_limit and is_too_long(
        field.name + b":" + value, transport.line_limit
    ):
        return False
    if transport.rewrites_addresses and field.key.decode("latin-1") in ADDRESS_FIELDS:
        return in_sendmail_form(field)
    return True


_CONTROLS = bytes(set(range(32)) - set(b"\t\n")) + b"\x7f"


def in_sendmail_form(field: HeaderField) -> bool:
    """Whether Sendmail sends an address field as it is: `a@b, C D <c@d>`, and nothing rarer."""
    text = b" ".join(field.unfolded.split())
    return _SENDMAIL_FORM.fullmatch(text) is not None


def is_too_long(text: bytes, limit: int) -> bool:
    """Whether a line of the text has more octets than `limit`, its line end not counted."""
    if not limit or len(text) <= limit:
        return False
    start = 0
    while start + limit < len(text):
        # The last line end within reach: lines are at least skipped by leaps, not octet by octet.
        end = text.rfind(b"\n", start, start + limit + 2)
        if end < 0:
            return True
        start = end + 1
    return False


def _message_signature(
    message: Message, instance: int, stamp: bytes, names: Sequence[bytes]
) -> HeaderField:
    """The AMS without b= (RFC 8617, 4.1.2)."""
    digest = base64.b64encode(canonical.body_hash(message, relaxed=True))
    value = b" i=%d; a=rsa-sha256; c=relaxed/relaxed; %b;\n\th=%b;\n\tbh=%b;\n\tb=" % (
        instance,
        stamp,
        _fold_names(names),
        digest,
    )
    return HeaderField(chain.AMS.encode(), value)


def _seal_without_b(instance: int, cv: Verdict, stamp: bytes) -> HeaderField:
    """The AS without b= (RFC 8617, 4.1.3)."""
    value = b" i=%d; a=rsa-sha256; cv=%b; %b;\n\tb=" % (instance, cv.encode(), stamp)
    return HeaderField(chain.AS.encode(), value)


def _fold_names(names: Sequence[bytes]) -> bytes:
    lines = [b""]
    for name in names:
        if len(lines[-1]) + len(name) > WIDTH:
            lines.append(b"")
        lines[-1] += name + b":"
    return b"\n\t ".join(lines).removesuffix(b":")


def _sign(
    field: HeaderField, sealer: Sealer, message: Message, names: Sequence[bytes]
) -> HeaderField:
    data = canonical.headers(message, select(message, names), relaxed=True)
    own = canonical.header(field, relaxed=True).removesuffix(b"\r\n")
    return _with_b(field, sealer, data + own)


def _with_b(field: HeaderField, sealer: Sealer, data: bytes) -> HeaderField:
    text = base64.b64encode(sealer.private_key.sign(data, PADDING, DIGEST))
    lines = [text[start : start + WIDTH] for start in range(0, len(text), WIDTH)]
    return HeaderField(field.name, field.value + b"\n\t ".join(lines))
