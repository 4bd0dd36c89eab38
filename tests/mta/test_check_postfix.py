"""`alias-milter check --postfix` reads real configurations, by Postfix's own postconf and postmap.

The set-ups of docs/postfix.md are found good, and each dangerous change of them is found.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from aliasmilter.admin.postfix.findings import findings
from aliasmilter.admin.postfix.reading import read
from aliasmilter.config import ConfigError
from tests.harness.daemon import Config
from tests.harness.ours import DOCUMENTED, REINJECT, errors, ours, shown
from tests.harness.postfix import Postfix
from tests.mta.postfix_document import BLOCKS, DocumentedLab, lines_of
from tests.mta.postfix_document import DOCUMENTED as LINES
from tests.mta.test_postfix_doc import SASL

RELAY = ("filter", "relay", "srs")
MAILBOXES = ("filter", "mailboxes", "srs")
Main = Mapping[str, str | None]


class Configuration:
    """A folder with the main.cf and master.cf of the document's blocks of these names.

    Args:
        main: lines that differ; None takes one away.
        public: the line of the public listener, and further text of master.cf.
        master: text of master.cf that is replaced.
    """

    def __init__(
        self,
        root: Path,
        *names: str,
        main: Main | None = None,
        public: str = "smtp inet n - n - - smtpd\n",
        master: Mapping[str, str] | None = None,
    ) -> None:
        self.root = root
        self.folder = root / "etc"
        self.folder.mkdir()
        self.write("main.cf", "compatibility_level = 3.6\n")
        for name in ("mailboxes", "relay-recipients"):
            self.table(name, "bob@example.com x\ncarol@other.example x\n")
        server = Postfix(next_hop=25)
        server.folder, server.port = root, 2525
        server.main = {
            **dict.fromkeys(LINES),
            **lines_of(self.text("main.cf", names)),
            # The lab's own is loopback alone: then no port would be public.
            "inet_interfaces": "all",
            **(main or {}),
        }
        server.write_configuration()
        file = self.folder / "master.cf"
        lines = [line for line in file.read_text().splitlines() if ":2525 " not in line]
        text = public + "\n".join(lines) + "\n" + self.text("master.cf", names)
        for old, new in (master or {}).items():
            assert old in text
            text = text.replace(old, new)
        file.write_text(text)

    def text(self, file: str, names: tuple[str, ...]) -> str:
        blocks = "".join(BLOCKS.get(f"{file} {name}", "") for name in names)
        return blocks.replace("/etc/postfix", str(self.folder))

    def write(self, name: str, text: str) -> None:
        """Write a file and make it old: for one of this very second Postfix's commands wait."""
        (self.folder / name).write_text(text)
        os.utime(self.folder / name, (0, 0))

    def append(self, line: str) -> None:
        """Add a line to main.cf."""
        self.write("main.cf", (self.folder / "main.cf").read_text() + line + "\n")

    def table(self, name: str, text: str) -> str:
        """Make a hash table; its name for main.cf."""
        self.write(name, text)
        table = f"hash:{self.folder}/{name}"
        subprocess.run(["postmap", "-c", str(self.folder), table], check=True)
        return table

    def found(self, config: Config | None = None, **options: tuple[str, ...]) -> list[str]:
        """What is found, as it is printed, without the folder of this machine."""
        side = ours(self.root, config, **options)
        found = findings(read(self.folder, side.domains), side)
        return [line.replace(f"{self.folder}/", "") for line in shown(found)]


@pytest.mark.parametrize(
    ("names", "config"),
    [
        (RELAY, None),
        (("filter", "relay", "bounces"), None),
        (("filter", "relay", "relay-unmanaged", "srs"), None),
        (MAILBOXES, None),
        (("filter", "mailboxes", "bounces"), None),
        ((*RELAY, "submission"), None),
        ((*MAILBOXES, "submission", "reinject"), REINJECT),
        (
            ("filter", "chroot", "relay", "srs"),
            {"milter": {"socket": "unix:/var/spool/postfix/alias-milter/milter.sock"}},
        ),
    ],
)
def test_a_documented_set_up_is_good(
    tmp_path: Path, names: tuple[str, ...], config: Config | None
) -> None:
    main: Main = {"queue_directory": "/var/spool/postfix"} if "chroot" in names else {}
    assert Configuration(tmp_path, *names, main=main).found(config) == []


