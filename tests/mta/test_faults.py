"""Things break while mail flows through a real Postfix: a short run of what `make soak` does."""

from __future__ import annotations

from tests.soak.faults import FAULTS
from tests.soak.run import Run, make_stream
from tests.soak.scene import Scene

SEED = 7
EACH = 12  # transactions that a fault lasts for


def test_what_was_accepted_arrives_and_what_was_refused_was_bad_whatever_breaks() -> None:
    with Scene() as scene, make_stream(scene, SEED, rate=25.0, clients=5) as stream:
        run = Run(scene, stream)
        for name in FAULTS:
            run.strike([FAULTS[name]], attempts=EACH)
        account = run.settle()
        assert account.balances, "\n".join(map(str, account.entries[:30]))
        # It was no walk: each of these was needed for the sentence above to mean something.
        total = account.total
        assert total.accepted > 100
        assert total.retried > 50
        assert set(total.refused) == {"550 5.1.1", "550 5.2.1", "550 5.7.1"}
        assert any(answer.startswith("RCPT: 451 4.3.0") for answer in account.deferrals)
        assert any("4.7.1" in answer for answer in account.deferrals), "the milter was never away"
