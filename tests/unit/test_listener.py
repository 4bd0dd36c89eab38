"""The listening socket when somebody else has it: they may be about to let go."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from aliasmilter.config import MilterSection
from aliasmilter.mta import listener
from aliasmilter.mta.listener import Listener, ListenerError
from tests.harness.ports import accepts, reserved_port


@pytest.fixture(params=["unix", "inet"])
def taken(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    """A name as `[milter] socket` has it, and the socket that listens there."""
    if request.param == "unix":
        path = tmp_path / "milter.sock"
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(path))
            other.listen()
            yield f"unix:{path}", other
    else:
        with reserved_port() as port, socket.create_server(("127.0.0.1", port)) as other:
            yield f"inet:{port}@127.0.0.1", other


def instead_of_sleeping(monkeypatch: pytest.MonkeyPatch, act: Callable[[float], None]) -> None:
    monkeypatch.setattr(listener, "time", SimpleNamespace(monotonic=time.monotonic, sleep=act))


def test_who_lets_go_soon_is_waited_for(
    taken: tuple[str, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, other = taken
    instead_of_sleeping(monkeypatch, lambda _: other.close())
    own = Listener(name, MilterSection())
    try:
        address = name.partition(":")[2]
        assert accepts(address if name.startswith("unix") else int(address.partition("@")[0]))
    finally:
        own.close()


def test_who_does_not_let_go_keeps_it(
    taken: tuple[str, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, other = taken
    monkeypatch.setattr(listener, "HANDOVER", 0.3)
    with pytest.raises(ListenerError, match=r"in use|listens there"):
        Listener(name, MilterSection())
    other.settimeout(10)
    with socket.socket(other.family) as client:
        client.connect(other.getsockname())
        other.accept()[0].close()


def test_what_is_no_socket_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.touch()
    instead_of_sleeping(monkeypatch, lambda _: pytest.fail("it waits"))
    with pytest.raises(ListenerError, match="no socket"):
        Listener(f"unix:{file}", MilterSection())
    assert file.exists()


def test_a_group_that_the_daemon_is_not_in_is_named_and_nothing_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("os.chown", refuse)
    monkeypatch.setattr("grp.getgrnam", lambda _: SimpleNamespace(gr_gid=123))
    file = tmp_path / "milter.sock"
    with pytest.raises(ListenerError, match="user has to be in the group postfix "):
        Listener(f"unix:{file}", MilterSection(socket_group="postfix"))
    # Mode 0 as yet: who is not root could not find out at the next start that it is stale.
    assert not file.exists()
