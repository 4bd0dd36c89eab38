"""The milter protocol, spoken badly: sessions made by chance from a seed, to the real daemon."""

from __future__ import annotations

import random
import struct
import sys
import time
from contextlib import suppress

from tests.harness.daemon import Daemon
from tests.harness.mta_client import ACTIONS, STEPS, Mta, dial, drain, packet
from tests.harness.redis import RedisServer
from tests.protocol.conftest import load_rules

SESSIONS = 40  # for each seed
Packet = tuple[str, bytes]

# Sent whole or not at all. libmilter (8.17) reads past the end of a list in which a name has no
# value, and may crash; no client can make a mail server send one.
MACROS = "D"
OFFER = struct.pack("!LLL", 6, ACTIONS, STEPS)
GOOD: list[Packet] = [
    ("O", OFFER),
    ("D", b"Cj\0mx.example.net\0v\0Postfix 3.7.11\0"),
    ("C", b"client.example\x004\x87\x0f192.0.2.10\0"),
    ("H", b"client.example\0"),
    ("D", b"M{auth_authen}\0joe\0"),
    ("M", b"<alice@bank.example>\0SIZE=100\0"),
    ("R", b"<sales@example.com>\0NOTIFY=NEVER\0"),
    ("R", b"<out@example.com>\0"),
    ("R", b"<nobody@example.com>\0"),
    ("T", b""),
    ("L", b"From\0 alice@bank.example\0"),
    ("L", b"Authentication-Results\0 mx.example.net; spf=pass\0"),
    ("N", b""),
    ("B", b"hello\r\n" * 100),
    ("D", b"Ei\x004Tz8Qk1x2y\0"),
    ("E", b""),
    ("A", b""),
    ("U", b"XYZZY\0"),
    ("K", b""),
    ("Q", b""),
]


def session(chance: random.Random) -> bytes:
    """The octets of one session: the good one with some of it moved, cut, doubled or spoilt."""
    packets = list(GOOD)
    for _ in range(chance.randrange(6)):
        place = chance.randrange(len(packets))
        match chance.randrange(4):
            case 0:
                packets.insert(chance.randrange(len(packets)), packets[place])
            case 1 if len(packets) > 1:
                del packets[place]
            case 2:
                chance.shuffle(packets)
            case _ if packets[place][0] != MACROS:
                packets[place] = _spoilt(packets[place], chance)
    if chance.randrange(8) == 0:
        packets[chance.randrange(len(packets))] = ("", chance.randbytes(chance.randrange(9)))
    octets = b"".join(packet(command, data) for command, data in packets)
    if chance.randrange(4) == 0:
        octets = octets[: chance.randrange(len(octets))]
    return octets


def _spoilt(good: Packet, chance: random.Random) -> Packet:
    command, data = good
    match chance.randrange(5):
        case 0:
            return command, data[: chance.randrange(len(data) + 1)]
        case 1:
            return command, data * chance.randrange(1, 500)
        case 2:
            return command, chance.randbytes(chance.randrange(200))
        case 3:
            other = chr(chance.randrange(1, 127))
            return command if other == MACROS else other, data
        case _:
            spoilt = bytearray(data or b"x")
            spoilt[chance.randrange(len(spoilt))] = chance.randrange(256)
            return command, bytes(spoilt)


def attack(daemon: Daemon, seed: int) -> None:
    # After any sessions there is still every worker, no exception of ours in the log, and a good
    # session is served as ever: a result or a closed connection, never any other error, in
    # bounded time and memory.
    chance = random.Random(seed)
    workers = sorted(daemon.workers)
    before = len(daemon.log)
    for _ in range(SESSIONS):
        with dial(daemon.socket) as connection:
            with suppress(ConnectionError, TimeoutError):
                connection.sendall(session(chance))
            _read_whole_packets(drain(connection))
    with Mta(daemon.socket) as mta:
        mta.mail()
        assert mta.rcpt("<nobody@example.com>").text.startswith("550 5.1.1"), seed
        assert mta.rcpt("<sales@example.com>").kind == "continue", seed
        assert mta.message().of("addrcpt") == [("<bob@example.com>",)], seed
    assert sorted(daemon.workers) == workers, seed
    assert "Traceback" not in daemon.log[before:], seed


def _read_whole_packets(replies: bytes) -> None:
    while len(replies) >= 4:
        (length,) = struct.unpack("!L", replies[:4])
        assert 0 < length <= 65_536, replies[:80]
        replies = replies[4 + length :]


def run(seconds: int) -> None:
    """Attack a daemon of its own, seed by seed, until the time is over."""
    until = time.monotonic() + seconds
    seed = time.time_ns() % 1_000_000
    with (
        RedisServer() as redis,
        Daemon(redis.url, {"reinject": {"server": "127.0.0.1:1"}}) as daemon,
    ):
        load_rules(redis)
        while time.monotonic() < until:
            sys.stderr.write(f"seed {seed}\n")
            attack(daemon, seed)
            seed += 1
