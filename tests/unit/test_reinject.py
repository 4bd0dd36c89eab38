"""Submitting copies: who gets one, under which limits, and what is remembered."""

from __future__ import annotations

import smtplib
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import pytest

from aliasmilter.mail.message import Message
from aliasmilter.mta.reinject import (
    MAX_RECIPIENTS,
    Copy,
    Identity,
    ReinjectError,
    Reinjector,
    identity_of,
    mail_parameters,
)
from tests.unit.fakes import Served

Answer = Callable[[str], bytes]


class Listener:
    """An SMTP listener that answers as it is told, and keeps the commands it got."""

    def __init__(self, answer: Answer, greeting: bytes, extensions: Sequence[str]) -> None:
        self.answer = answer
        self.greeting = greeting
        self.extensions = extensions
        self.commands: list[str] = []
        self.server = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server.getsockname()[1]}"

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.server.accept()
            except OSError:
                return
            # Who has sent QUIT waits for no answer.
            with connection, suppress(OSError):
                self._talk(connection)

    def _talk(self, connection: socket.socket) -> None:
        connection.sendall(self.greeting)
        stream = connection.makefile("rb")
        for line in stream:
            verb, space, rest = line.decode().rstrip("\r\n").partition(" ")
            command = verb.upper() + space + rest
            self.commands.append(command)
            reply = self.answer(command)
            if command.startswith("EHLO"):
                names = ["mx", *self.extensions, "HELP"]
                reply = b"".join(b"250-%b\r\n" % name.encode() for name in names) + b"250 OK\r\n"
            connection.sendall(reply)
            if reply.startswith(b"354"):
                while stream.readline() not in (b".\r\n", b""):
                    pass
                connection.sendall(self.answer("."))


def obliging(command: str) -> bytes:
    if command == "DATA":
        return b"354 go on\r\n"
    return b"250 2.0.0 Ok: queued as 4Tz8\r\n" if command == "." else b"250 ok\r\n"


@contextmanager
def listening(
    answer: Answer = obliging,
    greeting: bytes = b"220 mx\r\n",
    extensions: Sequence[str] = ("8BITMIME", "DSN", "SMTPUTF8"),
) -> Iterator[Listener]:
    listener = Listener(answer, greeting, extensions)
    try:
        yield listener
    finally:
        listener.server.close()


ONE, OTHER = Identity("a message", is_certain=True), Identity("another", is_certain=True)


def copy(
    *paths: str, sender: str = "<alice@bank.example>", parameters: tuple[str, ...] = ()
) -> Copy:
    return Copy(sender, parameters, dict.fromkeys(paths, ""), b"Subject: x\r\n\r\nhello\r\n")


def reinjector(server: str, memory: Served | None = None, timeout: float = 20.0) -> Reinjector:
    memory = memory or Served()
    return Reinjector(server, "mx.example.net", timeout, memory)


def submit(to: Reinjector, wanted: Copy) -> dict[str, str]:
    submission = to.begin(ONE, wanted.recipients)
    submission.submit(wanted)
    return submission.notes


@pytest.mark.parametrize(
    ("said", "queue_id"),
    [
        ("2.0.0 Ok: queued as 4Tz8", "4Tz8"),
        ("2.0.0 5BK2ZQ Message accepted for delivery", "5BK2ZQ"),
        ("2.0.0 ok " + "x" * 100, "2.0.0 ok " + "x" * 71),
    ],
)
def test_the_log_names_the_queue_id_that_the_listener_gave(said: str, queue_id: str) -> None:
    def answer(command: str) -> bytes:
        return f"250 {said}\r\n".encode() if command == "." else obliging(command)

    with listening(answer) as listener:
        notes = submit(reinjector(listener.address), copy("<me@gmail.example>"))
    assert notes == {"reinjected": f"<me@gmail.example> as {queue_id}"}


def test_nothing_waits_for_a_copy_that_was_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def reset(smtp: smtplib.SMTP, command: str, args: str = "") -> None:
        if command == "QUIT":
            raise ConnectionResetError
        put(smtp, command, args)

    put = smtplib.SMTP.putcmd
    monkeypatch.setattr(smtplib.SMTP, "putcmd", reset)
    before = set(threading.enumerate())
    with listening() as listener:
        assert submit(reinjector(listener.address), copy("<me@gmail.example>"))
        timers = [t for t in set(threading.enumerate()) - before if isinstance(t, threading.Timer)]
        for timer in timers:
            timer.join(5)
        assert not [timer for timer in timers if timer.is_alive()]


