"""How long a gang that is left waits for its last snapshot."""

import pytest

from orchestrator.train.snapshot.snapshot_policy import HAND_OVER_PAUSE_S, hand_over_rounds

pytestmark = pytest.mark.unit


def test_the_wait_for_the_last_snapshot_grows_with_the_state() -> None:
    def limit_s(parameters: float, workers: int) -> float:
        return hand_over_rounds(int(parameters), workers) * HAND_OVER_PAUSE_S

    assert limit_s(1e5, 2) == pytest.approx(2.0, abs=2 * HAND_OVER_PAUSE_S)
    # 8 ranks of a node send 10.5 GB and 105 GB; at 2.5 GB/s that takes 4.2 and 42 s.
    assert 4.2 < limit_s(7e9, 64) < 10.0
    assert 42.0 < limit_s(70e9, 64) < 60.0
