"""The store behind Sentinels, in a Cluster, over TLS: the same answers, the same deadline."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager

import pytest

from aliasmilter.mail.address import Address
from aliasmilter.redisurl import Endpoint
from aliasmilter.routing.lookup import Absent, Answer, Found, Unavailable
from aliasmilter.store import sentinel, tracking
from aliasmilter.store.cluster import key_slot
from aliasmilter.store.deadline import Deadline
from aliasmilter.store.link import Door
from aliasmilter.store.redis import AliasStore
from aliasmilter.store.sentinel import Master, Sentinels
from aliasmilter.store.snapshot import read
from tests.harness.cluster import RedisCluster, cluster
from tests.harness.redis import RedisServer
from tests.harness.sentinel import Watched, watched
from tests.harness.wait import wait_until
from tests.unit.fakes import no_thread_left

TIMEOUT = 0.5
SLACK = 0.7  # what a deadline may be late by on a busy machine
BOB = Address("bob", "example.com")
FOREIGN = Address("me", "gmail.example")
# Of each node, one whose keys (domain:, alias:, block:) are all there, and others.
MANAGED = [f"{name}.example" for name in ("zeta-three", "green", "pi-one", "mu", "nu", "xi", "tau")]

OpenStore = Callable[..., AliasStore]


@pytest.fixture
def open_store() -> Iterator[OpenStore]:
    """`open_store(url)`: a store that is closed after the test."""
    with ExitStack() as stack:
        yield lambda url, timeout=TIMEOUT, **options: stack.enter_context(
            closing(AliasStore(url, timeout, **options))
        )


def load(cli: Callable[..., str]) -> None:
    cli("HSET", "domain:example.com", "unknown", "reject")
    cli("HSET", "alias:example.com", "bob", "0")


def rule(answer: Answer) -> bytes | None:
    assert isinstance(answer, Found)
    return answer.rules.get("bob")


def bob(store: AliasStore) -> bytes | None:
    return rule(store.lookup([BOB])[0])


def answers_in_time(store: AliasStore, address: Address = BOB) -> bool:
    """Whether there is an answer; that or Unavailable has to come in time."""
    begun = time.monotonic()
    try:
        (answer,) = store.lookup([address])
    except Unavailable:
        return False
    finally:
        assert time.monotonic() - begun < TIMEOUT + SLACK
    assert isinstance(answer, Found), "Absent is never made from a failure"
    return True


@contextmanager
def looked_up_all_the_time(store: AliasStore, *addresses: Address) -> Iterator[list[str]]:
    """Threads that look these up; the list of what went wrong."""
    stopped = threading.Event()
    problems: list[str] = []

    def look() -> None:
        while not stopped.is_set():
            for address in addresses:
                try:
                    (answer,) = store.lookup([address])
                    if not isinstance(answer, Found) or not answer.rules:
                        problems.append(f"{address}: {answer}")
                except Unavailable as error:
                    problems.append(str(error))

    threads = [threading.Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    yield problems
    stopped.set()
    for thread in threads:
        thread.join()


def all_that_a_store_does(store: AliasStore, url: str) -> None:
    assert bob(store) == b"0"
    assert store.lookup([FOREIGN, BOB])[0] == Absent()
    store.remember(["a", "b", "c"])
    assert store.known(["a", "b", "x"]) == {"a", "b"}
    store.ping()
    snapshot = read(url, 5)
    assert snapshot.rules["example.com"] == {"bob": b"0"}
    assert snapshot.settings["example.com"] == {b"unknown": b"reject"}


# Sentinels


@pytest.fixture
def guarded() -> Iterator[Watched]:
    with watched() as servers:
        load(servers.servers[0].cli)
        servers.wait_for_replica()
        yield servers


def test_the_master_is_found_by_any_sentinel_that_answers(
    guarded: Watched, open_store: OpenStore
) -> None:
    guarded.sentinels[0].kill()
    guarded.sentinels[1].pause()
    all_that_a_store_does(open_store(guarded.url, 5.0), guarded.url)
    with pytest.raises(Unavailable, match="No such master"):
        open_store(guarded.url.replace("/rules/", "/other/"), 5.0).lookup([BOB])


def test_sentinels_with_passwords_and_tls(open_store: OpenStore) -> None:
    with watched(sentinels=1, password="pw", own_password="own", tls=True) as servers:
        load(servers.servers[0].cli)
        options = f"?ssl_ca_certs={servers.servers[0].ca_file}&sentinel_password="
        url = servers.url_with(login=":pw@", scheme="rediss", options=options)
        all_that_a_store_does(open_store(url + "own", 5.0), url + "own")
        with pytest.raises(Unavailable, match="WRONGPASS"):
            open_store(url + "wrong", 5.0).lookup([BOB])


def test_when_the_master_dies_lookups_are_unavailable_and_come_back_by_themselves(
    guarded: Watched, open_store: OpenStore
) -> None:
    store = open_store(guarded.url)
    assert answers_in_time(store)
    guarded.servers[0].kill()
    assert not answers_in_time(store)
    wait_until(lambda: answers_in_time(store), "the replica has taken over", 30)
    store.remember(["a"])


def test_a_master_that_hangs_and_comes_back_is_not_believed_any_more(
    guarded: Watched, open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "BUSY", 0.0)
    former, heir = guarded.servers
    store = open_store(guarded.url, cached=True)
    with looked_up_all_the_time(store, BOB):
        former.pause()
        guarded.wait_for_master(heir)
        heir.cli("HSET", "alias:example.com", "bob", "1")
        wait_until(lambda: answers_in_time(store), "the replica has taken over", 30)
        assert bob(store) == b"1"
        former.resume()
        end = time.monotonic() + 2
        while time.monotonic() < end:
            assert bob(store) == b"1"


def test_a_change_of_masters_is_noticed_though_both_servers_go_on(
    guarded: Watched, open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As when nobody but us reaches the former master: it is not told that it is one no more.
    store = open_store(guarded.url, 5.0)
    with RedisServer() as other:
        load(other.cli)
        other.cli("HSET", "alias:example.com", "bob", "other")
        assert bob(store) == b"0"
        sentinels = store._servers._sentinels  # type: ignore[attr-defined]
        monkeypatch.setattr(sentinels, "master", lambda *_, **__: Endpoint("127.0.0.1", other.port))
        wait_until(lambda: bob(store) == b"other", "the Sentinels are asked again", 5)


def test_the_watch_over_the_master_begins_as_soon_as_there_is_a_thread_for_it() -> None:
    def watches() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name == "sentinel-watch"]

    before = watches()
    sentinels = Sentinels([Endpoint("127.0.0.1", 1)], "rules", Door())
    with closing(Master(sentinels, Door())) as master:
        with no_thread_left(), pytest.raises(Unavailable, match="refused"):
            master.ask([("PING",)], Deadline(TIMEOUT))
        for _ in range(2):
            with pytest.raises(Unavailable, match="refused"):
                master.ask([("PING",)], Deadline(TIMEOUT))
        assert len(watches()) == len(before) + 1


def test_who_hears_of_another_master_first_makes_all_leave_the_former_one(
    guarded: Watched, open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its connections work on, and it believes itself to be the master for ten seconds more.
    monkeypatch.setattr(sentinel, "ASK_EVERY", 60.0)
    store = open_store(guarded.url, 5.0)
    with RedisServer() as other:
        load(other.cli)
        other.cli("HSET", "alias:example.com", "bob", "other")
        assert bob(store) == b"0"
        master = store._servers
        assert isinstance(master, Master)
        heir = Endpoint("127.0.0.1", other.port)
        monkeypatch.setattr(master._sentinels, "master", lambda *_, **__: heir)
        master.open((), Deadline(5.0)).close()
        assert bob(store) == b"other"


def test_a_replica_is_never_taken_for_the_master(
    guarded: Watched, open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(guarded.url, 5.0)
    sentinels = store._servers._sentinels  # type: ignore[attr-defined]
    replica = Endpoint("127.0.0.1", guarded.servers[1].port)
    monkeypatch.setattr(sentinels, "master", lambda *_, **__: replica)
    with pytest.raises(Unavailable, match="is not the master"):
        store.lookup([BOB])


# A Cluster


@pytest.fixture
def spread() -> Iterator[RedisCluster]:
    """A Cluster with many domains, so that every node has some."""
    with cluster() as nodes:
        load(nodes.cli)
        for n, domain in enumerate(MANAGED):
            nodes.cli("HSET", f"domain:{domain}", "unknown", "reject")
            nodes.cli("HSET", f"alias:{domain}", "bob", str(n))
        yield nodes


def on(nodes: RedisCluster, node: RedisServer) -> Address:
    """An address that one node alone decides."""
    for domain in MANAGED:
        if all(nodes.owner(f"{kind}:{domain}") is node for kind in ("domain", "alias", "block")):
            return Address("bob", domain)
    raise AssertionError("no such domain")


def test_a_cluster_answers_for_domains_on_all_its_nodes(
    spread: RedisCluster, open_store: OpenStore
) -> None:
    store = open_store(spread.url, 5.0)
    all_that_a_store_does(store, spread.url)
    asked = [Address("bob", domain) for domain in MANAGED]
    answers = store.lookup([FOREIGN, *asked])
    assert answers[0] == Absent()
    assert [rule(answer) for answer in answers[1:]] == [b"%d" % n for n in range(len(MANAGED))]
    assert len(read(spread.url, 5).rules) == len(MANAGED) + 1
    for key in ("domain:example.com", "a{b}c", "a{}c", "{b}", "}{x"):
        assert key_slot(key) == spread.slot(key)


def test_a_cluster_with_tls_and_a_password(open_store: OpenStore) -> None:
    with cluster(tls=True, password="pw") as nodes:
        load(nodes.cli)
        url = f"{nodes.url}?ssl_ca_certs={nodes.nodes[0].ca_file}"
        all_that_a_store_does(open_store(url, 5.0), url)


def test_slots_that_move_while_they_are_looked_up_are_followed(
    spread: RedisCluster, open_store: OpenStore
) -> None:
    store = open_store(spread.url, 5.0)
    with looked_up_all_the_time(store, *[Address("bob", d) for d in MANAGED]) as problems:
        for domain in MANAGED[:3]:
            for key in (f"domain:{domain}", f"alias:{domain}"):
                source = spread.owner(key)
                target = next(node for node in spread.masters if node is not source)
                slot = spread.slot(key)
                spread.begin_to_move(slot, source, target)
                assert answers_in_time(store, Address("bob", domain))
                spread.move(key, source, target)
                assert answers_in_time(store, Address("bob", domain)), "ASK"
                spread.end_move(slot, target)
                assert answers_in_time(store, Address("bob", domain)), "MOVED"
    assert not problems
    assert len(read(spread.url, 5).rules) == len(MANAGED) + 1


def test_a_node_that_dies_takes_its_domains_along_until_its_replica_takes_over(
    spread: RedisCluster, open_store: OpenStore
) -> None:
    dies, stays, *_ = spread.masters
    store = open_store(spread.url)
    lost, kept = on(spread, dies), on(spread, stays)
    assert answers_in_time(store, lost)
    assert answers_in_time(store, kept)
    dies.kill()
    assert not answers_in_time(store, lost)
    assert answers_in_time(store, kept)
    wait_until(lambda: answers_in_time(store, lost), "the replica has taken over", 30)
    assert answers_in_time(store, kept)


def test_a_node_that_hangs_costs_its_own_domains_alone(
    spread: RedisCluster, open_store: OpenStore
) -> None:
    stays, _, hangs = spread.masters
    store = open_store(spread.url)
    lost, kept = on(spread, hangs), on(spread, stays)
    assert answers_in_time(store, kept)
    hangs.pause()
    for _ in range(3):
        assert not answers_in_time(store, lost)
        assert answers_in_time(store, kept)
    hangs.resume()
    wait_until(lambda: answers_in_time(store, lost), "it is back", 30)


def test_a_node_that_lost_its_data_is_not_believed_for_what_other_nodes_have(
    spread: RedisCluster, open_store: OpenStore
) -> None:
    emptied, stays, *_ = spread.masters
    store = open_store(spread.url)
    lost, kept = on(spread, emptied), on(spread, stays)
    more = [f"more{n}.example" for n in range(20)]
    for domain in more:
        spread.cli("HSET", f"domain:{domain}", "unknown", "reject")
    store.lookup([Address("bob", domain) for domain in (*MANAGED, *more)])
    stays.cli("DEL", f"domain:{kept.domain}")
    assert store.lookup([kept]) == [Absent()], "others of that node are there"
    emptied.cli("FLUSHALL")
    with pytest.raises(Unavailable, match="has it lost its data"):
        store.lookup([lost])


def test_a_cluster_none_of_whose_nodes_is_there_is_unavailable_in_time(
    open_store: OpenStore,
) -> None:
    store = open_store("redis+cluster://127.0.0.1:1,127.0.0.1:2/")
    assert not answers_in_time(store)
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1: .*; .*127\.0\.0\.1:2: "):
        store.lookup([BOB])


def test_a_server_that_is_no_cluster_says_so(redis: RedisServer, open_store: OpenStore) -> None:
    store = open_store(redis.tcp_url.replace("redis://", "redis+cluster://"))
    with pytest.raises(Unavailable, match="cluster support disabled"):
        store.lookup([BOB])
