"""The job spec: everything a user writes, in one value."""

from typing import Annotated, Literal

from pydantic import Field

from orchestrator.spec.data import DataSpec
from orchestrator.spec.model import ModelSpec, TokenizerSpec
from orchestrator.spec.recovery import RecoverySpec
from orchestrator.spec.resources import CheckpointSpec, ClusterSpec, ResourcesSpec
from orchestrator.spec.schedule import ScheduleSpec
from orchestrator.spec.spec_base import SpecModel
from orchestrator.spec.tracking import LoggingSpec
from orchestrator.spec.train import TrainSpec, ZeroSpec


class MetricsSpec(SpecModel):
    """Where metrics are served during the run."""

    host: str = "127.0.0.1"
    """Address the Prometheus endpoint binds to. Any other than a loopback address needs a token in
    `CONVOY_METRICS_TOKEN`."""

    port: Annotated[int, Field(ge=0, le=65535)] | Literal["auto", "off"] | None = "auto"
    """Port of `/metrics`. `auto`: what `CONVOY_METRICS_PORT` says, or else a free port that the system picks, as with
    0; Prometheus finds it by the file that the run leaves in `monitoring/targets` of `$CONVOY_HOME`. `off`: no
    endpoint. Null, as in the specs of older runs, is `auto`."""


class GenerateSpec(SpecModel):
    """A sample of generated text, printed when training ends."""

    prompt: str = ""
    """Text to continue. Empty: no sample. The sample is made on the CPU after the export; if it cannot be made, the
    run succeeds with a warning."""

    max_new_tokens: int = Field(default=64, ge=1)
    """Tokens to generate."""

    temperature: float = Field(default=0.8, ge=0)
    """Sampling temperature; 0 is greedy."""


class JobSpec(SpecModel):
    """One training job."""

    name: str = Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    """Short name: lower-case letters, digits and dashes. It begins the run id."""

    task: Literal["pretrain"] = "pretrain"
    """The training task. `pretrain`: next-token prediction, or masked tokens if the model is BERT."""

    model: ModelSpec
    """The model."""

    tokenizer: TokenizerSpec = Field(default_factory=TokenizerSpec)
    """The tokenizer."""

    data: DataSpec
    """The text."""

    train: TrainSpec
    """The optimisation."""

    zero: ZeroSpec = Field(default_factory=ZeroSpec)
    """How training state is sharded."""

    resources: ResourcesSpec = Field(default_factory=ResourcesSpec)
    """What it runs on."""

    checkpoint: CheckpointSpec = Field(default_factory=CheckpointSpec)
    """When state is saved."""

    recovery: RecoverySpec = Field(default_factory=RecoverySpec)
    """What happens when a worker or its node is lost, or when a loss is not a finite number."""

    cluster: ClusterSpec = Field(default_factory=ClusterSpec)
    """Which Ray cluster."""

    metrics: MetricsSpec = Field(default_factory=MetricsSpec)
    """Prometheus endpoint."""

    logging: LoggingSpec = Field(default_factory=LoggingSpec)
    """Experiment trackers: TensorBoard, Weights & Biases."""

    generate: GenerateSpec = Field(default_factory=GenerateSpec)
    """Sample at the end."""

    schedule: ScheduleSpec = Field(default_factory=ScheduleSpec)
    """How a server's queue treats the job."""

    matrix: dict[str, Annotated[list[bool | int | float | str], Field(min_length=1)]] = Field(default_factory=dict)
    """Values to try, by field, e.g. `{train.lr: [1e-3, 3e-4], train.seed: [1, 2]}`: `convoy submit` makes a run of each
    combination (at most 256), all in one group. The job must be valid without the matrix too. `convoy run` refuses
    it."""
