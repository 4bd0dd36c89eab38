"""A lab that seals: [arc] on, and a DNS with the keys of everybody."""

from __future__ import annotations

from collections.abc import Callable

from aliasmilter.mail.message import Message
from tests.harness.daemon import Config
from tests.harness.dns import DnsServer
from tests.harness.lab import Lab
from tests.harness.signing import (
    key,
    key_zone,
    pem,
    sign_dkim,
    verify_by_dkimpy,
    verify_by_perl,
)
from tests.harness.smtp import message


def bank_dns() -> DnsServer:
    """The DNS of the world: Alice's bank with a strict policy, our key, and another sealer's."""
    zone = key_zone("s.bank.example", "arc.example.net", "arc.other.example")
    zone["bank.example"] = {"TXT": ["v=spf1 ip4:192.0.2.10 -all"]}
    zone["_dmarc.bank.example"] = {"TXT": ["v=DMARC1; p=reject"]}
    return DnsServer(zone)


def start_sealing(
    make_lab: Callable[..., Lab], dns: DnsServer, config: Config | None = None, **options: object
) -> Lab:
    """A lab with [arc], and `config` and `options` as Lab has them."""
    arc = {"enabled": True, "domain": "example.net", "selector": "arc", "key_file": "arc.pem"}
    sections: Config = {"arc": arc, "dns": {"nameservers": [dns.address], "timeout": 2.0}}
    files = {"arc.pem": pem(key()).decode()}
    return make_lab({**sections, **(config or {})}, files=files, **options)


def signed() -> bytes:
    """A message with the bank's DKIM signature."""
    return sign_dkim(Message.parse(message(to="out@example.com")), "bank.example").as_bytes()


def verdicts(content: bytes, dns: DnsServer) -> tuple[str | None, str]:
    """What dkimpy and Perl's Mail::DKIM say of the ARC chain."""
    received = Message.parse(content)
    return verify_by_dkimpy(received, dns)[0], verify_by_perl([received], dns)[0][0]
