"""What it costs to keep state in the memory of nodes, and what losing a node costs then, at a model's size. Pure.

A worker's state is 12 P / W bytes: fp32 masters and two fp32 moments of P parameters over W workers. It is copied to
host memory at a step boundary, kept in two slots there, and sent to the vaults of `copies` other nodes. All speeds are
arguments: nothing here was measured on the machine that a job runs on.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.domain.events import SnapshotsPlanned
from orchestrator.domain.policy.cadence import SNAPSHOT_COST
from orchestrator.planner.model_shape import ModelShape
from orchestrator.planner.state_size import SLOTS, STATE_BYTES_PER_PARAMETER
from orchestrator.spec.job import JobSpec


@dataclass(frozen=True)
class Speeds:
    """Assumptions. The defaults are those of a node with eight H100s."""

    copy_bytes_per_s: float
    """From a worker's device to host memory."""
    link_bytes_per_s: float = 2.5e9
    """Between two nodes, in each direction: 25 Gbit/s, less what protocols take."""


PAGEABLE = Speeds(4e9)
"""GPUs, to host memory that is not page-locked."""
PINNED = Speeds(25e9)
"""GPUs, to page-locked host memory, over PCIe 4."""
HOST = Speeds(4e9)
"""Workers on CPUs: a copy within host memory, by one thread."""


@dataclass(frozen=True)
class SnapshotCosts:
    """What one snapshot takes."""

    state_bytes: int
    """Of one worker."""
    stall_s: float
    """Seconds that training is paused for it."""
    node_bytes: int
    """Host memory that the fullest node's own workers take for it."""
    copied_node_bytes: int
    """The same with the copies that it keeps for others."""
    recovery_bytes: int
    """The same during a recovery: the old gang's and the new gang's."""
    sent_bytes: int
    """What the fullest node sends to others; 0 if no copies are kept."""
    sent_s: float

    def interval_s(self, budget: float) -> float:
        """Seconds from one snapshot to the next if they may cost that share of the time; never less than the copies
        need to arrive."""
        return max(SNAPSHOT_COST * self.stall_s / budget, self.sent_s)


@dataclass(frozen=True)
class NodeLossCost:
    """What losing the fullest node costs, at worst."""

    repeated_s: float
    """Training since the newest snapshot whose copies had arrived."""
    repeated_steps: int | None
    """The same in steps; None if a step's time is not known."""
    read_s: float
    """Until the survivors have the state again."""
    copied_s: float
    """Until all copies exist again; training continues meanwhile."""


def snapshot_costs(parameters: int, workers_by_node: Sequence[int], replicas: int, speeds: Speeds) -> SnapshotCosts:
    """The cost of a snapshot with workers placed on nodes like that."""
    workers, nodes = sum(workers_by_node), len(workers_by_node)
    copies = min(replicas, nodes - 1)
    fullest = max(workers_by_node)
    state_bytes = STATE_BYTES_PER_PARAMETER * -(-parameters // workers)
    node_bytes = SLOTS * state_bytes * fullest
    sent_bytes = state_bytes * fullest * copies
    return SnapshotCosts(
        state_bytes=state_bytes,
        stall_s=state_bytes / speeds.copy_bytes_per_s,
        node_bytes=node_bytes,
        copied_node_bytes=node_bytes * (1 + copies),
        recovery_bytes=2 * node_bytes * (1 + copies),
        sent_bytes=sent_bytes,
        sent_s=sent_bytes / speeds.link_bytes_per_s,
    )


def node_loss(
    costs: SnapshotCosts,
    parameters: int,
    workers_by_node: Sequence[int],
    speeds: Speeds,
    interval_s: float,
    step_s: float | None = None,
) -> NodeLossCost | None:
    """What losing a node costs with a snapshot every `interval_s`; None if no copies are kept, and it costs all since
    the last checkpoint.

    At worst the node is lost just before the copies of the newest snapshot have arrived: everything trained since the
    previous one is repeated. Every survivor reads its part of the new partition, most of it from other nodes.
    """
    nodes = len(workers_by_node)
    if costs.sent_bytes == 0:
        return None
    repeated_s = interval_s + costs.sent_s
    left_bytes = STATE_BYTES_PER_PARAMETER * parameters / (nodes - 1)
    steps = None if step_s is None else max(1, math.ceil(repeated_s / step_s))
    return NodeLossCost(
        repeated_s=repeated_s,
        repeated_steps=steps,
        read_s=left_bytes / speeds.link_bytes_per_s,
        copied_s=left_bytes / speeds.link_bytes_per_s if nodes > 2 else 0.0,
    )


def snapshots_planned(spec: JobSpec, shape: ModelShape, workers_by_node: Sequence[int]) -> SnapshotsPlanned:
    """What copies to memory are expected to cost, for workers that are placed on nodes like that."""
    speeds = PINNED if spec.resources.gpus_per_worker else HOST
    checkpoint = spec.checkpoint
    costs = snapshot_costs(shape.parameters, workers_by_node, checkpoint.replicas, speeds)
    interval_s = costs.interval_s(checkpoint.overhead_budget)
    loss = node_loss(costs, shape.parameters, workers_by_node, speeds, interval_s)
    by_time = loss is not None and checkpoint.memory_interval_steps is None
    return SnapshotsPlanned(
        state_bytes=costs.state_bytes,
        stall_s=costs.stall_s,
        interval_s=interval_s,
        interval_steps=checkpoint.memory_interval_steps,
        sent_bytes=costs.sent_bytes,
        sent_s=costs.sent_s,
        repeated_s=loss.repeated_s if loss is not None and by_time else None,
        read_s=loss.read_s if loss is not None else None,
        copied_s=loss.copied_s if loss is not None else None,
        copy_bytes_per_s=speeds.copy_bytes_per_s,
        link_bytes_per_s=speeds.link_bytes_per_s,
    )


def measured_loss(planned: SnapshotsPlanned, step_s: float) -> dict[str, float] | None:
    """What losing a node costs, with a step's measured time; None if no copies are kept.

    A snapshot is taken at a step's end at the earliest, and its copies are sent while the next steps are made.
    """
    if planned.read_s is None or planned.copied_s is None or step_s <= 0:
        return None
    interval = planned.interval_steps or max(1, math.ceil(planned.interval_s / step_s))
    steps = interval + math.ceil(planned.sent_s / step_s)
    return {
        "repeated_steps": steps,
        "repeated_s": steps * step_s,
        "read_s": planned.read_s,
        "copied_s": planned.copied_s,
    }