def test_a_chrooted_smtpd_reaches_a_socket_in_the_queue_directory(tmp_path: Path) -> None:
    made = Configuration(
        tmp_path, "filter", "chroot", "relay", "srs",
        public="smtp inet n - y - - smtpd\n",
        main={"queue_directory": "/var/spool/postfix"},
    )  # fmt: skip
    socket = "unix:/var/spool/postfix/alias-milter/milter.sock"
    assert made.found({"milter": {"socket": socket}}) == []


SOCKET = "unix:/run/alias-milter/milter.sock"
SOCKETMAP = "socketmap:unix:/run/alias-milter/map.sock"
REFUSED = "are refused before alias-milter is asked"


@pytest.mark.parametrize(
    ("names", "main", "finding"),
    [
        # The milter.
        (RELAY, {"milter_default_action": "accept"}, "error: main.cf milter_default_action: acce"),
        (RELAY, {"milter_default_action": "quarantine"}, "error: main.cf milter_default_action: q"),
        (RELAY, {"milter_default_action": "reject"}, "error: main.cf milter_default_action: rej"),
        (RELAY, {"milter_protocol": "2"}, "error: main.cf milter_protocol: 2: too old"),
        (RELAY, {"milter_command_timeout": "1s"}, "error: main.cf milter_command_timeout: 1 s"),
        (RELAY, {"milter_content_timeout": "5s"}, "error: main.cf milter_content_timeout: 5 s"),
        (RELAY, {"smtpd_milters": None}, "error: main.cf smtpd_milters: smtp/inet does not ask"),
        (
            RELAY,
            {"smtpd_milters": "unix:/run/alias-milter/other.sock"},
            "error: main.cf smtpd_milters: unix:/run/alias-milter/other.sock is not where",
        ),
        (
            RELAY,
            {"smtpd_milters": f"{{ {SOCKET}, default_action=accept }}"},
            f"error: main.cf smtpd_milters {{ {SOCKET}, default_action= }}: accept",
        ),
        (
            RELAY,
            {"smtpd_milters": "$filters", "filters": f"{SOCKET}, inet:a:1"},
            "warning: main.cf smtpd_milters: inet:a:1 comes after alias-milter",
        ),
        (
            RELAY,
            {"smtpd_milters": "unix:openarc/s, unix:/run/alias-milter/milter.sock"},
            "warning: main.cf smtpd_milters: unix:openarc/s seals as well",
        ),
        (
            RELAY,
            {"smtpd_milters": "unix:postsrsd/milter, unix:/run/alias-milter/milter.sock"},
            "error: main.cf smtpd_milters: unix:postsrsd/milter: PostSRSd rewrites",
        ),
        (RELAY, {"receive_override_options": "no_milters"}, "error: main.cf receive_override_opt"),
        (RELAY, {"smtpd_proxy_filter": "127.0.0.1:9"}, "error: main.cf smtpd_proxy_filter"),
        (RELAY, {"smtpd_milter_maps": "cidr:/etc/x"}, "warning: main.cf smtpd_milter_maps"),
        (RELAY, {"milter_defualt_action": "tempfail"}, "unused parameter: milter_defualt_action"),
        # The bytes.
        (RELAY, {"smtp_line_length_limit": None}, "error: main.cf smtp_line_length_limit: 998"),
        (RELAY, {"smtp_generic_maps": "inline:{a=b}"}, "warning: main.cf smtp_generic_maps"),
        (RELAY, {"content_filter": "amavis:[::1]:1"}, "warning: main.cf content_filter: amavis"),
        # Relaying.
        (RELAY, {"mynetworks": "0.0.0.0/0"}, "mynetworks: 0.0.0.0/0 is the whole Internet, and"),
        (RELAY, {"mynetworks": "127.0.0.0/8 [::]/0"}, "mynetworks: ::/0 is the whole Internet"),
        (RELAY, {"mynetworks": "cidr:{{0.0.0.0/0 ok}}"}, "mynetworks: strangers' addresses are in"),
        (
            RELAY,
            {"mynetworks": "hash:/nonexistent/nets"},
            "warning: main.cf mynetworks: not checked",
        ),
        (RELAY, {"mynetworks": "8.0.0.0/9"}, "warning: main.cf mynetworks: 8.0.0.0/9 may relay"),
        (
            RELAY,
            {"smtpd_relay_restrictions": "permit_mynetworks, permit"},
            "error: main.cf smtpd_relay_restrictions: smtp/inet relays for everybody",
        ),
        (
            RELAY,
            {
                "smtpd_relay_restrictions": "mine",
                "smtpd_restriction_classes": "mine",
                "mine": "permit_mynetworks, warn_if_reject reject_unauth_destination",
            },
            "error: main.cf smtpd_relay_restrictions: smtp/inet relays for everybody",
        ),
        (
            RELAY,
            {"smtpd_relay_restrictions": "check_sender_access inline:{a=OK}, reject"},
            "warning: main.cf smtpd_relay_restrictions: check_sender_access comes before",
        ),
        # Recipients.
        (RELAY, {"relay_domains": "fwd.example.net"}, "relay_domains: example.com: managed in"),
        (RELAY, {"relay_domains": "example.com"}, "relay_domains: fwd.example.net: an SRS domain"),
        (RELAY, {"relay_recipient_maps": "inline:{bob@example.com=x}"}, REFUSED),
        (
            RELAY,
            {"smtpd_recipient_restrictions": "reject_unverified_recipient"},
            "asks the mailbox",
        ),
        (
            RELAY,
            {"relay_domains": "fwd.example.net", "virtual_alias_domains": "example.com"},
            "error: main.cf virtual_alias_domains: example.com: such a domain has no mailboxes",
        ),
        (
            RELAY,
            {"relay_domains": "example.com, fwd.example.net, other.example"},
            "warning: main.cf relay_domains: other.example: not managed in Redis",
        ),
        (
            MAILBOXES,
            {"smtpd_reject_unlisted_recipient": None},
            "error: main.cf smtpd_reject_unlisted_recipient: example.com: aliases",
        ),
        (
            MAILBOXES,
            {"smtpd_recipient_restrictions": "reject_unlisted_recipient"},
            "error: main.cf smtpd_recipient_restrictions: example.com: aliases",
        ),
        (
            MAILBOXES,
            {
                "smtpd_recipient_restrictions": "check_recipient_access "
                "inline:{{example.com=reject_unlisted_recipient}}"
            },
            "smtpd_recipient_restrictions check_recipient_access inline:{{example.com=rej",
        ),
        (
            MAILBOXES,
            {"smtpd_recipient_restrictions": None},
            "warning: main.cf virtual_mailbox_domains: other.example: not managed in Redis",
        ),
        (
            RELAY,
            {"mydestination": "example.com", "relay_domains": "fwd.example.net"},
            "smtpd_reject_unlisted_recipient: example.com: aliases that are not in local_recipient",
        ),
        (
            RELAY,
            {"smtpd_reject_unlisted_sender": "yes"},
            "warning: main.cf smtpd_reject_unlisted_s",
        ),
        (
            RELAY,
            {"relay_domains": "hash:/nonexistent/domains"},
            "example.com: not checked: hash:/n",
        ),
        # Return addresses.
        (
            RELAY,
            {"sender_canonical_maps": "tcp:localhost:10001"},
            "error: main.cf sender_canonical",
        ),
        (RELAY, {"sender_canonical_maps": "socketmap:unix:srs:forward"}, "main.cf sender_canonica"),
        (RELAY, {"recipient_canonical_maps": "socketmap:unix:srs:reverse"}, "is PostSRSd's"),
        (
            RELAY,
            {"recipient_canonical_maps": f"{SOCKETMAP}:srs-reverse"},
            f"error: main.cf recipient_canonical_maps: {SOCKETMAP}:srs-reverse is not where",
        ),
        (
            RELAY,
            {"sender_canonical_classes": "envelope_sender"},
            "warning: main.cf sender_canonical_",
        ),
        (
            RELAY,
            {"transport_maps": None},
            "error: main.cf transport_maps: fwd.example.net: bounces",
        ),
        (RELAY, {"transport_maps": "inline:{{fwd.example.net=smtp:[127.0.0.1]}}"}, "own port 25"),
        (
            RELAY,
            {"transport_maps": "inline:{{fwd.example.net=smtp:[127.0.0.1]:9}}"},
            "no smtpd lis",
        ),
        (
            RELAY,
            {"transport_maps": "inline:{{fwd.example.net=smtp:[mx2]:25}}"},
            "warning: main.cf t",
        ),
        (
            ("filter", "relay", "bounces"),
            {"non_smtpd_milters": None},
            "error: main.cf non_smtpd_milters: bounces are shown",
        ),
        (
            ("filter", "relay", "bounces"),
            {"internal_mail_filter_classes": None},
            "error: main.cf transport_maps: fwd.example.net: bounces of this host",
        ),
    ],
)
def test_a_dangerous_line_is_found_and_named(
    tmp_path: Path, names: tuple[str, ...], main: Main, finding: str
) -> None:
    found = Configuration(tmp_path, *names, main=main).found()
    assert any(finding in line for line in found), found
    # Beside what was broken nothing is: the same line may be found in several ways.
    assert len(found) <= 3, found


