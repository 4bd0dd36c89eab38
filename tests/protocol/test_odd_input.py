"""Input that no decent MTA or client would send."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from miltertest import MilterError

from tests.harness.daemon import Daemon
from tests.harness.mta_client import Mta
from tests.harness.redis import RedisServer

Connect = Callable[..., Mta]


@pytest.mark.parametrize(
    ("argument", "reply"),
    [
        (b"<b\xf6b@example.com>", "501 5.1.3"),
        (b"<bob@ex\xe4mple.com>", "501 5.1.3"),
        (b"<\xff\xfe@foreign.example>", "501 5.1.3"),
        ("<b\u00f6b@example.com>".encode(), "550 5.1.1"),
        ("<m\u00fcller@example.com>".encode(), "continue"),
        ("<mu\u0308ller@example.com>".encode(), "continue"),  # NFD
        ("<M\u00dcLLER@example.com>".encode(), "continue"),
        ("<bob@ex\u00e4mple.com>".encode(), "continue"),  # domain:xn--exmple-cua.com
        ("<\u0085@example.com>".encode(), "501 5.1.3"),  # a control character
        (b"<bob\r\n@example.com>", "501 5.1.3"),
        (b"<bob@example.com\t>", "501 5.1.3"),
        (b"<bob\x1b[2J@example.com>", "501 5.1.3"),
        (b'<"bob\\"\\ "@example.com>', "550 5.1.1"),
        (b"<@relay.example,@other.example:sales@example.com>", "continue"),
        (b"<@relay.example:>", "501 5.1.3"),
        (b"<" + b"@relay.example," * 1000 + b"@relay.example:bob@example.com>", "501 5.1.3"),
        (b"<bob@[192.0.2.256]>", "501 5.1.3"),
        (b"<bob@[IPv6:2001:db8::1]>", "continue"),
        (b"bob@example.com", "continue"),
    ],
)
def test_an_argument_of_any_octets_gets_a_fit_reply(
    mta: Mta, redis: RedisServer, argument: bytes, reply: str
) -> None:
    redis.cli("HSET", "alias:example.com", "m\u00fcller", "bob@example.com")
    redis.cli("HSET", "domain:xn--exmple-cua.com", "unknown", "pass")
    mta.send("R", argument + b"\0")
    assert str(mta.read()).startswith(reply)


def test_an_argument_that_is_cut_by_a_nul_is_malformed(mta: Mta) -> None:
    mta.send("R", b"<sal\0es@example.com>\0")
    assert mta.read().text.startswith("501 5.1.3")


def test_an_address_beyond_ascii_is_rewritten_under_the_octets_it_came_with(
    mta: Mta, redis: RedisServer
) -> None:
    redis.cli("HSET", "alias:example.com", "m\u00fcller", "bob@example.com")
    assert mta.rcpt("<M\u00dcller@example.com>").kind == "continue"
    ending = mta.message()
    assert ending.of("delrcpt") == [("<M\u00dcller@example.com>",)]
    assert ending.of("addrcpt") == [("<bob@example.com>",)]


def test_who_can_only_be_reached_with_smtputf8_is_not_reached_without(
    connect: Connect, redis: RedisServer
) -> None:
    redis.cli("HSET", "alias:example.com", "intl", "\u7528\u6237@gmail.example")
    with connect() as mta:
        mta.mail()
        assert mta.rcpt("<intl@example.com>").text.startswith("550 5.6.7")
        mta.mail("<alice@bank.example>", "SMTPUTF8")
        assert mta.rcpt("<intl@example.com>").kind == "continue"
        assert mta.message().of("addrcpt") == [("<\u7528\u6237@gmail.example>",)]


@pytest.mark.parametrize(
    ("command", "data"),
    [
        ("H", b"h\xffst\0"),
        ("M", b"<al\xefce@bank.example>\0"),
        ("M", b"<alice@bank.example>\0SIZE=\xff\0"),
        ("M", b"<" + b"a" * 10_000 + b"@bank.example>\0"),
        ("M", b"<a..b@bank.example>\0"),
        ("M", b"\0"),
        ("L", b"Subject\0 \xff\xfe\0"),
        ("L", b"X-" + b"y" * 900 + b"\0 x\0"),
        ("L", b"Subject\0 " + b"x" * 60_000 + b"\0"),
        ("L", b"Subject\0\0"),
        ("L", b"Subject\0 a\r\nb\n\tc\0"),
    ],
)
def test_what_a_sender_writes_oddly_never_costs_it_the_message(
    splitting_daemon: Daemon, command: str, data: bytes
) -> None:
    with Mta(splitting_daemon.socket) as mta:
        mta.socket.settimeout(5)
        if command == "H":
            mta.send(command, data)
        mta.mail()
        if command == "M":
            mta.send(command, data)
        assert mta.rcpt("<sales@example.com>").kind == "continue"
        if command == "L":
            mta.send(command, data)
        ending = mta.message()
        assert ending.answer.kind == "continue"
        assert ending.of("addrcpt") == [("<bob@example.com>",)]


def test_a_login_name_that_is_no_utf8_never_costs_its_owner_a_message(connect: Connect) -> None:
    with connect() as mta:
        mta.send("D", b"M{auth_authen}\0j\xf6rg\0")
        mta.mail()
        assert mta.rcpt("<sales@example.com>").kind == "continue"
        assert mta.message().of("addrcpt") == [("<bob@example.com>",)]


def test_the_milter_never_answers_what_it_said_it_would_not(connect: Connect) -> None:
    with connect() as mta:
        for _ in range(3):
            mta.mail()
            mta.content([(f"X-{n}", " v") for n in range(100)])
            mta.abort()
        mta.mail()
        assert mta.rcpt("<nobody@example.com>").text.startswith("550 5.1.1")
        mta.send("Q", b"")
        with pytest.raises(MilterError, match="EOF"):
            mta.read()
