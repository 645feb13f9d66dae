"""Leases: when a challenger may take over, when a holder must end, and which records count."""

import pytest

from orchestrator.domain.lease import (
    BUCKET_RENEW_S,
    LONGEST_GAP_S,
    LOOK_S,
    RENEW_S,
    TTL_S,
    Lease,
    LeaseOrder,
    Observed,
    Standing,
    first_generation,
    is_lost,
    next_token,
    observe,
    standing,
    token_in,
    token_of,
)

pytestmark = pytest.mark.unit

HELD = Lease("a driver", 3, renewals=7)


def watched(leases: list[tuple[float, Lease]]) -> Observed:
    seen: Observed | None = None
    for now_s, lease in leases:
        seen = observe(seen, lease, now_s)
    assert seen is not None
    return seen


def looks(seconds: float, lease: Lease = HELD, start_s: float = 0.0) -> list[tuple[float, Lease]]:
    return [(start_s + number * LOOK_S, lease) for number in range(int(seconds / LOOK_S) + 1)]


def test_a_counter_that_stands_still_for_the_ttl_frees_the_run_and_not_before() -> None:
    almost = watched(looks(TTL_S - LOOK_S))
    assert standing(HELD, almost, holder_gone=False) is Standing.UNKNOWN
    assert standing(HELD, watched(looks(TTL_S)), holder_gone=False) is Standing.FREE


def test_a_counter_that_moves_is_a_driver_that_lives() -> None:
    moved = Lease("a driver", 3, renewals=8)
    seen = watched([*looks(TTL_S - LOOK_S), (TTL_S, moved)])
    assert standing(HELD, seen, holder_gone=False) is Standing.HELD
    # What stood still before it moved does not count any more.
    assert seen.still_s == 0.0
    # It stands still again: the driver has stopped after all.
    seen = watched([(0.0, HELD), *looks(TTL_S, moved, LOOK_S)])
    assert standing(HELD, seen, holder_gone=False) is Standing.FREE


def test_no_wall_clock_counts_and_no_start_of_the_clock() -> None:
    for start_s in (-1e9, 0.0, 1e9):
        seen = watched(looks(TTL_S, start_s=start_s))
        assert seen.still_s == pytest.approx(TTL_S)


def test_time_in_which_the_challenger_did_not_look_hardly_counts() -> None:
    """It was stopped, or the machine that both run on was: the holder had no chance either."""
    seen = watched([(0.0, HELD), (3600.0, HELD)])
    assert seen.still_s == LONGEST_GAP_S
    assert standing(HELD, seen, holder_gone=False) is Standing.UNKNOWN
    assert observe(seen, HELD, 3000.0).still_s == LONGEST_GAP_S, "a clock that goes backwards is no time"


def test_a_released_lease_and_a_holder_that_is_gone_are_not_waited_for() -> None:
    released = Lease("a driver", 3, renewals=8, released=True)
    assert standing(HELD, watched([(0.0, released)]), holder_gone=False) is Standing.FREE
    assert standing(HELD, watched([(0.0, HELD)]), holder_gone=True) is Standing.FREE
    assert standing(HELD, watched([(0.0, HELD)]), holder_gone=False) is Standing.UNKNOWN


def test_a_holder_ends_at_a_higher_token_or_another_holder_of_its_own() -> None:
    assert not is_lost(HELD, 3, HELD)
    assert not is_lost(HELD, 3, None), "a place that cannot be read takes nothing away"
    assert not is_lost(HELD, 0, None)
    assert is_lost(HELD, 4, HELD)
    assert is_lost(HELD, 3, Lease("another driver", 3))


def test_tokens_rise_and_generations_with_them() -> None:
    assert (next_token([]), next_token([2, 7, 5])) == (1, 8)
    generations = [first_generation(token) + number for token in (1, 2, 3) for number in (1, 2, 1000)]
    assert generations == sorted(generations)
    assert [token_of(each) for each in generations] == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert token_of(17) == 0, "generations of older versions are below all others"


def test_a_healthy_driver_has_many_renewals_before_it_loses_its_run() -> None:
    assert TTL_S / RENEW_S >= 10
    assert TTL_S / BUCKET_RENEW_S >= 4
    assert TTL_S <= 30, "a resume on another machine must not take minutes"


def test_a_record_below_the_highest_token_before_it_does_not_count() -> None:
    order = LeaseOrder()
    assert [order.counts(token) for token in (0, 0, 1, 1, 0, 2, 1, 2, 3)] == [
        True, True, True, True, False, True, False, True, True,
    ]  # fmt: skip
    assert (token_in({}), token_in({"lease": 4}), token_in({"lease": "4"}), token_in({"lease": True})) == (0, 4, 0, 0)


@pytest.mark.parametrize(
    "value", [{}, {"holder": 1}, {**HELD.to_json(), "token": "3"}, {**HELD.to_json(), "ttl_s": None}]
)
def test_what_is_no_lease_is_none(value: dict[str, object]) -> None:
    assert Lease.from_json(value) is None
    assert Lease.from_json(HELD.to_json()) == HELD
