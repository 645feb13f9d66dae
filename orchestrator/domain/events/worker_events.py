"""Single workers: their start, their progress, their output, their failures."""

from dataclasses import dataclass
from typing import ClassVar

from orchestrator.domain.events.event_base import EventBody


@dataclass(frozen=True)
class NodeReservation:
    """Workers that are reserved on one node."""

    node: str
    """Address of the node; empty until its processes have answered."""
    node_id: str
    """Id of the node in the cluster: several can share an address."""
    members: int
    """Workers of the gang."""
    joining: int
    """Reserved workers that are not of the gang: they start, or their place is kept."""


@dataclass(frozen=True)
class WorkersReserved(EventBody):
    """The reserved workers have changed, and these are all of them from now on. Without any: all are released."""

    KIND: ClassVar[str] = "workers.reserved"

    nodes: tuple[NodeReservation, ...]
    """Nodes with workers, in the order of the ranks."""
    earlier_s: float = 0.0
    """Worker-seconds for which new ones had been reserved before this event."""


@dataclass(frozen=True)
class WorkerStarted(EventBody):
    """A worker has its engine and is about to train."""

    KIND: ClassVar[str] = "worker.started"

    rank: int
    """Rank of the worker."""
    node: str
    """Address of its node."""
    pid: int
    """Its process id on that node."""
    device: str
    """Name of its device; cpu if it has no GPU."""
    seconds: float
    """How long its start took, in seconds."""
    host: str = ""
    """Host name of its node; empty in events of earlier versions, like the next one."""
    node_id: str = ""
    """Id of its node in the cluster."""


@dataclass(frozen=True)
class WorkerPhase(EventBody):
    """The workers have entered a phase. Only rank 0 reports phases."""

    KIND: ClassVar[str] = "worker.phase"

    rank: int
    """Rank of the worker that reports it."""
    phase: str
    """import, rendezvous, build, restore, train or export."""


@dataclass(frozen=True)
class WorkerLog(EventBody):
    """A line that a worker wrote. Not on disk as an event: it is in `logs/rank-N.log`."""

    KIND: ClassVar[str] = "worker.log"
    ON_DISK: ClassVar[bool] = False

    rank: int
    """Rank of the worker."""
    line: str
    """The line."""


@dataclass(frozen=True)
class GpuMeasured(EventBody):
    """Figures of NVML about a worker's GPU, every few seconds. Not on disk. A figure that cannot be read is null."""

    KIND: ClassVar[str] = "gpu.measured"
    ON_DISK: ClassVar[bool] = False

    rank: int
    """Rank of the worker."""
    host: str
    """Host name of its node."""
    uuid: str
    """NVML's id of the GPU, as DCGM shows it."""
    name: str | None
    """Name of the GPU."""
    utilization: float | None
    """Share of the last sample period in which a kernel ran, 0 to 1."""
    memory_used_bytes: int | None
    """By all processes."""
    memory_total_bytes: int | None
    """Of the GPU."""
    power_watts: float | None
    """Power draw."""
    temperature_celsius: float | None
    """Of the GPU's chip."""
    throttled: tuple[str, ...] | None
    """Why its clocks are held down: power_cap, power_brake, thermal, hardware."""
    ecc_corrected: int | None
    """ECC errors since the GPU's driver was loaded."""
    ecc_uncorrected: int | None
    """The same, of those that could not be corrected."""


@dataclass(frozen=True)
class WorkerFailed(EventBody):
    """A worker failed, and with it its gang."""

    KIND: ClassVar[str] = "worker.failed"

    rank: int
    """Rank of the worker that is the cause."""
    error: str
    """What went wrong, in one line."""
    traceback: str
    """Its complete traceback, or its last lines of output."""


@dataclass(frozen=True)
class WorkerHung(EventBody):
    """A worker makes no progress; its process is ended."""

    KIND: ClassVar[str] = "worker.hung"

    rank: int | None
    """Rank of the worker; null if no rank can be named."""
    node: str | None
    """Address of its node; null like the rank."""
    step: int
    """The optimizer step it is in; 0 outside of steps."""
    phase: str
    """The phases of `worker.phase`, model, finish, and within a step data, forward, backward, optimizer, exchange,
    snapshot, eval, checkpoint."""
    seconds: float
    """Time without any progress, in seconds."""
    reason: str
    """What shows that it hangs."""
    stacks: str | None
    """Directory with a file for each worker, relative to the run's; null if it could not be written."""
    stack: str | None
    """The end of this worker's stack."""


@dataclass(frozen=True)
class WorkerSlow(EventBody):
    """A worker has become slower than the others, or is no longer. Time in which it waits for others is not counted."""

    KIND: ClassVar[str] = "worker.slow"

    rank: int
    """Rank of the worker."""
    node: str | None
    """Address of its node; null if it is not known."""
    slow: bool
    """False: it is no longer slow."""
    phase: str
    """data, forward, backward or optimizer: the one in which it loses most time."""
    ratio: float
    """Its own time in steps, divided by the others' median."""
    steps: int
    """Steps that were compared."""
