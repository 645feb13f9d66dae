"""How much memory the vaults need, and whether the nodes have it. Pure arithmetic over a job spec.

A worker's state is fp32 masters and two moments, P parameters over W workers: 12 P / W bytes at every stage (at stage 0
each rank keeps a slice). A vault holds it in a cell of two slots, so that one is complete while the other is written:
24 P / W bytes, and some KiB of small state a slot. A node's vault holds the cells of its own workers and the copies of
its peers' cells: with k copies on other nodes, evenly dealt out, (1 + k) times its own workers' cells; if copies go to
other failure domains and those differ in size, some nodes keep more than k. During a recovery the cells of the old gang
stay until the new gang's are complete: the node then holds both, the new ones on one node fewer if one was lost.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.domain.errors import ClusterError
from orchestrator.domain.events import VaultsPlanned
from orchestrator.planner.host_memory import PROCESS_BYTES, memory_need
from orchestrator.planner.model_shape import ModelShape
from orchestrator.planner.state_size import SLOTS, STATE_BYTES_PER_PARAMETER
from orchestrator.planner.zero_memory import zero_memory
from orchestrator.spec.job import JobSpec

SMALL_STATE_BYTES = 44 << 10
"""Of a slot: random states, counters, and the room left for them to grow. Measured, of GPT-2 with few parameters."""


@dataclass(frozen=True)
class VaultNeed:
    """Bytes that the vaults of a gang take."""

    cell_bytes: int
    """Two slots of one worker's state."""
    copies: int
    """Other nodes that keep a copy of each cell."""
    node_bytes: int
    """Most that one node's vault takes."""
    recovery_bytes: int
    """Most that one node's vault takes during a recovery."""

    @property
    def planned(self) -> VaultsPlanned:
        """The event that reports it."""
        return VaultsPlanned(self.cell_bytes, self.copies, self.node_bytes, self.recovery_bytes)


def vault_need(
    spec: JobSpec, shape: ModelShape, workers_by_node: Sequence[int], most_copies: int | None = None
) -> VaultNeed | None:
    """The formula of this module's docstring for workers on nodes like that; None if nothing is kept. `most_copies`:
    how many copies of other nodes' cells one node keeps at most; None: evenly."""
    if not spec.checkpoint.memory:
        return None
    workers, nodes = sum(workers_by_node), len(workers_by_node)
    copies = min(spec.checkpoint.replicas, nodes - 1)
    cell_bytes = _cell_bytes(shape, workers)
    # Whose copies a node keeps depends on the peers that are chosen: at worst those of the fullest others.
    fullest = sorted(workers_by_node, reverse=True)
    node_bytes = cell_bytes * sum(fullest[: max(copies, most_copies or 0) + 1])
    left = max(1, nodes - 1)  # nodes, and at least as many workers
    after_bytes = _cell_bytes(shape, left) * (1 + min(spec.checkpoint.replicas, left - 1))
    return VaultNeed(
        cell_bytes=cell_bytes,
        copies=copies,
        node_bytes=node_bytes,
        recovery_bytes=node_bytes + max(node_bytes, after_bytes),
    )


def _cell_bytes(shape: ModelShape, workers: int) -> int:
    return SLOTS * (STATE_BYTES_PER_PARAMETER * -(-shape.parameters // workers) + SMALL_STATE_BYTES)


def spread_evenly(workers: int, nodes: int) -> tuple[int, ...]:
    """Workers by node if nothing better is known; nodes without any are left out."""
    return tuple(count for index in range(nodes) if (count := (workers + nodes - 1 - index) // nodes))


def least_worker_bytes(spec: JobSpec, shape: ModelShape, workers: int) -> int:
    """Host memory that a worker cannot do without: the model's state and one sample, or on a GPU the process and what
    is offloaded."""
    if spec.resources.gpus_per_worker:
        return PROCESS_BYTES + zero_memory(spec, shape, workers).host_bytes
    return memory_need(spec, shape, workers).total_bytes(1)


def check_room(need: VaultNeed, node_memory_bytes: int, workers_bytes: int) -> str | None:
    """A warning if a recovery may not find room on the fullest node; None if all fits.

    `node_memory_bytes`: memory of the node, `workers_bytes`: the part that its workers use. Raises ClusterError if the
    state does not fit into the rest.
    """
    room_bytes = node_memory_bytes - workers_bytes
    what = f"state and {need.copies} cop{'y' if need.copies == 1 else 'ies'}" if need.copies else "state"
    if need.node_bytes > room_bytes:
        lower = "checkpoint.replicas: 0 keeps no copies for peers, " if need.copies else ""
        raise ClusterError(
            f"a node has no room to keep training state in memory: {what} take {_mib(need.node_bytes)} there, "
            f"{_mib(room_bytes)} of its {_mib(node_memory_bytes)} are left by the workers",
            hint=f"{lower}checkpoint.memory: false turns it off (recoveries then use the last checkpoint); or "
            "use more nodes",
        )
    if need.recovery_bytes > room_bytes:
        return (
            f"training state in memory takes {_mib(need.node_bytes)} on a node and {_mib(need.recovery_bytes)} during "
            f"a recovery, but the workers leave only {_mib(room_bytes)}: after a recovery some of it may not be kept"
        )
    return None


def _mib(size_bytes: int) -> str:
    return f"{max(0, size_bytes) / 2**20:,.0f} MiB"
