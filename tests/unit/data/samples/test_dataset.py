from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from orchestrator.data.samples.dataset import DIGEST_MODULUS, Samples, TokenDataset
from orchestrator.planner.batch_shape import shape_batch
from tests.unit.data.corpora import Bench, job, sentences

pytestmark = pytest.mark.unit


def made(bench: Bench, **fields: Any) -> TokenDataset:
    bench.jsonl("a.jsonl", sentences(60))
    bench.jsonl("b.jsonl", sentences(40, seed=1))
    weights = fields.pop("weights", (None, None))
    sources = [{"files": [f"{name}.jsonl"], "weight": weight} for name, weight in zip("ab", weights, strict=True)]
    return bench.dataset(job(sources, **fields))


def epoch_of(dataset: TokenDataset) -> Samples:
    return dataset.train(0, dataset.manifest.train_samples)


def joined(samples: Samples) -> list[int]:
    """The tokens in the order of the sample ids."""
    order = np.argsort(samples.ids)
    return [t for i in order for t in samples.tokens[i, : samples.lengths[i]].tolist()]


@pytest.mark.parametrize("packing", [True, False])
def test_an_epoch_is_every_token_exactly_once(bench: Bench, packing: bool) -> None:
    dataset = made(bench, packing=packing)
    samples = epoch_of(dataset)
    assert sorted(samples.ids.tolist()) == list(range(dataset.manifest.train_samples))
    directory = bench.prepare(job([{"files": ["a.jsonl"]}, {"files": ["b.jsonl"]}], packing=packing)).directory
    streams = [np.fromfile(directory / f"s{i}.train.tokens", dtype="<u2").tolist() for i in range(2)]
    assert joined(samples) == streams[0] + streams[1]
    assert int(samples.lengths.sum()) == dataset.manifest.train_tokens
    padding = np.arange(16) >= samples.lengths[:, None]
    assert (samples.tokens[padding] == dataset.manifest.pad_id).all()
    assert samples.tokens.dtype == np.int32
    assert samples.lengths.min() >= 1


def test_packed_samples_are_full_except_the_last_of_each_source(bench: Bench) -> None:
    assert (epoch_of(made(bench)).lengths < 16).sum() <= 2


def test_unpacked_samples_hold_one_document_each(bench: Bench) -> None:
    dataset = made(bench, packing=False)
    samples = epoch_of(dataset)
    ends = (samples.tokens == dataset.manifest.eos_id).sum(axis=1)
    assert ends.max() == 1
    assert ends.sum() == dataset.manifest.documents
    for row in np.flatnonzero(ends):
        assert samples.tokens[row, samples.lengths[row] - 1] == dataset.manifest.eos_id
    assert (samples.lengths[ends == 0] == 16).all()


@pytest.mark.parametrize("weights", [(None, None), (1.0, 3.0)])
def test_any_number_of_workers_reads_the_same_batch(bench: Bench, weights: tuple[float | None, ...]) -> None:
    dataset = made(bench, weights=weights)
    for batch in (12, 13):
        for step in (0, 1, 50):
            whole = dataset.train(step * batch, batch)
            for world in (1, 2, 3, 4, 7):
                shape = shape_batch(batch, world, None)
                shares = [dataset.train(step * batch + shape.first(r), shape.shares[r]) for r in range(world)]
                assert np.array_equal(np.concatenate([share.tokens for share in shares]), whole.tokens)
                assert np.array_equal(np.concatenate([share.ids for share in shares]), whole.ids)
                assert sum(share.digest() for share in shares) % DIGEST_MODULUS == whole.digest()


def test_the_digest_sees_every_change_but_the_order(bench: Bench) -> None:
    samples = made(bench).train(0, 8)
    digest = samples.digest()
    order = np.array([3, 1, 2, 0, 7, 6, 5, 4])
    shuffled = Samples(samples.ids[order], samples.epochs[order], samples.tokens[order], samples.lengths[order])
    assert shuffled.digest() == digest
    for row, column in ((0, 0), (7, 3)):
        tokens = samples.tokens.copy()
        tokens[row, column] += 1
        assert Samples(samples.ids, samples.epochs, tokens, samples.lengths).digest() != digest
    twice = samples.ids.copy()
    twice[1] = twice[0]
    assert Samples(twice, samples.epochs, samples.tokens, samples.lengths).digest() != digest
    swapped = samples.ids[[1, 0, 2, 3, 4, 5, 6, 7]]
    assert Samples(swapped, samples.epochs, samples.tokens, samples.lengths).digest() != digest
    assert 0 <= digest < DIGEST_MODULUS


def test_epochs_differ_and_go_on_for_ever(bench: Bench) -> None:
    dataset = made(bench)
    n = dataset.manifest.train_samples
    first, second = dataset.train(0, n), dataset.train(n, n)
    assert sorted(first.ids) == sorted(second.ids)
    assert (first.ids != second.ids).any()
    assert dataset.train(10**15, 2).epochs.tolist() == [10**15 // n, (10**15 + 1) // n]
    assert dataset.epoch_at(3 * n) == 3.0
    assert len(dataset.train(5, 0).ids) == 0
    assert dataset.train(5, 0).digest() == 0


def test_seeds_differ_in_order_only(bench: Bench) -> None:
    a, b = made(bench, seed=1), made(bench, seed=2)
    assert joined(epoch_of(a)) == joined(epoch_of(b))
    assert (epoch_of(a).ids != epoch_of(b).ids).any()


def test_validation_is_fixed_and_apart_from_training(bench: Bench) -> None:
    fields: dict[str, Any] = {"validation": {"fraction": 0.3, "max_samples": 10}}
    a, b = made(bench, seed=1, **fields), made(bench, seed=2, **fields)
    count = a.manifest.validation_samples
    assert count == 10 < a.manifest.validation_samples_total
    assert np.array_equal(a.validation(0, count).tokens, b.validation(0, count).tokens)
    parts = np.concatenate([a.validation(i, 2).ids for i in range(0, count, 2)])
    assert np.array_equal(parts, a.validation(0, count).ids)
    assert len(set(parts.tolist())) == count
    with pytest.raises(ValueError, match="validation samples"):
        a.validation(5, 6)


def test_threads_read_what_one_thread_reads(bench: Bench) -> None:
    dataset = made(bench)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: dataset.train(i * 7, 7).digest(), range(200)))
    assert found == [dataset.train(i * 7, 7).digest() for i in range(200)]
