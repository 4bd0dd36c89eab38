"""The lab itself: its servers do what the tests rely on."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis as redis_client
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.harness.daemon import Daemon
from tests.harness.lab import Lab
from tests.harness.ports import reserved_port
from tests.harness.postfix import Postfix
from tests.harness.redis import RedisServer
from tests.harness.service import children
from tests.harness.smtp import Client, message, send
from tests.harness.standin import SRS_DOMAIN, StandIn
from tests.harness.wait import LabError, LabTimeoutError, wait_until
from tests.harness.world import World

NO_RETRY = Retry(NoBackoff(), 0)


def is_gone(pid: int | str) -> bool:
    """Gone, or dead and waiting for init to notice."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state == "Z"


def open_to_postfix(milter: StandIn) -> None:
    """Postfix connects as its own user."""
    (milter.folder / "milter.sock").chmod(0o666)


@pytest.fixture(scope="module")
def standin() -> Iterator[StandIn]:
    with StandIn() as milter:
        open_to_postfix(milter)
        yield milter


@pytest.fixture(scope="module")
def shared_postfix(standin: StandIn, shared_world: World) -> Iterator[Postfix]:
    with Postfix(
        milters=[standin.socket], next_hop=shared_world.port, srs_domains=[SRS_DOMAIN]
    ) as server:
        yield server


@pytest.fixture
def postfix(shared_postfix: Postfix, world: World) -> Postfix:
    shared_postfix.purge()
    world.reset()
    return shared_postfix


def test_redis_cli_loads_a_file_and_raises_on_an_error_reply(
    redis: RedisServer, tmp_path: Path
) -> None:
    script = tmp_path / "rules.redis"
    script.write_text('HSET alias:example.com sales "bob@example.com, carol@example.com"\n')
    redis.load(script)
    assert redis.cli("HGET", "alias:example.com", "sales") == '"bob@example.com, carol@example.com"'
    script.write_text("HSET alias:example.com sales\n")
    with pytest.raises(LabError, match="wrong number of arguments"):
        redis.load(script)
    with pytest.raises(LabError, match="WRONGTYPE"):
        redis.cli("GET", "alias:example.com")


def test_redis_with_password_tls_and_users() -> None:
    users = ["reader on >read ~alias:* +@read"]
    with RedisServer(password="p@ss/word", tls=True, users=users) as server:
        for url in (server.url, server.tcp_url):
            assert redis_client.Redis.from_url(url).ping()
        tls = redis_client.Redis.from_url(server.tls_url, ssl_ca_certs=str(server.ca_file))
        assert tls.ping()
        reader = redis_client.Redis(port=server.port, username="reader", password="read")
        with pytest.raises(redis_client.exceptions.NoPermissionError):
            reader.set("alias:x", "y")
        with pytest.raises(redis_client.exceptions.AuthenticationError):
            redis_client.Redis(port=server.port, retry=NO_RETRY).ping()


def test_redis_comes_back_on_the_same_port() -> None:
    with RedisServer() as server:
        port = server.port
        assert server.stop() == 0
        with pytest.raises(LabError, match="Could not connect"):
            server.cli("PING")
        server.start()
        assert server.port == port
        assert redis_client.Redis(port=port).ping()
        server.kill()
        server.start()
        assert server.cli("PING") == "PONG"


def test_paused_redis_accepts_and_says_nothing() -> None:
    with RedisServer() as server:
        server.pause()
        client = redis_client.Redis(port=server.port, socket_timeout=0.2, retry=NO_RETRY)
        with pytest.raises(redis_client.exceptions.TimeoutError):
            client.ping()
        server.resume()
        assert server.cli("PING") == "PONG"


def test_a_server_that_cannot_start_shows_its_log() -> None:
    with pytest.raises(LabError, match="Bad directive"), RedisServer(settings=["nonsense 1"]):
        pass


def test_mail_goes_through_the_milter_to_the_world(postfix: Postfix, world: World) -> None:
    outcome = send(postfix.port, "alice@bank.example", ["alias@example.com"])
    assert outcome.accepted
    (delivery,) = world.wait_for("bob@example.com")
    assert delivery.sender == "alice@bank.example"
    assert delivery.message["X-First"] == "one"
    assert outcome.queue_id in postfix.log


