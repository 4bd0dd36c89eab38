"""docs/postfix.md is true: its blocks are run as they stand, and what it says of them holds."""

from __future__ import annotations

import shutil
import smtplib
import ssl
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.daemon import Daemon
from tests.harness.lab import Lab
from tests.harness.postfix import Postfix
from tests.harness.redis import RedisServer
from tests.harness.smtp import Client, message, send
from tests.harness.wait import wait_until
from tests.harness.world import World
from tests.mta.postfix_document import ALICE, BLOCKS, MODE, RULES, DocumentedLab, lines_of

UNKNOWN = (550, "5.1.1 No such address here")


@pytest.fixture(scope="module")
def shared_relay() -> Iterator[DocumentedLab]:
    with DocumentedLab("filter", "relay", "srs") as lab:
        yield lab


@pytest.fixture
def relay(shared_relay: DocumentedLab) -> DocumentedLab:
    shared_relay.reset()
    shared_relay.rules(*RULES)
    return shared_relay


@pytest.fixture(scope="module")
def shared_mailboxes() -> Iterator[DocumentedLab]:
    with DocumentedLab("filter", "mailboxes", "srs") as lab:
        yield lab


@pytest.fixture
def mailboxes(shared_mailboxes: DocumentedLab) -> DocumentedLab:
    shared_mailboxes.reset()
    shared_mailboxes.rules(*RULES)
    return shared_mailboxes


def test_every_block_is_run_by_a_test() -> None:
    text = Path(__file__).read_text()
    assert BLOCKS
    assert not [name for name in BLOCKS if f'"{name.split()[1]}"' not in text]


@pytest.mark.parametrize("name", ["relay", "mailboxes"])
def test_alias_milter_decides(name: str, request: pytest.FixtureRequest) -> None:
    lab: DocumentedLab = request.getfixturevalue(name)
    taken, subaddress, unknown, foreign = lab.rcpt(
        "sales@example.com", "sales+shop@example.com", "nobody@example.com", "me@gmail.example"
    )
    assert (taken.code, subaddress.code, unknown) == (250, 250, UNKNOWN)
    assert (foreign.code, "Relay access denied" in foreign.text) == (554, True)
    lab.settle()
    assert {found.recipient for found in lab.world.deliveries} == {
        "bob@example.com",
        "bob+shop@example.com",
    }


@pytest.mark.parametrize("name", ["relay", "mailboxes"])
def test_bounce_of_this_host_reaches_the_sender(name: str, request: pytest.FixtureRequest) -> None:
    lab: DocumentedLab = request.getfixturevalue(name)
    lab.world.refuse("550 5.7.1 Not here", recipient="me@gmail.example")
    lab.send(ALICE, "fwd@example.com")
    (bounce,) = lab.world.wait_for(ALICE)
    assert bounce.sender == ""
    assert b"@fwd.example.net" in bounce.content
    lab.settle()
    assert len(lab.world.deliveries) == 1


def test_bounce_from_elsewhere_reaches_the_sender(relay: DocumentedLab) -> None:
    relay.send(ALICE, "fwd@example.com")
    (forwarded,) = relay.world.wait_for("me@gmail.example")
    assert relay.send("", forwarded.sender).accepted
    relay.world.wait_for(ALICE)


def test_srs_listener_relays_for_nobody(relay: DocumentedLab) -> None:
    outcome = send(relay.srs_port, ALICE, ["me@gmail.example"])
    assert outcome.rcpt.code == 554


def test_relay_recipient_maps_would_refuse_aliases() -> None:
    listed = {"relay_recipient_maps": "inline:{ bob@example.com=x }"}
    with DocumentedLab("filter", "relay", main=listed) as lab:
        (reply,) = lab.rcpt("sales@example.com")
        assert reply.code == 550
        assert "User unknown in relay recipient table" in reply.text


def test_unmanaged_relay_domain_keeps_its_recipient_check() -> None:
    with DocumentedLab("filter", "relay", "relay-unmanaged") as lab:
        recipients = ["carol@other.example", "nobody@other.example", "sales@example.com"]
        carol, nobody, sales = lab.rcpt(*recipients)
        assert (carol.code, nobody.code, sales.code) == (250, 550, 250)
        assert "User unknown in relay recipient table" in nobody.text


