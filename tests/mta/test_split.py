"""[reinject]: every recipient of one transaction its own right handling, through a real Postfix."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.harness.lab import Lab
from tests.harness.ports import reserved_port
from tests.harness.smtp import message

RULES = (
    "HSET domain:example.com unknown reject",
    "HSET alias:example.com bob bob@example.com out me@gmail.example * quarantine",
    'HSET alias:example.com both "bob@example.com, me@gmail.example"',
)


@pytest.fixture
def split(make_lab: Callable[..., Lab]) -> Lab:
    lab = make_lab(reinject=True)
    lab.rules(*RULES)
    return lab


def test_who_stays_keeps_the_sender_and_who_leaves_gets_srs_in_one_transaction(split: Lab) -> None:
    outcome = split.send("alice@bank.example", "bob@example.com", "out@example.com")
    assert [reply.code for reply in outcome.rcpts] == [250, 250]
    (stays,) = split.world.wait_for("bob@example.com")
    (leaves,) = split.world.wait_for("me@gmail.example")
    assert stays.sender == "alice@bank.example"
    assert leaves.sender.startswith("SRS0=")
    split.settle()
    assert len(split.world.deliveries) == 2
    (line,) = [x for x in split.daemon.log.splitlines() if x.startswith(outcome.queue_id)]
    assert "<me@gmail.example> as " in line


def test_one_rule_with_targets_here_and_elsewhere_is_split_too(split: Lab) -> None:
    assert split.send("alice@bank.example", "both@example.com").accepted
    (stays,) = split.world.wait_for("bob@example.com")
    (leaves,) = split.world.wait_for("me@gmail.example")
    assert (stays.sender, leaves.sender[:4]) == ("alice@bank.example", "SRS0")


def test_a_copy_has_the_same_body_and_the_dsn_wishes(split: Lab) -> None:
    body = "dots\r\n.\r\n..two\r\n8-bit: \u00fc\r\n"
    split.send(
        "alice@bank.example",
        "bob@example.com",
        "out@example.com",
        content=message(body=body),
        mail_options=["BODY=8BITMIME", "RET=HDRS"],
        rcpt_options=["NOTIFY=FAILURE"],
    )
    (stays,) = split.world.wait_for("bob@example.com")
    (leaves,) = split.world.wait_for("me@gmail.example")
    assert leaves.content.partition(b"\r\n\r\n")[2] == stays.content.partition(b"\r\n\r\n")[2]
    assert "NOTIFY=FAILURE" in leaves.rcpt_options


def test_quarantined_copies_carry_their_header_alone(split: Lab) -> None:
    assert split.send("alice@bank.example", "bob@example.com", "guess@example.com").accepted
    (mine,) = split.world.wait_for("bob@example.com")
    (hit,) = split.world.wait_for("quarantine@example.net")
    assert "X-Alias-Milter-Quarantine" not in mine.message
    assert "guess@example.com" in str(hit.message["X-Alias-Milter-Quarantine"])


def test_a_hold_never_holds_anybody_elses_copy(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab({"quarantine": {"action": "hold"}}, reinject=True)
    lab.rules(*RULES)
    assert lab.send("alice@bank.example", "bob@example.com", "guess@example.com").accepted
    lab.world.wait_for("bob@example.com")
    (held,) = [entry for entry in lab.postfix.queue() if entry.queue == "hold"]
    assert held.recipients == ("guess@example.com",)


@contextmanager
def listener(behaviour: str) -> Iterator[int]:
    """A listener that refuses, hangs, or drops the connection after DATA."""
    with reserved_port() as port, socket.create_server(("127.0.0.1", port)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    talk(connection, behaviour)

        threading.Thread(target=serve, daemon=True).start()
        yield port


def talk(connection: socket.socket, behaviour: str) -> None:
    if behaviour == "hangs":
        connection.recv(1)  # until the client gives up
        return
    stream = connection.makefile("rb")
    connection.sendall(b"220 odd\r\n")
    for line in stream:
        verb = line[:4].upper()
        if verb == b"DATA" and behaviour == "drops":
            connection.sendall(b"354 go on\r\n")
            while stream.readline() not in (b".\r\n", b""):
                pass
            return
        connection.sendall(b"550 no\r\n" if verb == b"RCPT" and behaviour == "refuses"
                           else b"250 ok\r\n")  # fmt: skip


@pytest.mark.parametrize("behaviour", ["refuses", "hangs", "drops", "is down"])
def test_when_the_listener_fails_the_sender_keeps_the_whole_message(
    make_lab: Callable[..., Lab], behaviour: str
) -> None:
    with listener(behaviour) if behaviour != "is down" else reserved_port() as port:
        lab = make_lab({"reinject": {"server": f"127.0.0.1:{port}", "timeout": 1.0}})
        lab.rules(*RULES)
        outcome = lab.send("alice@bank.example", "bob@example.com", "out@example.com")
        assert outcome.data is not None
        assert str(outcome.data).startswith("451 4.3.0")
        lab.settle()
        assert lab.world.deliveries == []


def test_a_retry_after_a_partial_success_reaches_everybody_once(split: Lab) -> None:
    split.world.clear()
    content = message()
    first = split.send("alice@bank.example", "bob@example.com", "out@example.com", content=content)
    assert first.accepted
    # The client did not see the answer, and comes again for the recipient that was reinjected.
    split.world.wait_for("me@gmail.example")
    again = split.send("alice@bank.example", "bob@example.com", "out@example.com", content=content)
    assert again.accepted
    split.world.wait_for("bob@example.com", count=2)
    split.settle()
    assert len([d for d in split.world.deliveries if d.recipient == "me@gmail.example"]) == 1


def test_a_reinject_server_that_leads_back_here_is_recognised(
    make_lab: Callable[..., Lab],
) -> None:
    lab = make_lab(main={"mynetworks": "127.0.0.0/8"})
    lab.rules(*RULES)
    lab.daemon.write_config({"reinject": {"server": f"127.0.0.1:{lab.postfix.port}"}})
    lab.daemon.stop()
    lab.daemon.start()
    outcome = lab.send("alice@bank.example", "bob@example.com", "out@example.com")
    assert outcome.data is not None
    assert outcome.data.code == 451
    assert "leads back to this milter" in lab.daemon.log
    lab.settle()
    assert lab.world.deliveries == []
