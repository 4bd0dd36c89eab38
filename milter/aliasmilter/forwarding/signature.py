"""Signatures as DKIM and ARC share them: tag lists, keys in DNS, verification.

`cryptography` verifies. dkimpy's verify() is not used here: it knows no temporary error, takes `l=`
for good, needs PyNaCl for Ed25519, and its patterns take quadratic time on white space. The tests
compare our tag lists and verdicts with its.

    UnusableError            the signature cannot be evaluated; carries verdict and reason
"""

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NoReturn

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.hashes import SHA256, Hash
from cryptography.hazmat.primitives.serialization import load_der_public_key

from aliasmilter.forwarding import canonical
from aliasmilter.forwarding.dns import Lookup
from aliasmilter.forwarding.names import to_a_label
from aliasmilter.forwarding.results import Verdict
from aliasmilter.mail.message import HeaderField, Message

MAX_FIELD = 16_384
MAX_RECORD = 8_192
# RFC 8301, 3.2: signatures by keys of less than 1024 bits are not valid.
MIN_RSA_BITS = 1024
MAX_RSA_BITS = 8192
# OpenSSL's own bound for moduli over 3072 bits. One as long as a smaller modulus takes 150 times
# as long as the usual 17 bits.
MAX_EXPONENT_BITS = 64
# How an RSA key begins, as a SubjectPublicKeyInfo (RFC 5280, 4.1; RFC 3279, 2.3.1) or by itself
# (RFC 8017, A.1.1). Others are not even loaded: OpenSSL checks a Diffie-Hellman key for 9 s.
_RSA_DER = re.compile(
    rb"\x30(?:[\x00-\x7f]|\x81.|\x82..)"
    rb"(?:\x02|\x30[\x0b\x0d]\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01)",
    re.DOTALL,
)
PADDING = PKCS1v15()
DIGEST = SHA256()
ALGORITHMS = {b"rsa-sha256": b"rsa", b"ed25519-sha256": b"ed25519"}
CANONICALIZATIONS = {b"simple": False, b"relaxed": True}

PublicKey = RSAPublicKey | Ed25519PublicKey


class UnusableError(Exception):
    """A signature that gets its verdict without, or before, verification."""

    def __init__(self, verdict: Verdict, reason: str) -> None:
        super().__init__(reason)
        self.verdict = verdict
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Signature:
    """A signature field taken apart: its tags, and what every signature must have."""

    field: HeaderField
    tags: dict[bytes, bytes]
    domain: str
    selector: str
    algorithm: bytes
    octets: bytes

    @property
    def prefix(self) -> str:
        """The first eight characters of b=, which tell signatures apart (RFC 6008, 4)."""
        return base64.b64encode(self.octets[:6]).decode("ascii")

    def tag(self, name: bytes) -> bytes:
        """The value of a tag, white space inside included; empty when it is absent."""
        return self.tags.get(name, b"")


def read_tags(value: bytes) -> dict[bytes, bytes]:
    """The tags of a list (RFC 6376, 3.2). Raises UnusableError: too long, or malformed."""
    if len(value) > MAX_FIELD:
        raise UnusableError(Verdict.NEUTRAL, "field too long")
    tags = parse_tags(value)
    if tags is None:
        raise UnusableError(Verdict.NEUTRAL, "malformed tag list")
    return tags


def parse_tags(text: bytes) -> dict[bytes, bytes] | None:
    """The tags of a list without folds (RFC 6376, 3.2), None when it is malformed.

    A name begins with a letter and stands once; what else it may hold is not looked at.
    """
    parts = text.strip().split(b";")
    if not parts[-1]:
        parts.pop()
    tags: dict[bytes, bytes] = {}
    for part in parts:
        name, equals, value = part.partition(b"=")
        name = name.strip()
        if not equals or not name[:1].isalpha() or name in tags:
            return None
        tags[name] = value.strip()
    return tags


def read_signature(field: HeaderField) -> Signature:
    """Take a DKIM-Signature, ARC-Message-Signature or ARC-Seal apart.

    Raises UnusableError when a tag that all three need is missing or malformed.
    """
    tags = read_tags(field.unfolded)
    domain, selector = _name(tags, b"d"), _name(tags, b"s")
    algorithm = tags.get(b"a", b"").lower()
    if algorithm == b"rsa-sha1":
        # RFC 8301, 3.1: rsa-sha1 has permanently failed evaluation.
        raise UnusableError(Verdict.POLICY, "rsa-sha1 is not accepted")
    if algorithm not in ALGORITHMS:
        raise UnusableError(Verdict.NEUTRAL, "unknown algorithm")
    return Signature(field, tags, domain, selector, algorithm, decode_base64(tags.get(b"b", b"")))


