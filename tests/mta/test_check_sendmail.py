"""`alias-milter check --sendmail` on the .mc of docs/sendmail.md, as a real Sendmail gets it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from aliasmilter.admin.sendmail.findings import findings
from aliasmilter.admin.sendmail.reading import read
from tests.harness.daemon import Config
from tests.harness.ours import errors, ours, shown
from tests.harness.sendmail import LAB, Delivery, Sendmail
from tests.harness.sendmail_document import blocks, put, without

SUBMISSION = 20587


def written(
    folder: Path,
    delivery: Delivery = "relay",
    change: Mapping[str, str] | None = None,
    mc: str = "",
    maps: str = "",
) -> Path:
    """The document's sendmail.mc and domain files in a folder; nothing is started."""
    server = Sendmail(
        milters=["unix:/run/alias-milter/milter.sock"],
        next_hop=25,
        relay_domains=["example.com"],
        reinject_port=10026,
        srs_domains=["fwd.example.net"],
        delivery=delivery,
        submission_port=SUBMISSION,
        mc=mc,
        maps=maps,
        replace={", Addr=127.0.0.1')dnl\nDAEMON_OPTIONS(`Name=REINJECT": "')dnl\n"
                 "DAEMON_OPTIONS(`Name=REINJECT", **(change or {})},
    )  # fmt: skip
    server.folder, server.port, server.srs_port = folder, 25, None if maps else 10025
    (folder / "etc").mkdir()
    for name, text in server.domain_files().items():
        server.write_file(name, text)
    # What makes the lab's Sendmail private is no part of the document.
    values = {"hostname": "mx.example.net", "folder": folder, "next_hop": 25}
    return server.write_file("sendmail.mc", server.mc_text().replace(LAB.format(**values), ""))


def found(file: Path, config: Config | None = None, **options: tuple[str, ...]) -> list[str]:
    """What is found, as it is printed, without the folder of this machine."""
    side = ours(
        file.parent, {"reinject": {"server": "127.0.0.1:10026"}, **(config or {})}, **options
    )
    return [line.replace(f"{file.parent}/", "") for line in shown(findings(read(file), side))]


@pytest.mark.parametrize("delivery", ["relay", "local"])
def test_the_documented_file_is_good(tmp_path: Path, delivery: Delivery) -> None:
    assert found(written(tmp_path, delivery)) == []


