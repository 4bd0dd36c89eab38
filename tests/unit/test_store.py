"""The store: three answers that are never mixed up, and never later than the deadline."""

from __future__ import annotations

import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing

import pytest

from aliasmilter.mail.address import Address
from aliasmilter.redisurl import Endpoint
from aliasmilter.routing.lookup import Absent, Answer, Found, Unavailable, Unreadable, fields_for
from aliasmilter.store import redis as store_module
from aliasmilter.store.deadline import Deadline
from aliasmilter.store.link import Command, Door, Link, Reply
from aliasmilter.store.questions import Asked, Questions
from aliasmilter.store.redis import WITNESSES, AliasStore
from aliasmilter.store.servers import Pool, Single
from aliasmilter.store.snapshot import page
from tests.harness.fake_redis import FakeRedis, Proxy
from tests.harness.redis import RedisServer
from tests.harness.wait import wait_until
from tests.unit.fakes import no_thread_left

TIMEOUT = 0.4
# What a deadline may be late by on a busy machine.
SLACK = 0.6

BOB = Address("bob", "example.com")
CAROL = Address("carol", "example.com")
FOREIGN = Address("me", "gmail.example")

OpenStore = Callable[..., AliasStore]


@pytest.fixture
def open_store() -> Iterator[OpenStore]:
    """`open_store(url)`: an AliasStore that is closed after the test."""
    with ExitStack() as stack:
        yield lambda url, timeout=TIMEOUT: stack.enter_context(closing(AliasStore(url, timeout)))


@pytest.fixture
def rules(redis: RedisServer) -> RedisServer:
    """A server that manages example.com, with rules for bob and the catch-all."""
    redis.cli("HSET", "domain:example.com", "unknown", "reject")
    redis.cli("HSET", "alias:example.com", "bob", "bob@example.com", "*", "quarantine")
    return redis


def found(answer: Answer) -> Found:
    assert isinstance(answer, Found)
    return answer


def why(store: AliasStore, *addresses: Address) -> str:
    """Why the store is unavailable, which it has to say in time."""
    start = time.monotonic()
    with pytest.raises(Unavailable) as caught:
        store.lookup(addresses or [BOB])
    assert time.monotonic() - start < TIMEOUT + SLACK
    return str(caught.value)


# What is there


def test_a_managed_domain_is_found_with_its_settings_and_the_rules_that_can_match(
    rules: RedisServer, open_store: OpenStore
) -> None:
    store = open_store(rules.url)
    answer = found(store.lookup([BOB])[0])
    assert answer.settings == {b"unknown": b"reject"}
    assert answer.rules == {"bob": b"bob@example.com", "*": b"quarantine"}


def test_a_managed_domain_without_a_rule_for_the_address_is_found_all_the_same(
    redis: RedisServer, open_store: OpenStore
) -> None:
    redis.cli("HSET", "domain:example.com", "unknown", "reject")
    assert found(open_store(redis.url).lookup([BOB])[0]).rules == {}


def test_rules_without_a_domain_key_manage_nothing(
    redis: RedisServer, open_store: OpenStore
) -> None:
    redis.cli("HSET", "alias:example.com", "bob", "eve@evil.example")
    assert open_store(redis.url).lookup([BOB]) == [Absent()]


def test_each_address_gets_its_own_answer_in_the_order_asked(
    rules: RedisServer, open_store: OpenStore
) -> None:
    first, second, third = open_store(rules.url).lookup([FOREIGN, BOB, CAROL])
    assert first == Absent()
    assert set(found(second).rules) == {"bob", "*"}
    assert set(found(third).rules) == {"*"}


def test_what_only_the_mta_can_manage_is_never_asked_for(open_store: OpenStore) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        store = open_store(f"redis://127.0.0.1:{nobody.getsockname()[1]}/0")
    asked = [Address("postmaster", ""), Address("bob", "[192.0.2.1]")]
    assert store.lookup(asked) == [Absent(), Absent()]


def test_a_rule_is_handed_over_byte_for_byte(redis: RedisServer, open_store: OpenStore) -> None:
    redis.cli("HSET", "domain:example.com", "unknown", "reject")
    redis.cli(stdin='HSET alias:example.com bob "\\xff\\x00"\n')
    assert found(open_store(redis.url).lookup([BOB])[0]).rules == {"bob": b"\xff\x00"}


