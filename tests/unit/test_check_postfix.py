"""Findings over Postfix configurations as values: no Postfix is asked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aliasmilter.admin.ours import Endpoint, host_port, sendmail_endpoint
from aliasmilter.admin.postfix import reading
from aliasmilter.admin.postfix.findings import findings
from aliasmilter.admin.postfix.maps import is_postsrsd, socketmap_of
from aliasmilter.admin.postfix.milters import milters, seconds, seen_path
from aliasmilter.admin.postfix.values import (
    PostfixSetup,
    Restriction,
    Service,
    TableError,
    in_list,
    restrictions,
    words,
)
from aliasmilter.config import ConfigError
from tests.harness.daemon import Config
from tests.harness.ours import ours, shown

FOLDER = Path("/etc/postfix")
GOOD = {
    "queue_directory": "/var/spool/postfix",
    "inet_interfaces": "all",
    "smtpd_milters": "unix:/run/alias-milter/milter.sock",
    "milter_default_action": "tempfail",
    "milter_protocol": "6",
    "milter_command_timeout": "30s",
    "milter_content_timeout": "300s",
    "smtp_line_length_limit": "0",
    "mynetworks": "127.0.0.0/8 [::1]/128",
    "smtpd_relay_restrictions": "permit_mynetworks, reject_unauth_destination",
    "relay_domains": "example.com, fwd.example.net",
    "parent_domain_matches_subdomains": "relay_domains",
    "transport_maps": "table:routes",
    "mydestination": "",
}
TABLES = {("table:routes", "fwd.example.net"): "smtp:[127.0.0.1]:10027"}


def service(name: str, program: str = "smtpd", chroot: bool = False, **own: str) -> Service:
    return Service(name, chroot, program, frozenset(own), {**GOOD, **own})


def setup(
    *services: Service,
    main: Mapping[str, str] | None = None,
    tables: Mapping[tuple[str, str], str] = TABLES,
) -> PostfixSetup:
    values = {**GOOD, **(main or {})}
    lines = services or (service("smtp/inet"), service("127.0.0.1:10027/inet"))
    merged = [
        Service(one.name, one.chroot, one.program, one.overrides,
                {**values, **{name: one.values[name] for name in one.overrides}})
        for one in lines
    ]  # fmt: skip
    return PostfixSetup(FOLDER, values, tuple(merged), lookup=lambda *key: tables.get(key))


def test_a_good_value_has_no_findings(tmp_path: Path) -> None:
    assert shown(findings(setup(), ours(tmp_path))) == []


def test_each_finding_is_told_once_however_many_services_it_concerns(tmp_path: Path) -> None:
    services = [service("smtp/inet"), service("submission/inet"), service("127.0.0.1:10027/inet")]
    wrong = setup(*services, main={"milter_default_action": "accept"})
    (line,) = shown(findings(wrong, ours(tmp_path)))
    assert line.startswith("error: /etc/postfix/main.cf milter_default_action: accept")
    assert line.endswith("write tempfail instead")


def test_an_override_is_named_with_its_service_and_what_it_changes_without_a_minus_o() -> None:
    plain = service("smtp/inet", smtpd_milters="$mine", mine="x")
    whole = setup(plain)
    assert whole.where("mine", whole.services[0]) == "/etc/postfix/master.cf smtp/inet -o mine"
    changed = Service("a/inet", False, "smtpd", frozenset({"mine"}), {**GOOD, "smtpd_milters": "x"})
    assert whole.where("smtpd_milters", changed) == "/etc/postfix/master.cf a/inet smtpd_milters"
    assert whole.where("mynetworks", changed) == "/etc/postfix/main.cf mynetworks"


@pytest.mark.parametrize(
    ("name", "interfaces", "public"),
    [
        ("smtp/inet", "all", True),
        ("smtp/inet", "loopback-only", False),
        ("smtp/inet", "127.0.0.1, ::1", False),
        ("192.0.2.1:smtp/inet", "loopback-only", True),
        ("127.0.0.1:10027/inet", "all", False),
        ("[::1]:10027/inet", "all", False),
        ("localhost:10027/inet", "all", False),
        ("smtpd/pass", "all", True),
        ("private/x/unix", "all", False),
    ],
)
def test_who_reaches_a_listener(name: str, interfaces: str, public: bool) -> None:
    assert service(name, inet_interfaces=interfaces).is_public is public


@pytest.mark.parametrize(
    ("path", "chroot", "real"),
    [
        ("/run/m", False, "/run/m"),
        ("m/s", False, "/var/spool/postfix/m/s"),
        ("/run/m", True, "/var/spool/postfix/run/m"),
        ("m/s", True, "/var/spool/postfix/m/s"),
    ],
)
def test_the_path_that_a_service_sees(path: str, chroot: bool, real: str) -> None:
    assert seen_path(path, service("smtp/inet", chroot=chroot)) == real


def test_a_chrooted_service_is_told_how_it_sees_a_socket_in_the_queue_directory(
    tmp_path: Path,
) -> None:
    socket = "unix:/var/spool/postfix/alias-milter/milter.sock"
    whole = setup(
        service("smtp/inet", chroot=True),
        service("127.0.0.1:10027/inet"),
        main={"smtpd_milters": socket},
    )
    (line,) = shown(findings(whole, ours(tmp_path, {"milter": {"socket": socket}})))
    assert "for it /var/spool/postfix is /" in line
    assert line.endswith("write: smtpd_milters = unix:alias-milter/milter.sock")


def test_milters_with_settings_of_their_own() -> None:
    value = "inet:a:1, { unix:/b, default_action=accept, { command_timeout = 1s } } local:c"
    found = milters(service("smtp/inet", smtpd_milters=value))
    assert [(one.text, one.options) for one in found] == [
        ("inet:a:1", {}),
        ("unix:/b", {"default_action": "accept", "command_timeout": "1s"}),
        ("local:c", {}),
    ]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("inet:25@127.0.0.1", "127.0.0.1:25", True),
        ("inet:25@127.0.0.1", "localhost:smtp", True),
        ("inet6:25@::1", "[::1]:25", True),
        ("inet:25@0.0.0.0", "192.0.2.1:25", True),
        ("inet:25@192.0.2.1", "192.0.2.2:25", False),
        ("inet:25@127.0.0.1", "127.0.0.1:26", False),
        ("unix:/run/x", "127.0.0.1:26", False),
    ],
)
def test_one_socket_in_two_spellings(one: str, other: str, same: bool) -> None:
    assert sendmail_endpoint(one).is_same(host_port(other)) is same


def test_a_link_to_a_socket_is_that_socket(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "var").symlink_to("run")
    link, real = Endpoint(f"{tmp_path}/var/s"), Endpoint(f"{tmp_path}/run/s")
    assert link.is_same(real)


def test_restriction_classes_are_taken_apart_and_tables_stay_with_their_restriction() -> None:
    values = {
        "smtpd_restriction_classes": "mine, endless",
        "mine": "permit_mynetworks, endless",
        "endless": "endless, reject",
        "x": "check_client_access inline:{ {a = b, c} }, mine",
    }
    found = list(restrictions(values, "x"))
    assert found[0] == Restriction("check_client_access", "inline:{ {a = b, c} }")
    assert Restriction("permit_mynetworks", "") in found
    assert found[-1] == Restriction("reject", "")


@pytest.mark.parametrize(
    ("value", "domain", "listed"),
    [
        ("a.example b.example", "b.example", True),
        ("example", "b.example", True),
        (".example", "b.example", False),
        ("!b.example, example", "b.example", False),
        ("table:d", "x.b.example", True),
        ("table:d", "c.example", False),
        ("A.Example", "a.example", True),
    ],
)
def test_a_domain_in_a_list(value: str, domain: str, listed: bool) -> None:
    tables = {("table:d", "b.example"): "x"}
    found = setup(main={"relay_domains": value}, tables=tables)
    assert in_list(found, "relay_domains", domain) is listed


def test_mydestination_holds_no_subdomains() -> None:
    assert not in_list(setup(main={"mydestination": "example"}), "mydestination", "b.example")


def test_a_table_that_cannot_be_asked_is_a_warning_and_no_verdict(tmp_path: Path) -> None:
    def away(table: str, key: str) -> str | None:
        raise TableError(f"{table}: connection refused")

    broken = PostfixSetup(FOLDER, GOOD, (service("smtp/inet"),), lookup=away)
    (line,) = shown(findings(broken, ours(tmp_path)))
    assert line == (
        "warning: /etc/postfix/main.cf transport_maps: fwd.example.net: not checked: "
        "table:routes: connection refused"
    )


def test_domains_are_not_judged_while_redis_is_away(tmp_path: Path) -> None:
    main = {"relay_domains": "example.com, other.example, fwd.example.net"}
    assert shown(findings(setup(main=main), ours(tmp_path, managed=()))) == []


def test_our_own_socketmaps_know_every_alias_and_turn_bounces_back(tmp_path: Path) -> None:
    table = "socketmap:unix:/run/alias-milter/map.sock"
    main = {
        "relay_recipient_maps": f"{table}:aliases",
        "smtpd_reject_unlisted_recipient": "yes",
        "recipient_canonical_maps": f"{table}:srs-reverse",
        "transport_maps": "",
    }
    listen = {"socketmap": {"listen": "unix:/run/alias-milter/map.sock"}}
    found = shown(findings(setup(main=main), ours(tmp_path, listen)))
    assert found == []


QUEUE_SOCKET = "/var/spool/postfix/alias-milter/map.sock"


@pytest.mark.parametrize("chroot", [False, True])
def test_a_socketmap_is_ours_by_a_path_in_the_queue_directory_too(
    tmp_path: Path, chroot: bool
) -> None:
    table = "socketmap:unix:alias-milter/map.sock"
    main = {
        "relay_recipient_maps": f"{table}:aliases",
        "smtpd_reject_unlisted_recipient": "yes",
        "recipient_canonical_maps": f"{table}:srs-reverse",
        "transport_maps": "",
        "smtpd_milters": "inet:127.0.0.1:8890",
    }
    config: Config = {
        "socketmap": {"listen": f"unix:{QUEUE_SOCKET}"},
        "milter": {"socket": "inet:8890@127.0.0.1"},
    }
    found = setup(service("smtp/inet", chroot=chroot), main=main)
    assert shown(findings(found, ours(tmp_path, config))) == []


@pytest.mark.parametrize(
    ("socket", "remedy"),
    [
        (QUEUE_SOCKET, "socketmap:unix:alias-milter/map.sock:srs-reverse"),
        ("/run/map.sock", "proxy:socketmap:unix:/run/map.sock:srs-reverse"),
    ],
)
def test_a_socketmap_that_a_chrooted_service_cannot_reach_is_told_with_the_services(
    tmp_path: Path, socket: str, remedy: str
) -> None:
    table = f"socketmap:unix:{socket}:srs-reverse"
    main = {
        "recipient_canonical_maps": table,
        "smtpd_milters": "inet:127.0.0.1:8890",
    }
    config: Config = {
        "socketmap": {"listen": f"unix:{socket}"},
        "milter": {"socket": "inet:8890@127.0.0.1"},
    }
    lines = [
        service("smtp/inet", chroot=True),
        service("cleanup/unix", "cleanup", chroot=True),
        service("rewrite/unix", "trivial-rewrite", chroot=True),
        service("127.0.0.1:10027/inet"),
    ]
    (line,) = shown(findings(setup(*lines, main=main), ours(tmp_path, config)))
    assert line == (
        f"error: /etc/postfix/main.cf recipient_canonical_maps: {table}: chrooted, smtp/inet, "
        "cleanup/unix sees nothing but /var/spool/postfix, and lookups fail (451); "
        f"write: {remedy}"
    )
    proxied = setup(*lines, main={**main, "recipient_canonical_maps": f"proxy:{table}"})
    assert shown(findings(proxied, ours(tmp_path, config))) == []


@pytest.mark.parametrize(
    ("table", "is_one"),
    [
        ("tcp:127.0.0.1:10001", True),
        ("tcp:localhost:10002", True),
        ("socketmap:unix:srs:forward", True),
        ("socketmap:unix:/var/spool/postfix/srs:reverse", True),
        ("socketmap:inet:postsrsd:10003:forward", True),
        ("tcp:127.0.0.1:10005", False),
        ("hash:/etc/postfix/canonical", False),
    ],
)
def test_the_tables_of_postsrsd(table: str, is_one: bool) -> None:
    assert is_postsrsd(table) is is_one


def test_the_socket_of_a_socketmap() -> None:
    assert socketmap_of("socketmap:inet:h:1:a") == (Endpoint(host="h", port=1), "a")
    assert socketmap_of("proxy:socketmap:unix:/x:a") == (Endpoint("/x"), "a")
    assert socketmap_of("hash:/x") is None


@pytest.mark.parametrize(
    ("text", "value"), [("30s", 30), ("5", 5), ("2m", 120), ("1h", 3600), ("soon", None)]
)
def test_times(text: str, value: float | None) -> None:
    assert seconds(text) == value


def test_trust_needs_a_verifying_milter_before(tmp_path: Path) -> None:
    trust = {"authentication": {"mode": "trust"}}
    (line,) = shown(findings(setup(), ours(tmp_path, trust)))
    assert "no milter comes before alias-milter" in line
    main = {"smtpd_milters": f"inet:localhost:8891 {GOOD['smtpd_milters']}"}
    assert shown(findings(setup(main=main), ours(tmp_path, trust))) == []


def test_a_socket_that_postfix_cannot_write_is_told(tmp_path: Path) -> None:
    (line,) = shown(findings(setup(), ours(tmp_path, {"milter": {"socket_mode": "0660"}})))
    assert line.startswith("warning: [milter] socket_group: Postfix connects as postfix")


@pytest.mark.parametrize(
    ("group", "mode", "found"),
    [
        ("daemon", "0660", ["error: [milter] socket_group: daemon: Postfix connects as postfix"]),
        ("postfix", "0600", ["error: [milter] socket_mode: 0600: Postfix connects as postfix"]),
        ("postfix", "0640", ["error: [milter] socket_mode: 0640: Postfix connects as postfix"]),
        ("postfix", "0660", []),
        ("daemon", "0666", []),
    ],
)
def test_group_and_mode_of_the_socket_have_to_let_postfix_in(
    tmp_path: Path, group: str, mode: str, found: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("grp.getgrnam", lambda name: name)  # not every host has a Postfix
    config: Config = {"milter": {"socket_mode": mode, "socket_group": group}}
    lines = shown(findings(setup(), ours(tmp_path, config)))
    assert [line.partition(" and has")[0] for line in lines] == found


def test_long_lines_are_a_warning_where_nothing_is_sealed(tmp_path: Path) -> None:
    main = {"smtp_line_length_limit": "998"}
    lines = [service("smtp/inet"), service("127.0.0.1:10027/inet"), service("smtp/unix", "smtp")]
    found = findings(setup(*lines, main=main), ours(tmp_path, {"arc": {"enabled": False}}))
    assert [str(one.severity) for one in found] == ["warning"]


def test_without_postfix_the_command_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("main.cf", "master.cf"):
        (tmp_path / name).touch()
    monkeypatch.setattr(reading, "_SBIN", "")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="there is no postconf on this host"):
        reading.read(tmp_path)


@given(st.text(alphabet="a,{} \t:", max_size=30))
def test_words_lose_nothing_but_what_separates_them(text: str) -> None:
    """Invariant: the words, in order, with separators outside of braces taken out."""
    kept = "".join(words(text))
    assert [c for c in kept if c in "a:{}"] == [c for c in text if c in "a:{}"]