FILTER = "INPUT_MAIL_FILTER(`alias-milter', `S="
NO_LOOP = "LOCAL_RULE_0: fwd.example.net: bounces of this host"
MSRSLOOP = "Msrsloop"
LOCAL = "MAILER(`local')dnl\n"
DEBIANS = "DAEMON_OPTIONS(`Family=inet,  Name=MTA-v4, Port=smtp, Addr=127.0.0.1')dnl\n"


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        # The filter.
        (without("filter", "INPUT_MAIL_FILTER"), "INPUT_MAIL_FILTER: alias-milter is not asked"),
        ({"F=T, ": ""}, "F=: while alias-milter is away everything is accepted"),
        ({"F=T, ": "F=R, "}, "F=R: while alias-milter is away mail is refused for good"),
        ({"R:60s": "R:10s"}, "T=...R:10s, but alias-milter may need 36 s"),
        ({", T=C:10s;S:10s;R:60s;E:5m": ""}, "T=...R:10s, but alias-milter may need 36 s"),
        ({"E:5m": "E:20s"}, "T=...E:20s"),
        ({"alias-milter/milter.sock": "alias-milter/other"}, "is not where alias-milter listens"),
        ({"INPUT_MAIL_FILTER(": "MAIL_FILTER("}, "or nobody uses this filter"),
        ({FILTER: f"dnl {FILTER}"}, "INPUT_MAIL_FILTER: alias-milter is not asked"),
        ({FILTER: f"# {FILTER}"}, "INPUT_MAIL_FILTER: alias-milter is not asked"),
        ({LOCAL: f"INPUT_MAIL_FILTER(`dkim', `S=inet:1@::1')\n{LOCAL}"},
         "dkim comes after alias-milter"),
        ({LOCAL: f"define(`confINPUT_MAIL_FILTERS', `other')\n{LOCAL}"},
         "or nobody uses this filter"),
        # The listeners.
        ({", InputMailFilters=": ""}, "takes alias-milter's copies ([reinject] server) and asks"),
        ({"Addr=127.0.0.1, Port=10026": "Port=10026"}, "takes mail from everywhere, past alias-m"),
        ({"Port=10026": "Port=10099"}, "DAEMON_OPTIONS: nobody listens on 127.0.0.1:10026"),
        ({"DAEMON_OPTIONS(`Name=MTA": "dnl (`Name=MTA"}, "DAEMON_OPTIONS: no listener on port 25"),
        ({"DAEMON_OPTIONS(`Name=MTA": f"{DEBIANS}DAEMON_OPTIONS(`Name=MTA"},
         "has that port already: one of the two stays closed"),
        ({"Port=25'": "Port=25, InputMailFilters='"}, "port 25: InputMailFilters leaves alias-mil"),
        ({"Port=25'": "Port=25, Addr=127.0.0.1'"}, "port 25 is open for this host alone"),
        (without("listeners", "FEATURE(`no_default_msa"), "Sendmail opens port 587 by itself"),
        ({f"Port={SUBMISSION}, Addr=127.0.0.1, M=Ea": "Port=587, M=E"}, "port 587 asks for no log"),
        ({LOCAL: f"define(`confMAX_DAEMON_CHILDREN', `40'){LOCAL}"},
         "confMAX_DAEMON_CHILDREN: 40 processes for all listeners"),
        # Relaying and recipients.
        ({"FEATURE(`relay_hosts_only')": "FEATURE(`promiscuous_relay')"}, "an open relay for"),
        ({"FEATURE(`relay_hosts_only')": "FEATURE(`relay_local_from')"}, "senders are forged"),
        ({"FEATURE(`relay_hosts_only')": "FEATURE(`relay_based_on_MX')"}, "is that meant?"),
        (without("relay", "FEATURE(`relay_hosts_only"), "stands for all its subdomains"),
        # Return addresses.
        ({"C{SRS}fwd.example.net": "C{SRS}other.example"}, NO_LOOP),
        ({"LOCAL_RULE_0\n": "LOCAL_RULE_0\ndivert(-1)\n"}, NO_LOOP),
        ({"\t$#srsloop": " $#srsloop"}, "spaces where a tab has to stand"),
        ({"F=mDFMuXa8k": "F=mDFMuXa8"}, "without k Sendmail takes its own greeting"),
        ({"F=mDFMuXa8k": "F=mDFMXa8k"}, "without u upper case becomes lower"),
        ({MSRSLOOP: "Mother"}, "goes to the mailer srsloop, which is not defined"),
        ({"TCP $h 10025": "TCP $h 10099"}, "A=TCP $h 10099: nobody listens there"),
        ({"Port=10025'": "Port=10025, InputMailFilters='"}, "port 10025 is where SRS bounces go"),
        # The bytes.
        (without("bytes", "FEATURE(`nocanonify"), "host names in header addresses"),
        (without("bytes", "MODIFY_MAILER_FLAGS"), "8-bit text is converted"),
        (without("bytes", "define(`SMTP_MAILER_LL"), "SMTP_MAILER_LL: ARC and DKIM"),
        (without("bytes", "define(`RELAY_MAILER_LL"), "RELAY_MAILER_LL: ARC and DKIM"),
        (without("bytes", "define(`confMAX_MIME"), "confMAX_MIME_HEADER_LENGTH: ARC and DKIM"),
        (without("bytes", "define(`confMAX_HEADERS"), "confMAX_HEADERS_LENGTH: messages with"),
    ],
)  # fmt: skip
def test_a_wrong_line_is_found_and_named(
    tmp_path: Path, change: Mapping[str, str], finding: str
) -> None:
    lines = found(written(tmp_path, change=change))
    assert any(finding in line for line in lines), lines
    assert all("sendmail.mc" in line.split(": ")[1] for line in lines), lines


MAPS = "unix:/run/alias-milter/map.sock"
SERVED: Config = {"socketmap": {"listen": MAPS}}
RELAYING = "relay-domains: example.com: managed in Redis, but Sendmail refuses its mail"


def test_the_documented_file_with_lookup_tables_is_good(tmp_path: Path) -> None:
    assert found(written(tmp_path, maps=MAPS), SERVED) == []


@pytest.mark.parametrize(
    ("change", "config", "findings"),
    [
        ({}, {}, ["Krelay_domains: /run/alias-milter/map.sock is not where", "Ksrs_reverse: ",
                  RELAYING, "relay-domains: fwd.example.net: an SRS domain", NO_LOOP]),
        ({"Krelay_domains socket -T<TMPF> unix:/run/alias-milter/map.sock": "# none"}, SERVED,
         [RELAYING, "relay-domains: fwd.example.net: an SRS domain"]),
        ({"SLocal_check_rcpt": "SLocal_check_mail"}, SERVED,
         [RELAYING, "relay-domains: fwd.example.net: an SRS domain"]),
        ({"Ksrs_reverse socket -T<TMPF> unix:/run/alias-milter/map.sock":
          "Ksrs_reverse socket -T<TMPF> inet:10003@127.0.0.1"}, SERVED,
         ["Ksrs_reverse: 127.0.0.1:10003 is not where alias-milter serves it", NO_LOOP]),
    ],
)  # fmt: skip
def test_lookup_tables_that_are_not_asked_or_served_are_found(
    tmp_path: Path, change: Mapping[str, str], config: Config, findings: list[str]
) -> None:
    lines = found(written(tmp_path, maps=MAPS, change=change), config)
    assert len(lines) == len(findings), lines
    assert all(finding in line for finding, line in zip(findings, lines, strict=True)), lines


