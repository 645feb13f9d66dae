"""Values for events: what a driver finds when it starts, and what it leaves when it ends."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ClusterSize:
    """The cluster of a run."""

    address: str
    nodes: int
    cpus: float
    gpus: float
    seconds: float


@dataclass(frozen=True)
class Adopted:
    """What was adopted from a previous driver."""

    vaults: int
    workers_ended: int
    seconds: float


@dataclass(frozen=True)
class Left:
    """What this driver leaves behind."""

    step: int
    vaults: int
    kept_s: float
