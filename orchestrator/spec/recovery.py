"""`recovery`: what happens when a worker or its node is lost."""

from pydantic import Field

from orchestrator.spec.base import SpecModel


class RecoverySpec(SpecModel):
    """How a run that loses workers goes on, and when it gives up."""

    max_failures: int = Field(default=8, ge=0)
    """Failures within any hour that a run recovers from; one more ends it, resumable. 0: the first one does."""

    max_without_progress: int = Field(default=3, ge=1)
    """Failures in a row, none of them a step further than the one before, after which a run gives up."""

    memory_kept_s: float = Field(default=900, ge=30)
    """Seconds that nodes of a joined cluster keep a run's state in memory after its driver was killed, or after the
    run failed: time for `convoy run --resume` to go on from it. Then the memory is given back."""
