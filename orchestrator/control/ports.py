"""What the queue needs of drivers and of the cluster. `drivers` implements it; tests of decisions script it."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from orchestrator.clusters.placement import NodeCapacity
from orchestrator.domain.events import RunState
from orchestrator.domain.queue.grant import Grant


@dataclass(frozen=True)
class DriverFacts:
    """What is known of one run's driver."""

    alive: bool | None
    """False: certainly gone. None: unknown; the lease decides then."""
    lease_moved: bool
    """It has renewed its lease lately, on this process's monotonic clock. A run whose lease moves is healthy, whatever
    else is silent."""
    state: RunState | None
    """Of the run; None before its first driver."""
    reason: str | None
    """Why it is in that state; of a failed run the error."""
    exit_code: int | None
    """Of an ended driver: 0, 1, 2 (a mistake of the user: not tried again), 130; None while it drives or if unknown."""
    answered: int
    """Number of the newest grant that is carried out completely; 0: none."""
    holding: Mapping[str, int] = field(default_factory=dict)
    """Workers by node that it has reserved."""
    step: int = 0
    total_steps: int | None = None
    step_time_s: float | None = None
    """Of recent steps."""
    loss: float | None = None
    cluster_lost: bool = False
    """An ended driver could not reach its cluster any more: the run is to be resumed when there is one."""
    cluster_address: str = ""
    """Of the cluster that the driver has joined."""


class DriverPort(Protocol):
    """Driver processes of this server's runs. No method blocks longer than a second."""

    def launch(self, run_id: str, directory: Path, grant: Grant, resume: bool, cluster_address: str) -> None:
        """Start a driver process. It takes the run's lease, keeps to the grant, and outlives this server. Raises
        ConvoyError if no process can be started."""

    def grant(self, run_id: str, directory: Path, grant: Grant) -> None:
        """Tell a driver its new grant."""

    def stop(self, run_id: str, directory: Path) -> None:
        """Ask a driver to save the state, release its workers and end. Again is harmless."""

    def kill(self, run_id: str, directory: Path) -> None:
        """End a driver that did not follow `stop`."""

    def look(self, runs: Mapping[str, Path]) -> Mapping[str, DriverFacts]:
        """Facts of these runs."""


class ClusterPort(Protocol):
    """The cluster that the queue schedules on."""

    @property
    def address(self) -> str:
        """`host:port` of its GCS."""

    def nodes(self) -> tuple[NodeCapacity, ...] | None:
        """Every live node, without those that drain; None if the cluster does not answer: then nothing is decided."""

    def held(self, run_ids: Collection[str]) -> Mapping[str, Mapping[str, int]]:
        """Workers by node for which Ray has reservations of these runs: what is really booked."""

    @property
    def autoscales(self) -> bool:
        """Nodes are added when resources are requested."""

    def drain(self, node_id: str, reason: str, deadline_s: float | None) -> None:
        """Have the workers leave a node and no other come. Raises ClusterError."""
