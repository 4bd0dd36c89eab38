"""The commands: what they print, and their exit status."""

from __future__ import annotations

import os
import pwd
import re
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from aliasmilter.cli import commands
from aliasmilter.config import ConfigError
from aliasmilter.mail.message import Message
from tests.harness.daemon import toml
from tests.harness.dns import DnsServer
from tests.harness.redis import RedisServer
from tests.harness.signing import key, key_zone, pem, sign_dkim
from tests.harness.smtp import message

Run = Callable[..., Result]


@pytest.fixture
def config(tmp_path: Path, redis: RedisServer) -> Path:
    (tmp_path / "srs.secrets").write_text("a secret that is long enough\n")
    (tmp_path / "srs.secrets").chmod(0o600)
    (tmp_path / "arc.pem").write_bytes(pem(key()))
    (tmp_path / "arc.pem").chmod(0o600)
    file = tmp_path / "alias-milter.toml"
    file.write_text(settings(redis.url))
    return file


def settings(url: str, nameserver: str = "127.0.0.1:1") -> str:
    arc = {"domain": "example.net", "selector": "arc", "key_file": "arc.pem"}
    return toml(
        {
            "store": {"url": url},
            "mail": {"hostname": "mx.example.net"},
            "srs": {"domain": "fwd.example.net", "secrets_file": "srs.secrets"},
            "arc": arc,
            "dns": {"nameservers": [nameserver], "timeout": 1.0},
            "quarantine": {"mailbox": "quarantine@example.com"},
        }
    )


@pytest.fixture
def run(config: Path) -> Run:
    def invoke(*args: str, stdin: bytes = b"", catch_exceptions: bool = True) -> Result:
        return CliRunner().invoke(
            commands, [*args, "-c", str(config)], input=stdin, catch_exceptions=catch_exceptions
        )

    return invoke


def test_check_finds_every_mistake_and_names_key_and_field(run: Run, redis: RedisServer) -> None:
    redis.cli(
        stdin="""HSET domain:example.com unknown reject quarantine q@far.example
HSET alias:example.com bob bob@example.com Up bob@example.com bad nonsense a b@example.com
HSET alias:example.com b a@example.com lost nix@example.com old "bob@example.com expires=2020-01-01"
HSET alias:example.com both "bob@example.com me@gmail.example"
HSET alias:key.example * bob@example.com
HSET domain:typo.example unkown pass
HSET domain:second.example alias_of nowhere.example
HSET domain:third.example alias_of second.example
HSET domain:round.example alias_of about.example
HSET domain:about.example alias_of round.example
HSET domain:key.example arc_selector other srs_domain nobody.example
SET alias:typo.example x
HSET alias:orphan.example x bob@example.com
HSET domain:B.example unknown reject
SADD block:example.com good.example eve@bank.example Spam.example @x.example
SADD block:orphan.example spam.example
SET block:second.example x
HSET alias:example.com info@example.com bob@example.com info@far.example bob@example.com "" x
"""
    )
    result = run("check")
    assert result.exit_code == 1
    for finding in (
        "error: alias:example.com Up: never found",
        "error: alias:example.com bad: unknown word 'nonsense'",
        "error: alias:example.com a: cycle: a@example.com -> b@example.com",
        "error: alias:example.com lost: dangling: ",
        "warning: alias:example.com old: expired on 2020-01-01",
        "warning: alias:example.com both: targets here and on other systems",
        "warning: alias:key.example *: a catch-all never reaches a real inbox",
        "error: domain:typo.example: field unkown: no such setting",
        "error: domain:second.example alias_of: nowhere.example is not managed",
        "error: domain:third.example alias_of: nowhere.example is not managed",
        "error: domain:round.example alias_of: a circle: round.example -> about.example -> round.",
        "error: domain:key.example arc_domain, arc_selector: there is no key",
        "warning: domain:key.example srs_domain: nobody.example is not managed",
        "warning: domain:example.com quarantine: q@far.example is on another system",
        "error: alias:typo.example: holds another type than a hash",
        "error: alias:orphan.example: the domain is not managed",
        "error: domain:B.example: never found",
        "error: block:example.com Spam.example: never found: write it spam.example",
        "error: block:example.com @x.example: never found, neither an address nor a domain",
        "error: block:orphan.example: the domain is not managed",
        "error: block:second.example: holds another type than a set",
        "error: alias:example.com info@example.com: a whole address",
        "warning: alias:example.com info@far.example: a whole address",
        "error: alias:example.com : never found: an empty field",
    ):
        assert finding in result.output, result.output
    for good in ("good.example", "eve@bank.example"):
        assert good not in result.output


