"""What a tick sees of one run besides its row. Values only."""

from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.control.ports import DriverFacts


@dataclass(frozen=True)
class RunSight:
    """One run, now."""

    now_s: float
    """Unix seconds, for records only: no decision depends on it."""
    facts: DriverFacts | None = None
    """None if its driver was not asked about."""
    gone: bool | None = True
    """Its driver does not exist, or has lost its run. None: not known yet."""
    held: Mapping[str, int] | None = None
    """Workers by node for which the cluster has reservations; None if the cluster does not answer."""
    cluster_lost: bool = False
    """The cluster does not answer, or it is another one: none of the run's nodes is there."""
    in_state_s: float = 0.0
    """How long this process has seen it in its state, on the monotonic clock."""
    pause_over: bool = False
    """Its pause after a failure has lasted long enough, on the monotonic clock."""
    active_s: float = 0.0
    """How long it has been active in all, on monotonic clocks."""
