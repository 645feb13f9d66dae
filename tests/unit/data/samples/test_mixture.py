from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.data.samples.mixture import Mixture, apportion

pytestmark = pytest.mark.unit


def test_without_weights_each_sample_is_used_once_an_epoch() -> None:
    mixture = Mixture.of([5, 0, 7], None, seed=0)
    drawn = mixture.draw(0, 36)
    for epoch in range(3):
        assert sorted(drawn.ids[drawn.epochs == epoch].tolist()) == list(range(12))
    assert np.array_equal(drawn.sources, np.where(drawn.ids < 5, 0, 2))


def test_weights_hold_exactly_in_every_block() -> None:
    mixture = Mixture.of([100, 30, 11], [1.0, 2.0, 5.0], seed=4)
    assert mixture.block_positions == 1024
    for block in range(3):
        drawn = mixture.draw(block * 1024, 1024)
        assert Counter(drawn.sources.tolist()) == {0: 128, 1: 256, 2: 640}


def test_weighted_sources_have_their_own_epochs_each_sample_once() -> None:
    sizes = [100, 30, 11]
    mixture = Mixture.of(sizes, [1.0, 2.0, 5.0], seed=4)
    drawn = mixture.draw(0, 10 * 1024)
    for source, size in enumerate(sizes):
        rows = drawn.sources == source
        whole = int(rows.sum()) // size
        for epoch in range(whole):
            ids = drawn.ids[rows & (drawn.epochs == epoch)] - mixture.offsets[source]
            assert sorted(ids.tolist()) == list(range(size))
            assert mixture.must_be_complete(source, epoch, 10 * 1024)
        assert not mixture.must_be_complete(source, whole + 1, 10 * 1024)


@given(
    sizes=st.lists(st.integers(1, 50), min_size=1, max_size=4),
    weighted=st.booleans(),
    cuts=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    first=st.integers(0, 10**12),
)
def test_any_window_is_the_same_however_it_is_cut(
    sizes: list[int], weighted: bool, cuts: list[int], first: int
) -> None:
    mixture = Mixture.of(sizes, [float(i + 1) for i in range(len(sizes))] if weighted else None, seed=1)
    whole = mixture.draw(first, sum(cuts))
    at = first
    ids: list[int] = []
    for cut in cuts:
        ids += mixture.draw(at, cut).ids.tolist()
        at += cut
    assert ids == whole.ids.tolist()


@given(weights=st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=30))
def test_apportionment_seats_everyone_and_fills_the_house(weights: list[float]) -> None:
    counts = apportion(weights, 1024)
    assert sum(counts) == 1024
    assert min(counts) >= 1


def test_apportionment_is_by_largest_remainder() -> None:
    assert apportion([1, 1, 1], 10) == (4, 3, 3)
    assert apportion([0.5, 0.3, 0.2], 10) == (5, 3, 2)
    assert apportion([1, 1e-9], 10) == (9, 1)


def test_nothing_to_order_is_refused() -> None:
    with pytest.raises(ValueError, match="no sample"):
        Mixture.of([0, 0], None, 0)
    with pytest.raises(ValueError, match="no sample"):
        Mixture.of([3, 0], [1.0, 1.0], 0)
    with pytest.raises(ValueError, match="start at 0"):
        Mixture.of([3], None, 0).draw(-1, 2)
