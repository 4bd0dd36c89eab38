"""docs/sendmail.md, section 6: the lookup tables, asked by a real Sendmail."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator

import pytest

from tests.harness.lab import Lab
from tests.harness.sendmail import Sendmail
from tests.harness.sendmail_document import blocks
from tests.harness.smtp import Client
from tests.harness.wait import wait_until

ALICE = "alice@bank.example"
BOB = "bob@example.com"
FORWARDED = "me@gmail.example"
RULES = (
    "HSET domain:example.com unknown reject",
    "HSET alias:example.com bob bob@example.com sales bob@example.com out me@gmail.example",
)


class MapLab(Lab):
    """A lab whose Sendmail has no list of domains, and no way back but the tables."""

    def __init__(self) -> None:
        listen = tomllib.loads(blocks()["socketmap"])["socketmap"]["listen"]
        self.socket_name = listen.rpartition("/")[2]
        config = {"listen": f"unix:{self.socket_name}"}
        super().__init__(
            {"socketmap": config, "store": {"timeout": 0.5}}, mta="sendmail", reinject=True
        )

    def make_mta(self, reinject_port: int | None) -> Sendmail:
        return Sendmail(
            milters=[self.daemon.endpoint],
            next_hop=self.world.port,
            srs_domains=self.srs_domains,
            reinject_port=reinject_port,
            maps=f"unix:{self.daemon.folder}/{self.socket_name}",
        )


@pytest.fixture
def lab() -> Iterator[MapLab]:
    with MapLab() as scene:
        scene.rules(*RULES)
        yield scene


def test_a_new_domain_is_taken_with_no_reload_and_others_are_not(lab: MapLab) -> None:
    assert lab.send(ALICE, "sales@example.com").accepted
    lab.world.wait_for(BOB)
    for foreign in ("bob@fresh.example", "x@sub.example.com", "me@gmail.example"):
        reply = lab.send(ALICE, foreign).rcpt
        assert (reply.code, reply.text.endswith("Relaying denied")) == (550, True)
    assert str(lab.send(ALICE, "nobody@example.com").rcpt).startswith("550 5.1.1")
    lab.rules("HSET domain:fresh.example alias_of example.com")
    assert lab.send(ALICE, "Sales@Fresh.example").accepted
    lab.world.wait_for(BOB, count=2)


def test_a_bounce_of_this_host_reaches_the_sender_by_lookup_alone(lab: MapLab) -> None:
    lab.world.refuse("550 5.7.1 Not here", recipient=FORWARDED)
    assert lab.send(ALICE, "out@example.com", "sales@example.com").accepted
    (bounce,) = lab.world.wait_for(ALICE)
    assert bounce.sender == ""
    assert b"550 5.7.1 Not here" in bounce.content
    lab.settle()
    assert sorted(d.recipient for d in lab.world.deliveries) == [ALICE, BOB]


def test_a_bounce_from_outside_is_turned_back_once_by_milter_and_table_together(
    lab: MapLab,
) -> None:
    assert lab.send(ALICE, "out@example.com").accepted
    (forwarded,) = lab.world.wait_for(FORWARDED)
    assert lab.send("", forwarded.sender).accepted
    lab.world.wait_for(ALICE)
    lab.settle()
    assert len(lab.world.deliveries) == 2
    forged = forwarded.sender.replace("=alice@", "=mallory@")
    assert str(lab.send("", forged).rcpt).startswith("550 5.7.1")


def test_redis_away_is_a_temporary_failure_and_the_queue_waits(lab: MapLab) -> None:
    lab.world.refuse("450 4.2.0 Later", recipient=BOB, times=1)
    assert lab.send(ALICE, "sales@example.com").accepted
    lab.redis.stop()
    for address in ("sales@example.com", "me@gmail.example"):
        assert str(lab.send(ALICE, address).mail).startswith("451 4.3.0")
        assert str(lab.send("", address).rcpt).startswith("451 4.3.0")
    lab.redis.start()
    lab.rules(*RULES)
    lab.world.wait_for(BOB)
    assert lab.send(ALICE, "sales@example.com").accepted


def test_the_daemon_away_is_a_temporary_failure_and_bounces_wait(lab: MapLab) -> None:
    lab.world.refuse("450 4.2.0 Later", recipient=FORWARDED, times=1)
    lab.world.refuse("550 5.7.1 Not here", recipient=FORWARDED)
    assert lab.send(ALICE, "out@example.com").accepted
    lab.daemon.kill()
    assert lab.send(ALICE, "sales@example.com").mail.code == 451
    wait_until(lab.mta.queue, "something waits")
    lab.daemon.start()
    (bounce,) = lab.world.wait_for(ALICE)
    assert b"550 5.7.1 Not here" in bounce.content


def test_a_session_that_has_asked_goes_on_over_a_reload_of_the_daemon(lab: MapLab) -> None:
    with Client(lab.mta.port, xclient={}) as client:
        assert client.command(f"MAIL FROM:<{ALICE}>").ok
        assert client.command("RCPT TO:<sales@example.com>").ok
        lab.daemon.reload()
        wait_until(lambda: "reloaded" in lab.daemon.log, "the daemon has reloaded")
        wait_until(lambda: len(lab.daemon.workers) <= 5, "the idle milter worker leaves", 15)
        assert str(client.command(f"RCPT TO:<{BOB}>")).startswith("250")
        assert str(client.command("RCPT TO:<nobody@example.com>")).startswith("550 5.1.1")