def test_unmanaged_mailbox_domain_keeps_its_recipient_check(mailboxes: DocumentedLab) -> None:
    carol, nobody = mailboxes.rcpt("carol@other.example", "nobody@other.example")
    assert (carol.code, nobody.code) == (250, 550)
    assert "User unknown in virtual mailbox table" in nobody.text


def test_mailbox_domains_without_the_unlisted_line_refuse_aliases() -> None:
    default = {"smtpd_reject_unlisted_recipient": None}
    with DocumentedLab("filter", "mailboxes", main=default) as lab:
        (reply,) = lab.rcpt("sales@example.com")
        assert reply.code == 550
        assert "User unknown in virtual mailbox table" in reply.text


def test_virtual_alias_domains_bounce_what_the_milter_puts_in() -> None:
    wrong = {"virtual_mailbox_domains": None, "virtual_alias_domains": "example.com"}
    with DocumentedLab("filter", "mailboxes", main=wrong) as lab:
        assert lab.send(ALICE, "sales@example.com").accepted
        (bounce,) = lab.world.wait_for(ALICE)
        assert b"User unknown in virtual alias table" in bounce.content


def test_mydestination_works_the_same_way() -> None:
    with World() as mailboxes:
        local = {
            "virtual_mailbox_domains": None,
            "mydestination": "example.com",
            "local_recipient_maps": "inline:{ bob@example.com=x }",
            "local_transport": f"smtp:[127.0.0.1]:{mailboxes.port}",
        }
        with DocumentedLab("filter", "mailboxes", main=local) as lab:
            sales, nobody = lab.rcpt("sales@example.com", "nobody@example.com")
            assert (sales.code, nobody) == (250, UNKNOWN)
            mailboxes.wait_for("bob@example.com")


def test_virtual_alias_maps_apply_to_what_the_milter_puts_in() -> None:
    maps = {"virtual_alias_maps": "inline:{ bob@example.com=robert@example.com }"}
    with DocumentedLab("filter", "mailboxes", main=maps) as lab:
        lab.send(ALICE, "sales@example.com")
        lab.world.wait_for("robert@example.com")


# Dovecot's place is taken by a SASL library that needs no server; who logs in is said by XCLIENT.
SASL = {"smtpd_sasl_type": "cyrus", "smtpd_sasl_path": "smtpd"}


@pytest.fixture(scope="module")
def shared_submission() -> Iterator[DocumentedLab]:
    with DocumentedLab("filter", "relay", "submission", main=SASL) as lab:
        yield lab


@pytest.fixture
def submission(shared_submission: DocumentedLab) -> DocumentedLab:
    shared_submission.reset()
    shared_submission.rules(*RULES)
    return shared_submission


def logged_in(lab: DocumentedLab, login: str = "bob") -> smtplib.SMTP:
    """A client on the submission port, with TLS and, unless it is "", a login."""
    client = smtplib.SMTP("127.0.0.1", lab.submission_port, timeout=40)
    client.ehlo("telephone.example")
    client.starttls(context=ssl._create_unverified_context())
    client.ehlo("telephone.example")
    if login:
        code, _ = client.docmd("XCLIENT", f"ADDR=192.0.2.77 LOGIN={login}")
        assert code == 220
        client.ehlo("telephone.example")
    return client


def test_own_users_reach_aliases_and_the_world_by_the_submission_port(
    submission: DocumentedLab,
) -> None:
    people = ["sales@example.com", "friend@far.example"]
    with logged_in(submission) as client:
        assert client.sendmail("bob@example.com", people, "Subject: x\r\n\r\nHello\r\n") == {}
    submission.world.wait_for_total(2)
    assert {(found.sender, found.recipient) for found in submission.world.deliveries} == {
        ("bob@example.com", "bob@example.com"),
        ("bob@example.com", "friend@far.example"),
    }


