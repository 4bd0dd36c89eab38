"""What the benchmarks work with: messages as real mail has them, rules, DNS, and the milters."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aliasmilter.mail.message import Message
from benchmarks.load import REPOSITORY
from tests.harness.daemon import Daemon
from tests.harness.dns import DnsServer, Zone
from tests.harness.ports import accepts
from tests.harness.redis import RedisServer
from tests.harness.service import Service
from tests.harness.signing import key, key_zone, pem, sign_dkim

BANKS = 20  # sending domains
CLIENT = "192.0.2.10"
# sales: an alias that stays. out: a forward that leaves. Nobody else is there.
RULES = (
    "HSET domain:example.com unknown reject",
    "HSET alias:example.com bob bob@example.com sales bob@example.com out me@gmail.example",
)
SEALING = {
    "arc": {"enabled": True, "domain": "example.net", "selector": "arc", "key_file": "arc.pem"},
}
WORDS = (
    "the", "mail", "of", "a", "bank", "to", "its", "customer", "about", "an", "invoice", "that",
    "is", "due", "next", "week", "and", "paid",
)  # fmt: skip


class Bare(Service):
    """benchmarks/bare.py with so many processes."""

    name = "bare"

    def __init__(self, workers: int) -> None:
        self.workers = workers

    @property
    def socket(self) -> str:
        """As `[milter] socket` has it."""
        return f"unix:{self.folder}/bare.sock"

    def command(self) -> Sequence[str]:
        """The filter in the foreground."""
        return [sys.executable, "-m", "benchmarks.bare", self.socket, str(self.workers)]

    def environment(self) -> dict[str, str]:
        """Nothing but this repository's code."""
        return {"PYTHONPATH": f"{REPOSITORY}:{REPOSITORY}/milter"}

    def is_ready(self) -> bool:
        """Whether the socket takes connections."""
        return accepts(self.socket.removeprefix("unix:"))

    def end(self) -> None:
        """At once: libmilter takes 5 s to stop."""
        self.kill()


def bank(number: int) -> str:
    """A sending domain."""
    return f"bank{number}.example"


def zone() -> Zone:
    """The DNS of all senders: a DKIM key, an SPF record, a DMARC policy each."""
    records = key_zone("arc.example.net", *(f"s.{bank(number)}" for number in range(BANKS)))
    for number in range(BANKS):
        records[bank(number)] = {
            "TXT": [f"v=spf1 mx ip4:{CLIENT}/28 ip4:127.0.0.0/8 include:_spf.host.example -all"],
            "MX": [f"10 mx.{bank(number)}"],
        }
        records[f"mx.{bank(number)}"] = {"A": ["192.0.2.77"], "AAAA": []}
        records[f"_dmarc.{bank(number)}"] = {"TXT": ["v=DMARC1; p=reject; rua=mailto:d@x.example"]}
    records["_spf.host.example"] = {"TXT": ["v=spf1 ip4:198.51.100.0/24 -all"]}
    return records


def message(number: int, size: int, *, sign: bool = True) -> bytes:
    """A message of `size` octets in all, unlike the others, signed as its domain does it."""
    pick = random.Random(number)  # the same messages each time
    domain = bank(number % BANKS)
    head = (
        f"Received: from mail.{domain} (mail.{domain} [{CLIENT}])\r\n"
        f"\tby relay.{domain} (Postfix) with ESMTPS id {pick.randrange(1 << 40):X}\r\n"
        f"\tfor <sales@example.com>; Mon,  2 Nov 2026 10:{number % 60:02}:00 +0000 (UTC)\r\n"
        f"From: Alice {number} <alice{number}@{domain}>\r\n"
        f"To: Sales <sales@example.com>\r\n"
        f"Subject: Invoice {pick.randrange(10**9)} of\r\n the month\r\n"
        f"Date: Mon, 02 Nov 2026 10:{number % 60:02}:00 +0000\r\n"
        f"Message-ID: <{number}.{pick.randrange(1 << 60)}@{domain}>\r\n"
        "MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n"
        "Content-Transfer-Encoding: 8bit\r\nX-Mailer: Invoices 7.3\r\n\r\n"
    ).encode()
    # A DKIM-Signature of dkimpy takes some 530 octets.
    left = max(size - len(head) - (530 if sign else 0), 0)
    unsigned = head + body(pick, left)
    if not sign:
        return unsigned
    # As Google, Microsoft and nearly all others have it.
    form = (b"relaxed", b"relaxed")
    return sign_dkim(Message.parse(unsigned), domain, canonicalize=form).as_bytes()


def body(pick: random.Random, size: int) -> bytes:
    """Lines of text, `size` octets in all."""
    lines: list[str] = []
    total = 0
    while total < min(size, 20_000):
        lines.append(" ".join(pick.choices(WORDS, k=12)) + "\r\n")
        total += len(lines[-1])
    text = "".join(lines).encode()
    return ((text * (size // max(total, 1) + 1))[: max(size - 2, 0)] + b"\r\n") if size else b""


def write_messages(folder: Path, size: int, count: int, *, sign: bool = True) -> list[Path]:
    """Files with messages that all differ."""
    paths = []
    for number in range(count):
        paths.append(folder / f"{size}-{number}.eml")
        paths[-1].write_bytes(message(number, size, sign=sign))
    return paths


@contextmanager
def milter(
    *, workers: int, inet: bool = False, cache: bool = True, redis: RedisServer, dns: DnsServer
) -> Iterator[Daemon]:
    """alias-milter, ready to seal what leaves; without `cache` it asks Redis each time."""
    config: dict[str, Any] = {
        "milter": {"socket_mode": "0666", "workers": workers},
        "store": {"cache": cache},
        "dns": {"nameservers": [dns.address]},
        **SEALING,
    }
    files = {"arc.pem": pem(key()).decode()}
    with Daemon(redis.url, config, inet=inet, files=files) as daemon:
        yield daemon
