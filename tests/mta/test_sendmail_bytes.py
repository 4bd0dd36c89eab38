"""docs/sendmail.md, section 4: what leaves is what was signed, and each line is needed for that.

The next hop is an old one, without 8BITMIME.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.harness.sendmail import Sendmail
from tests.harness.sendmail_document import without
from tests.harness.smtp import message, send
from tests.harness.standin import StandIn
from tests.harness.world import World
from tests.mta.conftest import MakeSendmail, documented

ALICE = "alice@bank.example"
FORWARDED = "me@gmail.example"

MIME = {"MIME-Version": "1.0", "Content-Type": "text/plain; charset=utf-8"}
EIGHT_BIT = message(headers={**MIME, "Content-Transfer-Encoding": "8bit"}, body="K\u00f6ln\r\n")
LONG_LINES = message(body="x" * 5000 + "\r\n")
UNCLOSED = message(
    headers={"MIME-Version": "1.0", "Content-Type": "multipart/mixed; boundary=b"},
    body="--b\r\nContent-Type: text/plain\r\n\r\nhello\r\n",
)
MANY_HEADERS = message(headers=[(f"X-{n}", "y" * 70) for n in range(600)])
SHAPES = {
    "raw 8-bit": message(body="K\u00f6ln\r\n"),
    "8-bit": EIGHT_BIT,
    "long lines": LONG_LINES,
    "multipart without end": UNCLOSED,
    "40 KB of headers": MANY_HEADERS,
    "folds": message(headers={"References": "\r\n\t ".join(f"<{n}@b.example>" for n in range(99))}),
}


@pytest.fixture(scope="module")
def old_world() -> Iterator[World]:
    """A next hop without 8BITMIME."""
    with World(extensions=("DSN",)) as server:
        yield server


@pytest.fixture(scope="module")
def to_old_world(shared_standin: StandIn, old_world: World) -> Iterator[Sendmail]:
    with ExitStack() as stack:
        yield documented(stack, shared_standin, old_world)


def arrived(server: Sendmail, world: World, recipient: str, content: bytes) -> bytes:
    """Send it past the milter; return what arrives below Sendmail's own Received."""
    world.reset()
    outcome = send(server.reinject_port or 0, ALICE, [recipient], content)
    assert outcome.accepted, outcome
    received = world.wait_for(recipient)[0].content
    return re.sub(rb"\AReceived: .*\r\n(?:[ \t].*\r\n)*", b"", received)


@pytest.mark.parametrize("recipient", [FORWARDED, "bob@example.com"], ids=["esmtp", "relay"])
@pytest.mark.parametrize("shape", SHAPES)
def test_what_leaves_is_what_the_milter_saw(
    to_old_world: Sendmail, old_world: World, shape: str, recipient: str
) -> None:
    assert arrived(to_old_world, old_world, recipient, SHAPES[shape]) == SHAPES[shape]


@pytest.mark.parametrize(
    ("line", "content", "recipient"),
    [
        ("MODIFY_MAILER_FLAGS(`ESMTP'", EIGHT_BIT, FORWARDED),
        ("define(`SMTP_MAILER_LL'", LONG_LINES, FORWARDED),
        ("define(`RELAY_MAILER_LL'", LONG_LINES, "bob@example.com"),
        ("define(`confMAX_MIME_HEADER_LENGTH'", UNCLOSED, FORWARDED),
    ],
)
def test_without_its_line_the_bytes_change(
    make: MakeSendmail, old_world: World, line: str, content: bytes, recipient: str
) -> None:
    server = make(next_hop=old_world.port, replace=without("bytes", line))
    assert arrived(server, old_world, recipient, content) != content


def test_without_its_line_a_message_with_many_arc_sets_is_refused(make: MakeSendmail) -> None:
    server = make(replace=without("bytes", "define(`confMAX_HEADERS_LENGTH'"))
    outcome = send(server.port, ALICE, ["bob@example.com"], MANY_HEADERS)
    assert outcome.data is not None
    assert outcome.data.code == 552
