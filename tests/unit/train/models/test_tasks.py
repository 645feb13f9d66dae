from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from orchestrator.data.samples.dataset import Samples
from orchestrator.train.batch_feed import rows
from orchestrator.train.models.tasks import IGNORE, CausalLM, MaskedLM, summed_cross_entropy
from tests.unit.train.builders import samples_of

pytestmark = pytest.mark.unit


def test_causal_labels_are_the_next_tokens_and_padding_is_none() -> None:
    batch = CausalLM(pad_id=1).batch(samples_of([5, 6, 7, 8], [9, 10]))
    assert batch.inputs["input_ids"].shape == (2, 8)
    assert batch.labels[0].tolist() == [6, 7, 8, *[IGNORE] * 5]
    assert batch.labels[1].tolist() == [10, *[IGNORE] * 7]
    assert (batch.targets, batch.tokens, batch.samples) == (4, 6, 2)


def test_causal_full_sample_keeps_its_width() -> None:
    batch = CausalLM(pad_id=1).batch(samples_of(list(range(16))))
    assert batch.labels[0].tolist() == [*range(1, 16), IGNORE]
    assert batch.targets == 15


def test_a_text_token_that_equals_padding_is_still_a_target() -> None:
    batch = CausalLM(pad_id=1).batch(samples_of([1, 1, 1]))
    assert batch.targets == 2
    assert batch.labels[0, :2].tolist() == [1, 1]


def test_a_sample_of_one_token_has_no_target() -> None:
    assert CausalLM(pad_id=1).batch(samples_of([5])).targets == 0


def masked(seed: int = 0, probability: float = 0.15) -> MaskedLM:
    return MaskedLM(pad_id=1, mask_id=2, vocab_size=300, probability=probability, seed=seed)


def long_samples(count: int, epoch: int = 0, first_id: int = 0) -> Samples:
    return samples_of(*[list(range(10, 26))] * count, epoch=epoch, first_id=first_id)


def test_masks_do_not_depend_on_the_batch_they_are_in() -> None:
    samples = long_samples(6)
    together = masked().batch(samples)
    for index in range(6):
        alone = masked().batch(rows(samples, index, index + 1))
        assert torch.equal(alone.labels[0], together.labels[index])
        assert torch.equal(alone.inputs["input_ids"][0], together.inputs["input_ids"][index])


def test_masks_differ_by_sample_epoch_and_seed() -> None:
    labels = masked().batch(long_samples(8)).labels
    assert len({tuple(row) for row in labels.tolist()}) > 4
    assert not torch.equal(labels, masked().batch(long_samples(8, epoch=1)).labels)
    assert not torch.equal(labels, masked(seed=1).batch(long_samples(8)).labels)


def test_masks_follow_berts_shares() -> None:
    batch = masked().batch(long_samples(2000))
    chosen = batch.labels != IGNORE
    ids, original = batch.inputs["input_ids"], torch.arange(10, 26).expand(2000, 16)
    assert chosen.float().mean().item() == pytest.approx(0.15, abs=0.02)
    assert torch.equal(ids[~chosen], original[~chosen])
    assert torch.equal(batch.labels[chosen], original[chosen])
    assert (ids[chosen] == 2).float().mean().item() == pytest.approx(0.8, abs=0.03)
    assert (ids[chosen] == original[chosen]).float().mean().item() == pytest.approx(0.1, abs=0.02)
    assert batch.targets == int(chosen.sum())


def test_every_sample_has_a_target_and_padding_has_none() -> None:
    batch = masked(probability=0.001).batch(samples_of(*[[5, 6, 7]] * 50))
    assert ((batch.labels != IGNORE).sum(dim=1) >= 1).all()
    assert (batch.labels[:, 3:] == IGNORE).all()
    assert batch.inputs["attention_mask"].sum().item() == 150


def test_no_attention_mask_without_padding() -> None:
    assert "attention_mask" not in masked().batch(long_samples(2)).inputs


def linear_model(batch_inputs: dict[str, torch.Tensor], weight: torch.Tensor) -> Any:
    return SimpleNamespace(logits=weight[batch_inputs["input_ids"]])


@pytest.mark.parametrize("task", [CausalLM(pad_id=1), masked()])
def test_an_empty_micro_batch_has_loss_and_gradient_zero(task: Any) -> None:
    weight = torch.randn(300, 300, requires_grad=True)
    loss = task.loss(lambda **inputs: linear_model(inputs, weight), task.empty())
    loss.backward()
    assert loss.item() == 0.0
    assert weight.grad is not None
    assert not weight.grad.any()
    assert task.empty().targets == task.empty().samples == 0


def test_loss_is_the_sum_in_float32() -> None:
    logits = torch.randn(2, 8, 300, dtype=torch.bfloat16)
    labels = torch.full((2, 8), IGNORE)
    labels[0, :3] = torch.tensor([4, 5, 6])
    expected = -torch.log_softmax(logits.float(), -1)[0, [0, 1, 2], [4, 5, 6]].sum()
    found = summed_cross_entropy(logits, labels)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def test_sum_over_parts_is_the_whole() -> None:
    weight = torch.randn(300, 300)
    samples = samples_of([5, 6, 7, 8], [9, 10], list(range(20, 36)))
    task = CausalLM(pad_id=1)
    whole = task.loss(lambda **inputs: linear_model(inputs, weight), task.batch(samples))
    parts = [task.batch(rows(samples, i, i + 1)) for i in range(3)]
    total = sum(task.loss(lambda **inputs: linear_model(inputs, weight), part).item() for part in parts)
    assert total == pytest.approx(whole.item(), rel=1e-6)
    assert np.sum([part.targets for part in parts]) == 19
