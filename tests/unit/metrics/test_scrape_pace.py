"""A failed run's last state waits for the scrape that is due, and for none that is not."""

import threading

import pytest

from orchestrator.metrics.scrape_pace import LONGEST_WAIT_S, ScrapePace, expected_wait_s

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("scrapes_s", "wait_s"),
    [
        ((), 0.0),
        ((98.0,), 0.0),
        ((94.0, 99.0), 6.5),
        ((80.0, 85.0), 0.0),
        ((0.0, 99.0), LONGEST_WAIT_S),
    ],
    ids=["never scraped", "once by hand", "due", "overdue", "rarely"],
)
def test_how_long_a_scrape_is_waited_for(scrapes_s: tuple[float, ...], wait_s: float) -> None:
    assert expected_wait_s(scrapes_s, 100.0) == wait_s


def test_the_wait_ends_with_the_scrape() -> None:
    pace = ScrapePace()
    assert not pace.await_next(100.0), "nobody scrapes"
    pace.note(90.0)
    pace.note(99.0)
    scrape = threading.Timer(0.05, pace.note, (100.05,))
    scrape.start()
    assert pace.await_next(100.0)
    scrape.join()
