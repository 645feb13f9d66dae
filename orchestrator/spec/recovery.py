"""`recovery`: what happens when a worker or its node is lost."""

from typing import Annotated, Literal

from pydantic import Field

from orchestrator.spec.base import SpecModel


class RecoverySpec(SpecModel):
    """How a run that loses workers goes on, and when it gives up."""

    max_failures: int = Field(default=8, ge=0)
    """Failures within any hour that a run recovers from; one more ends it, resumable. 0: the first one does."""

    max_without_progress: int = Field(default=3, ge=1)
    """Failures in a row, none of them a step further than the one before, after which a run gives up."""

    hang_timeout_s: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    """Seconds without any progress in a step, on any worker, after which the gang counts as hung: stacks of all workers
    are taken and it goes on without the one the others wait for. `auto`: from measured step times, at least 10."""
