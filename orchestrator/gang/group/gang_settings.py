"""What a gang is made with."""

from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.clusters.cluster_provider import ClusterProvider
from orchestrator.clusters.placement import WorkerRequest
from orchestrator.gang.group.gang_policy import GRACE_S


@dataclass(frozen=True)
class GangSettings:
    """Stays the same through all generations."""

    request: WorkerRequest
    """Of one worker: what is reserved for it."""
    env: Mapping[str, str]
    """Environment variables of the worker processes."""
    cluster: ClusterProvider
    """Where they run; started."""
    run_id: str
    generation: int = 0
    """The newest of the run's earlier drivers."""
    standby: int = 0
    """Standby processes on each node."""
    replicas: int = 0
    """Other nodes that keep a copy of each worker's state."""
    hang_timeout_s: float | None = None
    """Without progress, a gang is hung after this; None: judged by its own steps."""
    saves_by_cost: bool = False
    """How often checkpoints are written follows from what they cost."""
    stop_grace_s: float = GRACE_S
    """How long workers may take to stop."""
