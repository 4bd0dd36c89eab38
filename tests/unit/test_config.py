"""The configuration: every mistake named, with file and key."""

from __future__ import annotations

from pathlib import Path

import pytest

from aliasmilter.config import ConfigError, load, load_secrets

GOOD = '[srs]\ndomain = "fwd.example.net"\nsecrets_file = "srs.secrets"\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "alias-milter.toml"


def test_sections_with_defaults_may_be_left_out(file: Path) -> None:
    file.write_text(GOOD)
    config = load(file)
    assert config.store.timeout == 1.0
    assert config.srs.secrets_file == file.parent / "srs.secrets"
    assert not config.arc.enabled


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("[milter]\nworker = 2", "[milter] worker: no such key"),
        ("[mitler]\nworkers = 2", "[mitler]: no such section"),
        ('[milter]\nworkers = "2"', "[milter] workers: "),
        ('[milter]\nsocket = "/run/x"', "[milter] socket: "),
        ('[milter]\nsocket = "inet:8891@[::1]"', "of IPv6; write inet6:8891@[::1]"),
        (f'[milter]\nsocket = "unix:/{"x" * 107}"', "no path of a socket has over 107 octets"),
        ('[milter]\nsocket_mode = "rw"', "[milter] socket_mode: "),
        ('[milter]\nsocket_group = "no such group"', "[milter] socket_group: "),
        ('[store]\nurl = "http://x"', "[store] url: "),
        ("[store]\ntimeout = 0", "[store] timeout: "),
        ('[mail]\nlocal_domains = ["a b"]', "[mail] local_domains.0: "),
        ('[mail]\ndelimiter = "++"', "[mail] delimiter: "),
        ('[reinject]\nserver = "localhost"', "[reinject] server: "),
        ('[reinject]\nserver = "smtp:[127.0.0.1]:10026"', "[reinject] server: 'smtp:[127.0.0.1]"),
        ('[reinject]\nserver = "inet:127.0.0.1:10026"', "[reinject] server: "),
        ('[metrics]\nlisten = "*:9787"', "[metrics] listen: '*:9787' is not HOST:PORT"),
        ("[arc]\nenabled = true", "[arc]: domain, selector, key_file missing"),
        ('[authentication]\nmode = "guess"', "[authentication] mode: "),
        ('[dns]\nnameservers = ["ns.example"]', "[dns] nameservers.0: "),
        ('[dns]\nnameservers = ["999.1.1.1"]', "[dns] nameservers.0: '999.1.1.1' is not an IP "),
        ('[dns]\nnameservers = ["::1", "192.0.2.1:99999"]', "[dns] nameservers.1: "),
        ('[quarantine]\nmailbox = "q"', "[quarantine] mailbox: "),
        ('[log]\nformat = "xml"', "[log] format: "),
        (
            '[socketmap]\nlisten = "unix:m"\n[milter]\nsocket = "unix:m"',
            "[socketmap] listen: unix:",
        ),
        (
            '[metrics]\nlisten = "127.0.0.1:99"\n[socketmap]\nlisten = "inet:99@127.0.0.1"',
            "[metrics] listen: inet:99@127.0.0.1 is [socketmap] listen already",
        ),
        ("[log]\nlevel = 1\nlevel = 2", "overwrite"),
        ("[log", ""),
        ('[submission]\nlogins = { bob = "x" }', "[submission] logins.bob: should be a list: ["),
        ('[submission]\nlogins = "x"', "[submission] logins: should be a table: {"),
        ('[mail]\nlocal_domains = "x"', "[mail] local_domains: should be a list: ["),
        ('[quarantine]\nmailbox = "nope"', "[quarantine] mailbox: 'nope': no domain"),
    ],
)
def test_a_mistake_names_file_and_key(file: Path, text: str, where: str) -> None:
    file.write_text(GOOD + text + "\n")
    with pytest.raises(ConfigError) as error:
        load(file)
    (problem,) = error.value.problems
    assert problem.startswith(f"{file}: ")
    assert where in problem


def test_name_servers_have_an_address_of_either_kind(file: Path) -> None:
    given = ("192.0.2.1", "192.0.2.1:5353", "2001:db8::1", "[2001:db8::1]:5353")
    file.write_text(f"{GOOD}[dns]\nnameservers = {list(given)}\n")
    assert load(file).dns.nameservers == given


@pytest.mark.parametrize(
    "server", ["127.0.0.1:10026", "localhost:25", "mx_1.example.net:25", "[::1]:25", "::1:25"]
)
def test_a_listener_for_copies_is_an_address_or_a_name_with_a_port(file: Path, server: str) -> None:
    file.write_text(f'{GOOD}[reinject]\nserver = "{server}"\n')
    assert load(file).reinject.server == server


@pytest.mark.parametrize("text", ["", "[mail]\nmax_received = 40\n"])
def test_a_system_whose_name_is_no_domain_has_to_be_told_one(
    file: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.gethostbyaddr", lambda _: ("mx.example.net.", [], []))
    file.write_text(GOOD + text)
    with pytest.raises(ConfigError, match=r"\[mail\] hostname: 'mx.example.net.': not a domain"):
        load(file)
    file.write_text(GOOD + '[mail]\nhostname = "mx.example.net"\n')
    assert load(file).mail.hostname == "mx.example.net"


def test_a_section_that_is_none_is_said_to_be_one(file: Path) -> None:
    file.write_text('srs = "x"\n')
    with pytest.raises(ConfigError, match=r"\[srs\]: should be a section$"):
        load(file)


def test_a_byte_order_mark_is_passed_over(file: Path) -> None:
    file.write_text(GOOD, encoding="utf-8-sig")
    assert load(file).srs.domain == "fwd.example.net"


def test_all_mistakes_are_told_at_once(file: Path) -> None:
    file.write_text("[milter]\nfoo = 1\n[log]\nlevel = 2\n")
    with pytest.raises(ConfigError) as error:
        load(file)
    assert len(error.value.problems) == 3


def test_a_file_that_is_not_there_is_named(file: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load(file)


def test_secrets_one_a_line_and_at_least_one(file: Path) -> None:
    file.write_text("new\n\nold\n")
    assert load_secrets(file) == ["new", "old"]
    file.write_text("\n")
    with pytest.raises(ConfigError, match="no secret in it"):
        load_secrets(file)
    with pytest.raises(ConfigError, match="No such file"):
        load_secrets(file.parent / "other")
