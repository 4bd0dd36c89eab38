"""Parts of the supervisor that need no daemon."""

from __future__ import annotations

import os

import structlog.testing

from aliasmilter.mta.server import _stay_on

NO_CORE = 4095


def test_a_worker_that_may_not_stay_on_its_core_says_so_and_runs_on_any() -> None:
    before = os.sched_getaffinity(0)
    with structlog.testing.capture_logs() as lines:
        _stay_on(NO_CORE)
    assert [line["event"] for line in lines] == ["worker runs on any core"]
    assert os.sched_getaffinity(0) == before
