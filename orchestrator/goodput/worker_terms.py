"""What a job says about a worker: its GPUs and its price."""

from dataclasses import dataclass

from orchestrator.spec.job import JobSpec
from orchestrator.spec.resources import PriceSpec


@dataclass(frozen=True)
class WorkerTerms:
    """Of every worker of a run."""

    gpus: int = 0
    usd_per_hour: float | None = None
    """What an hour costs; None: the job does not say."""
    per_node: bool = False
    """The price is of a node with workers, not of a worker."""


def terms_of(spec: JobSpec) -> WorkerTerms:
    """The terms of a job."""
    price, gpus = spec.cluster.usd_per_hour, spec.resources.gpus_per_worker
    if isinstance(price, PriceSpec):
        return WorkerTerms(gpus, price.usd, price.per == "node")
    return WorkerTerms(gpus, price)
