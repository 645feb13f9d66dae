import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.data.samples.skipping_order import BatchOrder

pytestmark = pytest.mark.unit

BATCH = 4
ranges = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 6)), max_size=6).map(
    lambda found: [(first * BATCH, count * BATCH) for first, count in found]
)


def walked(skips: list[tuple[int, int]], steps: int) -> list[int]:
    """Where each step begins, found by walking from batch to batch."""
    begins: list[int] = []
    position = 0
    while len(begins) < steps:
        if not any(first <= position < first + count for first, count in skips):
            begins.append(position)
        position += BATCH
    return begins


@given(ranges)
@settings(max_examples=300, deadline=None)
def test_arithmetic_says_what_walking_says(skips: list[tuple[int, int]]) -> None:
    order = BatchOrder.of(BATCH, skips)
    begins = walked(skips, 60)
    assert [order.first_position(step) for step in range(1, 61)] == begins
    for step in range(1, 60):
        assert order.end_position(step) == begins[step - 1] + BATCH
        assert order.advance(begins[step - 1], 1) == begins[step]
        assert order.advance(order.end_position(step), 0) == begins[step]
        assert order.skipped_before(begins[step]) == begins[step] - step * BATCH
        assert order.follows(step, order.end_position(step))
        assert order.follows(step, begins[step])


@given(ranges, st.integers(0, 50), st.integers(0, 50))
@settings(max_examples=300, deadline=None)
def test_going_on_from_anywhere_is_going_on(skips: list[tuple[int, int]], start: int, further: int) -> None:
    """Resume: from the state of any step, later steps begin where they would have."""
    order = BatchOrder.of(BATCH, skips)
    position = order.end_position(start)
    assert order.advance(position, further) == order.first_position(start + further + 1)


@given(ranges, st.integers(1, 40), st.integers(1, 6))
@settings(max_examples=300, deadline=None)
def test_a_state_that_saw_a_later_skip_does_not_follow(skips: list[tuple[int, int]], step: int, count: int) -> None:
    """A skip is decided at some step's batch: states before it are in the new order, later ones are not."""
    before = BatchOrder.of(BATCH, skips)
    first = before.first_position(step)
    after = BatchOrder.of(BATCH, [*skips, (first, count * BATCH)])
    for saved in range(60):
        position = before.advance(before.end_position(saved), 0)
        assert after.follows(saved, position) == (saved < step), saved


def test_without_skips_it_is_the_plain_order() -> None:
    order = BatchOrder.of(BATCH)
    assert [order.first_position(step) for step in (1, 2, 1_000_000)] == [0, 4, 3_999_996]
    assert order.end_position(0) == 0
    assert order.follows(0, 0)
    assert not order.follows(2, 12)


@pytest.mark.parametrize("skip", [(2, 4), (4, 6), (-4, 4), (4, 0)])
def test_only_whole_batches_can_be_left_out(skip: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="whole batches of 4"):
        BatchOrder.of(BATCH, [skip])
