"""Other people's signatures for tests: keys, DKIM by dkimpy, ARC sets by dkimpy, two verifiers.

What we seal is verified by dkimpy and by Perl's Mail::DKIM; what they make is verified by us.
"""

import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

import dkim
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from aliasmilter.forwarding.arc import Sealed, Sealer
from aliasmilter.forwarding.keys import generate_key, key_record
from aliasmilter.mail.message import Message
from tests.harness.dns import DnsServer, Zone

VERIFIER = Path(__file__).with_name("arc_verify.pl")
AUTHSERV = "mx.example.net"
NOW = 1_780_000_000

PLAIN = Message.parse(
    b"Received: from a.example by mx.example.net; Thu, 1 Jan 2026 00:00:00 +0000\n"
    b"From: Alice <alice@example.org>\n"
    b"To: sales@example.com\n"
    b"Subject: an order\n"
    b"\tof three lines\n"
    b"Date: Thu, 1 Jan 2026 00:00:00 +0000\n"
    b"Message-ID: <1@example.org>\n"
    b"MIME-Version: 1.0\n"
    b"Content-Type: text/plain; charset=utf-8\n"
    b"\n"
    b"Hello,\n\n  this  is \t text. \n\n\n"
)


@cache
def key(number: int = 0, bits: int = 2048) -> RSAPrivateKey:
    """A key for tests; the same number gives the same key."""
    return generate_key(bits)


def pem(private_key: RSAPrivateKey) -> bytes:
    """The key as dkimpy takes it."""
    return private_key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())


def key_zone(*names: str) -> Zone:
    """A zone that publishes key 0 under each "selector.domain"."""
    zone: Zone = {}
    for name in names:
        selector, _, domain = name.partition(".")
        zone[f"{selector}._domainkey.{domain}"] = {"TXT": [key_record(key())]}
    return zone


def our_sealer(domain: str = "fwd.example") -> Sealer:
    """We, sealing with key 0 and selector "arc"."""
    return Sealer(domain, "arc", key())


def put_on(message: Message, sealed: object) -> Message:
    """The message as the next hop gets it: each field is inserted at the top."""
    assert isinstance(sealed, Sealed), sealed
    for field in sealed.fields:
        message = message.with_fields_on_top([field])
    return message


def sign_dkim(message: Message, domain: str = "example.org", **options: object) -> Message:
    """The message with a DKIM-Signature by dkimpy, key 0, selector "s"."""
    field = dkim.sign(message.as_bytes(), b"s", domain.encode(), pem(key()), **options)
    return Message.parse(field + message.as_bytes())


def seal_by_dkimpy(message: Message, domain: str, cv: str) -> Message:
    """The message with one more ARC set by dkimpy, which reads cv out of an A-R field."""
    stamp = f"Authentication-Results: {domain}; arc={cv}; spf=pass smtp.mailfrom=a@b.example\r\n"
    fields = dkim.arc_sign(
        stamp.encode() + message.as_bytes(), b"arc", domain.encode(), pem(key()), domain.encode()
    )
    assert fields, "dkimpy did not seal"
    return Message.parse(b"".join(fields) + message.as_bytes())


def dns_function(
    zone: Mapping[str, Mapping[str, Sequence[str | bytes]]],
) -> Callable[..., bytes | None]:
    """dkimpy's DNS, answered out of a zone."""

    def find(name: bytes, timeout: float = 5) -> bytes | None:
        node = zone.get(name.decode().rstrip(".").lower())
        if node is None:
            return None
        record = node["TXT"][0]
        return record.encode() if isinstance(record, str) else record

    return find


def verify_by_dkimpy(message: Message, server: DnsServer) -> tuple[str | None, str]:
    """dkimpy's verdict on the chain, and why."""
    cv, _, reason = dkim.arc_verify(message.as_bytes(), dnsfunc=dns_function(server.zone))
    return (cv.decode() if cv else None), str(reason)


def verify_by_perl(messages: Sequence[Message], server: DnsServer) -> list[tuple[str, str]]:
    """Mail::DKIM's verdict on the chain of each message, and the detail it gives."""
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for number, message in enumerate(messages):
            files.append(Path(folder) / f"{number}.eml")
            files[-1].write_bytes(message.as_bytes())
        done = subprocess.run(
            ["perl", str(VERIFIER), str(server.port), *map(str, files)],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
    lines = [line.partition("\t") for line in done.stdout.splitlines()]
    return [(result, detail) for result, _, detail in lines]
