import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.data.samples.order import keys, mix64, permute

pytestmark = pytest.mark.unit

GOLDEN_10 = [8, 2, 4, 0, 3, 7, 9, 5, 6, 1]
GOLDEN_10_SEEDED = [0, 7, 9, 5, 6, 2, 1, 3, 4, 8]
GOLDEN_1000 = [626, 479, 149, 217, 419, 403, 507, 86]


def permutation(n: int, seed: int = 0, stream: int = 0, epoch: int = 0) -> np.ndarray:
    key = keys(seed, stream, np.full(n, epoch, dtype=np.uint64))
    return permute(np.arange(n, dtype=np.uint64), n, key)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 97, 127, 128, 255, 256, 257, 1009, 4096, 65537])
@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_a_permutation_is_a_bijection(n: int, epoch: int) -> None:
    assert np.array_equal(np.sort(permutation(n, seed=3, epoch=epoch)), np.arange(n))


@given(n=st.integers(1, 3000), seed=st.integers(0, 2**32 - 1), epoch=st.integers(0, 2**40))
def test_any_size_seed_and_epoch_is_a_bijection(n: int, seed: int, epoch: int) -> None:
    assert np.array_equal(np.sort(permutation(n, seed, 1, epoch)), np.arange(n))


def test_a_huge_domain_is_entered_anywhere() -> None:
    n = 10**12 + 39
    positions = np.array([0, 1, n // 2, n - 1], dtype=np.uint64)
    images = permute(positions, n, keys(0, 0, np.zeros(4, dtype=np.uint64)))
    assert len(set(images.tolist())) == 4
    assert int(images.max()) < n
    for position, image in zip(positions, images, strict=True):
        alone = permute(np.array([position]), n, keys(0, 0, np.zeros(1, dtype=np.uint64)))
        assert alone[0] == image


def test_the_order_never_changes() -> None:
    # Golden values: a change here makes every run that is resumed see other data.
    assert permutation(10).tolist() == GOLDEN_10
    assert permutation(10, seed=1, stream=2, epoch=3).tolist() == GOLDEN_10_SEEDED
    assert permutation(1000)[:8].tolist() == GOLDEN_1000
    assert mix64(np.array([0, 1], dtype=np.uint64)).tolist() == [0xE220A8397B1DCDAF, 0x910A2DEC89025CC1]


def test_epochs_and_seeds_and_streams_differ() -> None:
    base = permutation(5000)
    for other in (permutation(5000, epoch=1), permutation(5000, seed=1), permutation(5000, stream=1)):
        assert 0 <= (base == other).sum() < 15  # one fixed point is expected of two random permutations


@pytest.mark.parametrize("n", [1000, 1024, 4097])
def test_neighbours_are_not_correlated(n: int) -> None:
    # Of a random permutation each correlation has standard deviation 1/sqrt(n): 5 of them is one in two million.
    for epoch in range(5):
        image = permutation(n, epoch=epoch).astype(float)
        for lag in (1, 2, 3, 16, 64):
            assert abs(np.corrcoef(image[:-lag], image[lag:])[0, 1]) < 5 / np.sqrt(n)
        assert abs(np.corrcoef(np.arange(n), image)[0, 1]) < 5 / np.sqrt(n)


def test_places_are_uniform_over_epochs() -> None:
    # Chi-square of where each of 13 elements lands in 13,000 epochs: 144 degrees of freedom, mean 144, deviation 17.
    n, epochs = 13, 13_000
    key = keys(7, 0, np.repeat(np.arange(epochs, dtype=np.uint64), n))
    images = permute(np.tile(np.arange(n, dtype=np.uint64), epochs), n, key).reshape(epochs, n)
    counts = np.stack([np.bincount(images[:, place].astype(int), minlength=n) for place in range(n)])
    assert 60 < ((counts - epochs / n) ** 2 / (epochs / n)).sum() < 250


def test_what_is_out_of_range_is_refused() -> None:
    key = keys(0, 0, np.zeros(1, dtype=np.uint64))
    with pytest.raises(ValueError, match="outside"):
        permute(np.array([5], dtype=np.uint64), 5, key)
    with pytest.raises(ValueError, match="at least one"):
        permute(np.array([0], dtype=np.uint64), 0, key)