def test_own_users_learn_of_a_mistyped_address_at_once(submission: DocumentedLab) -> None:
    with logged_in(submission) as client:
        client.mail("bob@example.com")
        code, text = client.rcpt("nobody@example.com")
        assert (code, text.decode()) == UNKNOWN


def test_submission_takes_nothing_without_tls_and_login(submission: DocumentedLab) -> None:
    with Client(submission.submission_port, xclient={}) as client:
        assert client.command(f"MAIL FROM:<{ALICE}>").code == 530
        assert "AUTH" not in client.ehlo.text
    with logged_in(submission, login="") as client:
        assert client.has_extn("auth")
        client.mail(ALICE)
        assert client.rcpt("sales@example.com")[0] == 554


def test_own_users_are_told_to_wait_while_the_milter_is_away() -> None:
    with DocumentedLab("filter", "relay", "submission", main=SASL) as lab:
        lab.daemon.kill()
        with Client(lab.submission_port, xclient={}) as client:
            answer = client.command("STARTTLS")
            # The 451 of the milter, as Postfix says it before TLS.
            assert (answer.code, answer.text[:5]) == (454, "4.3.0")
        assert lab.postfix.queue() == []


def test_copies_go_through_the_listener_without_the_milter() -> None:
    with DocumentedLab("filter", "relay", "reinject") as lab:
        assert lab.send(ALICE, "sales@example.com", "fwd@example.com").accepted
        lab.world.wait_for_total(2)
        senders = {found.recipient: found.sender for found in lab.world.deliveries}
        assert senders["bob@example.com"] == ALICE
        assert senders["me@gmail.example"].startswith("SRS0=")
        stranger = send(lab.copies_port, ALICE, ["me@gmail.example"])
        assert not stranger.accepted


def test_the_listener_for_copies_is_the_one_of_the_configuration() -> None:
    server = tomllib.loads(BLOCKS["toml reinject"])["reinject"]["server"]
    assert BLOCKS["master.cf reinject"].startswith(f"{server} inet ")


def test_long_lines_stay_whole(relay: DocumentedLab) -> None:
    body = b"x" * 3000 + b"\r\n"
    relay.send(ALICE, "sales@example.com", content=message(body=body))
    (delivery,) = relay.world.wait_for("bob@example.com")
    assert delivery.content.endswith(b"\r\n\r\n" + body)


def test_long_lines_break_with_the_default_limit() -> None:
    body = b"x" * 3000 + b"\r\n"
    with DocumentedLab("filter", "relay", main={"smtp_line_length_limit": None}) as lab:
        lab.send(ALICE, "sales@example.com", content=message(body=body))
        (delivery,) = lab.world.wait_for("bob@example.com")
        assert max(map(len, delivery.content.splitlines())) <= 998


def test_milter_away_is_temporary_and_queues_nothing() -> None:
    with DocumentedLab("filter", "relay", "srs") as lab:
        lab.world.refuse("450 4.2.0 Later", recipient="bob@example.com", times=1)
        assert lab.send(ALICE, "sales@example.com").accepted
        assert lab.daemon.stop() == 0
        refused = lab.send(ALICE, "sales@example.com")
        assert (refused.mail.code, refused.mail.text[:5]) == (451, "4.7.1")
        # What is queued already needs no milter.
        lab.world.wait_for("bob@example.com")
        lab.settle()
        lab.daemon.start()
        assert lab.send(ALICE, "sales@example.com").accepted


def test_milter_killed_within_a_message_is_temporary() -> None:
    with DocumentedLab("filter", "relay") as lab:
        with Client(lab.postfix.port) as client:
            assert client.command(f"MAIL FROM:<{ALICE}>").ok
            assert client.command("RCPT TO:<sales@example.com>").ok
            lab.daemon.kill()
            assert client.data(message()).code == 451
        lab.settle()
        assert lab.world.deliveries == []


def test_accept_as_default_action_would_let_everything_in() -> None:
    with DocumentedLab("filter", "relay", main={"milter_default_action": "accept"}) as lab:
        lab.daemon.kill()
        assert lab.send(ALICE, "nobody@example.com").accepted


