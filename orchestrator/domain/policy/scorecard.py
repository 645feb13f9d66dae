"""The result of a drill: the cost of each fault, and whether the run lost anything. Pure."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum

from orchestrator.json_values import JsonObject

LOSS_FP32_TOLERANCE = 1e-5
"""Relative, for losses alone: sums in another order, at another number of workers, differ by about 1e-7, and nothing
else may differ. Stricter than `replay.FP32_TOLERANCE`, which also covers gradient norms. In low precision losses of two
world sizes drift apart by rounding, and `replay.LOW_PRECISION_TOLERANCE` covers both."""


class DrillFault(StrEnum):
    """What a drill can do to a run."""

    KILL_WORKER = "kill-worker"
    """SIGKILL to one worker's process."""
    KILL_NODE = "kill-node"
    """SIGKILL to a node's raylet and every process of it. Never the node that holds the cluster's own state."""
    SILENCE_NODE = "silence-node"
    """SIGSTOP to the same: a machine that hangs, or whose network is gone."""
    CORRUPT_SHARD = "corrupt-shard"
    """One bit of the newest checkpoint is flipped, then a worker is killed: an older one must be used."""
    NAN = "nan"
    """One worker's loss is multiplied by NaN, once: its gradients, and through them everyone's, are no numbers."""
    HANG_RANK = "hang-rank"
    """SIGSTOP to one worker's process; its node stays up."""
    SLOW_RANK = "slow-rank"
    """SIGSTOP and SIGCONT to one worker's process in short bursts, until it is called slow. It must not be ended."""
    DRAIN_NODE = "drain-node"
    """A node is announced as draining, as by a spot notice or `ray drain-node`, and killed at its deadline."""
    PARTITION = "partition"
    """The network link of a node goes down. Its processes stay alive on the other side. Needs root: each node of the
    local cluster gets a network namespace."""
    OOM = "oom"
    """For one step a worker gets no more memory (RLIMIT_AS; on a GPU PyTorch's limit): the micro batch is halved."""
    DISK_FULL = "disk-full"
    """The file system of the checkpoints is full (ENOSPC), until a checkpoint has failed for it. Needs root: a small
    one is mounted there for the run."""
    BUCKET_DOWN = "bucket-down"
    """The bucket of the checkpoints becomes unreachable (connections are reset and refused) until a checkpoint has
    failed. Needs an http:// endpoint of S3, behind the drill's own proxy."""
    KILL_DRIVER = "kill-driver"
    """SIGKILL to the run's driver; a local cluster ends with it. Another driver resumes the run from storage."""
    RANDOM = "random"
    """Any of the above but `slow-rank` that the job and this machine permit, drawn again each time."""


@dataclass(frozen=True)
class FaultResult:
    """One injected fault; a field is None if it does not apply."""

    fault: str
    step: int
    """The last step reported before it."""
    rank: int | None
    """Of the worker that it hit, or whose node; None if it hit storage or the driver."""
    detection_s: float | None
    """From the fault to the event that reports it."""
    first_step_s: float | None
    """From the fault to the end of the first step after the recovery, or after the report if no worker was lost. For a
    fault of storage, to the next complete checkpoint."""
    steps_recomputed: int | None
    workers_before: int
    workers_after: int | None

    @property
    def recovered(self) -> bool:
        return self.first_step_s is not None


@dataclass(frozen=True)
class Scorecard:
    """The drill as a whole."""

    run: str
    undisturbed_run: str
    faults: tuple[FaultResult, ...]
    planned: int
    """Faults that were to be injected."""
    finished: bool
    """The run reached its last step."""
    reason: str | None
    """Why it did not."""
    data_exact: bool
    """Every sample of every epoch was used exactly once, or the run has a record of leaving it out."""
    max_loss_difference: float | None
    """Largest relative difference of a step's loss from the undisturbed run; None without a common step."""
    tolerance: float
    samples_left_out: int = 0
    """Of batches that a rollback from a numeric fault left out. The undisturbed run compared with leaves out the same
    from its start: it is the run that this one should be like."""

    @property
    def survived(self) -> bool:
        """Whether every fault was injected and recovered from, the data is exact, and the losses are those of the other
        run."""
        return (
            self.finished
            and len(self.faults) == self.planned
            and all(result.recovered for result in self.faults)
            and self.data_exact
            and self.max_loss_difference is not None
            and self.max_loss_difference <= self.tolerance
        )

    def to_json(self) -> JsonObject:
        """A JSON object."""
        return {**asdict(self), "survived": self.survived}


def max_relative_difference(losses: Sequence[float], undisturbed: Sequence[float]) -> float | None:
    """Over the common steps; not finite if one of a pair is not."""
    pairs = list(zip(losses, undisturbed, strict=False))
    if not pairs:
        return None
    differences = [0.0 if a == b else abs(a - b) / max(abs(b), 1e-12) for a, b in pairs]
    return max(differences, key=lambda value: float("inf") if value != value else value)


def strike_steps(total_steps: int, times: int) -> tuple[int, ...]:
    """Steps after which to strike, spread evenly and away from both ends: at least one step follows each.

    Raises ValueError if there are too few steps.
    """
    if total_steps < 2 * times + 1:
        raise ValueError(f"{times} faults need at least {2 * times + 1} steps, the job has {total_steps}")
    return tuple(round(total_steps * (index + 1) / (times + 1)) for index in range(times))
