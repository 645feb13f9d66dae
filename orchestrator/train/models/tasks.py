"""What is learned: how samples become tensors, and how a loss is formed from them.

The loop knows tasks only through `Task`; a new task (classification, translation, distillation) is a new class here.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as functional
from numpy.typing import NDArray

from orchestrator.data.samples.dataset import Samples
from orchestrator.train.engine.engine_types import LanguageModel
from orchestrator.train.models.linear_loss import ChunkedHead

IGNORE = -100
"""Label of a position that is no target (the default `ignore_index` of torch's cross entropy)."""

# Padded widths are multiples of this: few distinct shapes for the allocator, aligned rows for the kernels.
WIDTH_MULTIPLE = 8


@dataclass(frozen=True)
class Batch:
    """One micro batch on the host. `targets`, `tokens` and `samples` count what is real: an empty micro batch has
    tensors of one row, so that every rank runs the same collectives, and zeros here."""

    inputs: dict[str, torch.Tensor]
    """Keyword arguments of the model's forward."""
    labels: torch.Tensor
    """int64[n, width]; `IGNORE` if there is no target."""
    targets: int
    tokens: int
    samples: int

    def to(self, device: torch.device) -> "Batch":
        """The same batch on `device`; asynchronous if the host tensors are pinned."""
        return Batch(
            {name: tensor.to(device, non_blocking=True) for name, tensor in self.inputs.items()},
            self.labels.to(device, non_blocking=True),
            self.targets,
            self.tokens,
            self.samples,
        )

    def pinned(self) -> "Batch":
        """The same batch in page-locked memory."""
        return Batch(
            {name: tensor.pin_memory() for name, tensor in self.inputs.items()},
            self.labels.pin_memory(),
            self.targets,
            self.tokens,
            self.samples,
        )


class Task(Protocol):
    """The seam between the step loop and what is learned."""

    def batch(self, samples: Samples) -> Batch:
        """Tensors of some samples. A pure function of the samples, wherever and with whatever others they are fed."""

    def empty(self) -> Batch:
        """A micro batch without a target: its loss is 0 and so are its gradients."""

    def loss(self, model: LanguageModel, batch: Batch) -> torch.Tensor:
        """Sum (not mean) of the loss over the batch's targets, float32, in nats."""


@dataclass(frozen=True)
class CausalLM:
    """Next-token prediction: tokens 2..length of a sample are targets.

    Padding lies behind the text and attention is causal, so no real position sees it and no mask is needed.
    """

    pad_id: int
    head: ChunkedHead | None = None
    """The model's, if the loss is computed in chunks."""

    def batch(self, samples: Samples) -> Batch:
        width = _width(samples.lengths, samples.tokens.shape[1])
        ids = samples.tokens[:, :width].astype(np.int64)
        labels = np.full_like(ids, IGNORE)
        labels[:, :-1] = ids[:, 1:]
        labels[np.arange(width)[None, :] >= samples.lengths[:, None] - 1] = IGNORE
        return Batch(
            inputs={"input_ids": torch.from_numpy(ids)},
            labels=torch.from_numpy(labels),
            targets=int(np.maximum(samples.lengths - 1, 0).sum()),
            tokens=int(samples.lengths.sum()),
            samples=len(samples.ids),
        )

    def empty(self) -> Batch:
        ids = torch.full((1, WIDTH_MULTIPLE), self.pad_id, dtype=torch.int64)
        return Batch({"input_ids": ids}, torch.full_like(ids, IGNORE), targets=0, tokens=0, samples=0)

    def loss(self, model: LanguageModel, batch: Batch) -> torch.Tensor:
        return _summed_loss(model, batch, self.head)


@dataclass(frozen=True)
class MaskedLM:
    """BERT's masked tokens (arXiv:1810.04805, section 3.1): of the chosen positions 80% become the mask token, 10% a
    random token, 10% stay.

    The choice is drawn for each sample from (seed, epoch, sample id), so it does not depend on how samples are
    spread over workers. A sample in which chance chose nothing gets one position all the same.
    """

    pad_id: int
    mask_id: int
    vocab_size: int
    probability: float
    seed: int
    head: ChunkedHead | None = None
    """The model's, if the loss is computed in chunks."""

    def batch(self, samples: Samples) -> Batch:
        width = _width(samples.lengths, samples.tokens.shape[1])
        ids = samples.tokens[:, :width].astype(np.int64)
        labels = np.full_like(ids, IGNORE)
        for row, (sample, epoch, length) in enumerate(
            zip(samples.ids.tolist(), samples.epochs.tolist(), samples.lengths.tolist(), strict=True)
        ):
            self._mask(ids[row], labels[row], sample, epoch, length)
        targets = int((labels != IGNORE).sum())
        inputs = {"input_ids": torch.from_numpy(ids)}
        real = np.arange(width)[None, :] < samples.lengths[:, None]
        if not real.all():
            inputs["attention_mask"] = torch.from_numpy(real.astype(np.int64))
        return Batch(inputs, torch.from_numpy(labels), targets, int(samples.lengths.sum()), len(samples.ids))

    def _mask(self, ids: NDArray[np.int64], labels: NDArray[np.int64], sample: int, epoch: int, length: int) -> None:
        """Mask one row in place."""
        if length == 0:
            return
        rng = np.random.default_rng([self.seed, epoch, sample])
        chosen = rng.random(length) < self.probability
        if not chosen.any():
            chosen[rng.integers(length)] = True
        kind = rng.random(length)
        noise = rng.integers(0, self.vocab_size, length)
        text = ids[:length].copy()
        labels[:length][chosen] = text[chosen]
        ids[:length] = np.where(
            chosen & (kind < 0.8), self.mask_id, np.where(chosen & (kind >= 0.8) & (kind < 0.9), noise, text)
        )

    def empty(self) -> Batch:
        ids = torch.full((1, WIDTH_MULTIPLE), self.pad_id, dtype=torch.int64)
        return Batch({"input_ids": ids}, torch.full_like(ids, IGNORE), targets=0, tokens=0, samples=0)

    def loss(self, model: LanguageModel, batch: Batch) -> torch.Tensor:
        return _summed_loss(model, batch, self.head)


def _summed_loss(model: LanguageModel, batch: Batch, head: ChunkedHead | None) -> torch.Tensor:
    if head is None:
        return summed_cross_entropy(model(**batch.inputs).logits, batch.labels)
    with head.scoring(batch.labels):
        loss: torch.Tensor = model(**batch.inputs).logits
    return loss


def summed_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sum of the cross entropy over the positions with a label, in float32. `logits` [n, width, vocabulary] and
    `labels` [n, width] are aligned: no shift."""
    return functional.cross_entropy(
        logits.float().view(-1, logits.shape[-1]), labels.view(-1), ignore_index=IGNORE, reduction="sum"
    )


def _width(lengths: NDArray[np.int32], full: int) -> int:
    """Columns worth computing: the longest sample, rounded up."""
    longest = int(lengths.max(initial=1))
    return min(full, -(-longest // WIDTH_MULTIPLE) * WIDTH_MULTIPLE)
