"""Range algebra against the obvious thing: sets of integers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.checkpoint.format.intervals import Range, even_slice, intersect, missing

pytestmark = pytest.mark.unit

ranges = st.tuples(st.integers(0, 30), st.integers(0, 12)).map(lambda t: Range(t[0], t[0] + t[1]))


def elements(r: Range | None) -> set[int]:
    return set(range(r.start, r.end)) if r is not None else set()


@given(ranges, ranges)
def test_intersection_is_that_of_sets(a: Range, b: Range) -> None:
    assert elements(intersect(a, b)) == elements(a) & elements(b)
    assert intersect(a, b) is None or len(intersect(a, b) or ()) > 0


@given(ranges, st.lists(ranges, max_size=6))
def test_missing_is_set_difference_in_order(want: Range, have: list[Range]) -> None:
    gaps = missing(want, have)
    assert [i for gap in gaps for i in range(gap.start, gap.end)] == sorted(
        elements(want).difference(*(elements(h) for h in have))
    )
    assert all(len(gap) for gap in gaps)


@given(st.integers(0, 1000), st.integers(1, 17))
def test_even_slices_tile_the_whole_and_differ_by_at_most_one(length: int, world_size: int) -> None:
    shares = [even_slice(length, rank, world_size) for rank in range(world_size)]
    assert [i for share in shares for i in range(share.start, share.end)] == list(range(length))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
