"""The log: one line a message, the queue id first, nothing in it that a sender could forge."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from tests.harness.daemon import Daemon
from tests.harness.mta_client import Mta
from tests.harness.redis import RedisServer
from tests.protocol.conftest import load_rules

HOSTILE = {
    "escape": "\x1b[31mred\x1b[2J",
    "bidi override": "\u202egpj.exe",
    "bidi isolate": "\u2066x\u2069",
    "line separator": "a\u2028b\u2029c\u0085d",
    "zero width": "a\u200bb\ufeffc",
    "carriage return": "x\rQUEUEID: accepted",
    "newline": "x\nQUEUEID: accepted",
    "quote": 'x" reply="250 ok',
    "backslash": "x\\",
    "delete": "x\x7f",
    "tag": "\U000e0041",
}
# Whatever of these stands in a log raw could fool a terminal or a reader.
DANGEROUS = "\x1b\r\x7f\x85\u200b\u200e\u202e\u2028\u2029\u2066\u2069\ufeff\U000e0041"


@pytest.fixture
def lines(daemon: Daemon) -> Callable[[], list[str]]:
    """The log lines since the test began."""
    before = len(daemon.log)
    return lambda: daemon.log[before:].split("\n")[:-1]


def test_a_message_makes_one_line_with_the_queue_id_first_and_every_verdict(
    mta: Mta, lines: Callable[[], list[str]]
) -> None:
    mta.rcpt("<sales@example.com>")
    mta.rcpt("<Bob+x@example.com>")
    mta.rcpt("<drop@example.com>")
    mta.message(queue_id="4Tz8Qk1x2y")
    (line,) = lines()
    assert line == (
        "4Tz8Qk1x2y: accepted sender=<alice@bank.example>"
        ' recipients="<sales@example.com> alias -> <bob@example.com>,'
        ' <Bob+x@example.com> mailbox, <drop@example.com> discarded"'
        " client=192.0.2.10"
    )


def test_a_forward_names_the_srs_sender(mta: Mta, lines: Callable[[], list[str]]) -> None:
    mta.rcpt("<out@example.com>")
    ending = mta.message(queue_id="4Tz8Qk1x2y")
    ((sender,),) = ending.of("chgfrom")
    (line,) = lines()
    assert line.startswith("4Tz8Qk1x2y: accepted ")
    assert line.endswith(f' srs_sender="{sender}"')


def test_a_refused_recipient_makes_a_line_under_noqueue_while_there_is_no_queue_id(
    mta: Mta, lines: Callable[[], list[str]]
) -> None:
    mta.rcpt("<nobody@example.com>")
    mta.macros("R", i="4Tz8Qk1x2y")
    mta.rcpt("<gone@example.com>")
    unknown, disabled = lines()
    assert unknown == (
        "NOQUEUE: refused sender=<alice@bank.example> recipient=<nobody@example.com>"
        ' reason=unknown reply="550 5.1.1 No such address here" client=192.0.2.10'
    )
    assert disabled == (
        "4Tz8Qk1x2y: refused sender=<alice@bank.example> recipient=<gone@example.com>"
        ' reason=disabled reply="550 5.2.1 Bob has left" client=192.0.2.10'
    )


def test_a_rule_in_error_is_logged_as_an_error_that_names_key_and_field(
    mta: Mta, lines: Callable[[], list[str]]
) -> None:
    mta.rcpt("<broken@example.com>")
    mta.rcpt("<a@example.com>")
    invalid, cycle = lines()
    assert invalid.startswith("NOQUEUE: error: refused ")
    assert "problem=\"alias:example.com broken: unknown word 'nonsense'\"" in invalid
    assert cycle.startswith("NOQUEUE: error: refused ")
    assert 'problem="a@example.com -> b@example.com -> a@example.com"' in cycle


def test_a_discarded_and_a_looping_message_make_one_line_each(
    mta: Mta, lines: Callable[[], list[str]]
) -> None:
    mta.rcpt("<drop@example.com>")
    mta.message(queue_id="ONE")
    mta.mail()
    mta.rcpt("<bob@example.com>")
    mta.message([("Received", " x")] * 51, queue_id="TWO")
    first, second = lines()
    assert first.startswith("ONE: discarded sender=")
    assert second.startswith("TWO: refused sender=")
    assert "reason=too-many-hops" in second
    assert 'reply="554 5.4.6 ' in second


@pytest.mark.parametrize("kind", HOSTILE)
def test_nothing_that_a_client_sends_ends_a_line_or_a_field_or_reaches_a_terminal(
    daemon: Daemon, lines: Callable[[], list[str]], kind: str
) -> None:
    text = HOSTILE[kind]
    with Mta(daemon.socket, client=(text, "192.0.2.10", 25), helo=text) as mta:
        mta.mail(f'<"{text}"@bank.example>')
        mta.rcpt(f"<{text}@example.com>")
        mta.rcpt(f'<"{text}"@example.com>')
        mta.rcpt("<sales@example.com>")
        mta.rcpt(f'<"{text}"@foreign.example>', f"NOTIFY={text}")
        mta.message([("Subject", f" {text}")], queue_id="4Tz8Qk1x2y")
    found = lines()
    assert 2 <= len(found) <= 4
    assert all(line.startswith(("NOQUEUE: refused sender=", "4Tz8")) for line in found)
    assert sum(line.startswith("4Tz8Qk1x2y: accepted ") for line in found) == 1
    assert not set(DANGEROUS) & set("".join(found))
    for line in found:
        # Outside quotes there is no text of the client's: an even number of bare quotes.
        assert line.replace("\\\\", "").replace('\\"', "").count('"') % 2 == 0


def test_a_queue_id_or_a_login_cannot_forge_anything_either(
    mta: Mta, lines: Callable[[], list[str]]
) -> None:
    mta.rcpt("<sales@example.com>")
    mta.message(queue_id="A\nB: accepted")
    (line,) = lines()
    assert line.startswith("A\\nB: accepted: accepted ")


def test_a_rule_cannot_forge_anything_either(
    mta: Mta, redis: RedisServer, lines: Callable[[], list[str]]
) -> None:
    redis.cli(stdin='HSET alias:example.com evil "reject \\x1b[2J\\nQUEUEID: accepted"\n')
    redis.cli(stdin='HSET alias:example.com "e\\nvil" "nonsense"\n')
    mta.rcpt("<evil@example.com>")
    mta.rcpt('<"e\\\nvil"@example.com>')
    found = lines()
    assert len(found) == 2
    assert all(line.startswith("NOQUEUE: ") for line in found)
    assert not set(DANGEROUS) & set("".join(found))


def test_a_line_stays_short_however_long_an_argument_is(
    mta: Mta, lines: Callable[[], list[str]]
) -> None:
    mta.rcpt("<" + "x" * 50_000 + "@example.com>")
    (line,) = lines()
    assert len(line) < 3000


@pytest.fixture(scope="module")
def shared_json(shared_redis: RedisServer) -> Iterator[Daemon]:
    with Daemon(shared_redis.url, {"log": {"format": "json"}}) as daemon:
        yield daemon


@pytest.fixture
def json_daemon(shared_json: Daemon, redis: RedisServer) -> Daemon:
    load_rules(redis)
    return shared_json


@pytest.mark.parametrize("kind", HOSTILE)
def test_every_line_is_an_object_whatever_a_client_sends(json_daemon: Daemon, kind: str) -> None:
    before = len(json_daemon.log)
    sender = f'<"{HOSTILE[kind]}"@bank.example>'
    with Mta(json_daemon.socket) as mta:
        mta.mail(sender)
        mta.rcpt("<nobody@example.com>")
        mta.rcpt("<sales@example.com>")
        mta.message(queue_id="4Tz8Qk1x2y")
    text = json_daemon.log[before:]
    assert text.isascii()
    refused, accepted = (json.loads(line) for line in text.split("\n")[:-1])
    assert refused["queue_id"] == "NOQUEUE"
    assert (refused["reason"], refused["level"]) == ("unknown", "info")
    assert accepted["queue_id"] == "4Tz8Qk1x2y"
    assert accepted["event"] == "accepted"
    assert accepted["sender"] == sender
    assert accepted["recipients"] == ["<sales@example.com> alias -> <bob@example.com>"]
    assert accepted["timestamp"].endswith("Z")
