"""docs/sendmail.md as it stands, on a real Sendmail; and what happens without each of its lines.

The milter is a stand-in with fixed rules (tests/harness/standin.py): this is about Sendmail.
"""

from __future__ import annotations

import re
from contextlib import ExitStack

import pytest

from tests.harness.ports import accepts, reserved_port
from tests.harness.sendmail import CLIENT, Sendmail
from tests.harness.sendmail_document import blocks, without
from tests.harness.smtp import Client, message, send
from tests.harness.standin import SRS_DOMAIN, StandIn
from tests.harness.wait import wait_until
from tests.harness.world import World
from tests.mta.conftest import MakeSendmail

ALICE = "alice@bank.example"
ALICE_SRS = f"SRS0=x=y=bank.example=alice@{SRS_DOMAIN}"
FORWARDED = "me@gmail.example"
AWAY = (451, "4.3.2 Please try again later")

# ---- the document


@pytest.mark.parametrize(
    ("delivery", "names"),
    [
        ("relay", {"relay-domains": "relay-domains", "mailertable": "mailertable"}),
        ("local", {"relay-domains": "relay-domains-local", "local-host-names": "local-host-names"}),
    ],
)
def test_the_domain_files_of_the_lab_are_those_of_the_document(
    delivery: str, names: dict[str, str]
) -> None:
    lab = Sendmail(
        next_hop=25,
        relay_domains=["example.com"],
        srs_domains=[SRS_DOMAIN],
        delivery="local" if delivery == "local" else "relay",
    )
    for file, block in names.items():
        assert lab.domain_files()[file] == blocks()[block]


def test_the_document_reaches_sendmail_unchanged_but_for_ports_and_folders(
    make: MakeSendmail,
) -> None:
    with reserved_port() as submission:
        server = make(submission_port=submission)
    text = server.mc_text()
    for name in ("filter", "listeners", "srs", "relay", "bytes", "submission"):
        for line in blocks()[name].splitlines():
            assert pattern_of(line).search(text), line


def pattern_of(line: str) -> re.Pattern[str]:
    """The line of the document, with anything in the place of ports and folders."""
    text = re.escape(line)
    text = re.sub(r"(Port=|TCP\\ \\\$h\\ )\d+", r"\1\\d+(, Addr=127\\.0\\.0\\.1)?", text)
    text = re.sub(r"/(etc/mail|run/alias\\-milter)/", r"/[^ ]+/", text)
    return re.compile(f"^{text}$", re.MULTILINE)


# ---- what a milter can do


def test_the_milter_refuses_an_unknown_recipient(sendmail: Sendmail) -> None:
    outcome = send(sendmail.port, ALICE, ["bob@example.com", "unknown@example.com"])
    good, bad = outcome.rcpts
    assert good.code == 250
    assert (bad.code, bad.text) == (550, "5.1.1 <unknown@example.com>... No such user here")


def test_a_recipient_is_replaced_and_keeps_the_dsn_parameters(
    sendmail: Sendmail, world: World
) -> None:
    options = ["NOTIFY=FAILURE,DELAY", "ORCPT=rfc822;alias@example.com"]
    assert send(sendmail.port, ALICE, ["alias@example.com"], rcpt_options=options).accepted
    (delivery,) = world.wait_for("bob@example.com")
    assert sorted(delivery.rcpt_options) == sorted(options)
    sendmail.wait_until_empty()
    assert len(world.deliveries) == 1


def test_a_forward_gets_its_new_sender_and_headers_on_top_the_last_first(
    sendmail: Sendmail, world: World
) -> None:
    assert send(sendmail.port, ALICE, ["forward@example.com"]).accepted
    (delivery,) = world.wait_for(FORWARDED)
    assert delivery.sender == ALICE_SRS
    assert delivery.content.startswith(b"X-Second: two\r\nX-First: one\r\nReceived: ")