def test_every_reply_comes_back_in_order(postfix: Postfix, world: World) -> None:
    recipients = {
        "unknown@example.com": 550,
        "bob@example.com": 250,
        "<a b>": 501,
        "<bob@example.com": 501,
        "me@gmail.example": 554,
        "<bob@example.com>": 250,
    }
    outcome = send(postfix.port, "alice@bank.example", list(recipients))
    assert [reply.code for reply in outcome.rcpts] == list(recipients.values())
    assert outcome.rcpts[0].text == "5.1.1 No such user here"
    assert outcome.accepted
    nobody = send(postfix.port, "alice@bank.example", ["unknown@example.com"])
    assert nobody.data is None
    refused = send(postfix.port, "<alice@", ["unknown@example.com"])
    assert (refused.mail.code, refused.rcpts) == (501, ())


def test_xclient_makes_the_client_who_the_test_says(postfix: Postfix, world: World) -> None:
    client = {"ADDR": "198.51.100.7", "NAME": "mail.bank.example", "LOGIN": "bob"}
    send(postfix.port, "alice@bank.example", ["bob@example.com"], xclient=client)
    (delivery,) = world.wait_for("bob@example.com")
    assert "mail.bank.example [198.51.100.7]" in str(delivery.message["Received"])
    assert "sasl_username=bob" in postfix.log


def test_content_arrives_byte_for_byte(postfix: Postfix, world: World) -> None:
    body = b".\r\n..two\r\n" + b"x" * 5000 + b"\r\n\xe4\xff 8-bit\r\n\r\n \t\r\nend\r\n"
    content = message(to="bob@example.com", body=body)
    send(postfix.port, "alice@bank.example", ["bob@example.com"], content)
    (delivery,) = world.wait_for("bob@example.com")
    assert delivery.content.endswith(b"\r\n\r\n" + body)
    assert b"\r\nSubject: Hello\r\n" in delivery.content


def test_envelope_parameters_arrive_as_sent(postfix: Postfix, world: World) -> None:
    send(
        postfix.port,
        "alice@bank.example",
        ['"b <o> b"@example.com', "bob@example.com"],
        mail_options=["RET=HDRS", "ENVID=QQ314159", "BODY=8BITMIME"],
        rcpt_options=["NOTIFY=FAILURE,DELAY", "ORCPT=rfc822;Bob@Example.com"],
    )
    (delivery,) = world.wait_for("bob@example.com")
    assert {"RET=HDRS", "ENVID=QQ314159"} < set(delivery.mail_options)
    assert set(delivery.rcpt_options) == {"NOTIFY=FAILURE,DELAY", "ORCPT=rfc822;Bob@Example.com"}
    world.wait_for('"b <o> b"@example.com')


def test_smtputf8_goes_through(postfix: Postfix, world: World) -> None:
    send(
        postfix.port,
        "j\u00f6rg@b\u00fccher.example",
        ["b\u00f6b@example.com"],
        mail_options=["SMTPUTF8"],
    )
    (delivery,) = world.wait_for("b\u00f6b@example.com")
    assert delivery.sender == "j\u00f6rg@b\u00fccher.example"
    assert "SMTPUTF8" in delivery.mail_options


@pytest.mark.parametrize("stage", ["MAIL", "RCPT", "DATA"])
def test_world_refuses_for_a_time(postfix: Postfix, world: World, stage: str) -> None:
    world.refuse("450 4.2.0 Later", sender="alice@bank.example", stage=stage, times=1)  # type: ignore[arg-type]
    send(postfix.port, "alice@bank.example", ["bob@example.com"])
    wait_until(lambda: [m.queue for m in postfix.queue()] == ["deferred"], "it is deferred")
    assert "450 4.2.0 Later" in postfix.queue()[0].delays[0]
    postfix.flush()
    world.wait_for("bob@example.com")
    postfix.wait_until_empty()


def test_bounce_of_postfix_comes_back_through_the_srs_listener(
    postfix: Postfix, world: World
) -> None:
    world.refuse("550 5.7.1 Not here", recipient="me@gmail.example")
    send(postfix.port, "alice@bank.example", ["forward@example.com"])
    (bounce,) = world.wait_for("alice@bank.example")
    assert bounce.sender == ""
    assert b"550 5.7.1 Not here" in bounce.content
    postfix.wait_until_empty()
    assert [delivery.recipient for delivery in world.deliveries] == ["alice@bank.example"]


def test_hold_queue_and_release(postfix: Postfix, world: World) -> None:
    outcome = send(postfix.port, "alice@bank.example", ["hold@example.com"])
    (held,) = wait_until(postfix.queue, "it is in the queue")
    assert (held.queue, held.id) == ("hold", outcome.queue_id)
    assert (held.sender, held.recipients) == ("alice@bank.example", ("hold@example.com",))
    postfix.postsuper("-H", held.id)
    world.wait_for("hold@example.com")


