"""What a driver finds when it begins, and what it leaves when it ends. Values, for events."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ClusterSize:
    """What a run has."""

    address: str
    nodes: int
    cpus: float
    gpus: float
    seconds: float


@dataclass(frozen=True)
class Adopted:
    """What a driver before this one left."""

    vaults: int
    workers_ended: int
    seconds: float


@dataclass(frozen=True)
class Left:
    """What this driver leaves behind."""

    step: int
    vaults: int
    kept_s: float
