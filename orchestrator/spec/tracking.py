"""`logging`: the experiment trackers that get a run's curves besides its own records."""

from typing import Literal

from pydantic import Field

from orchestrator.spec.spec_base import SpecModel


class TensorboardSpec(SpecModel):
    """Event files for TensorBoard (`pip install convoy-train[tensorboard]`)."""

    dir: str | None = Field(default=None, min_length=1)
    """Directory; each run has a folder of its own in it, named by its id, so that `tensorboard --logdir DIR` compares
    runs. Relative paths start at the directory of the job file. Default: `tensorboard/` in the run's directory."""


class WandbSpec(SpecModel):
    """A run in Weights & Biases (`pip install convoy-train[wandb]`). It has the id of Convoy's run, so that a resumed
    run continues there. The API key comes from `WANDB_API_KEY` or from `wandb login`, never from a job file."""

    project: str | None = Field(default=None, min_length=1)
    """Project. Default: `WANDB_PROJECT` of the environment, else the name of the job."""

    entity: str | None = Field(default=None, min_length=1)
    """User or team. Default: that of the API key."""

    mode: Literal["online", "offline", "disabled"] | None = None
    """`offline` writes into the run's directory, for `wandb sync` to upload later; `disabled` does nothing. Default:
    `WANDB_MODE` of the environment, else `online`. If the server cannot be reached, an online run is logged offline."""

    name: str | None = Field(default=None, min_length=1)
    """Name that is shown. Default: the id of the run."""

    group: str | None = Field(default=None, min_length=1)
    """Runs of the same group are shown together."""

    tags: list[str] = Field(default_factory=list)
    """Tags of the run."""

    notes: str | None = None
    """Description of the run."""


class LoggingSpec(SpecModel):
    """Experiment trackers. Each gets training and validation loss, learning rate, gradient norm, throughput, memory and
    the number of workers, and recoveries, resizes and checkpoints as markers. A tracker that fails, hangs or is too
    slow never slows or ends training: points that it does not take in time are dropped, counted and reported."""

    tensorboard: TensorboardSpec | None = None
    """Write event files for TensorBoard. `{}`: into the run's directory."""

    wandb: WandbSpec | None = None
    """Log to Weights & Biases. `{}`: to a project with the name of the job."""

    interval_steps: int = Field(default=1, ge=1)
    """Log every this many steps. The run's own records always have every step."""
