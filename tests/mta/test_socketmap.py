"""docs/socketmap.md is true: its tables, asked by a real Postfix."""

from __future__ import annotations

import re
import shutil
import socketserver
import threading
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.harness.daemon import Config
from tests.harness.lab import Lab
from tests.harness.postfix import Postfix
from tests.harness.smtp import Outcome
from tests.harness.wait import LabError, wait_until
from tests.mta.postfix_document import lines_of

DOCUMENT = Path(__file__).parents[2] / "docs/socketmap.md"
BLOCKS: dict[str, str] = dict(
    re.findall(r"^```(\S+ \S+)\n(.*?)^```$", DOCUMENT.read_text(), re.DOTALL | re.MULTILINE)
)
ALICE = "alice@bank.example"
BOB = "bob@example.com"
RULES = (
    "HSET domain:example.com unknown reject",
    "HSET alias:example.com bob bob@example.com carol carol@example.com sales bob@example.com",
    "HSET alias:example.com out me@gmail.example off disabled drop discard",
    'HSET alias:example.com team "bob@example.com carol@example.com"',
)
NOT_LOCAL = {"mynetworks": "127.0.0.99/32"}


def test_every_block_is_run_by_a_test() -> None:
    text = Path(__file__).read_text()
    assert BLOCKS
    assert not [name for name in BLOCKS if f'"{name}"' not in text]


class MapLab(Lab):
    """A lab whose Postfix asks the tables of these blocks, and no others.

    Args:
        names: blocks of the document.
        main: further lines of main.cf.
        milter: whether Postfix has the milter at all.
    """

    def __init__(
        self, *names: str, main: dict[str, str | None] | None = None, milter: bool = True
    ) -> None:
        listen = tomllib.loads(BLOCKS["toml socketmap"])["socketmap"]["listen"]
        name = listen.rpartition("/")[2]
        config: Config = {"socketmap": {"listen": f"unix:{name}"}, "store": {"timeout": 0.5}}
        super().__init__(config, srs_domains=(), main=main)
        self.names = names
        self.milter = milter
        self.socket_name = name

    def make_postfix(self, reinject_port: int | None) -> Postfix:
        text = "".join(BLOCKS[name] for name in self.names)
        text = text.replace("/run/alias-milter", str(self.daemon.folder))
        main = {"relay_domains": "example.com, srs.example.net"} | lines_of(text)
        return Postfix(
            milters=[self.daemon.endpoint] if self.milter else [],
            next_hop=self.world.port,
            main=main | dict(self.main or {}),
        )

    def ask(self, table: str, key: str) -> str:
        """What `postmap -q` finds, "" for nothing. Raises LabError for a temporary error."""
        place = f"socketmap:unix:{self.daemon.folder}/{self.socket_name}:{table}"
        try:
            return self.postfix.run("postmap", "-q", key, place).strip()
        except LabError as error:
            if "temporary" in str(error) or "fatal" in str(error):
                raise
            return ""  # not found: exit status 1, and not a word


@contextmanager
def started(lab: MapLab) -> Iterator[MapLab]:
    with lab:
        lab.rules(*RULES)
        yield lab


def test_postmap_asks_every_table() -> None:
    with started(MapLab("main.cf relay-domains")) as lab:
        assert lab.ask("relay-domains", "example.com") == "example.com"
        assert lab.ask("relay-domains", "srs.example.net") == "srs.example.net"
        assert lab.ask("relay-domains", "gmail.example") == ""
        assert lab.ask("senders", "Team+x@example.com") == "bob@example.com,carol@example.com"
        assert lab.ask("aliases", "team@example.com") == "bob@example.com, carol@example.com"
        srs = lab.daemon.run("srs", "forward", ALICE).stdout.strip()
        assert lab.ask("srs-reverse", srs) == ALICE
        assert lab.ask("srs-reverse", srs.replace("alice", "mallory")) == ""
        lab.redis.stop()
        with pytest.raises(LabError):
            lab.ask("relay-domains", "example.com")
        with pytest.raises(LabError):
            lab.ask("relay-domains", "gmail.example")
        assert lab.ask("srs-reverse", srs) == ALICE


def test_a_new_domain_is_taken_with_no_reload_and_subdomains_are_not() -> None:
    with started(MapLab("main.cf relay-domains")) as lab:
        assert lab.send(ALICE, "x@sub.example.com").rcpt.code == 554
        assert lab.send(ALICE, "bob@brand-new.example").rcpt.code == 554
        lab.rules("HSET domain:fresh.example alias_of example.com")
        assert lab.send(ALICE, "sales@fresh.example").accepted
        lab.world.wait_for(BOB)