@pytest.mark.parametrize(
    ("names", "change", "finding"),
    [
        (
            (*RELAY, "submission"),
            {"-o syslog_name=postfix/submission": "-o smtpd_milters="},
            "error: master.cf submission/inet -o smtpd_milters: submission/inet does not ask",
        ),
        (
            (*RELAY, "submission"),
            {"-o syslog_name=postfix/submission": "-o { milter_default_action = accept }"},
            "error: master.cf submission/inet -o milter_default_action: accept",
        ),
        (
            (*RELAY, "submission"),
            {"permit_sasl_authenticated,reject": "permit_sasl_authenticated,permit"},
            "error: master.cf submission/inet -o smtpd_relay_restrictions: submission/inet relays",
        ),
        (
            RELAY,
            {"smtp inet n - n": "smtp inet n - y"},
            "error: master.cf smtp/inet chroot: this smtpd sees nothing but",
        ),
        (
            RELAY,
            {"- - smtp\nrelay": "- - smtp -o smtp_line_length_limit=900\nrelay"},
            "error: master.cf smtp/unix -o smtp_line_length_limit: 900",
        ),
        (
            RELAY,
            {"-o syslog_name=postfix/srs": "-o smtpd_milters="},
            "error: master.cf 127.0.0.1:10027/inet -o smtpd_milters: 127.0.0.1:10027/inet is where",
        ),
        (
            RELAY,
            {
                "smtp inet n - n - - smtpd\n": "",
                "127.0.0.1:10027 inet": "#127.0.0.1:10027 inet",
                "    -o": "#   -o",
            },
            "error: master.cf: no smtpd takes mail",
        ),
        (
            (*RELAY, "reinject"),
            {"    -o smtpd_milters=\n": ""},
            "error: main.cf smtpd_milters: 127.0.0.1:10026/inet takes alias-milter's copies",
        ),
        (
            (*RELAY, "reinject"),
            {"    -o mynetworks=127.0.0.0/8\n": "    -o mynetworks=192.0.2.0/24\n"},
            "error: master.cf 127.0.0.1:10026/inet: refuses alias-milter's copies",
        ),
        (
            (*RELAY, "reinject"),
            {
                "127.0.0.1:10026 inet": "10026 inet",
                "    -o smtpd_client_restrictions=permit_mynetworks,reject\n": "",
            },
            "error: master.cf 10026/inet: takes mail from everywhere, past alias-milter",
        ),
        (RELAY, {}, "error: master.cf: no smtpd listens on 127.0.0.1:10026"),
    ],
)
def test_a_dangerous_service_is_found_and_named(
    tmp_path: Path, names: tuple[str, ...], change: Mapping[str, str], finding: str
) -> None:
    found = Configuration(tmp_path, *names, master=change).found(REINJECT)
    missing = "error: master.cf: no smtpd listens on 127.0.0.1:10026"
    assert any(finding in line for line in found), found
    assert len([line for line in found if missing not in line or finding in missing]) <= 2, found


