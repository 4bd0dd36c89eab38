"""What a session counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from aliasmilter import metrics
from aliasmilter.mail.replies import Reason
from aliasmilter.mta import measures
from tests.unit.fakes import SRS, Listener, Scene, Store

RULES = {
    "example.com": {
        "bob": "bob@example.com",
        "sales": "bob@example.com",
        "out": "me@gmail.example",
        "both": "bob@example.com me@gmail.example",
        "drop": "discard",
        "held": "quarantine",
    }
}


@dataclass
class Child:
    value: float = 0

    def inc(self, by: float = 1) -> None:
        self.value += by

    def observe(self, _seconds: float) -> None:
        self.value += 1


Count = Callable[..., float]


@pytest.fixture
def count() -> Iterator[Count]:
    """How often something was counted: `count("recipients", "accepted", "alias")`."""
    by_name = {metric.name: metric for metric in metrics._declared}
    for metric in by_name.values():
        metric.children = {value: Child() for value in metric.values}
    yield lambda name, *labels: by_name[name].children[labels].value
    for metric in by_name.values():
        metric.children = {}


def total(name: str) -> float:
    (metric,) = [metric for metric in metrics._declared if metric.name == name]
    return sum(float(child.value) for child in metric.children.values())


def test_sessions_begin_and_end_once(count: Count) -> None:
    scene = Scene(Store(RULES))
    assert (count("sessions"), count("open_sessions")) == (1, 1)
    scene.session.closed()
    scene.session.closed()
    assert (count("sessions"), count("open_sessions")) == (1, 0)


def test_recipients_count_by_their_reason_and_take_time(count: Count) -> None:
    scene = Scene(Store(RULES))
    scene.session.mail(b"<alice@bank.example>", [])
    scene.rcpt("<sales@example.com>", "<nobody@example.com>", "<@>", "<drop@example.com>")
    scene.store.down = True
    scene.rcpt("<bob@example.com>")
    assert count("recipients", "accepted", "alias") == 1
    assert count("recipients", "rejected", "unknown") == 1
    assert count("recipients", "rejected", "malformed") == 1
    assert count("recipients", "accepted", "discarded") == 1
    assert count("recipients", "deferred", "store-unavailable") == 1
    assert total("recipients") == count("rcpt_seconds") == 5


def test_messages_count_by_what_became_of_them(count: Count) -> None:
    scene = Scene(Store(RULES), hold=True)
    scene.send("<sales@example.com>")
    scene.send("<drop@example.com>")
    scene.send("<held@example.com>")
    scene.session.mail(b"<alice@bank.example>", [])
    scene.rcpt("<bob@example.com>")
    scene.end(*[("Received", b" x")] * 6)
    scene.session.mail(b"<alice@bank.example>", [])
    scene.session.broke(for_good=False)
    scene.end()
    assert count("messages", "accepted", "none") == 1
    assert count("messages", "discarded", "none") == 1
    assert count("messages", "held", "none") == 1
    assert count("messages", "rejected", "too-many-hops") == 1
    assert count("messages", "deferred", "internal-error") == 1
    assert total("messages") == count("message_seconds") == 5


def test_a_message_handed_in_here_that_must_wait_counts_as_deferred(count: Count) -> None:
    scene = Scene(Store(RULES)).local()
    scene.session.mail(b"", [])
    scene.store.down = True
    scene.rcpt("<bob@example.com>")
    assert scene.end().reply is not None
    assert count("messages", "deferred", "deferred") == 1


@pytest.mark.parametrize(
    ("sender", "result"),
    [
        (b"<alice@bank.example>", "rewritten"),
        (b"<>", "null-sender"),
        (b"<a@b@c>", "malformed"),
        (b"<%b@bank.example>" % (b"a" * 60), "too-long"),
        (b"<alice>", "no-domain"),
        (f"<alice@{SRS}>".encode(), "own"),
    ],
)
def test_senders_of_mail_that_leaves(count: Count, sender: bytes, result: str) -> None:
    scene = Scene(Store(RULES))
    scene.send("<sales@example.com>", sender=sender)
    assert total("srs_senders") == 0
    scene.send("<out@example.com>", sender=sender)
    assert count("srs_senders", result) == total("srs_senders") == 1


def test_return_addresses(count: Count) -> None:
    scene = Scene(Store(RULES))
    good = scene.send("<out@example.com>").sender
    assert good is not None
    scene.session.mail(b"<>", [])
    scene.rcpt(good, f"<SRS0=AAAA=AA=bank.example=alice@{SRS}>")
    scene.now += 40 * 86_400
    scene.rcpt(good)
    for result in ("reversed", "forged", "expired"):
        assert count("srs_returns", result) == 1


def test_copies(count: Count) -> None:
    listener = Listener()
    scene = Scene(Store(RULES), listener=listener)
    scene.send("<both@example.com>")
    listener.fails = True
    scene.session.mail(b"<alice@bank.example>", [])
    scene.rcpt("<both@example.com>")
    scene.end()
    assert count("reinjections", "submitted") == 1
    assert count("reinjections", "failed") == 1
    assert count("messages", "deferred", "reinject-failed") == 1


def test_a_callback_that_raises_counts_with_what_it_answers(count: Count) -> None:
    for callback in ("header", "envrcpt", "eom"):
        measures.failed(callback)
    assert count("exceptions", "milter") == 3
    assert count("recipients", "deferred", Reason.INTERNAL_ERROR) == 1
    assert count("messages", "deferred", Reason.INTERNAL_ERROR) == 1