def _name(tags: dict[bytes, bytes], tag: bytes) -> str:
    # RFC 8616, 4: U-labels may stand here in internationalized mail.
    name = to_a_label(tags.get(tag, b"").decode("utf-8", "replace"))
    if name is None:
        raise UnusableError(Verdict.NEUTRAL, f"malformed {tag.decode('ascii')}=")
    return name


def decode_base64(text: bytes) -> bytes:
    """Base64 with white space in it (RFC 6376, 3.5). Raises UnusableError: empty or malformed."""
    try:
        octets = base64.b64decode(b"".join(text.split()), validate=True)
    except ValueError:
        octets = b""
    if not octets:
        raise UnusableError(Verdict.NEUTRAL, "malformed base64")
    return octets


def check_tags(signature: Signature, now: float | None) -> None:
    """Check l=, q=, t= and x= of a DKIM-Signature or an ARC-Message-Signature (RFC 6376, 6.1.1).

    `now` is Unix time; None when it does not matter that a signature has expired.
    Raises UnusableError.
    """
    for name in (b"l", b"t", b"x"):
        if name in signature.tags and not _is_number(signature.tags[name]):
            raise UnusableError(Verdict.NEUTRAL, f"malformed {name.decode('ascii')}=")
    methods = [method.strip() for method in signature.tags.get(b"q", b"dns/txt").split(b":")]
    if b"dns/txt" not in methods:
        raise UnusableError(Verdict.NEUTRAL, "unknown query method")
    expires = signature.tags.get(b"x")
    if expires is not None and now is not None and int(expires) < now:
        raise UnusableError(Verdict.FAIL, "expired")


def _is_number(text: bytes) -> bool:
    """Digits, and not so many that int() refuses them (RFC 6376, 3.5: at most 76)."""
    return text.isdigit() and len(text) <= 76


def signed_names(signature: Signature) -> list[bytes]:
    """The names in h=, lower case, in order (RFC 6376, 3.5)."""
    return [name.strip().lower() for name in signature.tag(b"h").split(b":")]


def select(message: Message, names: Sequence[bytes]) -> list[HeaderField]:
    """The fields that h= means; each further mention is the next one up (RFC 6376, 5.4.2)."""
    taken: dict[bytes, int] = {}
    chosen: list[HeaderField] = []
    for name in names:
        fields = message.by_name.get(name, ())
        index = taken[name] = taken.get(name, 0) + 1
        if index <= len(fields):
            chosen.append(fields[-index])
    return chosen


def without_b(field: HeaderField) -> HeaderField:
    """The field with the value of b= deleted, white space around it included (RFC 6376, 3.7)."""
    parts = field.value.split(b";")
    for index, part in enumerate(parts):
        name, equals, _ = part.partition(b"=")
        if equals and name.strip() == b"b":
            parts[index] = name + equals
            break
    return HeaderField(field.name, b";".join(parts))


def message_input(message: Message, signature: Signature, *, relaxed: bool) -> bytes:
    """The bytes that a DKIM-Signature or an ARC-Message-Signature signs (RFC 6376, 3.7)."""
    fields = select(message, signed_names(signature))
    own = canonical.header(without_b(signature.field), relaxed=relaxed)
    return canonical.headers(message, fields, relaxed=relaxed) + own.removesuffix(b"\r\n")


def verify_message(
    message: Message,
    signature: Signature,
    lookup: Lookup,
    default_canonicalization: bytes = b"simple/simple",
) -> None:
    """Verify a DKIM-Signature or an ARC-Message-Signature: body hash, then signature.

    Returns when it is good. Raises UnusableError, and UnavailableError when DNS gives no answer.
    """
    value = signature.tags.get(b"c", default_canonicalization)
    relaxed_header, relaxed_body = _canonicalization(value)
    names = signed_names(signature)
    if b"from" not in names:
        raise UnusableError(Verdict.PERMERROR, "From is not signed")
    if message.count("from") > names.count(b"from"):
        # RFC 6376, 8.15: a From field that was added above the signed one.
        raise UnusableError(Verdict.FAIL, "a From field is not signed")
    key = fetch_key(signature, lookup)
    # `l=` (RFC 6376, 8.2) is not honoured: the hash must cover the whole body.
    if canonical.body_hash(message, relaxed=relaxed_body) != decode_base64(signature.tag(b"bh")):
        raise UnusableError(Verdict.FAIL, "body hash did not verify")
    verify(key, signature, message_input(message, signature, relaxed=relaxed_header))