def test_sendmail_offers_dsn_and_8bitmime_but_no_smtputf8(sendmail: Sendmail) -> None:
    with Client(sendmail.port) as client:
        words = client.ehlo.text.split()
    assert {"DSN", "8BITMIME"} <= set(words)
    assert "SMTPUTF8" not in words


def test_the_client_is_the_one_that_the_test_pretends(sendmail: Sendmail, standin: StandIn) -> None:
    send(sendmail.port, ALICE, ["bob@example.com"])
    name, address = CLIENT
    host, seen = standin.calls("connect")[-1]
    assert isinstance(seen, list)
    assert (host, seen[0]) == (name, address)


def test_the_macros_the_milter_asks_for_are_what_it_gets(
    sendmail: Sendmail, standin: StandIn
) -> None:
    outcome = send(sendmail.port, ALICE, ["bob@example.com"])
    _, _, macros = standin.calls("envfrom")[-1]
    assert isinstance(macros, dict)
    assert outcome.data is not None
    assert macros["i"] in outcome.data.text
    assert (macros["{daemon_name}"], macros["{client_addr}"]) == ("MTA", CLIENT[1])


# ---- quarantine


def test_a_quarantined_message_waits_until_it_is_released_and_passes_no_milter_again(
    sendmail: Sendmail, world: World, standin: StandIn
) -> None:
    assert send(sendmail.port, ALICE, ["hold@example.com"]).accepted
    sendmail.flush()
    (held,) = sendmail.queue()
    assert (held.queue, held.recipients) == ("hold", ("hold@example.com",))
    assert "QUARANTINE: catch-all" in sendmail.run("mailq", "-qQ")
    assert not world.deliveries
    standin.clear()
    sendmail.release(held.id)
    world.wait_for("hold@example.com")
    sendmail.wait_until_empty()
    assert standin.calls("envrcpt") == []


# ---- the listeners


def test_the_reinject_listener_has_no_milter(
    sendmail: Sendmail, world: World, standin: StandIn
) -> None:
    assert send(sendmail.reinject_port or 0, ALICE_SRS, ["unknown@example.com"]).accepted
    (delivery,) = world.wait_for("unknown@example.com")
    assert delivery.sender == ALICE_SRS
    assert b"X-First" not in delivery.content
    assert standin.calls("envrcpt") == []


def test_without_the_empty_filter_list_the_reinject_listener_has_the_milter(
    make: MakeSendmail,
) -> None:
    server = make(replace={", InputMailFilters=": ""})
    (reply,) = send(server.reinject_port or 0, ALICE, ["unknown@example.com"]).rcpts
    assert reply.code == 550


def test_dsn_and_8bitmime_survive_the_reinject_listener(sendmail: Sendmail, world: World) -> None:
    send(
        sendmail.reinject_port or 0,
        ALICE_SRS,
        [FORWARDED],
        message(body="\u00fc\r\n"),
        mail_options=["BODY=8BITMIME", "RET=HDRS", "ENVID=e1"],
        rcpt_options=["NOTIFY=FAILURE", "ORCPT=rfc822;sales@example.com"],
    )
    (delivery,) = world.wait_for(FORWARDED)
    assert set(delivery.mail_options) == {"BODY=8BITMIME", "RET=HDRS", "ENVID=e1"}
    assert set(delivery.rcpt_options) == {"NOTIFY=FAILURE", "ORCPT=rfc822;sales@example.com"}


def test_a_limit_of_the_public_port_leaves_the_reinject_listener_open(make: MakeSendmail) -> None:
    server = make(replace={"Name=MTA,": "Name=MTA, children=3,"})
    with full(server):
        assert send(server.reinject_port or 0, ALICE, ["bob@example.com"]).accepted


def test_a_limit_of_all_processes_closes_the_reinject_listener_too(make: MakeSendmail) -> None:
    server = make(mc="define(`confMAX_DAEMON_CHILDREN', `6')dnl\n")
    with full(server):
        wait_until(lambda: not accepts(server.reinject_port or 0), "port 10026 is closed")


