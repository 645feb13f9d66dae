"""What the parts of the training loop share: one value, built once by the worker."""

from dataclasses import dataclass
from typing import Any

import torch

from orchestrator.data.dataset import TokenDataset
from orchestrator.domain.session import Session, TrainPlan
from orchestrator.planner.shape import BatchShape
from orchestrator.spec.job import JobSpec
from orchestrator.train.flops import ModelSize
from orchestrator.train.tasks import Task


@dataclass(frozen=True)
class TrainContext:
    """A worker that is ready to train."""

    session: Session
    plan: TrainPlan
    spec: JobSpec
    dataset: TokenDataset
    task: Task
    engine: Any
    """The `DeepSpeedEngine`."""
    device: torch.device
    size: ModelSize

    @property
    def shape(self) -> BatchShape:
        return BatchShape(self.plan.shares, self.plan.micro_batch, self.plan.accumulation)

    @property
    def global_batch(self) -> int:
        return sum(self.plan.shares)
