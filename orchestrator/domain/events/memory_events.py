"""State that is kept in the memory of nodes: vaults and snapshots."""

from dataclasses import dataclass
from typing import ClassVar

from orchestrator.domain.events.event_base import EventBody


@dataclass(frozen=True)
class VaultsPlanned(EventBody):
    """How much memory the vaults will use."""

    KIND: ClassVar[str] = "vaults.planned"

    cell_bytes: int
    """Two slots of one worker's state, in bytes."""
    copies: int
    """Copies of each worker's state on other nodes."""
    node_bytes: int
    """The most that one node's vault will use, in bytes."""
    recovery_bytes: int
    """The most that it will use briefly, during a recovery, in bytes."""


@dataclass(frozen=True)
class SnapshotsPlanned(EventBody):
    """What copies to memory are expected to cost."""

    KIND: ClassVar[str] = "snapshots.planned"

    state_bytes: int
    """State of one worker, in bytes."""
    stall_s: float
    """How long training is paused for one copy, in seconds."""
    interval_s: float
    """Time between copies by `checkpoint.overhead_budget`, in seconds."""
    interval_steps: int | None
    """Steps between copies as the job sets them; null if the budget decides."""
    sent_bytes: int
    """What a node sends to its peers for one copy, in bytes."""
    sent_s: float
    """How long that takes, in seconds."""
    repeated_s: float | None
    """Training that the loss of a node repeats at most, in seconds; null: everything since the last checkpoint."""
    read_s: float | None
    """Time until the state is restored, in seconds; null if no copies are kept on other nodes."""
    copied_s: float | None
    """Time until the state has its copies again, in seconds; null like `read_s`."""
    copy_bytes_per_s: float
    """Assumed speed of a copy to host memory, in bytes per second; not measured."""
    link_bytes_per_s: float
    """Assumed speed between two nodes, in bytes per second; not measured."""


@dataclass(frozen=True)
class MemoryMeasured(EventBody):
    """What workers hold on their devices, on a GPU or in host memory. Once for each gang, after its second step."""

    KIND: ClassVar[str] = "memory.measured"

    measured: dict[str, int]
    """Bytes of the rank that has most: parameters, gradients, optimizer; on GPUs also activations, which is what the
    allocator's peak has beside the others."""
    predicted: dict[str, int]
    """The planner's bytes of the same parts."""


@dataclass(frozen=True)
class VaultsAdopted(EventBody):
    """A resume took over the vaults of a driver that is gone."""

    KIND: ClassVar[str] = "vaults.adopted"

    step: int | None
    """The newest recorded step that is complete in them; null: none."""
    vaults: int
    """Number of vaults."""
    workers_ended: int
    """Workers of that driver that had to be ended."""
    seconds: float
    """How long it took, in seconds."""


@dataclass(frozen=True)
class VaultsKept(EventBody):
    """The run is over, and its vaults, whose state is newer than storage, stay for a resume."""

    KIND: ClassVar[str] = "vaults.kept"

    step: int
    """The optimizer step whose state they hold."""
    vaults: int
    """Number of vaults."""
    until_s: float
    """How long they stay, in Unix seconds."""
