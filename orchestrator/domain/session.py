"""The seam between `gang` (which runs workers) and `train` (which runs in one).

`gang` implements `Session` on Ray, `train.standalone` on one process or torchrun. A worker's entry point is
`(session, plan) -> TrainResult`, named by an import string so that neither side imports the other.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Protocol

from orchestrator.domain.events import EventBody
from orchestrator.domain.policy.hang import CollectiveCounts, Phase
from orchestrator.domain.policy.numeric import Injection
from orchestrator.domain.policy.replay import StepRecord
from orchestrator.domain.step_report import StepReport
from orchestrator.json_values import JsonObject


class Leave(IntEnum):
    """Why to leave training at a step boundary; if ranks got different reasons, the highest counts."""

    NO = 0
    REGROUP = 1
    """To form the next generation with other members. State goes to the vaults."""
    PARK = 2
    """The same, but there may be too few workers for a while: state goes to the vaults and to storage."""
    STOP = 3
    """To end the run. State goes to storage."""

    @property
    def regroup(self) -> bool:
        """Whether training continues afterwards."""
        return self in (Leave.REGROUP, Leave.PARK)


@dataclass(frozen=True)
class VaultAccess:
    """How a worker reaches its own node's vault."""

    address: str
    """`host:port`."""
    pid: int
    """Of the vault's process, on this worker's host."""
    token: str = field(repr=False)
    generation: int = 0
    """Of the gang; states of different ones are never mixed."""
    attempt: str = ""
    """Random per driver: distinguishes files of its checkpoints from those of another driver at the same step."""


@dataclass(frozen=True)
class ShardPlace:
    """Where the state of one rank of an earlier generation is."""

    rank: int
    vaults: tuple[str, ...]
    """Addresses of the vaults that hold it, each all of it."""


@dataclass(frozen=True)
class PeerState:
    """A step whose complete state is in vaults."""

    generation: int
    step: int
    shards: tuple[ShardPlace, ...]
    """One for each rank of the gang that left it."""


@dataclass(frozen=True)
class TrainPlan:
    """All a worker needs to train, the same on every rank. Plain values only, so it travels anywhere."""

    spec: JsonObject
    """`JobSpec.model_dump(mode="json")`."""
    run_dir: str
    """The run's directory as the driver sees it."""
    data_dir: str
    """Directory of the prepared data as the driver sees it."""
    total_steps: int
    shares: tuple[int, ...]
    """Samples of the global batch per rank; their sum is `train.global_batch`."""
    micro_batch: int
    accumulation: int
    """Micro steps of every rank; a rank whose share is used up feeds an empty micro batch."""
    resume_from: str | None = None
    """Directory, as the driver sees it, or URL of the checkpoint to restore."""
    peer_state: PeerState | None = None
    """What to restore instead, out of the vaults."""
    expected: StepRecord | None = None
    """The record of the first step after a restore; it must give the same result again."""
    export: bool = True
    """Write `export/` when training ends."""
    skips: tuple[tuple[int, int], ...] = ()
    """(first position, positions) of samples that are left out, whole batches."""
    injections: tuple[Injection, ...] = ()
    """Faults to inject, each once."""
    lease: int = 0
    """Token of the driver that made the plan."""

    @property
    def restores(self) -> bool:
        """A saved state is put into the engine before the first step."""
        return self.peer_state is not None or self.resume_from is not None


@dataclass(frozen=True)
class TrainResult:
    """What a worker returns."""

    step: int
    finished: bool
    """False when it left at a step boundary because it was asked to."""
    regroup: bool = False
    """It left so that the gang can be formed again: its state of `step` is in its node's vault."""
    unsaved: str | None = None
    """Why the state of the last step could not be saved although it should have been; nothing is exported then."""
    facts: JsonObject = field(default_factory=dict)


@dataclass(frozen=True)
class Question:
    """A function of a worker, `module:function`, and what it is given: plain values, and `thorough`, which is true for
    one worker only. It raises a UsageError if the run must not continue."""

    entry: str
    value: JsonObject


class Session(Protocol):
    """A worker's view of the world outside its process."""

    @property
    def rank(self) -> int: ...

    @property
    def world_size(self) -> int: ...

    @property
    def local_rank(self) -> int:
        """Rank among the workers of the same host."""

    @property
    def node_ip(self) -> str:
        """Address other workers reach this one at."""

    @property
    def node_id(self) -> str:
        """Id of its node in the cluster; empty without one."""

    def report_step(self, report: StepReport) -> None:
        """Rank 0 only. Never blocks training: queued."""

    def report_event(self, body: EventBody) -> None:
        """Queue an event; the session adds the time."""

    def beat(self, step: int, phase: Phase) -> None:
        """Mark that the training thread enters a phase of a step (0: of none). Every rank makes the same beats in the
        same order. Cheap, takes no lock."""

    def progress(self) -> None:
        """Mark that a part of a long operation is done: a chunk written, read or checked, a collective completed. Any
        operation that may take longer than a few seconds within a phase must call it, or the worker counts as hung. Not
        compared between ranks, so each may call it as often as it likes. Cheap, takes no lock, for any thread."""

    def leave(self) -> Leave:
        """Whether and why the driver wants training to stop at the next step boundary. Local and cheap; the loop agrees
        on the answer across ranks itself, in its per-step collective."""

    def save_asked(self) -> bool:
        """Whether the driver wants a checkpoint of the next step boundary; true once for each time it does."""

    @property
    def vault(self) -> VaultAccess | None:
        """This node's vault; None if there is none. Between two steps it may become another one: see `use_vault` of
        the worker's agent."""

    def on_interrupt(self, unblock: Callable[[], None] | None) -> None:
        """Register a function that another thread calls repeatedly to interrupt the training thread in a collective
        whose other side is gone. None: unregister it."""

    def count_collectives(self, count: Callable[[], CollectiveCounts | None] | None) -> None:
        """Register a function that returns, in any thread, how far this rank's collectives are. None: unregister it."""

    @property
    def interrupted(self) -> bool:
        """Whether the driver has interrupted this generation. On a GPU collectives then return garbage in place of an
        error: results computed since the last check must not be used."""

    def publish(self, key: str, value: str) -> None:
        """Make a small value visible to the other ranks of this generation."""

    def lookup(self, key: str, timeout_s: float) -> str:
        """The value published under `key`, waiting for it. Raises TimeoutError."""

    @property
    def shares_files(self) -> bool:
        """Whether this worker sees the driver's files under the driver's paths."""

    def fetch(self, path: str) -> Path:
        """A local copy of a file or directory that the driver sees at `path`; the path itself if the file system is
        shared. Raises FileNotFoundError."""

    def store(self, local: Path, path: str) -> None:
        """Put a finished local file at `path` on the driver's side, atomically. Does nothing if `local`
        already is that file."""

    def move_into_place(self, path: str, final: str) -> None:
        """Rename the finished directory at `path` on the driver's side to `final` beside it, replacing an existing
        directory: it appears complete or not at all. Raises OSError."""
