"""Plans the work of a gang of a given size: the only place that turns shapes and limits into a plan. Pure."""

from dataclasses import dataclass

from orchestrator.domain.devices.device_room import DeviceRoom
from orchestrator.domain.errors import UsageError
from orchestrator.domain.session import TrainPlan
from orchestrator.json_values import JsonFields
from orchestrator.planner.batch_shape import shape_batch, total_steps
from orchestrator.planner.device_fit import auto_micro_batch
from orchestrator.planner.device_memory import Assumptions, device_need
from orchestrator.planner.host_memory import largest_micro_batch, memory_need
from orchestrator.planner.model_shape import ModelShape, model_shape
from orchestrator.spec.job import JobSpec


@dataclass(frozen=True)
class DataFacts:
    """What of the prepared data a plan depends on."""

    directory: str
    """As the driver sees it."""
    train_samples: int
    vocab_size: int


@dataclass(frozen=True)
class PlanLimits:
    """What a worker has room for."""

    memory_bytes: int | None
    """Of the host, of one worker that trains on CPUs; None if it is not known: `train.micro_batch: auto` takes the
    whole share then."""
    micro_batch: int
    """The largest micro batch, whatever the spec says."""
    device: DeviceRoom | None = None
    """Of the smallest GPU of those that train; None as above."""
    assumed: Assumptions | None = None
    """What a worker's need on its GPU depends on besides the job; None: what the job says."""


def train_plan(
    spec: JobSpec, run_dir: str, data: DataFacts, config: JsonFields, workers: int, limits: PlanLimits
) -> TrainPlan:
    """The plan of a gang of `workers`, from the beginning; `config`: the model's, as far as it is known.

    Raises UsageError if there are more workers than samples in a global batch.
    """
    train = spec.train
    try:
        shape = shape_batch(train.global_batch, workers, None)
    except ValueError as error:
        raise UsageError(str(error), hint="raise train.global_batch or lower resources.workers") from error
    micro_batch = shape.shares[0]
    if train.micro_batch != "auto":
        micro_batch = train.micro_batch
    else:
        found = model_shape(config, data.vocab_size)
        micro_batch = _micro_batch(spec, found, workers, limits, shape.shares[0])
    shape = shape_batch(train.global_batch, workers, min(micro_batch, limits.micro_batch))
    return TrainPlan(
        spec=spec.model_dump(mode="json"),
        run_dir=run_dir,
        data_dir=data.directory,
        total_steps=total_steps(train, data.train_samples, spec.data.sequence_length),
        shares=shape.shares,
        micro_batch=shape.micro_batch,
        accumulation=shape.accumulation,
    )


def _micro_batch(spec: JobSpec, shape: ModelShape, workers: int, limits: PlanLimits, share: int) -> int:
    """`train.micro_batch: auto`: of the memory of the device that trains, GPU or host."""
    if spec.resources.gpus_per_worker:
        if limits.device is None:
            return share
        return auto_micro_batch(device_need(spec, shape, workers, limits.assumed), limits.device, share)
    if limits.memory_bytes is None:
        return share
    return largest_micro_batch(memory_need(spec, shape, workers), limits.memory_bytes, share)
