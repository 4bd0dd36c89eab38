"""What monitoring sees of a daemon."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from tests.harness.daemon import Config
from tests.harness.dns import DnsServer, Zone
from tests.harness.ports import reserved_port
from tests.harness.signing import key, pem

Labels = dict[str, str]


@dataclass(frozen=True)
class Answer:
    """The answer to an HTTP request."""

    status: int
    headers: dict[str, str]
    text: str


def request(port: int, path: str, method: str = "GET", **headers: str) -> Answer:
    """Make one request. Raises OSError or HTTPException where there is no answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, headers=headers)
        reply = connection.getresponse()
        fields = {name.lower(): value for name, value in reply.getheaders()}
        return Answer(reply.status, fields, reply.read().decode())
    finally:
        connection.close()


@dataclass(frozen=True)
class Scrape:
    """All samples at a time: (name, labels, value)."""

    samples: list[tuple[str, Labels, float]]

    @classmethod
    def parse(cls, text: str) -> Scrape:
        """Read the text format. Raises ValueError."""
        families = text_string_to_metric_families(text)
        return cls([(s.name, s.labels, s.value) for family in families for s in family.samples])

    def value(self, name: str, **labels: str) -> float:
        """The sum of the samples with this name, without prefix, and these labels."""
        full = f"alias_milter_{name}"
        found = [v for n, have, v in self.samples if n == full and labels.items() <= have.items()]
        if not found:
            raise KeyError(f"{full} {labels}")
        return sum(found)

    @property
    def series(self) -> set[tuple[str, frozenset[tuple[str, str]]]]:
        """Names and labels."""
        return {(name, frozenset(labels.items())) for name, labels, _ in self.samples}


def scrape(port: int) -> Scrape:
    """Ask for the metrics."""
    return Scrape.parse(request(port, "/metrics").text)


@contextmanager
def sealing_config(reinject: int | None = None) -> Iterator[tuple[Config, dict[str, str], int]]:
    """Configuration, files and metrics port of a daemon that is measured in all it does.

    What leaves is examined and sealed; alice@bank.example passes SPF and DMARC from 192.0.2.10.
    """
    zone: Zone = {
        "bank.example": {"TXT": ["v=spf1 ip4:192.0.2.10 -all"]},
        "_dmarc.bank.example": {"TXT": ["v=DMARC1; p=reject"]},
    }
    arc = {"enabled": True, "domain": "example.net", "selector": "arc", "key_file": "arc.pem"}
    with DnsServer(zone) as dns, reserved_port() as port:
        config: dict[str, dict[str, object]] = {
            "arc": arc,
            "dns": {"nameservers": [dns.address], "timeout": 2.0},
            "metrics": {"listen": f"127.0.0.1:{port}"},
        }
        if reinject:
            config["reinject"] = {"server": f"127.0.0.1:{reinject}"}
        yield config, {"arc.pem": pem(key()).decode()}, port