def test_check_is_content_with_good_rules(run: Run, redis: RedisServer) -> None:
    redis.cli("HSET", "domain:example.com", "unknown", "reject")
    redis.cli("HSET", "alias:example.com", "bob", "bob@example.com", "sales", "bob@example.com")
    result = run("check")
    assert result.exit_code == 0, result.output
    assert "1 domains, 2 rules: 0 errors, 0 warnings" in result.output


def test_check_says_when_redis_is_away_and_a_key_is_open_to_others(run: Run, config: Path) -> None:
    (config.parent / "arc.pem").chmod(0o644)
    config.write_text(settings("redis://127.0.0.1:1/0"))
    result = run("check")
    assert result.exit_code == 1
    assert "error: [store] url: Redis: " in result.output
    assert "arc.pem: mode 0644, others can read" in result.output


def test_check_reads_the_mail_servers_configuration_when_told(run: Run, config: Path) -> None:
    file = config.parent / "sendmail.mc"
    with pytest.raises(ConfigError, match=r"sendmail\.mc: No such file"):
        run("check", "--sendmail", str(file), catch_exceptions=False)
    file.write_text("FEATURE(`promiscuous_relay')dnl\n")
    result = run("check", "--sendmail", str(file))
    assert result.exit_code == 1
    assert f"error: {file}:1 FEATURE(`promiscuous_relay'): an open relay" in result.output
    file.write_text("INPUT_MAIL_FILTER(`x', `S=unix:/x")
    with pytest.raises(ConfigError, match=r"sendmail\.mc:1: the quote that begins here"):
        run("check", "--sendmail", str(file), catch_exceptions=False)
    with pytest.raises(ConfigError, match=r"nowhere/main\.cf: No such file"):
        run("check", "--postfix", str(config.parent / "nowhere"), catch_exceptions=False)


def test_resolve_shows_the_way_step_by_step(run: Run, redis: RedisServer) -> None:
    redis.cli("HSET", "domain:example.com", "unknown", "reject")
    redis.cli("HSET", "alias:example.com", "bob", "bob@example.com", "sales", "bob@example.com")
    result = run("resolve", "sales+x@example.com")
    assert result.exit_code == 0
    assert "[alias:example.com sales] bob@example.com" in result.output
    assert "delivered to: bob+x@example.com" in result.output
    result = run("resolve", "nobody@example.com")
    assert result.exit_code == 1
    assert "answer: 550 5.1.1" in result.output
    assert run("resolve", "no address").exit_code == 2
    assert "bob: no domain" in run("resolve", "bob").output


def test_resolve_fails_as_the_daemon_does_when_blocked_senders_cannot_be_read(
    run: Run, redis: RedisServer
) -> None:
    redis.cli("HSET", "domain:example.com", "unknown", "reject")
    redis.cli("HSET", "alias:example.com", "bob", "bob@example.com block=spam.example")
    redis.cli("SADD", "block:example.com", "eve@bank.example")
    assert run("resolve", "bob@example.com").exit_code == 0
    redis.cli("DEL", "block:example.com")
    redis.cli("SET", "block:example.com", "x")
    result = run("resolve", "bob@example.com")
    assert result.exit_code == 1
    assert "block:example.com: holds another type than a set" in result.output
    assert "answer: 451 4.3.5" in result.output


def test_srs_forward_and_reverse(run: Run) -> None:
    made = run("srs", "forward", "alice@bank.example").output.strip()
    assert made.endswith("=bank.example=alice@fwd.example.net")
    assert run("srs", "reverse", made).output.strip() == "alice@bank.example"
    forged = run("srs", "reverse", made.replace("alice", "mallory"))
    assert forged.exit_code == 1
    assert "srs-forged" in forged.output
    plain = run("srs", "reverse", "bob@example.com")
    assert plain.exit_code == 1
    assert plain.output == "bob@example.com: srs-forged: not in the form of SRS\n"
    assert run("srs", "forward", "x" * 60 + "@bank.example").exit_code == 1


def test_keygen_writes_a_private_file_and_prints_the_record(run: Run, config: Path) -> None:
    result = run("keygen", "new.example", "s1")
    assert result.exit_code == 0
    file = config.parent / "new.example" / "s1.pem"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "s1._domainkey.new.example. IN TXT (" in result.output
    before = file.read_bytes()
    assert run("keygen", "new.example", "s1").exit_code == 1
    assert file.read_bytes() == before


