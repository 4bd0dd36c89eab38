"""Lookup tables: what each says of a key, and the protocol octet by octet."""

from __future__ import annotations

import io
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from aliasmilter.forwarding.decider import Decider
from aliasmilter.forwarding.srs import Rewriter
from aliasmilter.mail.address import parse_address
from aliasmilter.mta.activity import Activity
from aliasmilter.mta.socketmap import MAX_REQUEST, Maps, Server, netstring, read_netstring
from aliasmilter.routing.decision import Policy
from tests.unit.fakes import Store

SRS = "fwd.example.net"
LONG = ".".join([*("x" * 60 for _ in range(4)), "example"])
RULES = {
    "example.com": {
        "bob": "bob@example.com",
        "carol": "carol@example.com",
        "sales": "bob@example.com",
        "team": "bob@example.com, carol@example.com",
        "out": "me@gmail.example",
        "both": "bob@example.com me@gmail.example",
        "gone": "disabled",
        "spam": "discard",
        "slow": "defer",
        "broken": "nonsense",
        "a": "b@example.com",
        "b": "a@example.com",
        "wide": "half1@example.com half2@example.com",
        "half1": " ".join(f"u{n}@{LONG}" for n in range(245)),
        "half2": " ".join(f"v{n}@{LONG}" for n in range(245)),
    },
    "new.example": {"info": "bob@example.com", "*": "quarantine"},
    "old.example": {},
}
SETTINGS = {
    "example.com": {"unknown": "reject"},
    "new.example": {"unknown": "reject"},
    "old.example": {"alias_of": "example.com"},
}
TEMP = "TEMP"
NOTHING = "NOTFOUND "


@pytest.fixture(autouse=True)
def logged() -> Iterator[list[structlog.typing.EventDict]]:
    """What is logged, kept here: another test may have set up a log that is closed by now."""
    with capture_logs() as lines:
        yield lines


def maps(store: Store | None = None, *, hold: bool = False) -> Maps:
    rewriter = Rewriter(["a secret"], max_age_days=21, hash_length=4, clock=lambda: 1e9)
    policy = Policy(quarantine=parse_address("q@example.net"), hold=hold)
    store = store or Store(RULES, SETTINGS)
    return Maps(Decider(lambda _: store, policy, rewriter, SRS, lambda: 1e9))


def bounce_address(sender: str = "alice@bank.example") -> str:
    rewriter = Rewriter(["a secret"], max_age_days=21, hash_length=4, clock=lambda: 1e9)
    return str(rewriter.forward(parse_address(sender), SRS))


@pytest.mark.parametrize(
    ("request_", "reply"),
    [
        ("relay-domains example.com", "OK example.com"),
        ("relay-domains EXAMPLE.com", "OK example.com"),
        ("relay-domains old.example", "OK old.example"),
        (f"relay-domains {SRS}", f"OK {SRS}"),
        ("relay-domains gmail.example", NOTHING),
        ("relay-domains sub.example.com", NOTHING),
        ("relay-domains .example.com", NOTHING),
        ("relay-domains ", NOTHING),
        ("relay_domains example.com", "OK example.com"),
        ("senders sales@example.com", "OK bob@example.com"),
        ("senders Sales+x@example.com", "OK bob@example.com"),
        ("senders sales@old.example", "OK bob@example.com"),
        ("senders bob@example.com", "OK bob@example.com"),
        ("senders team@example.com", "OK bob@example.com,carol@example.com"),
        ("senders both@example.com", "OK bob@example.com"),
        ("senders out@example.com", NOTHING),
        ("senders gone@example.com", NOTHING),
        ("senders nobody@example.com", NOTHING),
        ("senders guess@new.example", NOTHING),
        ("senders alice@bank.example", NOTHING),
        ("senders slow@example.com", TEMP),
        ("senders broken@example.com", TEMP),
        ("aliases team@example.com", "OK bob@example.com, carol@example.com"),
        ("aliases sales+x@example.com", "OK bob+x@example.com"),
        ("aliases both@example.com", "OK bob@example.com, me@gmail.example"),
        ("aliases bob@example.com", "OK bob@example.com"),
        ("aliases guess@new.example", "OK q@example.net"),
        ("aliases gone@example.com", NOTHING),
        ("aliases spam@example.com", NOTHING),
        ("aliases me@gmail.example", NOTHING),
        ("aliases a@example.com", TEMP),
        ("aliases wide@example.com", "TEMP more than fits into a reply"),
        ("aliases @example.com", NOTHING),
        ("aliases bob", NOTHING),
        ("aliases ", NOTHING),
        ("aliases", NOTHING),
        ("srs-reverse bob@example.com", NOTHING),
        (f"srs-reverse SRS0=xxxx=yy=bank.example=alice@{SRS}", NOTHING),
        ("nonsense bob@example.com", "TEMP no map 'nonsense'"),
        ("", "TEMP no map ''"),
    ],
)
def test_a_map_says(request_: str, reply: str) -> None:
    assert maps().reply(request_)[: len(reply) or None].startswith(reply)
    if reply != TEMP:
        assert maps().reply(request_) == reply