def test_postscreen_in_front_of_smtpd_is_understood(tmp_path: Path) -> None:
    public = "smtp inet n - n - 1 postscreen\nsmtpd pass - - n - - smtpd\n"
    assert Configuration(tmp_path, *RELAY, public=public).found() == []
    (tmp_path / "2").mkdir()
    made = Configuration(tmp_path / "2", *RELAY, public=public, main={"smtpd_milters": None})
    assert "error: main.cf smtpd_milters: smtpd/pass does not ask" in "\n".join(made.found())


@pytest.mark.parametrize(
    ("socket", "line"),
    [
        ("inet:8891@127.0.0.1", "inet:127.0.0.1:8891"),
        ("inet:8891@127.0.0.1", "{ inet:localhost:8891, connect_timeout=10s }"),
        ("inet6:8891@::1", "inet:[::1]:8891"),
        ("inet:8891@0.0.0.0", "inet:192.0.2.1:8891"),
    ],
)
def test_a_milter_over_tcp_is_recognised(tmp_path: Path, socket: str, line: str) -> None:
    made = Configuration(tmp_path, *RELAY, main={"smtpd_milters": line})
    assert made.found({"milter": {"socket": socket}}) == []


def test_lists_in_files_and_tables_are_read(tmp_path: Path) -> None:
    made = Configuration(tmp_path, *RELAY)
    table = made.table("relaydomains", "example.com x\n")
    (made.folder / "domains").write_text("# ours\nfwd.example.net\n")
    made.append(f"relay_domains = {table}, {made.folder}/domains")
    assert [line for line in made.found() if not line.startswith("warning: postconf")] == []
    found = made.found(managed=("example.com", "example.org"))
    assert "error: main.cf relay_domains: example.org: managed in Redis" in "\n".join(found)