def test_keygen_writes_where_the_configuration_says(run: Run, config: Path) -> None:
    (config.parent / "arc.pem").unlink()
    assert run("keygen", "example.net", "arc").exit_code == 0
    assert run("check").exit_code == 0


@pytest.mark.skipif(os.getuid() != 0, reason="gives files to other groups: needs root")
def test_the_daemons_group_can_reach_a_new_key_and_check_says_when_it_cannot(
    run: Run, config: Path
) -> None:
    folder, nobody = config.parent, pwd.getpwnam("nobody")
    os.chown(folder, -1, nobody.pw_gid)
    folder.chmod(0o750)
    assert run("keygen", "new.example", "s1").exit_code == 0
    made = (folder / "new.example").stat()
    assert (made.st_gid, stat.S_IMODE(made.st_mode)) == (nobody.pw_gid, 0o750)
    found = run("check").output
    for name in ("srs.secrets", "arc.pem", "new.example/s1.pem"):
        assert f"warning: {folder / name}: the group " in found
    for name in ("srs.secrets", "new.example/s1.pem"):
        os.chown(folder / name, nobody.pw_uid, -1)
    os.chown(folder / "arc.pem", -1, nobody.pw_gid)
    (folder / "arc.pem").chmod(0o640)
    assert "cannot read it" not in run("check").output
    os.chown(folder / "new.example", 0, 0)
    assert f"warning: {folder / 'new.example'}: the group " in run("check").output


def test_a_folder_of_keys_is_not_open_to_writers(run: Run, config: Path) -> None:
    config.parent.chmod(0o777)
    assert run("keygen", "new.example", "s1").exit_code == 0
    assert stat.S_IMODE((config.parent / "new.example").stat().st_mode) == 0o755


def test_what_arc_seal_prints_arc_verify_passes(run: Run, config: Path, redis: RedisServer) -> None:
    with DnsServer(key_zone("arc.example.net", "s.bank.example")) as dns:
        config.write_text(settings(redis.url, dns.address))
        plain = sign_dkim(Message.parse(message()), "bank.example").as_bytes()
        assert run("arc", "verify", "-", stdin=plain).exit_code == 1
        sealed = run("arc", "seal", "-", stdin=plain)
        assert sealed.exit_code == 0
        again = run("arc", "seal", "-", stdin=sealed.stdout_bytes)
        verified = run("arc", "verify", "-", stdin=again.stdout_bytes)
        assert verified.exit_code == 0, verified.output
        assert re.search(r"i=2 d=example.net s=arc: seal pass, message signature pass",
                         verified.output)  # fmt: skip
        broken = run("arc", "verify", "-", stdin=again.stdout_bytes.replace(b"Hello", b"Hallo"))
        assert broken.exit_code == 1
        assert "arc=fail" in broken.output


def test_arc_seal_says_why_a_message_gets_no_seal(run: Run) -> None:
    result = run("arc", "seal", "-", stdin=b"To: x@y.example\n\nhello\n")
    assert result.exit_code == 1
    assert "no From field" in result.output
    assert run("arc", "verify", "/no/such/file").exit_code == 2


def test_auth_says_what_verify_mode_would_say(run: Run, config: Path, redis: RedisServer) -> None:
    zone = key_zone("s.bank.example")
    zone["bank.example"] = {"TXT": ["v=spf1 ip4:192.0.2.10 -all"]}
    zone["_dmarc.bank.example"] = {"TXT": ["v=DMARC1; p=reject"]}
    with DnsServer(zone) as dns:
        config.write_text(settings(redis.url, dns.address))
        who = ("--helo", "client.example", "--from", "alice@bank.example")
        signed = sign_dkim(Message.parse(message()), "bank.example").as_bytes()
        result = run("auth", "--ip", "192.0.2.10", *who, "-", stdin=signed)
        assert result.exit_code == 0, result.output
        for found in ("spf=pass", "dkim=pass", "dmarc=pass"):
            assert found in result.output
        result = run("auth", "--ip", "198.51.100.1", *who, "-", stdin=message())
        assert result.exit_code == 1
        assert "dmarc=fail" in result.output
    assert run("auth", "--ip", "nonsense", *who, "-", stdin=signed).exit_code == 2


def test_a_configuration_error_is_raised_for_main_to_tell(config: Path) -> None:
    config.write_text("[srs]\n")
    result = CliRunner().invoke(commands, ["check", "-c", str(config)])
    assert isinstance(result.exception, ConfigError)
    assert "[srs] domain: missing" in str(result.exception)
