"""Answers that are kept in the process: never an old one, whatever happens to Redis."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, suppress

import pytest
import structlog.testing

from aliasmilter.mail.address import Address
from aliasmilter.redisurl import Endpoint
from aliasmilter.routing.lookup import Absent, Answer, Found, Unavailable, fields_for
from aliasmilter.store import tracking
from aliasmilter.store.connect import connect
from aliasmilter.store.deadline import Deadline
from aliasmilter.store.link import Command, Door, Link, Reply, check, dial
from aliasmilter.store.questions import Asked, Lifetimes, Questions
from aliasmilter.store.redis import AliasStore
from aliasmilter.store.servers import Single
from aliasmilter.store.tracking import Ticket, Tracking
from tests.harness.fake_redis import Proxy
from tests.harness.redis import RedisServer
from tests.harness.wait import wait_until
from tests.unit.fakes import no_thread_left

BOB = Address("bob", "example.com")
CAROL = Address("carol", "example.com")
FOREIGN = Address("me", "gmail.example")
LATE = 0.05  # seconds in which an edit has to hold

OpenStore = Callable[..., AliasStore]


@pytest.fixture(autouse=True)
def busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every process counts as busy."""
    monkeypatch.setattr(tracking, "BUSY", 0.0)
    monkeypatch.setattr(tracking, "RETRY", 0.05)


