"""Workers that are busy enough to keep answers: an edit holds in all of them within 50 ms."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack, closing

from aliasmilter.redisurl import Endpoint
from aliasmilter.store.deadline import Deadline
from aliasmilter.store.link import Door, dial
from tests.harness.daemon import Daemon
from tests.harness.mta_client import Mta
from tests.harness.redis import RedisServer
from tests.protocol.conftest import load_rules

LATE = 0.05  # seconds in which an edit has to hold
SECONDS = 4.0
CLIENTS = 6


def test_under_load_no_worker_ever_answers_by_a_rule_edited_more_than_50_ms_ago(
    redis: RedisServer,
) -> None:
    load_rules(redis)
    redis.cli("CONFIG", "RESETSTAT")
    with ExitStack() as stack:
        daemon = stack.enter_context(Daemon(redis.url))
        sessions = [stack.enter_context(Mta(daemon.socket)) for _ in range(CLIENTS)]
        writer = stack.enter_context(
            closing(dial(Endpoint(path=str(redis.socket)), Door(), Deadline(10)))
        )
        # (when the edit was begun, when it was answered, whether the address exists then)
        edits = [(0.0, 0.0, True)]
        stopped = threading.Event()
        wrong: list[str] = []
        asked = [0] * CLIENTS

        def ask(number: int, mta: Mta) -> None:
            while not stopped.is_set():
                mta.mail()
                for turn in range(50):
                    # Now the same, now another address that the rule is for: one answer is kept
                    # for that address, the other with all the rules of the domain.
                    detail = f"+{number}-{asked[number]}" if turn % 2 else ""
                    begun = time.monotonic()
                    exists = mta.rcpt(f"<edited{detail}@example.com>").kind == "continue"
                    ended = time.monotonic()
                    if exists not in possible(edits, begun, ended):
                        wrong.append(f"{exists} between {begun} and {ended}")
                    asked[number] += 1
                mta.abort()

        writer.ask([("HSET", "alias:example.com", "edited", "discard")], Deadline(10))
        threads = [threading.Thread(target=ask, args=one) for one in enumerate(sessions)]
        for thread in threads:
            thread.start()
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            exists = not edits[-1][2]
            begun = time.monotonic()
            edits.append((begun, float("inf"), exists))
            command = ("HSET", "alias:example.com", "edited", "discard")
            gone = ("HDEL", "alias:example.com", "edited")
            writer.ask([command if exists else gone], Deadline(10))
            edits[-1] = (begun, time.monotonic(), exists)
            time.sleep(0.12)  # long enough for an old answer to be an old one
        stopped.set()
        for thread in threads:
            thread.join()
        assert not wrong
        assert "Traceback" not in daemon.log
    calls = _calls(redis, "hgetall")
    assert calls < sum(asked) * 0.9, "or nothing was kept and the test says nothing"


def possible(
    edits: list[tuple[float, float, bool]], begun: float, ended: float
) -> set[bool]:
    """What may be answered to what was asked and answered then."""
    known = list(edits)
    # The last edit that has to be known, and all that may be.
    due = max(n for n, (_, answered, _) in enumerate(known) if answered <= begun - LATE)
    return {exists for sent, _, exists in known[due:] if sent <= ended}


def _calls(redis: RedisServer, command: str) -> int:
    for line in redis.cli("INFO", "commandstats").splitlines():
        if line.startswith(f"cmdstat_{command}:"):
            return int(line.partition("calls=")[2].partition(",")[0])
    return 0