def test_more_recipients_than_every_server_takes_go_in_several_transactions() -> None:
    paths = [f"<u{n}@gmail.example>" for n in range(2 * MAX_RECIPIENTS + 1)]
    with listening() as listener:
        submit(reinjector(listener.address), copy(*paths))
    sizes = [0]
    for command in listener.commands:
        if command.startswith("MAIL"):
            sizes.append(0)
        sizes[-1] += command.startswith("RCPT")
    assert sizes[1:] == [MAX_RECIPIENTS, MAX_RECIPIENTS, 1]


def test_a_recipient_that_the_listener_refuses_keeps_the_others_of_its_envelope_back() -> None:
    def picky(command: str) -> bytes:
        return b"550 5.1.1 not him\r\n" if "bad@" in command else obliging(command)

    memory = Served()
    with (
        listening(picky) as listener,
        pytest.raises(ReinjectError, match=r"RCPT <bad@gmail.example>: 550 5.1.1 not him"),
    ):
        submit(
            reinjector(listener.address, memory), copy("<a@gmail.example>", "<bad@gmail.example>")
        )
    assert "DATA" not in listener.commands
    assert memory.keys == set()


def test_who_was_served_before_a_failure_is_not_served_again() -> None:
    memory, refuse = Served(), ["you@gmail.example"]

    def picky(command: str) -> bytes:
        return b"451 later\r\n" if refuse and refuse[0] in command else obliging(command)

    first, second = copy("<me@gmail.example>"), copy("<you@gmail.example>")
    paths = [*first.recipients, *second.recipients]
    with listening(picky) as listener:
        submitter = reinjector(listener.address, memory)
        submission = submitter.begin(ONE, paths)
        submission.submit(first)
        with pytest.raises(ReinjectError):
            submission.submit(second)
        assert submission.notes == {"reinjected": "<me@gmail.example> as 4Tz8"}
        refuse.clear()
        again = submitter.begin(ONE, paths)
        assert again.left(first.recipients) == []
        assert again.left(second.recipients) == ["<you@gmail.example>"]
        assert again.notes == {"reinjected": "<me@gmail.example> by an earlier try"}
        assert submitter.begin(OTHER, paths).left(paths) == paths


def test_while_redis_is_away_copies_are_sent_the_log_says_so_and_it_is_asked_only_once() -> None:
    memory = Served()
    memory.down = True
    paths = [f"<u{n}@gmail.example>" for n in range(2 * MAX_RECIPIENTS)]
    with listening() as listener:
        notes = submit(reinjector(listener.address, memory), copy(*paths))
    assert notes["not_remembered"] == "switched off"
    assert memory.calls == 1


@pytest.mark.parametrize("where", ["greeting", "EHLO", "."])
def test_a_listener_that_answers_in_drops_is_given_up_at_the_deadline(where: str) -> None:
    """Each read succeeds, so that a time-out for each read would never come to pass."""
    stopped = threading.Event()

    def serve(server: socket.socket) -> None:
        connection, _ = server.accept()
        stream = connection.makefile("rb")
        with connection:
            try:
                if where != "greeting":
                    connection.sendall(b"220 mx\r\n")
                    for line in stream:
                        verb = line[:4].upper()
                        if verb == where.encode():
                            break
                        if verb == b"DATA":
                            connection.sendall(b"354 go on\r\n")
                            while stream.readline() not in (b".\r\n", b""):
                                pass
                            break
                        connection.sendall(b"250 ok\r\n")
                while not stopped.wait(0.05):
                    connection.sendall(b"2")
            except OSError:
                return

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=serve, args=(server,), daemon=True).start()
        slow = reinjector(f"127.0.0.1:{server.getsockname()[1]}", timeout=0.5)
        with pytest.raises(ReinjectError):  # else it would wait for ever
            submit(slow, copy("<me@gmail.example>"))
        stopped.set()


def test_the_deadline_is_for_all_the_copies_of_a_message() -> None:
    with listening() as listener:
        submission = reinjector(listener.address, timeout=0.5).begin(ONE, ["<a@b.example>"])
        time.sleep(0.5)  # what other copies took
        with pytest.raises(ReinjectError, match="not done in time"):
            submission.submit(copy("<a@b.example>"))
        assert listener.commands == []


def test_nobody_waits_for_the_answer_to_quit() -> None:
    def mute(command: str) -> bytes:
        return b"" if command == "QUIT" else obliging(command)

    with listening(mute) as listener:
        assert submit(reinjector(listener.address), copy("<me@gmail.example>"))