def test_a_table_that_knows_every_address_refuses_no_alias(tmp_path: Path) -> None:
    made = Configuration(tmp_path, *RELAY)
    (made.folder / "all").write_text("/@example\\.com$/ x\n/@fwd\\.example\\.net$/ x\n")
    made.append(f"relay_recipient_maps = regexp:{made.folder}/all")
    assert errors(findings(read(made.folder), ours(tmp_path))) == []


def test_a_configuration_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"main\.cf: No such file"):
        read(tmp_path / "nowhere")
    made = Configuration(tmp_path, *RELAY)
    (made.folder / "master.cf").write_text("smtp inet n\n")
    with pytest.raises(ConfigError, match=r"master\.cf"):
        read(made.folder)


def test_the_command_finds_a_running_set_up_good_and_says_what_somebody_broke() -> None:
    with DocumentedLab("filter", "relay", "srs", "submission", "reinject", main=SASL) as lab:
        folder = lab.postfix.folder / "etc"
        done = lab.daemon.run("check", "--postfix", str(folder))
        assert (done.returncode, done.stderr) == (0, ""), done.stdout
        assert "0 errors, 0 warnings" in done.stdout
        lab.rules("HSET domain:second.example unknown reject")
        lab.postfix.run("postconf", "milter_default_action=accept")
        done = lab.daemon.run("check", "--postfix", str(folder))
        assert done.returncode == 1
        assert f"error: {folder}/main.cf milter_default_action: accept" in done.stdout
        assert f"error: {folder}/main.cf relay_domains: second.example: managed" in done.stdout
        done = lab.daemon.run("check", "--postfix", str(folder / "nowhere"))
        assert done.returncode == 2
        assert "nowhere/main.cf: No such file or directory" in done.stderr


def test_the_document_names_the_socket_of_the_tests() -> None:
    assert f"smtpd_milters = {DOCUMENTED['milter']['socket']}\n" in BLOCKS["main.cf filter"]
