"""How a global batch is cut over workers and micro steps. Pure arithmetic."""

import math
from dataclasses import dataclass

from orchestrator.spec.train import TrainSpec, steps_for_tokens


@dataclass(frozen=True)
class BatchShape:
    """One optimizer step: who takes which samples, in how many micro steps."""

    shares: tuple[int, ...]
    """Samples per rank; they differ by at most one and add up to the global batch."""
    micro_batch: int
    accumulation: int
    """Micro steps per rank, the same for all: collectives run in step."""

    def first(self, rank: int) -> int:
        """Offset of the rank's first sample in the global batch."""
        return sum(self.shares[:rank])


def shape_batch(global_batch: int, world_size: int, micro_batch: int | None) -> BatchShape:
    """Cut `global_batch` samples over `world_size` ranks; `micro_batch` None means a rank's whole share at once.

    Raises ValueError if there are more workers than samples: a rank without a sample would idle for ever.
    """
    if global_batch < world_size:
        raise ValueError(f"a global batch of {global_batch} cannot feed {world_size} workers")
    base, extra = divmod(global_batch, world_size)
    shares = tuple(base + (1 if rank < extra else 0) for rank in range(world_size))
    micro = min(micro_batch or shares[0], shares[0])
    return BatchShape(shares=shares, micro_batch=micro, accumulation=-(-shares[0] // micro))


def total_steps(train: TrainSpec, train_samples: int, sequence_length: int) -> int:
    """Optimizer steps of a run: `train.steps`, or enough for `train.tokens` or `train.epochs`, rounded up.

    Raises ValueError if none of the three is set.
    """
    if train.steps is not None:
        return train.steps
    if train.tokens is not None:
        return steps_for_tokens(train.tokens, train.global_batch, sequence_length)
    if train.epochs is not None:
        return max(1, math.ceil(train.epochs * train_samples / train.global_batch))
    raise ValueError("one of train.steps, train.tokens and train.epochs must be set")