@pytest.mark.parametrize(
    ("greeting", "said"), [(b"554 no\r\n", "connection: 554 no"), (b"\r\n", "connection: -1")]
)
def test_a_listener_that_does_not_want_to_talk(greeting: bytes, said: str) -> None:
    with listening(greeting=greeting) as listener, pytest.raises(ReinjectError, match=said):
        submit(reinjector(listener.address), copy("<me@gmail.example>"))


def test_parameters_go_along_to_a_listener_that_knows_them() -> None:
    wanted = copy(
        "<jürgen@gmail.example>",
        sender="<jörg@bank.example>",
        parameters=("BODY=8BITMIME", "SMTPUTF8", "RET=HDRS"),
    )
    wanted.recipients["<jürgen@gmail.example>"] = "NOTIFY=NEVER"
    with listening() as listener:
        submit(reinjector(listener.address), wanted)
    assert "MAIL FROM:<jörg@bank.example> BODY=8BITMIME SMTPUTF8 RET=HDRS" in listener.commands
    assert "RCPT TO:<jürgen@gmail.example> NOTIFY=NEVER" in listener.commands


def test_dsn_wishes_can_be_left_out_but_not_what_the_content_needs() -> None:
    wanted = copy("<me@gmail.example>", parameters=("RET=HDRS", "ENVID=1"))
    wanted.recipients["<me@gmail.example>"] = "NOTIFY=NEVER"
    with listening(extensions=["8BITMIME"]) as listener:
        submit(reinjector(listener.address), wanted)
        assert {"MAIL FROM:<alice@bank.example>", "RCPT TO:<me@gmail.example>"} <= set(
            listener.commands
        )
        utf8 = copy("<me@gmail.example>", parameters=("SMTPUTF8",))
        with pytest.raises(ReinjectError, match="does not offer SMTPUTF8"):
            submit(reinjector(listener.address), utf8)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ([b"SIZE=100", b"body=8BITMIME", b"smtputf8"], ("BODY=8BITMIME", "SMTPUTF8")),
        ([b"RET=HDRS", b"ENVID=a=b", b"AUTH=<>"], ("RET=HDRS", "ENVID=a=b")),
        ([b"ENVID=\xff\x00", b""], ()),
    ],
)
def test_the_parameters_that_a_copy_keeps(given: list[bytes], kept: tuple[str, ...]) -> None:
    assert mail_parameters(given) == kept


ORDER = b"Message-ID: <1@bank.example>\nSubject: an order\n\nten\n"


@pytest.mark.parametrize(
    "other",
    [
        ORDER.replace(b"ten", b"twelve"),
        ORDER.replace(b"an order", b"another order"),
        ORDER.replace(b"<1@", b"<2@"),
        ORDER.replace(b"\n\n", b"\nCc: carol@example.com\n\n"),
    ],
    ids=["body", "subject", "Message-ID", "Cc"],
)
def test_messages_that_differ_are_two_even_with_one_message_id(other: bytes) -> None:
    one = identity_of("<a@b.example>", Message.parse(ORDER), "4Tz8")
    assert identity_of("<a@b.example>", Message.parse(other), "4Tz8") != one
    assert identity_of("<c@b.example>", Message.parse(ORDER), "4Tz8") != one


def test_what_each_try_brings_anew_does_not_count() -> None:
    again = Message.parse(b"Received: from elsewhere\nX-Try: 2\n" + ORDER)
    assert identity_of("<>", again, "4Tz9") == identity_of("<>", Message.parse(ORDER), "4Tz8")


def test_what_the_mta_has_given_a_message_anew_does_not_count() -> None:
    tries = [
        identity_of(
            "<>",
            Message.parse(b"Message-ID: <2026.%b@mx>\nDate: %b\nSubject: disk\n\nfull\n" % (q, d)),
            q.decode(),
        )
        for q, d in ((b"4Tz8", b"Mon"), (b"4Tz9", b"Tue"))
    ]
    assert tries[0] == tries[1]
    assert not tries[0].is_certain


@pytest.mark.parametrize("certain", [True, False])
def test_only_a_message_that_its_sender_has_named_is_remembered_when_it_is_done(
    *, certain: bool
) -> None:
    memory, wanted = Served(), copy("<me@gmail.example>")
    with listening() as listener:
        submission = reinjector(listener.address, memory).begin(
            Identity("alert", is_certain=certain), wanted.recipients
        )
        submission.submit(wanted)
        assert memory.keys
        submission.finish()
    assert bool(memory.keys) is certain
