"""`alias-milter dns`: what it prints is what its check wants to see."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import dns.zone
import pytest
from click.testing import CliRunner, Result
from dns.rdtypes.ANY.TXT import TXT

from aliasmilter.cli import commands
from tests.harness.daemon import toml
from tests.harness.dns import DnsServer, Fault
from tests.harness.redis import RedisServer
from tests.harness.signing import key, pem

HOST = {"mx.example.net": {"A": ["192.0.2.1"], "AAAA": ["2001:db8::1"]}}
Run = Callable[..., Result]


@pytest.fixture
def server() -> Iterator[DnsServer]:
    with DnsServer({name: dict(records) for name, records in HOST.items()}) as server:
        yield server


@pytest.fixture
def run(tmp_path: Path, redis: RedisServer, server: DnsServer) -> Run:
    (tmp_path / "srs.secrets").write_text("a secret that is long enough\n")
    for name in ("arc.pem", "example.com/own.pem"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(pem(key()))
        (tmp_path / name).chmod(0o600)
    arc = {"domain": "example.net", "selector": "arc", "key_file": "arc.pem"}
    file = tmp_path / "alias-milter.toml"
    file.write_text(
        toml(
            {
                "store": {"url": redis.url},
                "mail": {"hostname": "mx.example.net"},
                "srs": {"domain": "fwd.example.net", "secrets_file": "srs.secrets"},
                "arc": arc,
                "dns": {"nameservers": [server.address], "timeout": 5.0},
            }
        )
    )
    redis.cli("HSET", "domain:example.com", "unknown", "reject")
    redis.cli("HSET", "domain:own.example", "srs_domain", "srs.own.example",
              "arc_domain", "example.com", "arc_selector", "own")  # fmt: skip
    redis.cli("HSET", "domain:self.example", "srs_domain", "self.example")
    redis.cli("HSET", "domain:user.example", "srs_domain", "self.example")
    redis.cli("HSET", "domain:keyless.example", "arc_domain", "keyless.example")
    return lambda *args: CliRunner().invoke(commands, ["dns", *args, "-c", str(file)])


def publish(server: DnsServer, text: str) -> None:
    """Load what was printed, as a name server would."""
    zone = dns.zone.from_text(f"$TTL 300\n{text}", origin=".", check_origin=False)
    for name, _, rdata in zone.iterate_rdatas():
        kind = type(rdata).__name__
        data = b"".join(rdata.strings) if isinstance(rdata, TXT) else rdata.to_text()
        owner = name.to_text(omit_final_dot=True)
        server.zone.setdefault(owner, {})[kind] = [data]


@pytest.mark.parametrize(
    "domain",
    [
        "example.com",
        "own.example",
        "fwd.example.net",
        "srs.own.example",
        "example.net",
        "self.example",
        "user.example",
    ],
)
def test_a_name_server_with_what_is_printed_passes_the_check(
    run: Run, server: DnsServer, domain: str
) -> None:
    missing = run(domain, "--check")
    assert missing.exit_code == 1
    assert "✓" not in missing.output
    printed = run(domain)
    assert printed.exit_code == 0, printed.output
    publish(server, printed.output)
    server.zone.update({name: dict(records) for name, records in HOST.items()})
    result = run(domain, "--check")
    assert result.exit_code == 0, result.output
    assert "✗" not in result.output


def test_a_managed_domain_gets_its_own_records_and_those_of_its_senders(run: Run) -> None:
    text = run("example.com").output
    for record in (
        "example.com. IN MX 10 mx.example.net.",
        'example.com. IN TXT "v=spf1 a:mx.example.net ~all"',
        '_dmarc.example.com. IN TXT "v=DMARC1; p=none"',
        "fwd.example.net. IN MX 10 mx.example.net.",
        'fwd.example.net. IN TXT "v=spf1 a:mx.example.net -all"',
        '_dmarc.fwd.example.net. IN TXT "v=DMARC1; p=reject"',
        "arc._domainkey.example.net. IN TXT (",
    ):
        assert record in text
    text = run("own.example").output
    assert "srs.own.example. IN MX" in text
    assert "own._domainkey.example.com. IN TXT (" in text
    assert "fwd.example.net" not in text


@pytest.mark.parametrize("domain", ["self.example", "user.example"])
def test_a_domain_that_is_managed_and_of_srs_senders_has_one_spf_record(
    run: Run, domain: str
) -> None:
    lines = run(domain).output.splitlines()
    spf = 'self.example. IN TXT "v=spf1 a:mx.example.net ~all"'
    assert [line for line in lines if line.startswith("self.example. IN TXT")] == [spf]


def test_the_check_shows_what_is_there_instead(run: Run, server: DnsServer) -> None:
    server.zone["fwd.example.net"] = {
        "MX": ["10 old.example.net."],
        "TXT": ["v=spf1 a:old.example.net -all"],
    }
    server.zone["old.example.net"] = {"A": ["192.0.2.99"]}
    result = run("fwd.example.net", "--check")
    assert result.exit_code == 1
    assert "✗ fwd.example.net. IN MX 10 mx.example.net.\n    there instead: 10 old" in result.output
    assert "there instead: v=spf1 a:old.example.net -all" in result.output
    assert "spf=fail for 192.0.2.1" in result.output
    assert '✗ _dmarc.fwd.example.net. IN TXT "v=DMARC1; p=reject"\n    missing' in result.output


def test_any_record_that_does_the_same_is_good(run: Run, server: DnsServer) -> None:
    server.zone["fwd.example.net"] = {
        "MX": ["5 mx.example.net.", "10 backup.example.net."],
        "TXT": ["something else", "v=spf1 include:_spf.example.net -all"],
    }
    server.zone["_spf.example.net"] = {"TXT": ["v=spf1 ip4:192.0.2.0/24 ip6:2001:db8::/32 -all"]}
    server.zone["_dmarc.example.net"] = {"TXT": ["v=DMARC1; p=quarantine"]}
    result = run("fwd.example.net", "--check")
    assert result.exit_code == 0, result.output


def test_an_old_key_is_not_ours(run: Run, server: DnsServer) -> None:
    server.zone["arc._domainkey.example.net"] = {"TXT": ["v=DKIM1; k=rsa; p=AAAA"]}
    result = run("example.net", "--check")
    assert result.exit_code == 1
    assert "there instead: v=DKIM1; k=rsa; p=AAAA" in result.output


def test_a_name_server_that_fails_is_no_missing_record(run: Run, server: DnsServer) -> None:
    server.faults["*"] = Fault.SERVFAIL
    result = run("fwd.example.net", "--check")
    assert result.exit_code == 1
    assert "not known: " in result.output
    assert "missing" not in result.output


def test_a_seal_without_a_key_and_a_domain_of_others_are_told(run: Run) -> None:
    result = run("keyless.example")
    assert result.exit_code == 1
    assert "alias-milter keygen keyless.example arc" in result.output
    result = run("gmail.example")
    assert result.exit_code == 1
    assert "neither managed" in result.output
    assert run("a..b").exit_code == 2
