"""How often GPUs are read."""

import pytest

from orchestrator.domain.ranks.gpu_pace import INTERVAL_S, MOST_READINGS_PER_S, reading_interval_s, stale_after_s

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("ranks", [1, 8, 511, 1024, 10_000])
def test_a_driver_never_takes_more_readings_than_it_can(ranks: int) -> None:
    interval_s = reading_interval_s(ranks)
    assert interval_s >= INTERVAL_S
    assert ranks / interval_s <= MOST_READINGS_PER_S * (1 + 1e-9)
    assert stale_after_s(ranks) > 2 * interval_s, "a figure that comes late is still shown"


def test_a_small_gang_is_read_as_often_as_prometheus_scrapes() -> None:
    assert reading_interval_s(64) == INTERVAL_S