def full(server: Sendmail) -> ExitStack:
    """Connect until the main listener takes no more."""
    with ExitStack() as clients:

        def refused() -> bool:
            try:
                clients.callback(Client(server.port, timeout=5).close)
            except OSError:
                return True
            return False

        wait_until(refused, "Sendmail has enough clients")
        return clients.pop_all()


def test_submission_wants_a_login(make: MakeSendmail) -> None:
    with reserved_port() as port:
        make(submission_port=port)
        assert send(port, "bob@example.com", [FORWARDED]).mail.code == 530


# ---- bounces of Sendmail itself


def test_a_refused_forward_comes_back_to_the_original_sender(
    sendmail: Sendmail, world: World, standin: StandIn
) -> None:
    world.refuse("550 5.7.1 Not wanted", recipient=FORWARDED)
    assert send(sendmail.port, ALICE, ["forward@example.com"]).accepted
    (bounce,) = world.wait_for(ALICE)
    assert bounce.sender == ""
    assert b"5.7.1 Not wanted" in bounce.content
    assert [f"<{ALICE_SRS}>", []] in standin.calls("envrcpt")
    sendmail.wait_until_empty()


def test_a_bounce_waits_while_the_milter_is_away(
    sendmail: Sendmail, world: World, standin: StandIn
) -> None:
    world.refuse("550 5.7.1 Not wanted", recipient=FORWARDED)
    standin.stop()
    assert send(sendmail.reinject_port or 0, ALICE_SRS, [FORWARDED]).accepted
    wait_until(
        lambda: any("451 4.3.2" in delay for one in sendmail.queue() for delay in one.delays),
        "the bounce is deferred",
    )
    standin.start()
    world.wait_for(ALICE)


def test_without_the_loop_a_bounce_never_finds_the_sender(make: MakeSendmail, world: World) -> None:
    rules = [line for line in blocks()["srs"].splitlines() if line.startswith("R$")]
    server = make(replace=dict.fromkeys(rules, ""))
    world.refuse("550 5.7.1 Not wanted", recipient=FORWARDED)
    send(server.port, ALICE, ["forward@example.com"])
    (bounce,) = world.wait_for(ALICE_SRS)
    assert bounce.sender == ""


def test_without_flag_k_sendmail_takes_its_own_greeting_for_a_mail_loop(
    make: MakeSendmail, world: World, standin: StandIn
) -> None:
    server = make(replace={"F=mDFMuXa8k": "F=mDFMuXa8"})
    world.refuse("550 5.7.1 Not wanted", recipient=FORWARDED)
    send(server.reinject_port or 0, ALICE_SRS, [FORWARDED])
    wait_until(lambda: "mail loops back to me" in server.log, "Sendmail says why")
    assert standin.calls("envrcpt") == []


def test_without_flag_u_the_return_address_loses_its_case(
    make: MakeSendmail, world: World, standin: StandIn
) -> None:
    server = make(replace={"F=mDFMuXa8k": "F=mDFMXa8k"})
    world.refuse("550 5.7.1 Not wanted", recipient=FORWARDED)
    send(server.reinject_port or 0, ALICE_SRS, [FORWARDED])
    (recipient, _) = wait_until(lambda: standin.calls("envrcpt"), "the bounce comes back")[0]
    assert recipient == f"<{ALICE_SRS.lower()}>"


# ---- the milter is away


def test_all_mail_waits_at_the_sender_while_the_milter_is_away(
    sendmail: Sendmail, standin: StandIn
) -> None:
    standin.stop()
    outcome = send(sendmail.port, ALICE, ["bob@example.com"])
    assert outcome.mail == AWAY
    standin.start()
    assert send(sendmail.port, ALICE, ["bob@example.com"]).accepted


def test_a_milter_that_dies_at_the_end_of_the_message_leaves_nothing_in_the_queue(
    sendmail: Sendmail, standin: StandIn, world: World
) -> None:
    with Client(sendmail.port) as client:
        client.command(f"MAIL FROM:<{ALICE}>")
        assert client.command("RCPT TO:<bob@example.com>").ok
        standin.stop()
        assert client.data(message()) == AWAY
    assert sendmail.queue() == []
    assert not world.deliveries


