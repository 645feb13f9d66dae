"""What the parts of the training loop share: one value, built once by the worker."""

from dataclasses import dataclass

import torch

from orchestrator.data.samples.dataset import TokenDataset
from orchestrator.domain.errors import PeerLostError
from orchestrator.domain.session import Session, TrainPlan
from orchestrator.planner.batch_shape import BatchShape
from orchestrator.spec.job import JobSpec
from orchestrator.train.engine.engine_types import Engine
from orchestrator.train.models.flops import ModelSize
from orchestrator.train.models.tasks import Task


@dataclass(frozen=True)
class TrainContext:
    """A worker that is ready to train."""

    session: Session
    plan: TrainPlan
    spec: JobSpec
    dataset: TokenDataset
    task: Task
    engine: Engine
    device: torch.device
    size: ModelSize

    def check_interrupted(self) -> None:
        """Raises PeerLostError if the driver has interrupted this generation.

        To be called after each wait for results of collectives, before the results are used: collectives of NCCL that
        were aborted end without an error, and what they should have written is garbage.
        """
        if self.session.interrupted:
            raise PeerLostError("left the collective: this generation was interrupted")

    @property
    def shape(self) -> BatchShape:
        return BatchShape(self.plan.shares, self.plan.micro_batch, self.plan.accumulation)

    @property
    def global_batch(self) -> int:
        return sum(self.plan.shares)