def test_redis_away_is_temporary_for_managed_domains() -> None:
    with DocumentedLab("filter", "relay") as lab:
        lab.redis.kill()
        (reply,) = lab.rcpt("sales@example.com")
        assert (reply.code, reply.text[:5]) == (451, "4.3.0")


def test_bounce_waits_in_the_queue_while_the_milter_is_away() -> None:
    with DocumentedLab("filter", "relay", "srs") as lab:
        lab.world.refuse("450 4.2.0 Later", recipient="me@gmail.example", times=1)
        lab.world.refuse("550 5.7.1 Not here", recipient="me@gmail.example")
        lab.send(ALICE, "fwd@example.com")
        lab.daemon.kill()
        wait_until(lambda: bounces_deferred(lab), "the bounce is deferred")
        lab.daemon.start()
        lab.world.wait_for(ALICE)


def bounces_deferred(lab: Lab) -> bool:
    return [(found.queue, found.sender) for found in lab.postfix.queue()] == [
        ("deferred", "MAILER-DAEMON")
    ]


def test_postfix_shows_its_bounces_to_the_milter() -> None:
    with DocumentedLab("filter", "relay", "bounces") as lab:
        lab.world.refuse("550 5.7.1 Not here", recipient="me@gmail.example")
        lab.send(ALICE, "fwd@example.com")
        (bounce,) = lab.world.wait_for(ALICE)
        assert bounce.sender == ""
        lab.settle()
        assert len(lab.world.deliveries) == 1


def test_mail_handed_in_here_passes_the_milter_and_is_never_refused() -> None:
    with DocumentedLab("filter", "relay", "bounces") as lab:
        people = ["sales@example.com", "nobody@example.com", "off@example.com"]
        lab.postfix.run("sendmail", "-i", "-f", "root@example.com", *people, stdin="Subject: x\n\n")
        lab.world.wait_for_total(3)
        assert {found.recipient for found in lab.world.deliveries} == {
            "bob@example.com",
            "nobody@example.com",
            "off@example.com",
        }
        assert "handed in on this host" in lab.daemon.log
        lab.daemon.kill()
        lab.postfix.run("sendmail", "-i", "-f", "root@example.com", people[0], stdin="\n")
        wait_until(lambda: "milter-reject: CONNECT" in lab.postfix.log, "Postfix asks in vain")
        assert [found.queue for found in lab.postfix.queue()] == ["maildrop"]
        lab.daemon.start()
        lab.world.wait_for("bob@example.com", count=2)


def test_bounce_is_made_later_when_the_milter_is_away() -> None:
    with DocumentedLab("filter", "relay", "bounces") as lab:
        lab.world.refuse("450 4.2.0 Later", recipient="me@gmail.example", times=1)
        lab.world.refuse("550 5.7.1 Not here", recipient="me@gmail.example")
        lab.send(ALICE, "fwd@example.com")
        lab.daemon.kill()
        wait_until(lambda: "bounce failed" in lab.postfix.log, "the bounce fails")
        assert len(lab.postfix.queue()) == 1
        lab.daemon.start()
        lab.world.wait_for(ALICE)


@pytest.mark.parametrize("option", ["-H", "-r"])
def test_release_from_hold(option: str) -> None:
    with DocumentedLab("filter", "relay", config={"quarantine": {"action": "hold"}}) as lab:
        lab.rules("HSET alias:example.com * quarantine")
        queue_id = lab.send(ALICE, "anything@example.com").queue_id
        assert f"{queue_id}!" in lab.postfix.run("postqueue", "-p")
        assert "Subject: Hello" in lab.postfix.run("postcat", "-q", queue_id)
        assert queue_id in lab.daemon.log
        seen = lab.daemon.log
        lab.postfix.postsuper(option, queue_id)
        (delivery,) = lab.world.wait_for_total(1)
        assert lab.daemon.log == seen
        assert len(delivery.message.get_all("Received", [])) == (1 if option == "-H" else 2)


