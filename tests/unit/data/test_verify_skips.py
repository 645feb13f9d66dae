"""The proof of runs that left samples out: a recorded skip is part of it, any other gap fails it."""

from dataclasses import replace

import pytest

from orchestrator.cli.commands.data_command import _text
from orchestrator.data.samples.data_verify import verify_run
from orchestrator.data.samples.dataset import TokenDataset
from orchestrator.data.samples.skipping_order import BatchOrder
from orchestrator.domain.policy.numeric import FaultKind, NumericFault, Skip
from orchestrator.domain.step_report import StepReport
from tests.unit.data.corpora import Bench
from tests.unit.data.test_verify_run import BATCH, dataset_of, record

pytestmark = pytest.mark.unit


@pytest.fixture
def dataset(bench: Bench) -> TokenDataset:
    return dataset_of(bench)


def skip(step: int, from_step: int, position: int, batches: int = 1) -> Skip:
    fault = NumericFault(FaultKind.LOSS, step, position, BATCH, float("nan"), 1)
    return Skip(position, batches * BATCH, from_step, 1500.0, fault)


def steps_of(dataset: TokenDataset, steps: range, skips: list[Skip], time_s: float) -> list[StepReport]:
    order = BatchOrder.of(BATCH, [(each.first, each.count) for each in skips])
    return [record(dataset, step, time_s + step, first=order.first_position(step)) for step in steps]


def rolled_back(dataset: TokenDataset, skips: list[Skip], last: int = 40) -> list[StepReport]:
    """A run with a fault at step 13 and its checkpoint at step 10."""
    return [
        *steps_of(dataset, range(1, 13), [], 1000.0),
        *steps_of(dataset, range(11, last + 1), skips, 2000.0),
    ]


def test_a_recorded_skip_is_part_of_the_proof(dataset: TokenDataset) -> None:
    left_out = skip(13, 10, 12 * BATCH)
    proof = verify_run(rolled_back(dataset, [left_out]), dataset, BATCH, [left_out])
    assert proof.mismatch is None
    assert proof.ok
    assert (proof.steps, proof.superseded, proof.samples) == (40, 2, 40 * BATCH)
    assert (proof.skipped_samples, proof.end_position) == (BATCH, 41 * BATCH)
    assert proof.skips == (left_out,)
    assert sum(use.skipped for use in proof.epochs) == BATCH
    n = dataset.manifest.train_samples
    whole = [use for use in proof.epochs if use.epoch < 41 * BATCH // n]
    assert whole
    assert all(use.complete and use.used + use.skipped == use.of for use in whole)
    text = _text("x", proof)
    assert "left out: 12 samples; together with the 480 fed samples they are the 492 positions up to" in text
    assert "[144, 156): " in text
    assert "the loss is nan at step 13 on rank 1" in text
    assert "PROVED: every sample of every epoch, except those left out," in text


def test_the_same_gap_without_its_record_fails(dataset: TokenDataset) -> None:
    left_out = skip(13, 10, 12 * BATCH)
    proof = verify_run(rolled_back(dataset, [left_out]), dataset, BATCH)
    assert proof.mismatch is not None
    assert proof.mismatch.what == "fed positions [156, 168), not [144, 156)"
    other = replace(left_out, first=left_out.first + BATCH)
    assert not verify_run(rolled_back(dataset, [left_out]), dataset, BATCH, [other]).ok
    longer = replace(left_out, count=2 * BATCH)
    assert not verify_run(rolled_back(dataset, [left_out]), dataset, BATCH, [longer]).ok


def test_a_step_that_fed_what_is_left_out_does_not_count(dataset: TokenDataset) -> None:
    """Steps after the state gone back to, of the order before the skip: superseded, though none followed yet."""
    left_out = skip(13, 10, 11 * BATCH, batches=2)
    proof = verify_run(steps_of(dataset, range(1, 13), [], 1000.0), dataset, BATCH, [left_out])
    assert proof.ok
    assert (proof.steps, proof.superseded, proof.skips, proof.skipped_samples) == (10, 2, (), 0)


def test_overlapping_skips_count_each_sample_once(dataset: TokenDataset) -> None:
    first, second = skip(13, 10, 12 * BATCH), skip(13, 8, 11 * BATCH, batches=4)
    steps = [
        *steps_of(dataset, range(1, 13), [], 1000.0),
        *steps_of(dataset, range(11, 13), [first], 2000.0),
        *steps_of(dataset, range(9, 31), [first, second], 3000.0),
    ]
    proof = verify_run(steps, dataset, BATCH, [first, second])
    assert proof.mismatch is None
    assert (proof.skipped_samples, proof.end_position) == (4 * BATCH, 34 * BATCH)
    assert sum(use.skipped for use in proof.epochs) == 4 * BATCH


def test_a_skip_that_was_not_reached_is_not_counted(dataset: TokenDataset) -> None:
    far = skip(50, 40, 60 * BATCH)
    proof = verify_run(steps_of(dataset, range(1, 21), [], 1000.0), dataset, BATCH, [far])
    assert proof.ok
    assert (proof.skips, proof.skipped_samples, proof.end_position) == ((), 0, 20 * BATCH)


def test_weighted_sources_have_their_skips_counted_apart(bench: Bench) -> None:
    dataset = dataset_of(bench, weights=(1.0, 4.0))
    left_out = skip(13, 10, 12 * BATCH, batches=30)
    proof = verify_run(rolled_back(dataset, [left_out], last=250), dataset, BATCH, [left_out])
    assert proof.mismatch is None
    by_source = {name: sum(u.skipped for u in proof.epochs if u.source == name) for name in ("a.jsonl", "b.jsonl")}
    assert sum(by_source.values()) == 360
    assert by_source["b.jsonl"] > 2 * by_source["a.jsonl"] > 0


def test_a_record_that_is_no_whole_batch_fails(dataset: TokenDataset) -> None:
    proof = verify_run(rolled_back(dataset, []), dataset, BATCH, [skip(13, 10, 7)])
    assert proof.mismatch is not None
    assert "not whole batches" in proof.mismatch.what