@pytest.fixture
def exchanges(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of commands of each round trip to the server."""
    sizes: list[int] = []
    real = Single.exchange

    def counting(
        self: Single, commands: Sequence[Command], deadline: Deadline
    ) -> tuple[list[Reply], str]:
        sizes.append(len(commands))
        return real(self, commands, deadline)

    monkeypatch.setattr(Single, "exchange", counting)
    return sizes


@pytest.fixture
def open_store() -> Iterator[OpenStore]:
    """`open_store(url)`: a store that keeps answers, closed after the test."""
    with ExitStack() as stack:
        yield lambda url, timeout=1.0: stack.enter_context(
            closing(AliasStore(url, timeout, cached=True))
        )


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with RedisServer() as own:
        load(own)
        yield own


def load(server: RedisServer) -> None:
    server.cli("HSET", "domain:example.com", "unknown", "reject")
    server.cli("HSET", "alias:example.com", "bob", "0")


def bob(store: AliasStore) -> bytes | None:
    """The rule for bob; None when there is none, or no such domain, which nobody believes here."""
    try:
        (answer,) = store.lookup([BOB])
    except Unavailable as error:
        if "has it lost its data?" not in str(error):
            raise
        return None
    return answer.rules.get("bob") if isinstance(answer, Found) else None


def keep_asking(store: AliasStore) -> None:
    """Look up without a pause for as long as an old answer may be given."""
    end = time.monotonic() + LATE
    while time.monotonic() < end:
        bob(store)


@pytest.fixture
def warm(exchanges: list[int]) -> Callable[..., None]:
    """`warm(store)`: look bob up until that takes no round trip."""

    def until_kept(store: AliasStore, address: Address = BOB) -> None:
        def is_kept() -> bool:
            before = len(exchanges)
            store.lookup([address])
            return len(exchanges) == before

        wait_until(is_kept, "the answer is kept")

    return until_kept


Warm = Callable[..., None]


def test_what_is_known_is_not_asked_for_again(
    server: RedisServer, open_store: OpenStore, warm: Warm, exchanges: list[int]
) -> None:
    store = open_store(server.url)
    warm(store)
    warm(store, FOREIGN)
    before = len(exchanges)
    assert store.lookup([BOB, FOREIGN, Address("BOB", "example.com")])[1] == Absent()
    assert len(exchanges) - before <= 1, "at most once, when this test was held up"


def test_a_quiet_process_opens_no_connection_of_its_own_and_asks_nothing_more(
    server: RedisServer, open_store: OpenStore, exchanges: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(tracking, "BUSY", 1e9)
    store = open_store(server.url)
    for _ in range(50):
        bob(store)
    assert exchanges == [3] * 50
    assert "resp=3" not in server.cli("CLIENT", "LIST")


@pytest.mark.parametrize(
    ("commands", "rule"),
    [
        (["HSET alias:example.com bob 1"], b"1"),
        (["HDEL alias:example.com bob"], None),
        (["DEL alias:example.com"], None),
        (["UNLINK domain:example.com"], None),
        (["RENAME alias:example.com alias:example.net"], None),
        (["MULTI", "HSET alias:example.com bob 1", "HSET alias:example.com bob 2", "EXEC"], b"2"),
        (["EVAL \"redis.call('HSET', KEYS[1], 'bob', '1')\" 1 alias:example.com"], b"1"),
        (["FLUSHDB"], None),
        (["FLUSHALL ASYNC"], None),
        (["SELECT 1", "FLUSHALL"], None),
        (["COPY alias:example.com x", "HSET x bob 1", "RENAME x alias:example.com"], b"1"),
        (["PEXPIRE alias:example.com -1"], None),
        (["MOVE alias:example.com 7"], None),
        (["DEBUG RELOAD"], b"0"),
    ],
)  # fmt: skip
def test_an_edit_holds_for_the_next_lookup(
    open_store: OpenStore, warm: Warm, commands: list[str], rule: bytes | None
) -> None:
    with RedisServer(settings=["enable-debug-command yes"]) as server:
        load(server)
        store = open_store(server.url)
        for _ in range(3):
            warm(store)
            server.cli(stdin="\n".join(commands) + "\n")
            if "FLUSH" in commands[-1]:
                keep_asking(store)  # Redis answers before it announces: the lease bounds that
            assert bob(store) == rule
            assert bob(store) == rule
            server.cli("FLUSHALL")
            load(server)


@pytest.mark.parametrize("other", [True, False], ids=["with-other-rules", "empty"])
def test_two_databases_that_change_places_are_noticed_in_time(
    server: RedisServer, open_store: OpenStore, warm: Warm, other: bool
) -> None:
    if other:
        server.cli(stdin="SELECT 1\nHSET domain:example.com unknown reject\n")
        server.cli(stdin="SELECT 1\nHSET alias:example.com bob 1\n")
    store = open_store(server.url)
    for _ in range(3):
        warm(store)
        server.cli("SWAPDB", "0", "1")
        keep_asking(store)  # Redis announces nothing: that is how long it may take
        assert bob(store) == (b"1" if other else None)
        server.cli("SWAPDB", "0", "1")
        keep_asking(store)
        assert bob(store) == b"0"


def test_a_rule_that_expires_is_gone_when_it_has_expired(
    server: RedisServer, open_store: OpenStore, warm: Warm
) -> None:
    store = open_store(server.url)
    warm(store)
    server.cli("CONFIG", "SET", "hz", "1")  # so that Redis itself is late
    server.cli("PEXPIRE", "alias:example.com", "400")
    gone = time.monotonic() + 0.4
    while time.monotonic() < gone + LATE:
        bob(store)
    assert bob(store) is None


NOTHING = [None] * (len(fields_for("bob")) - 1)


def test_what_a_server_says_of_lifetimes_is_heeded() -> None:
    for fields, lifetimes, lasts in (
        (False, [-1, -2], True),
        (False, [-1, 5], False),
        (False, [7, -1], False),
        (True, [-1, -1, [-1, -2], [-1, -2]], True),
        (True, [-1, -1, None, []], True),
        (True, [-1, -1, [-1, 99], [-1, -2]], False),
        (True, [-1, -1, [-1, -2], [-1, 99]], False),
    ):
        questions = Questions([BOB], Lifetimes.OF_FIELDS if fields else Lifetimes.OF_KEYS)
        assert len(questions.commands) == 3 + len(lifetimes)
        (asked,) = questions.answers([[b"unknown", b"reject"], 0, [b"0", *NOTHING], *lifetimes])
        assert asked.lasts is lasts
    assert not Questions([BOB]).answers([[b"unknown", b"reject"], 0, [b"0", *NOTHING]])[0].lasts


def test_an_answer_fetched_before_an_edit_is_not_kept_after_it(
    server: RedisServer, open_store: OpenStore, warm: Warm, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(server.url)
    warm(store)
    real = Single.exchange

    def edited_meanwhile(
        self: Single, commands: Sequence[Command], deadline: Deadline
    ) -> tuple[list[Reply], str]:
        fetched = real(self, commands, deadline)
        server.cli("HSET", "alias:example.com", "bob", "1")
        return fetched

    server.cli("HSET", "domain:example.com", "note", "forgotten now")
    with monkeypatch.context() as patch:
        patch.setattr(Single, "exchange", edited_meanwhile)
        assert bob(store) == b"0", "asked before the edit"
    for _ in range(20):
        assert bob(store) == b"1"


def test_while_redis_hangs_nothing_is_answered_out_of_memory(
    server: RedisServer, open_store: OpenStore, warm: Warm
) -> None:
    store = open_store(server.url, 0.3)
    for _ in range(3):
        warm(store)
        server.pause()
        time.sleep(LATE)
        with pytest.raises(Unavailable):
            bob(store)
        server.resume()
        wait_until(lambda: server.cli("PING") == "PONG", "Redis goes on")
        server.cli("HSET", "alias:example.com", "bob", "1")
        assert bob(store) == b"1"
        server.cli("HSET", "alias:example.com", "bob", "0")


def test_while_a_ping_is_unanswered_nothing_is_answered_out_of_memory(
    server: RedisServer, open_store: OpenStore, warm: Warm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "LEASE", 60.0)  # that is not what stops it
    store = open_store(server.url, 0.3)
    warm(store)
    server.pause()
    monkeypatch.setattr(tracking, "PING_EVERY", 0.0)
    with suppress(Unavailable):
        bob(store)  # this one sends a ping, if there is none under way
    with pytest.raises(Unavailable):
        bob(store)


def test_announcements_that_come_late_stop_the_use_of_what_is_kept(
    server: RedisServer, open_store: OpenStore, warm: Warm
) -> None:
    with Proxy(server.port) as proxy:
        store = open_store(proxy.url)
        warm(store)
        proxy.delay = 0.2  # of all that Redis sends
        server.cli("HSET", "alias:example.com", "bob", "1")
        time.sleep(LATE)
        assert bob(store) == b"1"


def test_a_lost_connection_takes_all_that_was_kept_with_it(
    server: RedisServer, open_store: OpenStore, warm: Warm
) -> None:
    store = open_store(server.url)
    with closing(dial(Endpoint(path=str(server.socket)), Door(), Deadline(10))) as writer:
        for n in range(5, 15):
            warm(store)
            (listing,) = writer.ask([("CLIENT", "LIST")], Deadline(10))
            number = next(line for line in listing.split(b"\n") if b"resp=3" in line).split()[0][3:]
            kill: Command = ("CLIENT", "KILL", "ID", number)
            writer.ask([kill, ("HSET", "alias:example.com", "bob", n)], Deadline(10))
            assert bob(store) == b"%d" % n


def test_a_restart_with_other_rules_is_noticed_at_once(
    server: RedisServer, open_store: OpenStore, warm: Warm
) -> None:
    store = open_store(server.url)
    warm(store)
    server.kill()
    server.start()
    assert bob(store) is None
    load(server)
    assert bob(store) == b"0"
    warm(store)


def test_answers_are_kept_again_when_a_server_that_was_away_is_back(
    server: RedisServer, open_store: OpenStore, warm: Warm, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(server.url)
    warm(store)
    in_vain: list[Exception] = []
    real = Single.open

    def counting(self: Single, greeting: tuple[Command, ...], deadline: Deadline) -> Link:
        try:
            return real(self, greeting, deadline)
        except Unavailable as error:
            in_vain.append(error)
            raise

    monkeypatch.setattr(Single, "open", counting)
    server.kill()
    wait_until(lambda: len(in_vain) >= 2, "the announcements are asked for again and again")
    server.start()
    load(server)
    warm(store)


def test_what_was_asked_for_before_redis_watched_is_not_kept(server: RedisServer) -> None:
    servers = connect(server.url, identified=True)
    assert isinstance(servers, Single)
    store = Tracking(servers, 1.0)
    _, origin = servers.exchange([("PING",)], Deadline(10))
    asked = [Asked(Found({b"unknown": b"reject"}, {}), lasts=True)]

    def keep(address: Address, ticket: Ticket | None = None) -> bool:
        """Whether it is kept with this ticket, or with one of now."""
        kept, now = store.recall([address])
        if ticket := ticket or now:
            store.keep([address], asked, ticket, origin)
        return kept != [None]

    try:
        wait_until(lambda: store.recall([BOB])[1], "there is a connection")
        _, early = store.recall([BOB])
        wait_until(lambda: keep(CAROL), "Redis watches, and answers are kept")
        for _ in range(50):
            assert not keep(BOB, early), "a SWAPDB before Redis watched would go unnoticed"
        wait_until(lambda: keep(CAROL), "others are")
    finally:
        store.close()
        servers.close()


def test_answers_of_another_server_than_that_which_announces_are_not_kept(
    server: RedisServer, open_store: OpenStore, warm: Warm, exchanges: list[int]
) -> None:
    with RedisServer() as other, Proxy(server.port) as proxy:
        load(other)
        other.cli("HSET", "alias:example.com", "bob", "other", "carol", "other")
        store = open_store(proxy.url)
        warm(store)
        proxy.port = other.port
        numbers = [
            line.split()[0].rpartition("=")[2]
            for line in server.cli("CLIENT", "LIST").splitlines()
            if "name=alias-milter" in line and "resp=2" in line
        ]
        for number in numbers:
            server.cli("CLIENT", "KILL", "ID", number)
        store.lookup([CAROL])
        # The one that announced was left; whatever is kept now is the other one's.
        assert bob(store) == b"other"
        other.cli("HSET", "alias:example.com", "bob", "edited")
        assert bob(store) == b"edited"
        warm(store)


@pytest.mark.parametrize(
    "settings",
    [
        {"users": ["default on nopass ~* +@all -client|tracking"]},
        {"users": ["default on nopass ~* +@all -info"]},
        {"users": ["default on nopass ~* +@all -pttl"]},
        {"users": ["default on nopass ~* +@all -watch"]},
        {"users": ["default on nopass ~* +@all -multi"]},
        {"users": ["default on nopass ~* +@all -exec"]},
        {"settings": ['rename-command HELLO ""']},  # as before Redis 6
    ],
    ids=["tracking", "info", "pttl", "watch", "multi", "exec", "before-6"],
)
def test_a_server_that_refuses_is_asked_each_time_after_one_warning(
    open_store: OpenStore, exchanges: list[int], settings: dict[str, list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(tracking, "REFUSED", 0.02)
    with RedisServer(**settings) as server, structlog.testing.capture_logs() as log:  # type: ignore[arg-type]
        load(server)
        store = open_store(server.url)
        wait_until(lambda: bob(store) == b"0" and log, "there is a warning")
        end = time.monotonic() + 0.2
        while time.monotonic() < end:
            before = len(exchanges)
            assert bob(store) == b"0"
            assert len(exchanges) == before + 1
        (line,) = log
        assert (line["log_level"], line["event"]) == ("warning", "answers are not kept in memory")


def test_a_user_with_the_documented_rights_may_do_all_that_is_needed(
    open_store: OpenStore, warm: Warm
) -> None:
    rights = (
        "~domain:* ~alias:* ~block:* ~reinjected:* resetchannels -@all +hgetall +hmget +hscan "
        "+scan +get +sismember +set +ping +select +role +client|setname +hello +client|tracking "
        "+info +pttl +hpttl +multi +exec +watch +exists"
    ).replace(" +hpttl", "")  # which this Redis does not know
    with RedisServer(users=[f"milter on >secret {rights}"]) as server:
        load(server)
        store = open_store(server.tcp_url.replace("//", "//milter:secret@"))
        warm(store)
        store.remember(["a"])
        assert store.known(["a", "b"]) == {"a"}
        store.ping()


def test_answers_are_kept_as_soon_as_there_is_a_thread_for_it(
    server: RedisServer, open_store: OpenStore, warm: Warm
) -> None:
    store = open_store(server.url)
    with no_thread_left():
        assert bob(store) == b"0"
    warm(store)
    store.close()


def test_idle_announcements_are_read_all_the_same(
    server: RedisServer, open_store: OpenStore, warm: Warm
) -> None:
    store = open_store(server.url)
    warm(store)
    lines = "".join(f"HSET alias:d{n}.example x y\n" for n in range(20_000))
    server.cli(stdin=lines)

    def waiting() -> bool:
        listing = server.cli("CLIENT", "LIST").splitlines()
        line = next(line for line in listing if "resp=3" in line)
        return " omem=0 " in line

    wait_until(waiting, "nothing waits in Redis for a process that is idle")


def test_closing_ends_the_thread_and_the_connections(server: RedisServer, warm: Warm) -> None:
    store = AliasStore(server.url, 1.0, cached=True)
    warm(store)
    store.close()
    wait_until(
        lambda: "name=alias-milter" not in server.cli("CLIENT", "LIST"), "no connection is left"
    )
    assert not [t for t in threading.enumerate() if t.name == "tracking" and t.is_alive()]


@pytest.mark.parametrize("guessing", [False, True], ids=["one-address", "another-each-time"])
def test_under_load_no_reader_ever_sees_what_was_edited_more_than_50_ms_ago(
    server: RedisServer, open_store: OpenStore, exchanges: list[int], guessing: bool,
) -> None:  # fmt: skip
    domains = [f"d{n}.example" for n in range(5)]
    edits: dict[str, list[tuple[float, int]]] = {d: [(0.0, 0)] for d in domains}
    writer = dial(Endpoint(path=str(server.socket)), Door(), Deadline(10))
    for domain in domains:
        _write(writer, domain, 0)
    stores = [open_store(server.url, 10.0) for _ in range(2)]
    stopped = threading.Event()
    stale: list[str] = []
    reads = [0]

    def read(store: AliasStore) -> None:
        mine = random.Random()
        while not stopped.is_set():
            domain = mine.choice(domains)
            # One rule holds for all of them.
            local = f"n+{mine.randrange(1 << 40)}" if guessing else "n"
            begun = time.monotonic()
            (answer,) = store.lookup([Address(local, domain)])
            seen = _number_in(answer)
            due = max(n for when, n in list(edits[domain]) if when <= begun - LATE)
            if seen < due:
                stale.append(f"{domain}: {seen} instead of {due}")
            reads[0] += 1

    readers = [threading.Thread(target=read, args=(store,)) for store in stores * 2]
    for reader in readers:
        reader.start()
    end = time.monotonic() + 4
    n = 0
    while time.monotonic() < end:
        n += 1
        domain = random.choice(domains)
        _write(writer, domain, n)
        edits[domain].append((time.monotonic(), n))
        time.sleep(random.choice((0, 0.001, 0.03)))  # a load, not a condition
    stopped.set()
    for reader in readers:
        reader.join()
    writer.close()
    assert not stale
    assert len(exchanges) < reads[0] * 0.9, "or nothing was kept and the test says nothing"


def _write(writer: Link, domain: str, number: int) -> None:
    commands: list[Command] = [
        ("HSET", f"domain:{domain}", "unknown", "reject"),
        ("HSET", f"alias:{domain}", "n", number),
    ]
    for reply in writer.ask(commands, Deadline(10)):
        check(reply)


def _number_in(answer: Answer) -> int:
    assert isinstance(answer, Found)
    return int(answer.rules["n"])
