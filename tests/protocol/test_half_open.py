"""Connections on which an MTA, or something else, stops in the middle of a command."""

from __future__ import annotations

from collections.abc import Callable

from tests.harness.daemon import Daemon
from tests.harness.mta_client import ACTIONS, STEPS, Mta, dial, negotiate, packet


def test_a_connection_that_stops_within_a_command_is_closed_and_an_idle_one_is_not(
    mta: Mta, daemon: Daemon
) -> None:
    with dial(daemon.socket) as half:
        half.sendall(packet("O")[:3])
        half.settimeout(15)
        assert half.recv(1) == b""
    assert mta.rcpt("<bob@example.com>").kind == "continue"


def test_connections_that_stop_halfway_keep_nobody_from_being_served(
    connect: Callable[..., Mta], daemon: Daemon
) -> None:
    # Each of them may take a thread of libmilter's, which starts no new one for those who wait.
    halves = [dial(daemon.socket) for _ in range(60)]
    try:
        for number, half in enumerate(halves):
            if number % 3 == 1:
                half.sendall(b"\x00\x00\x00")  # of a length
            elif number % 3 == 2:
                negotiate(half, ACTIONS, STEPS)
                half.sendall(packet("M", b"<a@bank.example>\0")[:9])
        with connect() as mta:
            mta.mail()
            assert mta.rcpt("<sales@example.com>").kind == "continue"
    finally:
        for half in halves:
            half.close()