@pytest.mark.parametrize("key", ["domain:example.com", "alias:example.com"])
def test_a_key_of_another_type_is_unreadable_and_no_other_answer_suffers(
    rules: RedisServer, open_store: OpenStore, key: str
) -> None:
    rules.cli("SET", key, "a string")
    rules.cli("HSET", "domain:new.example", "unknown", "pass")
    broken, fine = open_store(rules.url).lookup([BOB, Address("x", "new.example")])
    assert broken == Unreadable(key, "holds another type than a hash")
    assert found(fine).settings == {b"unknown": b"pass"}


def test_an_edit_holds_for_the_next_lookup(rules: RedisServer, open_store: OpenStore) -> None:
    store = open_store(rules.url)
    assert store.lookup([FOREIGN, CAROL])[0] == Absent()
    rules.cli("HSET", "domain:gmail.example", "unknown", "pass")
    rules.cli("HSET", "alias:example.com", "carol", "discard")
    foreign, carol = store.lookup([FOREIGN, CAROL])
    assert found(foreign).settings == {b"unknown": b"pass"}
    assert found(carol).rules["carol"] == b"discard"
    rules.cli("DEL", "domain:gmail.example")
    assert store.lookup([FOREIGN]) == [Absent()]


def test_a_lookup_takes_one_round_trip_however_many_addresses_it_asks_for(
    rules: RedisServer, open_store: OpenStore
) -> None:
    with Proxy(rules.port) as proxy:
        store = open_store(proxy.url)
        store.lookup([BOB])
        before = proxy.round_trips
        many = [Address(f"user+{n}", f"d{n}.example") for n in range(100)]
        store.lookup([BOB, CAROL, FOREIGN, *many])
        assert proxy.round_trips - before == 1


def test_threads_that_ask_at_once_all_get_their_own_answers(
    redis: RedisServer, open_store: OpenStore
) -> None:
    names = [f"user{n}" for n in range(200)]
    redis.cli("HSET", "domain:example.com", "unknown", "reject")
    redis.cli("HSET", "alias:example.com", *(w for n in names for w in (n, f"{n}@b.example")))
    store = open_store(redis.url, 10.0)
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda n: store.lookup([Address(n, "example.com")]), names))
    assert [found(a[0]).rules for a in answers] == [{n: f"{n}@b.example".encode()} for n in names]


# The ways there


def test_tcp_unix_and_tls_sockets_work_with_and_without_a_password(open_store: OpenStore) -> None:
    with RedisServer(password="p@ss/w:rd", tls=True) as server:
        server.cli("HSET", "domain:example.com", "unknown", "reject")
        ca = f"?ssl_ca_certs={server.ca_file}"
        for url in (server.url, server.tcp_url, server.tls_url + ca):
            assert found(open_store(url, 10.0).lookup([BOB])[0])
        assert "NOAUTH" in why(open_store(f"redis://127.0.0.1:{server.port}/0"))
        assert "invalid username-password" in why(open_store(server.url.replace("p%40ss", "pass")))
        assert "CERTIFICATE_VERIFY_FAILED" in why(open_store(server.tls_url))


def test_a_database_number_in_the_url_is_taken(redis: RedisServer, open_store: OpenStore) -> None:
    redis.cli(stdin="SELECT 3\nHSET domain:example.com unknown reject\n")
    assert open_store(redis.url).lookup([BOB]) == [Absent()]
    assert found(open_store(redis.url.replace("db=0", "db=3")).lookup([BOB])[0])
    assert found(open_store(redis.tcp_url.replace("/0", "/3")).lookup([BOB])[0])


# What can go wrong


def test_a_server_that_refuses_connections_is_unavailable_at_once(open_store: OpenStore) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        store = open_store(f"redis://127.0.0.1:{nobody.getsockname()[1]}/0")
        start = time.monotonic()
        assert "Connection refused" in why(store)
        assert time.monotonic() - start < TIMEOUT / 2


def test_a_unix_socket_that_is_not_there_is_unavailable(open_store: OpenStore) -> None:
    assert "No such file" in why(open_store("unix:///nonexistent/redis.sock"))


def test_a_host_name_that_does_not_exist_is_unavailable(open_store: OpenStore) -> None:
    assert why(open_store("redis://redis.invalid:6379/0"))


