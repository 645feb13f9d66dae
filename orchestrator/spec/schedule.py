"""`schedule` and `matrix`: what a server's queue does with a job. `convoy run` starts it at once, without a queue."""

from typing import Annotated, Literal

from pydantic import Field

from orchestrator.spec.spec_base import SpecModel

MOST_RUNS_OF_MATRIX = 256
"""Combinations of the values of one matrix."""


class ScheduleSpec(SpecModel):
    """How a run that is submitted to a server waits and starts. `convoy run` ignores this section."""

    queue: str = Field(default="default", min_length=1, max_length=63)
    """The queue it waits in. Queues have shares of the cluster; `convoy queue` lists them."""

    priority: Literal["low", "normal", "high", "urgent"] = "normal"
    """Runs of a higher class go first. A run that needs the capacity of runs of lower classes gets it: elastic ones
    shrink to their minimum first, then others are suspended, and continue later without losing a step."""

    max_runtime: str | Annotated[int, Field(ge=1)] | None = None
    """Longest time that it may be active, waiting not counted: `90m`, `12h`, `2d`, or seconds. Then its state is saved
    and it ends as failed; `convoy retry` continues it. The queue also plans with this time until it has measured how
    long a step takes. Default: no limit, and a run of unknown length starts ahead of its turn only if it cannot delay
    others."""

    retries: int = Field(default=3, ge=0, le=100)
    """How often a run that has failed is tried again, with pauses that grow from 10 seconds to 10 minutes. It keeps its
    place in the queue. Mistakes of the user (exit code 2) are not tried again, and a lost cluster does not count."""

    after: list[str] = Field(default_factory=list, max_length=32)
    """Runs that have to succeed before this one starts: names (the newest run of that name) or ids. If one of them
    fails or is cancelled, this one fails. `${runs.NAME.export}` in this job is the directory of such a run's export."""
