"""A worker knows what goes on in it."""

from __future__ import annotations

import threading

from aliasmilter.mta.activity import Activity


def test_it_counts_connections_transactions_and_callbacks() -> None:
    activity = Activity()
    one, other = activity.begin(), activity.begin()
    one.in_transaction = other.in_callback = True
    assert (activity.sessions, activity.transactions, activity.callbacks) == (2, 1, 1)
    activity.end(one)
    activity.end(one)
    assert (activity.sessions, activity.transactions, activity.callbacks) == (1, 0, 1)


def test_it_waits_until_nothing_runs_any_more_and_no_longer_than_it_may() -> None:
    activity = Activity()
    part = activity.begin()
    part.in_callback = True
    assert not activity.wait_until(lambda now: not now.callbacks, timeout=0.0)
    ending = threading.Timer(0.05, activity.end, [part])
    ending.start()
    assert activity.wait_until(lambda now: not now.callbacks, timeout=30.0)
    ending.join()
