"""The fuzz targets over their seeds, and a few seeds of the protocol: no atheris needed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz import protocol
from tests.fuzz.targets import TARGETS
from tests.harness.daemon import Daemon
from tests.harness.redis import RedisServer
from tests.protocol.conftest import load_rules

CORPUS = Path(__file__).with_name("corpus")


def test_every_target_has_seeds_and_no_seed_is_without_a_target() -> None:
    assert {folder.name for folder in CORPUS.iterdir()} == set(TARGETS)
    assert all(any(folder.iterdir()) for folder in CORPUS.iterdir())


@pytest.mark.parametrize("target", TARGETS)
def test_the_seeds_of_a_target_and_all_their_beginnings_break_nothing(target: str) -> None:
    for file in sorted((CORPUS / target).iterdir()):
        data = file.read_bytes()
        TARGETS[target](data)
        for end in range(0, len(data), max(len(data) // 20, 1)):
            TARGETS[target](data[:end])


@pytest.mark.parametrize("target", [name for name in TARGETS if name != "configuration"])
@settings(deadline=None)
@given(data=st.data())
def test_any_octets_and_any_splice_of_seeds_break_nothing(target: str, data: st.DataObject) -> None:
    seeds = [file.read_bytes() for file in sorted((CORPUS / target).iterdir())]
    piece = st.one_of(
        st.binary(max_size=40),
        st.builds(lambda seed, a, b: seed[a : a + b], st.sampled_from(seeds),
                  st.integers(0, 2000), st.integers(0, 400)),
    )  # fmt: skip
    TARGETS[target](b"".join(data.draw(st.lists(piece, max_size=4))))


@pytest.fixture(scope="module")
def attacked(shared_redis: RedisServer) -> Iterator[Daemon]:
    shared_redis.flush()
    load_rules(shared_redis)
    with Daemon(shared_redis.url, {"reinject": {"server": "127.0.0.1:1"}}) as daemon:
        yield daemon


@pytest.mark.parametrize("seed", range(4))
def test_row_21_a_protocol_spoken_badly_harms_nobody_else(attacked: Daemon, seed: int) -> None:
    protocol.attack(attacked, seed)
