from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from orchestrator.data.samples.data_verify import Proof, verify_run
from orchestrator.data.samples.dataset import DIGEST_MODULUS, TokenDataset
from orchestrator.domain.ranks.rank_summary import summarise
from orchestrator.domain.step_report import StepReport
from tests.unit.data.corpora import Bench, job, sentences

pytestmark = pytest.mark.unit

BATCH = 12
STEPS = 40


def record(dataset: TokenDataset, step: int, time_s: float, batch: int = BATCH, first: int | None = None) -> StepReport:
    first = (step - 1) * batch if first is None else first
    samples = dataset.train(first, batch)
    return StepReport(
        step=step,
        time_s=time_s,
        epoch=dataset.epoch_at(first + batch),
        loss=1.0,
        grad_norm=None,
        lr=0.0,
        tokens=int(samples.lengths.sum()),
        target_tokens=int(samples.lengths.sum()) - batch,
        samples=batch,
        first_position=first,
        data_digest=samples.digest(),
        step_time_s=1.0,
        tokens_per_s=1.0,
        tokens_per_s_per_worker=1.0,
        tflops_per_s=None,
        mfu=None,
        world_size=1,
        micro_batch=batch,
        accumulation=1,
        ranks=summarise(()),
    )


def dataset_of(bench: Bench, **fields: Any) -> TokenDataset:
    bench.jsonl("a.jsonl", sentences(60))
    bench.jsonl("b.jsonl", sentences(30, seed=1))
    weights = fields.pop("weights", (None, None))
    sources = [{"files": [f"{name}.jsonl"], "weight": weight} for name, weight in zip("ab", weights, strict=True)]
    return bench.dataset(job(sources, **fields))


@pytest.fixture
def dataset(bench: Bench) -> TokenDataset:
    return dataset_of(bench)


def recorded(dataset: TokenDataset, steps: int = STEPS) -> list[StepReport]:
    return [record(dataset, step, 1000.0 + step) for step in range(1, steps + 1)]


def test_an_honest_run_is_proved(dataset: TokenDataset) -> None:
    proof = verify_run(recorded(dataset), dataset, BATCH)
    n = dataset.manifest.train_samples
    assert proof.ok
    assert proof.mismatch is None
    assert (proof.steps, proof.samples, proof.superseded) == (STEPS, STEPS * BATCH, 0)
    for epoch in range(STEPS * BATCH // n):
        uses = [use for use in proof.epochs if use.epoch == epoch]
        assert sum(use.used for use in uses) == n
        assert all(use.complete and not use.duplicates and not use.missing for use in uses)
    assert sum(use.used for use in proof.epochs) == STEPS * BATCH
    assert Proof(**{**proof.to_json(), "epochs": proof.epochs, "parts": proof.parts}) == proof


def test_an_honest_weighted_run_is_proved(bench: Bench) -> None:
    dataset = dataset_of(bench, weights=(1.0, 4.0))
    proof = verify_run(recorded(dataset, 3 * 1024 // BATCH + 5), dataset, BATCH)
    assert proof.ok
    assert {use.epoch for use in proof.epochs if use.source == "b.jsonl"} > {0, 1, 2}
    assert any(use.complete for use in proof.epochs)


def test_a_resumed_run_is_proved_and_its_recomputed_steps_are_told(dataset: TokenDataset) -> None:
    steps = [*recorded(dataset, 20), *(record(dataset, step, 5000.0 + step) for step in range(16, STEPS + 1))]
    proof = verify_run(steps, dataset, BATCH)
    assert proof.ok
    assert (proof.steps, proof.superseded) == (STEPS, 5)


def test_a_run_resumed_further_back_than_it_got_is_as_long_as_its_last_part(dataset: TokenDataset) -> None:
    steps = [*recorded(dataset, 20), record(dataset, 11, 5000.0)]
    assert verify_run(steps, dataset, BATCH).steps == 11


Change = Callable[[list[StepReport]], list[StepReport]]


def changed(at: int, **fields: Any) -> Change:
    return lambda steps: [*steps[:at], replace(steps[at], **fields), *steps[at + 1 :]]


@pytest.mark.parametrize(
    ("tamper", "step", "what"),
    [
        (lambda s: s[:7] + s[8:], 9, "step 8 is missing"),
        (lambda s: s[1:], 2, "step 1 is missing"),
        (lambda s: s[:8] + s[7:], 8, "recorded twice"),
        (lambda s: [*s, s[4]], 5, "recorded twice"),
        (lambda s: [*s[:5], s[6], s[5], *s[7:]], 7, "step 6 is missing"),
        (changed(5, data_digest=1), 6, "other samples or other data"),
        (changed(5, first_position=59), 6, r"fed positions \[59, 71\), not \[60, 72\)"),
        (changed(5, samples=11), 6, "fed positions"),
        (changed(5, tokens=3), 6, "3 tokens were recorded"),
        (changed(0, step=0), 0, "counted from 1"),
        (lambda s: [], 0, "no step is recorded"),
    ],
    ids=[
        "drop",
        "drop first",
        "repeat",
        "repeat later",
        "swap",
        "digest",
        "position",
        "samples",
        "tokens",
        "zero",
        "none",
    ],
)
def test_a_tampered_record_is_found(dataset: TokenDataset, tamper: Change, step: int, what: str) -> None:
    import re

    proof = verify_run(tamper(recorded(dataset)), dataset, BATCH)
    assert not proof.ok
    assert proof.mismatch is not None
    assert proof.mismatch.step == step
    assert re.search(what, proof.mismatch.what), proof.mismatch.what


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"tokenizer": {"train": {"vocab_size": 290}}}, {"sequence_length": 17}]
)
def test_another_dataset_is_found(bench: Bench, dataset: TokenDataset, change: dict[str, Any]) -> None:
    proof = verify_run(recorded(dataset), dataset_of(bench, **change), BATCH)
    assert not proof.ok
    assert proof.mismatch is not None
    assert proof.mismatch.step == 1


def test_another_global_batch_is_found(dataset: TokenDataset) -> None:
    assert not verify_run(recorded(dataset), dataset, BATCH + 1).ok


def test_changed_tokens_on_disk_are_found(bench: Bench, dataset: TokenDataset) -> None:
    steps = recorded(dataset)
    directory = bench.prepare(job([{"files": ["a.jsonl"], "weight": None}, {"files": ["b.jsonl"]}])).directory
    path = directory / "s0.train.tokens"
    data = bytearray(path.read_bytes())
    data[500] ^= 1
    path.write_bytes(bytes(data))
    assert not verify_run(steps, TokenDataset.open(directory), BATCH).ok


def test_an_order_that_repeats_a_sample_is_found(dataset: TokenDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    # A broken order, recorded faithfully by a run that used it: the digests agree, and only counting shows it.
    original = type(dataset.mixture)._draw_pool

    def broken(self: Any, positions: Any) -> Any:
        drawn = original(self, positions)
        drawn.ids[drawn.ids == 3] = 4
        return drawn

    monkeypatch.setattr(type(dataset.mixture), "_draw_pool", broken)
    proof = verify_run(recorded(dataset), dataset, BATCH)
    assert proof.mismatch is not None
    assert "1 samples used twice, 1 never" in proof.mismatch.what
    assert proof.epochs[0].duplicates == proof.epochs[0].missing == 1


def test_the_digest_of_a_step_is_the_sum_over_ranks(dataset: TokenDataset) -> None:
    parts = [dataset.train(0, 5).digest(), dataset.train(5, 7).digest()]
    assert sum(parts) % DIGEST_MODULUS == recorded(dataset, 1)[0].data_digest