@pytest.mark.parametrize(
    ("line", "is_twice"),
    [
        ("Name=MTA6, Family=inet6, Port=25", False),
        ("Name=MTA-v4, Family=inet, Port=smtp, Addr=192.0.2.1", True),
        ("Name=MSP, Port=587, Addr=127.0.0.1, M=Ea", False),
        ("Name=X, Port=10026, Addr=127.0.0.1, InputMailFilters=", True),
        ("Name=X, Port=10026, Addr=192.0.2.1, InputMailFilters=alias-milter", False),
    ],
)
def test_two_listeners_want_one_port(tmp_path: Path, line: str, *, is_twice: bool) -> None:
    lines = found(written(tmp_path, mc=f"DAEMON_OPTIONS(`{line}')dnl\n"))
    assert any("has that port already" in one for one in lines) is is_twice, lines


def test_flag_w_is_found_where_mailboxes_are_local(tmp_path: Path) -> None:
    file = written(tmp_path, "local", without("local", "MODIFY_MAILER_FLAGS"))
    (line,) = found(file)
    assert line.startswith("error: sendmail.mc MODIFY_MAILER_FLAGS: example.com: the local mailer")
    flags = "MODIFY_MAILER_FLAGS(`LOCAL', `-fw')\nMODIFY_MAILER_FLAGS(`LOCAL', `+n')\n"
    file.write_text(put(file.read_text(), {LOCAL: flags + LOCAL}))
    assert found(file) == []


def test_domains_that_sendmail_would_refuse_are_found(tmp_path: Path) -> None:
    file = written(tmp_path)
    lines = found(file, managed=("example.com", "second.example"), srs_domains=("srs.example",))
    assert "error: relay-domains: second.example: managed in Redis" in "\n".join(lines)
    assert "error: relay-domains: srs.example: an SRS domain" in "\n".join(lines)
    (file.parent / "access").write_text("# ours\nTo:second.example\tRELAY\nspam.example REJECT\n")
    text = file.read_text()
    file.write_text(
        text.replace("FEATURE(`nocanonify')", "FEATURE(`access_db')FEATURE(`nocanonify')")
    )
    assert not any("second.example" in line for line in found(file, managed=("second.example",)))


def test_domains_with_local_mailboxes_and_no_rules_are_found(tmp_path: Path) -> None:
    file = written(tmp_path, "local")
    (file.parent / "local-host-names").write_text("example.com\nother.example\n")
    (line,) = found(file)
    assert line.startswith("warning: local-host-names: other.example: not managed in Redis")


def test_what_sendmail_is_built_from_and_what_is_checked_are_one(
    tmp_path: Path,
) -> None:
    """m4 itself reads the same file: the filter and the listeners that it yields are ours."""
    with ExitStack() as stack:
        server = Sendmail(
            milters=["unix:/run/alias-milter/milter.sock"], next_hop=25, reinject_port=10026
        )
        stack.enter_context(server)
        built = (server.folder / "etc/sendmail.cf").read_text()
        setup = read(server.folder / "etc/sendmail.mc")
    assert [f"Xalias-milter, {call.arg(1)}" for call in setup.calls("INPUT_MAIL_FILTER")] == [
        line for line in built.splitlines() if line.startswith("X")
    ]
    assert [call.arg(0) for call in setup.calls("DAEMON_OPTIONS")] == [
        line.removeprefix("O DaemonPortOptions=")
        for line in built.splitlines()
        if line.startswith("O DaemonPortOptions=")
    ]
    # ostype/linux.m4 has its own flags for the local mailer.
    flags = setup.mailer_flags("ESMTP", "mDFMuXa")
    (mailer,) = (line for line in built.splitlines() if line.startswith("Mesmtp"))
    assert f"F={flags}," in mailer
    (mailer,) = (line for line in built.splitlines() if line.startswith("Mlocal"))
    assert f"F={setup.mailer_flags('LOCAL', 'lsDFMAw5:/|@qSPhn9')}," in mailer


def test_debians_own_file_lacks_everything_and_is_read(tmp_path: Path) -> None:
    from tests.harness.sendmail_packages import programs

    text = (programs().cf / "debian/sendmail.mc").read_text()
    (tmp_path / "sendmail.mc").write_text(text)
    lines = found(tmp_path / "sendmail.mc")
    assert any("INPUT_MAIL_FILTER: alias-milter is not asked" in line for line in lines)
    assert any("port 25 is open for this host alone" in line for line in lines)
    assert not any("submission" in line for line in lines)
    assert blocks()["filter"]
    assert errors(findings(read(tmp_path / "sendmail.mc"), ours(tmp_path)))
