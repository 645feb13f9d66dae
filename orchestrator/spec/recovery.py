"""`recovery`: what happens when a worker or its node is lost, or when training goes numerically wrong."""

from typing import Annotated, Literal

from pydantic import Field

from orchestrator.spec.spec_base import SpecModel


class LossSpikeSpec(SpecModel):
    """A loss above the median of the last `window` losses by more than `deviations` standard deviations is a spike.
    The deviation is estimated from the median absolute deviation, which earlier spikes do not move, and is at least 1%
    of the median. The defaults are those of OLMo's optimizer that leaves steps out (OLMo-core, `SkipStepOptimizer`)."""

    deviations: float = Field(default=6, gt=0)
    """Standard deviations above the median that a loss may reach."""

    window: int = Field(default=128, ge=8, le=10_000)
    """Losses the median is taken over. Until a run has as many, no step is judged."""


class RecoverySpec(SpecModel):
    """How a run that loses workers, or its numbers, goes on, and when it gives up."""

    max_failures: int = Field(default=8, ge=0)
    """Failures within any hour that a run recovers from; one more ends it, resumable. 0: the first one does.
    A micro batch that is halved because memory was short does not count."""

    max_without_progress: int = Field(default=3, ge=1)
    """Failures in a row, none of them a step further than the one before, after which a run gives up."""

    on_nan: Literal["rollback_and_skip", "stop", "continue"] = "rollback_and_skip"
    """What happens when a loss or a gradient is no number, or a loss is a spike (`loss_spike`). `rollback_and_skip`:
    training goes back to the newest checkpoint before the fault and on without the samples of the fault's batch; they
    are recorded, shown by `convoy data verify`, and not fed again before their next epoch. It is the default because
    the order of the data is fixed: whoever starts again from there meets the same batch and the same fault, so a run
    that nobody watches would otherwise stand still until somebody does this by hand; and it is bounded by
    `max_rollbacks`. (PaLM, arXiv:2204.02311, section 5.1, did it by hand about 20 times.) `stop`: the run ends as
    failed, its last checkpoint kept. `continue`: an update from gradients that are no numbers is left out, the step
    counts, its loss is recorded as null; a spike is only told of. In no case do such gradients reach the weights, and
    in none but the last is the state after a fault saved."""

    loss_spike: LossSpikeSpec | None = None
    """Treat spikes of the loss as faults. Default: only what is no number is a fault. Switch it on with `{}`."""

    skip_around: int = Field(default=0, ge=0)
    """Batches that are left out on either side of the bad one, as far as the checkpoint gone back to has not seen them
    yet. After a spike the batch before it always is. (PaLM left out 200 to 500.)"""

    max_rollbacks: int = Field(default=3, ge=1)
    """Times a run goes back within any 1000 steps; at one more it gives up: the training itself diverges."""
    hang_timeout_s: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    """Seconds without any progress in a step, on any worker, after which the gang counts as hung: stacks of all workers
    are taken and it goes on without the one the others wait for. `auto`: from measured step times, at least 10. What is
    no step (a checkpoint, a restore) has at least as long without progress; how long it takes in all is not judged."""
    max_wait_s: float | None = Field(default=None, gt=0)
    """How long a run that has too few workers left waits for nodes before it ends, resumable. Default: as long as it
    takes. On a local cluster, to which no nodes come, it does not wait."""
    memory_kept_s: float = Field(default=900, ge=30)
    """Seconds that nodes of a joined cluster keep a run's state in memory after its driver was killed, or after the
    run failed: time for `convoy run --resume` to go on from it. Then the memory is given back."""
