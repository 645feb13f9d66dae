"""Text about the memory that training takes on GPUs, and about what losing a node costs."""

from orchestrator.cli.display import formatting
from orchestrator.domain.events import DevicePlanned, SnapshotsPlanned
from orchestrator.planner.device_fit import parts_text
from orchestrator.planner.device_memory import device_need
from orchestrator.planner.model_shape import ModelShape, known_config, known_vocab_size, model_shape
from orchestrator.spec.job import JobSpec
from orchestrator.spec.resources import WorkersRange


def planned(event: DevicePlanned) -> str:
    """What a worker is expected to use on its GPU."""
    return (
        f"{formatting.size(event.need_bytes)} expected of {formatting.size(event.total_bytes)} of the smallest "
        f"{event.device or 'GPU'}, {formatting.size(event.free_bytes)} free, at a micro batch of {event.micro_batch}: "
        f"{parts_text(event.parts)}"
    )


def node_loss(event: SnapshotsPlanned) -> str:
    """What the loss of a node is expected to cost."""
    steps = event.interval_steps
    every = f"about every {formatting.duration(event.interval_s)}"
    if steps:
        every = f"every {steps} step{'s' if steps != 1 else ''}"
    copies = f"the {formatting.size(event.state_bytes)} of each worker are copied to memory {every}"
    if event.read_s is None:
        return f"repeats all steps since the last checkpoint: no copies are kept on other nodes; {copies}"
    repeated = "the steps since the newest copy"
    if event.repeated_s is not None:
        repeated = f"up to {formatting.duration(event.repeated_s)} of training, at least a step,"
    return (
        f"repeats {repeated} and takes {formatting.duration(event.read_s)} to read the state from peers; "
        f"{copies}, and sent to peers in {formatting.duration(event.sent_s)}"
    )


def estimate(spec: JobSpec) -> str | None:
    """What a job needs on each GPU, as far as that is known before anything runs; None on CPUs, or if the model is
    not known."""
    shape = known_shape(spec)
    if not spec.resources.gpus_per_worker or shape is None:
        return None
    micro_batch = spec.train.micro_batch if spec.train.micro_batch != "auto" else 1
    workers = most_workers(spec)
    need = device_need(spec, shape, workers)
    several = f"{workers} workers" if workers != 1 else "one worker"
    total = formatting.size(need.total_bytes(micro_batch))
    parts = parts_text(need.parts(micro_batch))
    return f"about {total} per GPU with {several} and a micro batch of {micro_batch}: {parts}"


def known_shape(spec: JobSpec) -> ModelShape | None:
    """The model's sizes, if the job file alone gives them."""
    config = known_config(spec, None)
    vocab_size = known_vocab_size(spec, config)
    if spec.model.architecture is None or vocab_size is None:
        return None
    return model_shape(config, vocab_size)


def most_workers(spec: JobSpec) -> int:
    """How many workers the job has at most."""
    workers = spec.resources.workers
    return workers.max if isinstance(workers, WorkersRange) else workers