def test_rset_and_a_second_message_on_one_connection(postfix: Postfix, world: World) -> None:
    with Client(postfix.port) as client:
        assert client.command("MAIL FROM:<mallory@bank.example>").ok
        assert client.command("RSET").ok
        for name in ("bob", "carol"):
            assert client.send("alice@bank.example", [f"{name}@example.com"], message()).accepted
    world.wait_for_total(2)
    assert {delivery.sender for delivery in world.deliveries} == {"alice@bank.example"}


def test_milter_away_is_a_temporary_failure(world: World) -> None:
    with Postfix(milters=["unix:/nonexistent"], next_hop=world.port) as server:
        outcome = send(server.port, "alice@bank.example", ["bob@example.com"])
        assert outcome.mail.code == 451
        assert server.queue() == []


def test_reinject_listener_has_no_milter(world: World) -> None:
    with (
        reserved_port() as port,
        Postfix(milters=["unix:/nonexistent"], next_hop=world.port, reinject_port=port) as server,
    ):
        assert server.reinject_port is not None
        outcome = send(server.reinject_port, "alice@bank.example", ["me@gmail.example"], xclient={})
        assert outcome.accepted
        world.wait_for("me@gmail.example")


def test_daemon_starts_reloads_and_ends(redis: RedisServer) -> None:
    with Daemon(redis.url, {"milter": {"workers": 3}}) as daemon:
        before = daemon.workers
        assert len(before) == 3
        daemon.write_config({"milter": {"workers": 1}})
        daemon.reload()
        wait_until(lambda: len(set(daemon.workers) - set(before)) == 1, "a new worker is there")
        wait_until(lambda: len(daemon.workers) == 1, "the old workers are gone", timeout=30)
        assert daemon.stop() == 0
        daemon.start()
        assert daemon.run("srs", "forward", "alice@bank.example").stdout.startswith("SRS0=")
        daemon.kill()
        assert not daemon.running


def test_daemon_with_a_broken_configuration_shows_why(redis: RedisServer) -> None:
    with (
        pytest.raises(LabError, match=r"status 2[^$]*colour"),
        Daemon(redis.url, {"log": {"colour": True}}),
    ):
        pass


def test_lab_over_tcp_with_a_reinject_listener(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(inet=True, reinject=True)
    lab.rules(
        "HSET domain:example.com unknown reject",
        'HSET alias:example.com bob bob@example.com sales "bob@example.com me@gmail.example"',
    )
    assert lab.send("alice@bank.example", "sales@example.com").accepted
    lab.settle()
    assert {(found.sender[:4], found.recipient) for found in lab.world.deliveries} == {
        ("alic", "bob@example.com"),
        ("SRS0", "me@gmail.example"),
    }
    lab.reset()
    assert lab.redis.cli("DBSIZE") == "(integer) 0"
    assert lab.world.deliveries == []


def test_timeouts_say_what_is_there_instead(world: World) -> None:
    with pytest.raises(LabTimeoutError, match="arrived: nothing"):
        world.wait_for("nobody@example.com", timeout=0.1)
    send(world.port, "alice@bank.example", ["bob@example.com"])
    with pytest.raises(LabTimeoutError, match=r"<alice@bank\.example> to <bob@example\.com>"):
        world.wait_for("nobody@example.com", timeout=0.1)


def test_nothing_is_left_when_a_test_fails(world: World) -> None:
    class TestError(Exception):
        pass

    with (
        pytest.raises(TestError),
        StandIn() as milter,
        RedisServer() as server,
        Postfix(milters=[milter.socket], next_hop=world.port) as mta,
    ):
        folders = [milter.folder, server.folder, mta.folder]
        wait_until(lambda: len(children(mta.pid)) >= 2, "Postfix has started its own servers")
        processes = [milter.pid, server.pid, mta.pid, *children(mta.pid)]
        raise TestError
    assert len(processes) > 4
    wait_until(lambda: all(is_gone(pid) for pid in processes), "the servers are gone")
    assert not [folder for folder in folders if folder.exists()]


def test_nothing_is_left_running_when_the_tests_are_killed() -> None:
    code = (
        "import time\n"
        "from tests.harness.postfix import Postfix\n"
        "from tests.harness.redis import RedisServer\n"
        "with RedisServer() as r, Postfix(next_hop=1) as p:\n"
        "    print(r.folder, p.folder, r.pid, p.pid, flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
    ) as tests:  # fmt: skip
        assert tests.stdout is not None
        *folders, redis_pid, postfix_pid = tests.stdout.readline().split()
        tests.kill()
    wait_until(lambda: is_gone(redis_pid) and is_gone(postfix_pid), "the servers are gone")
    wait_until(lambda: not any(Path(folder).exists() for folder in folders), "so are the folders")