def test_without_f_t_everything_would_be_accepted(make: MakeSendmail, standin: StandIn) -> None:
    server = make(replace={"F=T, ": ""})
    standin.stop()
    assert send(server.port, ALICE, ["unknown@example.com"]).accepted


def test_a_milter_slower_than_r_at_the_end_of_the_message_is_given_up(make: MakeSendmail) -> None:
    server = make(replace={"R:60s": "R:1s"})
    outcome = send(server.port, ALICE, ["slow@example.com"])
    assert outcome.data == AWAY


def test_a_socket_in_a_folder_that_a_group_can_write_is_not_used(
    sendmail: Sendmail, standin: StandIn
) -> None:
    standin.folder.chmod(0o775)
    assert send(sendmail.port, ALICE, ["bob@example.com"]).mail == AWAY
    wait_until(lambda: "milter.sock unsafe" in sendmail.log, "Sendmail says why")


# ---- case 3a: relay


def test_foreign_domains_and_subdomains_are_refused_before_the_milter(
    sendmail: Sendmail, standin: StandIn
) -> None:
    foreign = ["x@foreign.example", "x@sub.example.com"]
    for reply in send(sendmail.port, ALICE, foreign).rcpts:
        assert reply.code == 550
        assert reply.text.endswith("Relaying denied")
    assert standin.calls("envrcpt") == []


def test_without_relay_hosts_only_subdomains_would_be_relayed(make: MakeSendmail) -> None:
    server = make(replace=without("relay", "FEATURE(`relay_hosts_only"))
    assert send(server.port, ALICE, ["x@sub.example.com"]).accepted


def test_other_hosts_may_send_bounces_to_the_srs_domain(sendmail: Sendmail, world: World) -> None:
    assert send(sendmail.port, "", [ALICE_SRS]).accepted
    world.wait_for(ALICE)


# ---- case 3b: local


def test_an_alias_without_unix_account_reaches_the_milter_and_its_mailbox(local: Sendmail) -> None:
    outcome = send(local.port, ALICE, ["alias@example.com", "unknown@example.com"])
    assert [reply.code for reply in outcome.rcpts] == [250, 550]
    (mail,) = wait_until(lambda: local.mailbox("bob"), "bob has mail")
    assert mail.startswith(f"X-Envelope-From: {ALICE}\n".encode())


def test_with_flag_w_the_alias_is_refused_before_the_milter_is_asked(
    make: MakeSendmail, standin: StandIn
) -> None:
    server = make(delivery="local", replace=without("local", "MODIFY_MAILER_FLAGS"))
    (reply,) = send(server.port, ALICE, ["alias@example.com"]).rcpts
    assert reply.code == 550
    assert reply.text.endswith("User unknown")
    assert standin.calls("envrcpt") == []


def test_a_forward_leaves_and_its_bounce_comes_back_with_local_mailboxes_too(
    local: Sendmail, world: World
) -> None:
    world.refuse("550 5.7.1 Not wanted", recipient=FORWARDED)
    assert send(local.port, ALICE, ["forward@example.com"]).accepted
    (bounce,) = world.wait_for(ALICE)
    assert bounce.sender == ""


def test_subdomains_of_the_srs_domain_are_refused_with_local_mailboxes_too(
    local: Sendmail,
) -> None:
    (reply,) = send(local.port, "", [f"x@sub.{SRS_DOMAIN}"]).rcpts
    assert reply.text.endswith("Relaying denied")


def test_aliases_5_divert_after_the_milter(make: MakeSendmail, world: World) -> None:
    server = make(delivery="local")
    server.write_file("aliases", "bob: carol@gmail.example\n")
    server.run("sendmail", "-bi")
    assert send(server.port, ALICE, ["alias@example.com"]).accepted
    (delivery,) = world.wait_for("carol@gmail.example")
    assert delivery.sender == ALICE