def _canonicalization(value: bytes) -> tuple[bool, bool]:
    """Whether header and body are relaxed; one word alone is for the header (RFC 6376, 3.5)."""
    header, _, body = value.lower().partition(b"/")
    try:
        return CANONICALIZATIONS[header], CANONICALIZATIONS[body or b"simple"]
    except KeyError:
        raise UnusableError(Verdict.NEUTRAL, "unknown canonicalization") from None


def verify(key: PublicKey, signature: Signature, data: bytes) -> None:
    """Check a signature over bytes. Raises UnusableError when it is not good."""
    try:
        if isinstance(key, Ed25519PublicKey):
            # RFC 8463, 3: what Ed25519 signs is the SHA-256 of the data.
            digest = Hash(DIGEST)
            digest.update(data)
            key.verify(signature.octets, digest.finalize())
        else:
            key.verify(signature.octets, data, PADDING, DIGEST)
    except InvalidSignature:
        raise UnusableError(Verdict.FAIL, "signature did not verify") from None


def fetch_key(signature: Signature, lookup: Lookup) -> PublicKey:
    """The public key of a signature, out of DNS (RFC 6376, 3.6.2).

    Raises UnusableError when there is none that fits, UnavailableError when DNS gives no answer.
    """
    records = lookup.txt(f"{signature.selector}._domainkey.{signature.domain}")
    if not records:
        raise UnusableError(Verdict.PERMERROR, "no key")
    # 6.1.2: what happens with several key records is undefined. The first one counts.
    key, flags = read_key(records[0])
    if b"s" in flags and identity_domain(signature) != signature.domain:
        raise UnusableError(Verdict.PERMERROR, "the key is not for subdomains")
    if (ALGORITHMS[signature.algorithm] == b"rsa") != isinstance(key, RSAPublicKey):
        raise UnusableError(Verdict.PERMERROR, "the key is for another algorithm")
    return key


def identity_domain(signature: Signature) -> str | None:
    """The domain of i= as A-labels, None when it is malformed; d= when there is no identity.

    In ARC i= is the instance, and holds no "@" (RFC 8617, 4.1.2).
    """
    _, at, domain = signature.tag(b"i").decode("utf-8", "replace").rpartition("@")
    return to_a_label(domain) if at else signature.domain


@lru_cache(maxsize=1024)
def read_key(record: bytes) -> tuple[PublicKey, frozenset[bytes]]:
    """Read a key record (RFC 6376, 3.6.1): the key and the flags of t=. Raises UnusableError."""
    if len(record) > MAX_RECORD:
        _bad_key("key record too long")
    tags = parse_tags(record)
    if tags is None:
        _bad_key("malformed key record")
    if tags.get(b"v", b"DKIM1") != b"DKIM1":
        _bad_key("malformed key record")
    if not _allows(tags, b"h", b"sha256") or not _allows(tags, b"s", b"email"):
        _bad_key("the key is not for this use")
    if not tags.get(b"p"):
        _bad_key("key revoked" if b"p" in tags else "malformed key record")
    key = _load_key(tags.get(b"k", b"rsa"), tags[b"p"])
    return key, frozenset(flag.strip() for flag in tags.get(b"t", b"").split(b":"))


def _allows(tags: dict[bytes, bytes], tag: bytes, wanted: bytes) -> bool:
    values = {value.strip() for value in tags.get(tag, b"*").split(b":")}
    return bool(values & {wanted, b"*"})


def _load_key(kind: bytes, text: bytes) -> PublicKey:
    try:
        octets = base64.b64decode(b"".join(text.split()), validate=True)
        if kind == b"ed25519":
            return Ed25519PublicKey.from_public_bytes(octets)
        is_rsa = kind == b"rsa" and _RSA_DER.match(octets)
        key = load_der_public_key(octets) if is_rsa else None
    except (ValueError, UnsupportedAlgorithm):
        _bad_key("malformed key record")
    if not isinstance(key, RSAPublicKey):
        _bad_key("unknown kind of key")
    if not MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS:
        raise UnusableError(Verdict.POLICY, f"a key of {key.key_size} bits is not accepted")
    if key.public_numbers().e.bit_length() > MAX_EXPONENT_BITS:
        raise UnusableError(Verdict.POLICY, "the key's exponent is too long")
    return key


def _bad_key(reason: str) -> NoReturn:
    raise UnusableError(Verdict.PERMERROR, reason)