def test_a_host_name_is_looked_up_again_when_there_are_threads_again(
    rules: RedisServer, open_store: OpenStore
) -> None:
    store = open_store(f"redis://localhost:{rules.port}/0", 5.0)
    with no_thread_left(), pytest.raises(Unavailable, match="can't start new thread"):
        store.lookup([BOB])
    assert found(store.lookup([BOB])[0]).rules["bob"] == b"bob@example.com"


def test_whatever_the_resolver_raises_is_told_to_who_waits_and_it_is_asked_again(
    rules: RedisServer, open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(f"redis://localhost:{rules.port}/0", 5.0)

    def getaddrinfo(*_: object, **__: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", getaddrinfo)
        with pytest.raises(MemoryError):
            store.lookup([BOB])
    assert found(store.lookup([BOB])[0]).rules["bob"] == b"bob@example.com"


def test_a_server_that_never_accepts_is_unavailable_in_time(open_store: OpenStore) -> None:
    with socket.socket() as full, ExitStack() as stack:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(3):  # the queue of connections nobody accepts
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        assert why(open_store(f"redis://127.0.0.1:{full.getsockname()[1]}/0"))


@pytest.mark.parametrize("greets", [True, False], ids=["after-the-greeting", "from-the-start"])
def test_a_server_that_hangs_is_unavailable_in_time(open_store: OpenStore, greets: bool) -> None:
    with FakeRedis(None, greets=greets) as server:
        store = open_store(server.url)
        assert why(store)
        assert why(store), "the second time as well"


@pytest.mark.parametrize("greets", [True, False], ids=["after-the-greeting", "from-the-start"])
def test_a_server_that_answers_in_drops_is_unavailable_in_time(
    open_store: OpenStore, greets: bool
) -> None:
    # Each read succeeds within the time limit of a read: only a deadline for all ends this.
    with FakeRedis(b"*0\r\n" * 3, pause=0.2, greets=greets) as server:
        assert "no answer within 0.4 s" in why(open_store(server.url))


def test_a_server_whose_greeting_and_answer_add_up_to_too_long_is_unavailable_in_time(
    redis: RedisServer, open_store: OpenStore
) -> None:
    with Proxy(redis.port, delay=0.25) as proxy:
        assert why(open_store(proxy.url))


@pytest.mark.parametrize(
    "answer",
    [
        b"220 mx.example.net ESMTP\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x00\xff\xfe\r\n",
        b"*-7\r\n", b"$99999999999999\r\n", b"*1\r\n$1\r\nx\r\n", b":7\r\n", b"+OK\r\n", b"$-1\r\n",
        b"*-1\r\n",
    ],
)  # fmt: skip
@pytest.mark.parametrize("greets", [True, False], ids=["after-the-greeting", "from-the-start"])
def test_an_answer_that_is_no_answer_makes_the_store_unavailable(
    open_store: OpenStore, answer: bytes, greets: bool
) -> None:
    with FakeRedis(answer, greets=greets) as server:
        assert why(open_store(server.url))


@pytest.mark.parametrize("reply", [b"OK", None, [], [b"0"], [b"0", b"x"], [b"0", [], []]])
def test_no_rule_is_missed_by_an_answer_to_another_question(reply: Reply) -> None:
    with pytest.raises(Unavailable, match="another question"):
        page(reply)


NO_RULES = [None] * len(fields_for("bob"))


@pytest.mark.parametrize(
    "replies",
    [
        [[b"unknown"], 0, NO_RULES],
        [[[b"unknown"], b"pass"], 0, NO_RULES],
        [b"OK", 0, NO_RULES],
        [[], 0, NO_RULES[1:]],
        [[], 0, [*NO_RULES, None]],
        [[], 0, b"OK"],
        [[], 2, NO_RULES],
        [[], b"OK", NO_RULES],
    ],
)
def test_no_domain_is_absent_by_an_answer_to_another_question(replies: list[Reply]) -> None:
    with pytest.raises(Unavailable, match="another question"):
        Questions([BOB]).answers(replies)


@pytest.mark.parametrize(
    "error",
    [
        "LOADING Redis is loading the dataset in memory", "NOAUTH Authentication required.",
        "READONLY You can't write against a read only replica.",
        "OOM command not allowed when used memory > 'maxmemory'.",
        "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
        "CLUSTERDOWN The cluster is down", "MOVED 1234 192.0.2.1:6379", "NOPERM no permission",
        "BUSY Redis is busy running a script", "ERR unknown command", "MISCONF no disk",
        "ERR max number of clients reached",
    ],
)  # fmt: skip
@pytest.mark.parametrize("greets", [True, False], ids=["after-the-greeting", "from-the-start"])
def test_an_error_of_the_server_is_unavailable_and_its_words_are_handed_on(
    open_store: OpenStore, error: str, greets: bool
) -> None:
    with FakeRedis(f"-{error}\r\n".encode(), greets=greets) as server:
        assert error in why(open_store(server.url))


def test_one_error_among_good_answers_is_unavailable(open_store: OpenStore) -> None:
    with RedisServer(users=["default on nopass ~domain:* +@all"]) as server:
        assert "permission" in why(open_store(server.url))


# What is known while it is away, and the way back


def test_a_domain_known_as_unmanaged_stays_so_while_the_store_is_away(
    open_store: OpenStore,
) -> None:
    with RedisServer() as server:
        server.cli("HSET", "domain:example.com", "unknown", "reject")
        store = open_store(server.url)
        store.lookup([FOREIGN, BOB])
        server.kill()
        assert store.lookup([FOREIGN, Address("other", "gmail.example")]) == [Absent(), Absent()]
        assert why(store, BOB), "a managed domain is none of them"
        assert why(store, Address("x", "never-seen.example"))
        assert why(store, FOREIGN, BOB), "one of them unknown, and nothing is known"


def test_a_domain_that_is_back_when_the_others_are_asked_for_was_not_removed(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RedisServer() as server:
        fill = [f"HSET domain:{d} unknown reject" for d in ("example.com", "other.example")]
        server.cli(stdin="\n".join(fill) + "\n")
        store = open_store(server.url)
        store.lookup([BOB, Address("x", "other.example")])
        server.flush()
        real = Single.ask

        def filling(self: Single, commands: Sequence[Command], deadline: Deadline) -> list[Reply]:
            if commands[0][0] == "EXISTS":  # between the two questions
                server.cli(stdin="\n".join(["MULTI", *fill, "EXEC"]) + "\n")
            return real(self, commands, deadline)

        monkeypatch.setattr(Single, "ask", filling)
        assert "example.com was away, and is back" in why(store, BOB)
        assert found(store.lookup([BOB])[0])


def test_while_a_store_that_lost_its_data_is_filled_again_what_is_missing_is_not_removed(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RedisServer() as server:
        for domain in ("example.com", "other.example"):
            server.cli("HSET", f"domain:{domain}", "unknown", "reject")
        store = open_store(server.url)
        store.lookup([BOB, Address("x", "other.example")])
        server.flush()
        assert "has it lost its data?" in why(store, BOB)
        server.cli("HSET", "domain:other.example", "unknown", "reject")
        assert "is it being filled again?" in why(store, BOB)
        monkeypatch.setattr(store_module, "REFILLED", 0.0)
        assert store.lookup([BOB]) == [Absent()], "in the end it was removed"


def test_many_domains_that_were_met_last_can_be_removed_together(
    redis: RedisServer, open_store: OpenStore
) -> None:
    redis.cli(stdin="".join(f"HSET domain:old{n}.example unknown reject\n" for n in range(500)))
    store = open_store(redis.url)
    store.learn()
    last = [f"new{n}.example" for n in range(WITNESSES + 10)]
    redis.cli(stdin="".join(f"HSET domain:{domain} unknown reject\n" for domain in last))
    store.lookup([Address("bob", domain) for domain in last])
    redis.cli("DEL", *(f"domain:{domain}" for domain in last))
    for domain in last:
        assert store.lookup([Address("bob", domain)]) == [Absent()]


def test_a_domain_that_became_managed_is_no_longer_known_as_unmanaged(
    open_store: OpenStore,
) -> None:
    with RedisServer() as server:
        store = open_store(server.url)
        assert store.lookup([BOB]) == [Absent()]
        server.cli("HSET", "domain:example.com", "unknown", "reject")
        assert found(store.lookup([BOB])[0])
        server.kill()
        assert why(store, BOB)


def test_a_domain_whose_key_cannot_be_read_is_no_longer_known_as_unmanaged(
    open_store: OpenStore,
) -> None:
    with RedisServer() as server:
        store = open_store(server.url)
        assert store.lookup([BOB]) == [Absent()]
        server.cli("SET", "domain:example.com", "x")
        store.lookup([BOB])
        server.kill()
        assert why(store, BOB)


def test_what_is_remembered_of_unmanaged_domains_is_bounded(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "MAX_KNOWN_UNMANAGED", 10)
    with RedisServer() as server:
        store = open_store(server.url)
        for n in range(20):
            store.lookup([Address("x", f"d{n}.example")])
        server.kill()
        assert why(store, Address("x", "d9.example"))
        assert store.lookup([Address("x", "d10.example")]) == [Absent()]


def test_threads_that_get_to_know_many_managed_domains_at_once_do_not_disturb_each_other(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "MAX_KNOWN_MANAGED", 10)
    store = open_store("redis://127.0.0.1:1/0")
    managed = [Asked(Found({b"unknown": b"reject"}, {}), lasts=False)]

    def get_to_know(thread: int) -> None:
        for number in range(20_000):
            store._noted([Address("a", f"{thread}-{number}.example")], managed, Deadline(60))

    switches = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(get_to_know, range(8)))
    finally:
        sys.setswitchinterval(switches)
    assert len(store._managed) <= 10


def test_a_connection_given_back_while_all_are_dropped_is_not_used_again(
    redis: RedisServer,
) -> None:
    pool = Pool(Endpoint("127.0.0.1", redis.port), Door())

    class Idle(deque[Link]):
        def __len__(self) -> int:  # another thread gets its turn here
            pool.drop()
            return super().__len__()

    with closing(pool.take(Deadline(5))) as link:
        pool._idle = Idle()
        pool.give(link)
        with closing(pool.take(Deadline(5))) as other:
            assert other is not link
            assert other.generation == 1


def test_the_store_works_again_with_the_first_lookup_after_a_restart(
    open_store: OpenStore,
) -> None:
    with RedisServer() as server:
        store = open_store(server.url, 5.0)
        with ThreadPoolExecutor(8) as pool:  # several idle connections, all of which will be dead
            list(pool.map(store.lookup, [[BOB]] * 50))
        server.kill()
        server.start()
        server.cli("HSET", "domain:example.com", "unknown", "reject")
        for _ in range(20):
            assert found(store.lookup([BOB])[0])


def test_a_late_answer_is_never_taken_for_that_of_another_question(open_store: OpenStore) -> None:
    with RedisServer() as server:
        server.cli("HSET", "domain:example.com", "unknown", "reject")
        store = open_store(server.url)
        for _ in range(3):
            assert found(store.lookup([BOB])[0])
            server.pause()
            assert why(store, BOB)
            server.resume()
            wait_until(lambda: server.cli("PING") == "PONG", "Redis goes on")
            assert store.lookup([FOREIGN]) == [Absent()]


def test_lookups_that_hang_leave_no_connections_behind(open_store: OpenStore) -> None:
    def connections() -> int:
        return server.cli("CLIENT", "LIST").count("name=alias-milter")

    with RedisServer() as server:
        store = open_store(server.url)
        server.pause()
        for _ in range(5):
            assert why(store)
        server.resume()
        store.lookup([BOB])
        wait_until(lambda: connections() == 1, "one connection is left")


# What a retry of the sender is recognised by


def test_submissions_are_known_once_they_are_remembered_and_for_a_day(
    redis: RedisServer, open_store: OpenStore
) -> None:
    store = open_store(redis.url)
    assert store.known(["a", "b"]) == set()
    store.remember(["a"])
    assert store.known(["a", "b"]) == {"a"}
    assert 86_000 < int(redis.cli("TTL", "reinjected:a").removeprefix("(integer) ")) <= 86_400
    store.forget(["a", "b"])
    assert store.known(["a", "b"]) == set()


def test_remembering_and_knowing_are_unavailable_like_a_lookup(open_store: OpenStore) -> None:
    for answer in (None, b"-READONLY You can't write against a read only replica.\r\n"):
        with FakeRedis(answer) as server:
            store = open_store(server.url)
            with pytest.raises(Unavailable):
                store.remember(["a"])
            with pytest.raises(Unavailable):
                store.known(["a"])
            with pytest.raises(Unavailable):
                store.ping()


def test_ping_says_nothing_when_the_store_answers(
    redis: RedisServer, open_store: OpenStore
) -> None:
    open_store(redis.url).ping()


def test_closing_a_store_whose_server_is_gone_is_no_error() -> None:
    with RedisServer() as server:
        store = AliasStore(server.url, TIMEOUT)
        store.lookup([BOB])
        server.kill()
        store.close()
