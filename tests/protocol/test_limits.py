"""[limits]: what a client or a message may ask for, and what happens to those who ask for more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.harness.daemon import Daemon
from tests.harness.dns import DnsServer
from tests.harness.mta_client import ACTIONS, STEPS, Mta, dial, negotiate, packet
from tests.harness.redis import RedisServer
from tests.harness.signing import key, pem
from tests.harness.wait import wait_until
from tests.protocol.shim import COUNTS_SESSIONS, ShimmedDaemon

Start = Callable[..., Daemon]
MEGABYTE = 1 << 20


@pytest.fixture
def dns() -> Iterator[DnsServer]:
    with DnsServer({}) as server:
        yield server


@pytest.fixture
def sealing(start: Start, dns: DnsServer) -> Daemon:
    """A daemon that seals: the one that keeps bodies."""
    return start(
        {
            "milter": {"workers": 1},
            "arc": {
                "enabled": True, "domain": "example.net", "selector": "arc", "key_file": "arc.pem",
            },
            "dns": {"nameservers": [dns.address], "timeout": 2.0},
        },
        files={"arc.pem": pem(key()).decode()},
    )  # fmt: skip


def peak_memory(daemon: Daemon) -> int:
    """The most that any worker has taken so far, in octets."""
    statuses = [Path(f"/proc/{pid}/status").read_text() for pid in daemon.workers]
    return max(int(text.partition("VmHWM:")[2].split()[0]) * 1024 for text in statuses)


def test_recipients_past_the_limit_are_deferred_and_the_others_served(start: Start) -> None:
    daemon = start({"limits": {"recipients": 2}})
    with Mta(daemon.socket) as mta:
        mta.mail()
        for recipient in ("<nobody@example.com>", "<bob@example.com>", "<sales@example.com>"):
            mta.rcpt(recipient)
        assert mta.rcpt("<carol@example.com>").text == "452 4.5.3 Too many recipients"
        assert mta.message().of("delrcpt") == [("<sales@example.com>",)]
        mta.mail()
        assert mta.rcpt("<carol@example.com>").kind == "continue"


@pytest.mark.parametrize("limit", [{"headers": 3}, {"header_octets": 40}])
def test_a_header_past_a_limit_is_refused_for_good_and_the_next_message_is_fine(
    start: Start, limit: dict[str, int]
) -> None:
    daemon = start({"limits": limit})
    with Mta(daemon.socket) as mta:
        for count, answer in (
            (3, "continue"),
            (4, "552 5.3.4 The header of this message is too big"),
        ):
            mta.mail()
            mta.rcpt("<sales@example.com>")
            assert str(mta.message([("X-A", " 3456789")] * count).answer) == answer
        mta.mail()
        mta.rcpt("<sales@example.com>")
        assert mta.message().answer.kind == "continue"
    assert "reason=header-too-big" in daemon.log


def test_more_forged_results_than_an_mta_can_remove_in_good_time_are_refused_for_good(
    sealing: Daemon,
) -> None:
    forged = ("Authentication-Results", " mx.example.net; none")
    with Mta(sealing.socket) as mta:
        for count in (1000, 1001):
            mta.mail()
            mta.rcpt("<bob@example.com>")
            ending = mta.message([("From", " alice@bank.example"), *[forged] * count])
            if count == 1000:
                assert ending.answer.kind == "continue"
                assert len(ending.of("chgheader")) == count
            else:
                assert str(ending.answer).startswith("552 5.3.4")
                assert ending.edits == []


def test_row_18_headers_without_end_are_not_kept(sealing: Daemon) -> None:
    with Mta(sealing.socket) as mta:
        mta.mail()
        mta.rcpt("<out@example.com>")
        before = peak_memory(sealing)
        field = packet("L", b"X-Filler\0 " + b"x" * 60_000 + b"\0")
        for _ in range(1500):  # 90 MB
            mta.socket.sendall(field)
        assert str(mta.end().answer).startswith("552 5.3.4")
        assert peak_memory(sealing) - before < 20 * MEGABYTE


def test_row_18_a_body_of_100_mb_that_leaves_is_kept_once_and_sealed(sealing: Daemon) -> None:
    with Mta(sealing.socket) as mta:
        mta.mail()
        mta.rcpt("<out@example.com>")
        before = peak_memory(sealing)
        mta.step("L", name="From", value=" alice@bank.example")
        piece = packet("B", (b"x" * 70 + b"\r\n") * 900)
        for _ in range(1600):  # 104 MB
            mta.socket.sendall(piece)
            assert mta.read().kind == "continue"
        ending = mta.end()
        assert [name for _, name, _ in ending.of("insheader")][-1] == "ARC-Seal"
        # Once in pieces, and once as a whole while the pieces are put together.
        assert peak_memory(sealing) - before < 260 * MEGABYTE
        mta.mail()
        assert mta.rcpt("<bob@example.com>").kind == "continue"


def test_row_18_a_body_of_mail_that_stays_is_not_asked_for(sealing: Daemon) -> None:
    with Mta(sealing.socket) as mta:
        mta.mail()
        mta.rcpt("<sales@example.com>")
        mta.socket.sendall(packet("B", b"x" * 60_000))
        assert str(mta.read()) == "s"  # SKIP: no more of it


def test_row_18_10_000_headers_of_256_kb_are_served(sealing: Daemon) -> None:
    with Mta(sealing.socket) as mta:
        mta.mail()
        mta.rcpt("<out@example.com>")
        headers = [("From", " alice@bank.example"), *[("X-A", " " + "x" * 22)] * 10_000]
        ending = mta.message(headers)
        assert ending.answer.kind == "continue"
        assert [name for _, name, _ in ending.of("insheader")][-1] == "ARC-Seal"


def test_sessions_past_the_limit_get_451_and_are_served_when_others_have_ended(
    start: Start,
) -> None:
    daemon = start({"milter": {"workers": 1}, "limits": {"connections": 3}})
    with ExitStack() as stack:
        open_ = [stack.enter_context(Mta(daemon.socket)) for _ in range(3)]
        with Mta(daemon.socket) as fourth:
            fourth.mail()
            for recipient in ("<bob@example.com>", "<nobody@example.com>", "<x@foreign.example>"):
                answer = fourth.rcpt(recipient).text
                assert answer == "451 4.3.2 Too many connections, try again later"
        assert "error: too many sessions limit=3" in daemon.log
        for mta in open_:
            mta.mail()
            assert mta.rcpt("<sales@example.com>").kind == "continue"
        open_[0].socket.close()

        def served() -> bool:
            with Mta(daemon.socket) as mta:
                mta.mail()
                return mta.rcpt("<sales@example.com>").kind == "continue"

        wait_until(served, "a session in the place of one that ended")


def test_no_session_stays_in_memory_when_it_is_over(redis: RedisServer) -> None:
    with ShimmedDaemon(redis.url, COUNTS_SESSIONS, {"milter": {"workers": 1}}) as daemon:

        def live() -> int:
            with Mta(daemon.socket) as mta:
                mta.mail()
                mta.rcpt("<bob@else.example>")
            return int((daemon.folder / "live").read_text())

        assert live() == 1
        for _ in range(20):
            live()
        wait_until(lambda: live() <= 2, "those that are over are freed")


def test_connections_that_break_off_in_any_way_do_not_count_for_ever(start: Start) -> None:
    daemon = start({"milter": {"workers": 1}, "limits": {"connections": 3}})
    endings = [
        b"", b"\0\0", packet("Z"), packet("Q"), packet("M", b"no end"), packet("A"),
        packet("K"), packet("C", b"x"), packet("O", b"again"), packet("R", b"<a@b.example>\0")[:9],
    ]  # fmt: skip
    for data in endings:
        with dial(daemon.socket) as raw:
            negotiate(raw, ACTIONS, STEPS)
            raw.sendall(data)

    def served() -> bool:
        with Mta(daemon.socket) as mta:
            mta.mail()
            return mta.rcpt("<sales@example.com>").kind == "continue"

    wait_until(served, "all of them are forgotten", 20)


# Mail to return addresses that is no bounce

THROTTLED = "450 4.7.1 Too much mail to return addresses, try again later"
LIMITS = {"limits": {"srs_address_per_hour": 3, "srs_client_per_hour": 5}}


def return_address(daemon: Daemon, sender: str) -> str:
    """The SRS address of a sender, in brackets."""
    with Mta(daemon.socket, client=("x", "198.51.100.1", 25)) as mta:
        mta.mail(sender)
        mta.rcpt("<out@example.com>")
        return mta.message().of("chgfrom")[0][0]


def test_mail_to_a_return_address_that_is_no_bounce_is_throttled_and_bounces_never_are(
    start: Start, redis: RedisServer
) -> None:
    daemon = start(LIMITS)
    address = return_address(daemon, "<alice@bank.example>")
    for attempt in range(5):
        # From a new client each time: the limit is the address's.
        with Mta(daemon.socket, client=("x", f"192.0.2.{attempt}", 25)) as mta:
            mta.mail("<vacation@gmail.example>")
            answer = str(mta.rcpt(address))
            assert answer == ("continue" if attempt < 3 else THROTTLED)
            for _ in range(10):
                mta.mail("<>")
                assert mta.rcpt(address).kind == "continue"
    assert "reason=srs-throttled" in daemon.log
    keys = redis.cli("KEYS", "counted:*").splitlines()
    assert len(keys) == 6
    for line in keys:
        name = line.partition('"')[2].rstrip('"')
        assert len(name) == len("counted:") + 32
        assert 0 < int(redis.cli("TTL", name).rpartition(" ")[2]) <= 3600


def test_one_client_cannot_mail_to_one_return_address_after_the_other(start: Start) -> None:
    daemon = start(LIMITS)
    addresses = [return_address(daemon, f"<a{n}@bank.example>") for n in range(6)]
    with Mta(daemon.socket) as mta:
        answers = []
        for address in addresses:
            mta.mail("<spam@gmail.example>")
            answers.append(str(mta.rcpt(address)))
        assert answers == ["continue"] * 5 + [THROTTLED]
    with Mta(daemon.socket, client=("x", "192.0.2.99", 25)) as other:
        other.mail("<vacation@gmail.example>")
        assert other.rcpt(addresses[-1]).kind == "continue"


def test_forged_return_addresses_and_ordinary_mail_are_not_counted(
    start: Start, redis: RedisServer
) -> None:
    daemon = start(LIMITS)
    with Mta(daemon.socket) as mta:
        for number in range(20):
            mta.mail("<spam@gmail.example>")
            forged = f"<SRS0=aaaa=AA=bank.example=a{number}@srs.example.net>"
            assert mta.rcpt(forged).text.startswith("550 5.7.1")
            assert mta.rcpt("<bob@example.com>").kind == "continue"
    assert redis.cli("KEYS", "counted:*") == "(empty array)"


def test_0_counts_nothing(start: Start, redis: RedisServer) -> None:
    daemon = start({"limits": {"srs_address_per_hour": 0, "srs_client_per_hour": 0}})
    address = return_address(daemon, "<alice@bank.example>")
    with Mta(daemon.socket) as mta:
        for _ in range(30):
            mta.mail("<vacation@gmail.example>")
            assert mta.rcpt(address).kind == "continue"
    assert redis.cli("KEYS", "counted:*") == "(empty array)"


def test_what_cannot_be_counted_waits_and_a_bounce_does_not(start: Start) -> None:
    with RedisServer() as server:
        daemon = start({"milter": {"workers": 1}}, url=server.url)
        with Mta(daemon.socket) as mta:
            mta.mail()
            # Redis gives no domain of its own: this one is known as unmanaged from now on.
            mta.rcpt("<me@bank.example>")
        server.cli("HSET", "domain:example.com", "unknown", "reject")
        server.cli("HSET", "alias:example.com", "out", "me@gmail.example")
        address = return_address(daemon, "<alice@bank.example>")
        server.kill()
        with Mta(daemon.socket) as mta:
            mta.mail("<>")
            assert mta.rcpt(address).kind == "continue"
            mta.mail("<vacation@gmail.example>")
            assert mta.rcpt(address).text.startswith("451 4.3.0")