def test_redis_away_is_451_for_everybody_and_the_queue_waits() -> None:
    with started(MapLab("main.cf relay-domains")) as lab:
        assert lab.send(ALICE, BOB).accepted
        assert lab.send(ALICE, "me@gmail.example").rcpt.code == 554
        lab.settle()
        lab.redis.stop()
        for address in (BOB, "new@example.com", "you@gmail.example", "me@elsewhere.example"):
            assert lab.send(ALICE, address).rcpt.code == 451
        lab.redis.start()
        lab.rules(*RULES)
        assert lab.send(ALICE, BOB).accepted


def test_the_daemon_away_is_451_too_and_a_new_one_is_found() -> None:
    with started(MapLab("main.cf relay-domains", milter=False)) as lab:
        lab.daemon.kill()
        assert lab.send(ALICE, BOB).rcpt.code == 451
        lab.daemon.start()
        wait_until(lambda: lab.send(ALICE, BOB).accepted, "mail is taken again", timeout=60)


# ---- bounces


def test_a_bounce_of_this_host_reaches_the_sender_by_lookup_alone() -> None:
    with started(MapLab("main.cf srs-reverse")) as lab:
        lab.world.refuse("550 5.7.1 Not here", recipient="me@gmail.example")
        assert lab.send(ALICE, "out@example.com").accepted
        (bounce,) = lab.world.wait_for(ALICE)
        assert bounce.sender == ""
        assert b"550 5.7.1 Not here" in bounce.content
        # Who is written to in the header is none of its business.
        assert "SRS0=" in str(bounce.message["To"])
        lab.settle()
        assert len(lab.world.deliveries) == 1


def test_a_bounce_from_outside_is_turned_back_once_by_milter_and_table_together() -> None:
    with started(MapLab("main.cf srs-reverse")) as lab:
        assert lab.send(ALICE, "out@example.com").accepted
        (forwarded,) = lab.world.wait_for("me@gmail.example")
        assert lab.send("", forwarded.sender).accepted
        lab.world.wait_for(ALICE)
        lab.settle()
        assert len(lab.world.deliveries) == 2
        forged = forwarded.sender.replace("=alice@", "=mallory@")
        assert str(lab.send("", forged).rcpt).startswith("550 5.7.1")


def test_a_bounce_to_an_alias_is_expanded_when_aliases_are_looked_up_too() -> None:
    with started(MapLab("main.cf srs-reverse", "main.cf aliases")) as lab:
        lab.world.refuse("550 5.7.1 Not here", recipient="me@gmail.example")
        assert lab.send("sales@example.com", "out@example.com").accepted
        (bounce,) = lab.world.wait_for(BOB)
        assert bounce.sender == ""


def test_a_bounce_waits_while_nobody_can_turn_it_back() -> None:
    with started(MapLab("main.cf srs-reverse")) as lab:
        lab.world.refuse("450 4.2.0 Later", recipient="me@gmail.example", times=1)
        lab.world.refuse("550 5.7.1 Not here", recipient="me@gmail.example")
        assert lab.send(ALICE, "out@example.com").accepted
        lab.daemon.kill()
        wait_until(lambda: "bounce failed" in lab.postfix.log, "Postfix tries to bounce")
        lab.daemon.start()
        lab.world.wait_for(ALICE, timeout=30)


# ---- senders


class _Auth(socketserver.StreamRequestHandler):
    """The greeting of Dovecot's auth server: Postfix wants one before it takes a login."""

    def handle(self) -> None:
        self.wfile.write(
            b"VERSION\t1\t1\nMECH\tPLAIN\tplaintext\nSPID\t1\nCUID\t1\n"
            b"COOKIE\t00112233445566778899aabbccddeeff\nDONE\n"
        )
        self.rfile.read()


@pytest.fixture
def auth(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Auth) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"inet:127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture
def senders(auth: str) -> Iterator[MapLab]:
    """The restriction that the document gives to the submission listener."""
    option = re.compile(r"^    -o (smtpd_sender_restrictions=.*)$", re.MULTILINE)
    (line,) = option.findall(DOCUMENT.read_text())
    login: dict[str, str | None] = {
        "smtpd_sasl_auth_enable": "yes",
        "smtpd_sasl_type": "dovecot",
        "smtpd_sasl_path": auth,
        "smtpd_relay_restrictions": "permit_sasl_authenticated, reject_unauth_destination",
    }
    with started(MapLab("main.cf senders", main=login | lines_of(line))) as lab:
        yield lab


