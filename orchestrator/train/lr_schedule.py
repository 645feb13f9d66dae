"""The learning rate as a pure function of the step: nothing to save, nothing to restore."""

import math

from orchestrator.spec.train import TrainSpec


def learning_rate(train: TrainSpec, total_steps: int, step: int) -> float:
    """Learning rate of optimizer step `step`, counted from 1.

    Warm-up rises linearly and reaches `train.lr` at step `warmup_steps`. After it `cosine` (SGDR,
    arXiv:1608.03983, without restarts) and `linear` fall to `min_lr_ratio * lr` at step `total_steps`;
    `constant` stays. A step past the end keeps the last value.
    """
    if step < 1:
        raise ValueError(f"steps are counted from 1, got {step}")
    if step <= train.warmup_steps:
        return train.lr * step / train.warmup_steps
    if train.schedule == "constant":
        return train.lr
    span = total_steps - train.warmup_steps
    progress = min((step - train.warmup_steps) / span, 1.0) if span > 0 else 1.0
    remaining = 1.0 - progress if train.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return train.lr * (train.min_lr_ratio + (1.0 - train.min_lr_ratio) * remaining)