@pytest.mark.parametrize("chroot", [True, False])
def test_socket_in_the_queue_directory_serves_in_and_out_of_the_chroot(chroot: bool) -> None:
    settings = tomllib.loads(BLOCKS["toml chroot"])["milter"]
    with (
        World() as world,
        RedisServer() as redis,
        Postfix(
            next_hop=world.port,
            chroot=chroot,
            main=lines_of(BLOCKS["main.cf filter"] + BLOCKS["main.cf chroot"]),
        ) as postfix,
    ):
        folder = postfix.folder / "spool/alias-milter"
        folder.mkdir(mode=0o750)
        shutil.chown(folder, group="postfix")
        socket = settings["socket"].replace("/var/spool/postfix", f"{postfix.folder}/spool")
        with Daemon(redis.url, {"milter": MODE | settings | {"socket": socket}}):
            redis.cli(stdin="\n".join([*RULES, ""]))
            assert send(postfix.port, ALICE, ["sales@example.com"]).accepted
            world.wait_for("bob@example.com")


@pytest.mark.parametrize("wrong", ["mode", "folder", "chroot", "path"])
def test_socket_out_of_reach_is_a_temporary_failure_with_the_reason(wrong: str) -> None:
    main = {"smtpd_milters": "unix:/nonexistent/milter.sock"} if wrong == "path" else {}
    with DocumentedLab("filter", "relay", main=main) as lab:
        if wrong == "mode":
            (lab.daemon.folder / "milter.sock").chmod(0o600)
        if wrong == "folder":
            lab.daemon.folder.chmod(0o700)
        if wrong == "chroot":
            lab.postfix.stop()
            lab.postfix.chroot = "y"
            lab.postfix.write_configuration()
            lab.postfix.start()
        assert lab.send(ALICE, "sales@example.com").mail.code == 451
        assert "warning: connect to Milter service unix:" in lab.postfix.log


MIXED = ["sales@example.com", "fwd@example.com"]


def test_recipients_of_both_kinds_are_served_in_one_transaction() -> None:
    with DocumentedLab("filter", "relay", "srs", "reinject") as lab:
        content = message(to="undisclosed", headers={"X-Fold": "a\r\n\tb"})
        lab.world.refuse("550 5.7.1 Not here", recipient="me@gmail.example", times=1)
        assert lab.send(ALICE, *MIXED, content=content).accepted
        (bounce,) = lab.world.wait_for(ALICE)
        assert bounce.sender == ""
        assert lab.send(ALICE, *MIXED, content=content + b"again\r\n").accepted
        (forwarded,) = lab.world.wait_for("me@gmail.example")
        assert forwarded.sender.startswith("SRS0=")
        assert b"\r\nTo: undisclosed\r\n" in forwarded.content
        assert {d.sender for d in lab.world.wait_for("bob@example.com", count=2)} == {ALICE}


def test_copies_come_in_whatever_the_public_port_asks_of_its_clients() -> None:
    strict = {
        "smtpd_client_restrictions": "reject_unauthenticated_sender_login_mismatch",
        "smtpd_helo_restrictions": "check_helo_access inline:{ mx.example.net=REJECT }",
        "smtpd_sender_restrictions": "check_sender_access inline:{ fwd.example.net=REJECT }",
        "smtpd_recipient_restrictions": "check_recipient_access inline:{ gmail.example=REJECT }",
        "smtpd_data_restrictions": "check_sender_access inline:{ fwd.example.net=REJECT }",
        "smtpd_end_of_data_restrictions": "check_sender_access inline:{ fwd.example.net=REJECT }",
        "header_checks": "regexp:{{/^X-Alias-Milter-Trace:/ REJECT}}",
        "local_header_rewrite_clients": "permit_mynetworks",
    }
    with DocumentedLab("filter", "relay", "reinject", main=strict) as lab:
        assert lab.send(ALICE, *MIXED).accepted
        lab.world.wait_for("me@gmail.example")


def test_reinject_listener_is_for_this_host_alone() -> None:
    with DocumentedLab("filter", "relay", "reinject") as lab:
        outcome = send(lab.copies_port, ALICE, ["me@gmail.example"], xclient={"ADDR": "192.0.2.10"})
        assert (outcome.rcpt.code, "Client host rejected" in outcome.rcpt.text) == (554, True)