def as_bob(lab: Lab, sender: str) -> Outcome:
    who = {"ADDR": "192.0.2.10", "NAME": "client.example", "LOGIN": BOB}
    return lab.send(sender, "carol@example.com", xclient=who)


@pytest.mark.parametrize(
    ("sender", "code"),
    [
        (BOB, 250),
        ("sales@example.com", 250),
        ("Sales+shop@example.com", 250),
        ("team@example.com", 250),
        ("carol@example.com", 553),
        ("out@example.com", 553),
        ("off@example.com", 553),
        ("nobody@example.com", 553),
        (ALICE, 553),
    ],
)
def test_who_is_logged_in_sends_as_the_aliases_that_lead_to_them(
    senders: MapLab, sender: str, code: int
) -> None:
    assert as_bob(senders, sender).rcpt.code == code


def test_an_alias_made_a_moment_ago_may_be_sent_as_and_without_redis_it_is_451(
    senders: MapLab,
) -> None:
    senders.rules("HSET alias:example.com press bob@example.com")
    assert as_bob(senders, "press@example.com").accepted
    senders.redis.stop()
    assert as_bob(senders, "press@example.com").rcpt.code == 451


# ---- aliases


@pytest.mark.parametrize(
    ("address", "who"),
    [
        ("team@example.com", {"bob@example.com", "carol@example.com"}),
        ("Sales+x@example.com", {"bob+x@example.com"}),
        ("bob@example.com", {"bob@example.com"}),
        ("out@example.com", {"me@gmail.example"}),
    ],
)
def test_postfix_expands_aliases_itself(aliases: MapLab, address: str, who: set[str]) -> None:
    assert aliases.send(ALICE, address).accepted
    aliases.settle()
    assert {d.recipient for d in aliases.world.deliveries} == who
    assert len(aliases.world.deliveries) == len(who)


@pytest.mark.parametrize("local_part", ["nobody", "off", "drop"])
def test_postfix_refuses_who_leads_nowhere(aliases: MapLab, local_part: str) -> None:
    reply = aliases.send(ALICE, f"{local_part}@example.com").rcpt
    assert (reply.code, reply.text[:5]) == (550, "5.1.1")


@pytest.fixture
def aliases() -> Iterator[MapLab]:
    with started(MapLab("main.cf aliases", milter=False)) as lab:
        yield lab


def test_after_the_milter_the_tables_change_nothing() -> None:
    with started(MapLab("main.cf aliases")) as lab:
        assert lab.send(ALICE, "team@example.com", BOB).accepted
        lab.settle()
        assert sorted(d.recipient for d in lab.world.deliveries) == [BOB, "carol@example.com"]
        assert str(lab.send(ALICE, "off@example.com").rcpt).startswith("550 5.")


# ---- chroot


@pytest.mark.parametrize("way", ["main.cf chroot", "main.cf proxy"])
def test_a_chrooted_smtpd_can_ask(way: str) -> None:
    with ExitStack() as stack:
        lab = stack.enter_context(started(MapLab(way, milter=False)))
        lab.postfix.stop()
        lab.postfix.chroot = "y"
        lab.postfix.write_configuration()
        if way == "main.cf chroot":
            listen = tomllib.loads(BLOCKS["toml chroot"])["socketmap"]["listen"]
            folder = lab.postfix.folder / "spool/alias-milter"
            folder.mkdir(mode=0o750)
            shutil.chown(folder, group="postfix")
            place = listen.replace("/var/spool/postfix", f"{lab.postfix.folder}/spool")
            lab.daemon.kill()
            lab.daemon.write_config({"socketmap": {"listen": place}})
            lab.daemon.start()
        lab.postfix.start()
        assert lab.send(ALICE, BOB).accepted
        assert lab.send(ALICE, "me@gmail.example").rcpt.code == 554
        assert "map.sock" not in checked(lab)


def checked(lab: MapLab) -> str:
    """What `alias-milter check` says of this Postfix."""
    return lab.daemon.run("check", "--postfix", str(lab.postfix.folder / "etc")).stdout


def test_an_absolute_path_is_out_of_reach_in_the_chroot() -> None:
    with started(MapLab("main.cf relay-domains", milter=False)) as lab:
        lab.postfix.stop()
        lab.postfix.chroot = "y"
        lab.postfix.write_configuration()
        lab.postfix.start()
        outcome = lab.send(ALICE, BOB)
        assert 451 in (outcome.mail.code, *(reply.code for reply in outcome.rcpts))
        assert "main.cf relay_domains: socketmap:unix:" in checked(lab)
