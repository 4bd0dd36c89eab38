"""alias-milter itself on a real Sendmail, both set up by docs/sendmail.md.

What it does on either MTA is tested in test_aliases.py and others that name both in MTAS.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from tests.harness.daemon import Daemon
from tests.harness.ports import reserved_port
from tests.harness.redis import RedisServer
from tests.harness.sendmail import Delivery, Sendmail
from tests.harness.sendmail_document import blocks
from tests.harness.smtp import Outcome, send
from tests.harness.wait import wait_until
from tests.harness.world import World

RULES = """\
HSET domain:example.com unknown reject
HSET alias:example.com bob bob@example.com sales bob@example.com out me@gmail.example
HSET alias:example.com both "bob@example.com, me@gmail.example" off disabled
HSET alias:example.com loop1 loop2@example.com loop2 loop1@example.com * quarantine
"""
ALICE = "alice@bank.example"
BOB = "bob@example.com"
FORWARDED = "me@gmail.example"


@dataclass
class Scene:
    """Redis with RULES, the daemon, Sendmail, and the world."""

    redis: RedisServer
    daemon: Daemon
    sendmail: Sendmail
    world: World

    def send(self, *recipients: str) -> Outcome:
        """Send a message from ALICE, as a client outside."""
        return send(self.sendmail.port, ALICE, recipients)

    def settle(self) -> dict[str, str]:
        """Wait until Sendmail has nothing to do; return who got mail from which sender."""
        self.sendmail.wait_until_empty()
        return {one.recipient: one.sender for one in self.world.deliveries}


def start(stack: ExitStack, delivery: Delivery = "relay", **sections: dict[str, Any]) -> Scene:
    """Start all of it; `sections` go on top of the document's configuration."""
    redis = stack.enter_context(RedisServer())
    redis.cli(stdin=RULES)
    world = stack.enter_context(World())
    port = stack.enter_context(reserved_port())
    documented: dict[str, dict[str, Any]] = tomllib.loads(blocks()["daemon"])
    # The one of the lab.
    del documented["milter"]["socket"]
    documented["reinject"]["server"] = f"127.0.0.1:{port}"
    daemon = stack.enter_context(Daemon(redis.url, documented | sections))
    sendmail = Sendmail(
        milters=[daemon.endpoint],
        next_hop=world.port,
        relay_domains=["example.com"],
        srs_domains=[documented["srs"]["domain"]],
        reinject_port=port,
        delivery=delivery,
    )
    return Scene(redis, daemon, stack.enter_context(sendmail), world)


@pytest.fixture(scope="module")
def shared_scene() -> Iterator[Scene]:
    with ExitStack() as stack:
        yield start(stack)


@pytest.fixture
def scene(shared_scene: Scene) -> Scene:
    # The copies that are remembered for retries: the tests send the same message again and again.
    shared_scene.redis.flush()
    shared_scene.redis.cli(stdin=RULES)
    shared_scene.sendmail.purge()
    shared_scene.world.reset()
    return shared_scene


@pytest.mark.parametrize(
    ("local_part", "reply"),
    [
        ("off", "550 5.2.1"),
        ("loop1", "451 4.4.6"),
        ("SRS0=xxxx=yy=bank.example=alice@fwd.example.net", "550 5.7.1"),
    ],
)
def test_the_reply_to_a_recipient(scene: Scene, local_part: str, reply: str) -> None:
    address = local_part if "@" in local_part else f"{local_part}@example.com"
    (answer,) = scene.send(address).rcpts
    assert str(answer).startswith(reply)


def test_who_stays_keeps_the_sender_and_who_leaves_gets_srs(scene: Scene) -> None:
    assert scene.send("sales@example.com", "out@example.com").accepted
    senders = scene.settle()
    assert senders.keys() == {BOB, FORWARDED}
    assert senders[BOB] == ALICE
    assert senders[FORWARDED].endswith("=bank.example=alice@fwd.example.net")


def test_a_refused_forward_comes_back_to_the_original_sender(scene: Scene) -> None:
    scene.world.refuse("550 5.7.1 Not wanted", recipient=FORWARDED)
    assert scene.send("sales@example.com", "out@example.com").accepted
    (bounce,) = scene.world.wait_for(ALICE)
    assert bounce.sender == ""
    assert b"5.7.1 Not wanted" in bounce.content
    scene.settle()
    assert len(scene.world.deliveries) == 2


def test_mailboxes_on_this_host_get_their_mail_from_the_local_mailer() -> None:
    with ExitStack() as stack:
        scene = start(stack, delivery="local")
        assert scene.send("sales@example.com", "out@example.com").accepted
        (mail,) = wait_until(lambda: scene.sendmail.mailbox("bob"), "bob has mail")
        assert mail.startswith(f"X-Envelope-From: {ALICE}\n".encode())
        (copy,) = scene.world.wait_for(FORWARDED)
        assert copy.sender.startswith("SRS0=")
