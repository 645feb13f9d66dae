"""`recovery`: what happens when a worker or its node is lost."""

from pydantic import Field

from orchestrator.spec.base import SpecModel


class RecoverySpec(SpecModel):
    """How a run that loses workers goes on, and when it gives up."""

    max_failures: int = Field(default=8, ge=0)
    """Failures within any hour that a run recovers from; one more ends it, resumable. 0: the first one does."""

    max_without_progress: int = Field(default=3, ge=1)
    """Failures in a row, none of them a step further than the one before, after which a run gives up."""

    max_wait_s: float | None = Field(default=None, gt=0)
    """How long a run that has too few workers left waits for nodes before it ends, resumable. Default: as long as it
    takes. On a local cluster, to which no nodes come, it does not wait."""