@pytest.mark.parametrize("change", [str, str.lower])
def test_a_return_address_is_turned_back(change: type[str]) -> None:
    assert maps().reply(f"srs-reverse {change(bounce_address())}") == "OK alice@bank.example"


@pytest.mark.parametrize("name", ["relay-domains", "senders", "aliases"])
def test_a_store_that_is_away_is_a_temporary_error_never_not_found(name: str) -> None:
    store = Store(RULES, SETTINGS)
    store.down = True
    key = "example.com" if name == "relay-domains" else "nobody@example.com"
    assert maps(store).reply(f"{name} {key}").startswith("TEMP ")


def test_what_the_milter_would_hold_is_not_handed_to_an_inbox_by_a_table() -> None:
    assert maps(hold=True).reply("aliases guess@new.example").startswith("TEMP ")
    assert maps(hold=True).reply("aliases info@new.example") == "OK bob@example.com"


class Broken(Store):
    def __call__(self, addresses: object) -> list[object]:  # type: ignore[override]
        raise ZeroDivisionError


def test_a_bug_is_a_temporary_error_with_a_traceback(
    logged: list[structlog.typing.EventDict],
) -> None:
    assert maps(Broken(RULES)).reply("aliases bob@example.com") == "TEMP internal error"
    (line,) = logged
    assert line["exc_info"]


# Invariant: a netstring, None at the end, or ValueError; never any other error.
@given(st.binary(max_size=40))
def test_any_octets_are_a_netstring_or_refused(data: bytes) -> None:
    try:
        found = read_netstring(io.BytesIO(data))
    except ValueError:
        return
    assert found is None if not data else data.startswith(netstring(found or b""))


@given(st.binary(max_size=MAX_REQUEST))
def test_a_netstring_is_read_as_it_was_written(data: bytes) -> None:
    assert read_netstring(io.BytesIO(netstring(data))) == data


@pytest.fixture
def connection() -> Iterator[socket.socket]:
    """A connection to a server of the maps."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("")  # an abstract name
        listener.listen()
        server = Server(listener, maps(), Activity())
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(10)
            client.connect(listener.getsockname())
            yield client
        server.shutdown()
        thread.join()


def test_a_request_may_come_in_single_octets(connection: socket.socket) -> None:
    for octet in netstring(b"aliases sales@example.com"):
        connection.sendall(bytes([octet]))
    assert connection.makefile("rb").read(19) == b"18:OK bob@example.com,"[:19]


def test_requests_that_come_at_once_are_answered_in_order(connection: socket.socket) -> None:
    connection.sendall(
        netstring(b"aliases sales@example.com")
        + netstring(b"aliases nobody@example.com")
        + netstring(b"relay-domains example.com")
    )
    expected = netstring(b"OK bob@example.com") + netstring(b"NOTFOUND ")
    expected += netstring(b"OK example.com")
    assert connection.makefile("rb").read(len(expected)) == expected


def test_octets_that_are_no_text_are_no_address(connection: socket.socket) -> None:
    connection.sendall(netstring(b"aliases \xff\x00\xfe@example.com"))
    assert connection.makefile("rb").read(12) == netstring(b"NOTFOUND ")


@pytest.mark.parametrize(
    "garbage",
    [
        b"hello\n",
        b":,",
        b"-1:x,",
        b"5:hello;",
        b"999999:",
        b"10001:" + b"x" * 10_001 + b",",
        b"1234567:",
        b"GET / HTTP/1.0\r\n\r\n",
    ],
)
def test_garbage_ends_the_connection_and_nothing_else(
    connection: socket.socket, garbage: bytes
) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.settimeout(10)
        other.connect(connection.getpeername())
        other.sendall(garbage)
        with suppress(ConnectionResetError):  # it hung up before it had read all
            assert other.recv(100) == b""
    connection.sendall(netstring(b"aliases sales@example.com"))
    assert connection.recv(100) == netstring(b"OK bob@example.com")
