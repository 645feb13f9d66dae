"""Preparing the data, and what training is planned with it."""

from dataclasses import dataclass
from typing import ClassVar

from orchestrator.domain.events.event_base import EventBody


@dataclass(frozen=True)
class DataProgress(EventBody):
    """How far the preparation of the data is, a few times a second. Not on disk."""

    KIND: ClassVar[str] = "data.progress"
    ON_DISK: ClassVar[bool] = False

    phase: str
    """scan, tokenizer, tokenize or index; compare: a resume reads files that may have changed."""
    done_bytes: int
    """Bytes of text that this phase has processed."""
    total_bytes: int
    """Bytes of text in all; 0 if that is not known."""
    documents: int = 0
    """Documents so far."""
    tokens: int = 0
    """Tokens so far."""
    cached: bool = False
    """Whether they come from the cache."""


@dataclass(frozen=True)
class DataReady(EventBody):
    """The data has been prepared, or found in the cache."""

    KIND: ClassVar[str] = "data.ready"

    fingerprint: str
    """Name of the prepared data in the cache."""
    cached: bool
    """Whether it was there already."""
    documents: int
    """Number of documents."""
    bad_records: int
    """Records that were left out because they could not be read."""
    tokens: int
    """Tokens of the training and the validation split."""
    train_samples: int
    """Samples of the training split."""
    validation_samples: int
    """Samples of the validation split."""
    seconds: float
    """How long the preparation took, in seconds."""


@dataclass(frozen=True)
class DataSkipped(EventBody):
    """Records of a source were left out."""

    KIND: ClassVar[str] = "data.skipped"

    source: str
    """Name of the source."""
    reason: str
    """Why they were left out."""
    count: int
    """How many."""
    first: str
    """Path and position of the first one."""


@dataclass(frozen=True)
class TrainingPlanned(EventBody):
    """A gang has been formed, and this is how it shares the work."""

    KIND: ClassVar[str] = "plan"

    world_size: int
    """Number of workers."""
    shares: tuple[int, ...]
    """Samples of the global batch for each rank."""
    micro_batch: int
    """Samples that a worker processes at once."""
    accumulation: int
    """Micro steps of an optimizer step."""
    total_steps: int
    """Optimizer steps of the whole run."""
    parameters: int
    """Parameters of the model."""


@dataclass(frozen=True)
class DevicePlanned(EventBody):
    """What a worker is expected to use on its GPU. Only if workers train on GPUs."""

    KIND: ClassVar[str] = "device.planned"

    micro_batch: int
    """Samples that a worker processes at once."""
    need_bytes: int
    """Expected use at the peak, in bytes."""
    parts: dict[str, int]
    """The same in bytes by purpose."""
    free_bytes: int
    """Free bytes of the smallest GPU when its worker started."""
    total_bytes: int
    """Bytes of that GPU."""
    device: str
    """Its name."""


@dataclass(frozen=True)
class MicroStepMeasured(EventBody):
    """How much of a micro step's forward pass does not depend on its samples. Measured once for each gang."""

    KIND: ClassVar[str] = "micro_step.measured"

    step: int
    """After this optimizer step."""
    micro_batch: int
    """Samples that a worker processes at once."""
    forward_s: float
    """Forward pass of a micro step of that optimizer step, mean of rank 0, in seconds."""
    fixed_s: float
    """Forward pass of a single sample of a few tokens, in seconds."""


@dataclass(frozen=True)
class EvalFinished(EventBody):
    """The validation loss was measured."""

    KIND: ClassVar[str] = "eval"

    step: int
    """After this optimizer step."""
    loss: float
    """Mean over the target tokens of the validation samples, in nats."""
    perplexity: float | None
    """exp(loss); null if it is too large for a number."""
    tokens: int
    """Target tokens."""
    seconds: float
    """How long the evaluation took, in seconds."""


@dataclass(frozen=True)
class ModelExported(EventBody):
    """The trained model has been written in Hugging Face format."""

    KIND: ClassVar[str] = "exported"

    path: str
    """Its directory."""
    bytes: int
    """Size of the weights in bytes."""
    parameters: int
    """Number of parameters."""
    seconds: float
    """How long the export took, in seconds."""


@dataclass(frozen=True)
class SampleGenerated(EventBody):
    """The exported model has continued the prompt of the job."""

    KIND: ClassVar[str] = "sample"

    prompt: str
    """The prompt."""
    text: str
    """The text; it begins with the prompt."""
