"""`recovery`: what happens when a worker or its node is lost, or when training goes numerically wrong."""

from typing import Annotated, Literal

from pydantic import Field

from orchestrator.spec.spec_base import SpecModel


class LossSpikeSpec(SpecModel):
    """A loss above the median of the last `window` losses by more than `deviations` standard deviations is a spike.
    The deviation is estimated from the median absolute deviation, which earlier spikes do not move, and is at least 1%
    of the median. The defaults are those of OLMo's optimizer that skips steps (OLMo-core, `SkipStepOptimizer`)."""

    deviations: float = Field(default=6, gt=0)
    """Standard deviations above the median that a loss may reach."""

    window: int = Field(default=128, ge=8, le=10_000)
    """Number of losses that the median is taken over. Until a run has as many, no step is judged."""


class RecoverySpec(SpecModel):
    """How a run recovers from lost workers and numeric faults, and when it gives up."""

    max_failures: int = Field(default=8, ge=0)
    """Failures within any hour that a run recovers from; one more ends it, and it can be resumed. 0: the first failure
    ends it. Running out of memory does not count if the micro batch can be halved."""

    max_without_progress: int = Field(default=3, ge=1)
    """The run gives up after this many failures in a row without a finished step between them."""

    on_nan: Literal["rollback_and_skip", "stop", "continue"] = "rollback_and_skip"
    """What happens when a loss or a gradient is not a finite number, or a loss is a spike (`loss_spike`).
    `rollback_and_skip`: training returns to the newest state before the fault and continues without the samples of the
    fault's batch; they are recorded, shown by `convoy data verify`, and not fed again before their next epoch. It is
    the default because the order of the data is fixed: starting again from there would give the same batch and the
    same fault, and an unattended run would stop making progress. `max_rollbacks` limits it. (PaLM, arXiv:2204.02311,
    section 5.1, did the same by hand about 20 times.) `stop`: the run ends as failed, and its last checkpoint is kept.
    `continue`: an update from gradients that are not finite is left out, the step counts, and its loss is recorded as
    null; a spike is only reported. Such gradients never reach the weights, and only `continue` saves the state after a
    fault."""

    loss_spike: LossSpikeSpec | None = None
    """Treat spikes of the loss as faults. Default: only values that are not finite are faults. `{}` turns it on."""

    skip_around: int = Field(default=0, ge=0)
    """Batches that are left out on either side of the bad one, if the restored state has not seen them yet. After a
    spike the batch before it is always left out. (PaLM left out 200 to 500.)"""

    max_rollbacks: int = Field(default=3, ge=1)
    """Rollbacks within any 1000 steps; after one more the run gives up, because the training itself diverges."""
    hang_timeout_s: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    """Seconds without progress of any worker in a step after which the gang counts as hung: stacks of all workers are
    taken, and it continues without the worker that the others wait for. `auto`: from measured step times, at least 10.
    The bound for other operations (a checkpoint, a restore) is at least as long; their total duration is not
    limited."""
    max_wait_s: float | None = Field(default=None, gt=0)
    """Seconds that a run with too few workers waits for nodes before it ends; it can then be resumed. Default: no
    limit. On a local cluster, which gets no new nodes, it does not wait."""
    memory_kept_s: float = Field(default=900, ge=30)
    """Seconds that nodes of a joined cluster keep a run's state in memory after its driver was killed or the run
    failed, so that `convoy run --resume` can continue from it. Then the memory is freed."""
