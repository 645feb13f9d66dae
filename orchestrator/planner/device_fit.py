"""Whether a job fits the GPUs that it has, and what would help. Pure; texts are for people."""

from collections.abc import Iterator

from orchestrator.domain.devices.device_room import DeviceRoom
from orchestrator.domain.errors import ClusterError
from orchestrator.domain.events import DevicePlanned
from orchestrator.planner.device_memory import (
    Assumptions,
    DeviceNeed,
    device_need,
    largest_device_batch,
    plannable_bytes,
)
from orchestrator.planner.model_shape import ModelShape
from orchestrator.spec.job import JobSpec
from orchestrator.spec.train import OffloadSpec

SHOWN_PARTS = 6
MOST_TIMES_WORKERS = 64


def device_planned(need: DeviceNeed, micro_batch: int, room: DeviceRoom) -> DevicePlanned:
    """The event of a plan for workers on GPUs of which the smallest has `room`."""
    return DevicePlanned(
        micro_batch=micro_batch,
        need_bytes=need.total_bytes(micro_batch),
        parts=need.parts(micro_batch),
        free_bytes=room.free_bytes,
        total_bytes=room.total_bytes,
        device=room.name,
    )


def parts_text(parts: dict[str, int]) -> str:
    """`optimizer 9.8 GiB, weights 13.0 GiB, ...`, the largest first."""
    largest = sorted(parts.items(), key=lambda part: -part[1])
    shown = [f"{name} {gib(size)}" for name, size in largest[:SHOWN_PARTS]]
    if rest := sum(size for _, size in largest[SHOWN_PARTS:]):
        shown.append(f"other {gib(rest)}")
    return ", ".join(shown)


def gib(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:,.1f} GiB"


def check_fit(
    spec: JobSpec, shape: ModelShape, workers: int, room: DeviceRoom, assumed: Assumptions | None = None
) -> str | None:
    """A warning if one sample at a time is not expected to fit; None if it is.

    Raises ClusterError if the weights, gradients and optimizer state alone, which are known to the byte, are more than
    the GPU has.
    """
    need = device_need(spec, shape, workers, assumed)
    if need.total_bytes(1) <= plannable_bytes(room):
        return None
    hint = f"what would help: {'; '.join(remedies(spec, shape, workers, room, assumed)) or 'a smaller model'}"
    has = f"{gib(room.total_bytes)}" + (f", {gib(room.foreign_bytes)} of it in use" if room.is_shared else "")
    text = (
        f"training needs about {gib(need.total_bytes(1))} on each GPU with one sample at a time, and the smallest has "
        f"{has}: {parts_text(need.parts(1))}"
    )
    if need.states_bytes > room.total_bytes:
        raise ClusterError(text, hint=hint)
    return f"{text}; {hint}"


def build_problem(need: DeviceNeed, room: DeviceRoom | None) -> str:
    """Why a smaller micro batch does not help a worker whose GPU was full while its engine was built."""
    has = f" of {gib(room.total_bytes)}" if room is not None else ""
    parts = parts_text(_present(need.fixed_parts))
    return (
        f"the engine does not fit the GPU before the first sample: it needs about {gib(need.build_bytes)}{has} while "
        f"it is built and {gib(need.fixed_bytes)} afterwards ({parts}); a smaller micro batch does not change that"
    )


def remedies(
    spec: JobSpec, shape: ModelShape, workers: int, room: DeviceRoom, assumed: Assumptions | None = None
) -> tuple[str, ...]:
    """Changes of the job, each of which alone makes it fit, with what it needs then; at most one of a kind."""
    usable_bytes = plannable_bytes(room)
    found = []
    if room.is_shared:
        found.append(f"ending the processes that hold {gib(room.foreign_bytes)} on the GPU (`nvidia-smi` lists them)")
    for text, changed in _changes(spec):
        need_bytes = device_need(changed, shape, workers, assumed).total_bytes(1)
        if need_bytes <= usable_bytes:
            found.append(f"{text} ({gib(need_bytes)})")
    times = 2
    while times <= MOST_TIMES_WORKERS:
        need_bytes = device_need(spec, shape, workers * times, assumed).total_bytes(1)
        if need_bytes <= usable_bytes:
            found.append(f"{workers * times} workers ({gib(need_bytes)})")
            break
        times *= 2
    return tuple(found)


def auto_micro_batch(need: DeviceNeed, room: DeviceRoom, share: int) -> int:
    """`train.micro_batch: auto` on GPUs of which the smallest has `room`."""
    return largest_device_batch(need, plannable_bytes(room), share)


def _changes(spec: JobSpec) -> Iterator[tuple[str, JobSpec]]:
    for stage in range(spec.zero.stage + 1, 4):
        yield f"`zero.stage: {stage}`", _with_zero(spec, {"stage": stage})
    if not spec.train.activation_checkpointing:
        train = spec.train.model_copy(update={"activation_checkpointing": True})
        yield "`train.activation_checkpointing: true`", spec.model_copy(update={"train": train})
    if spec.zero.offload_optimizer.device == "none":
        stage = max(2, spec.zero.stage)
        offloaded = _with_zero(spec, {"stage": stage, "offload_optimizer": OffloadSpec(device="cpu")})
        yield f"`zero.stage: {stage}` with `zero.offload_optimizer: {{device: cpu}}`", offloaded


def _with_zero(spec: JobSpec, fields: dict[str, object]) -> JobSpec:
    return spec.model_copy(update={"zero": spec.zero.model_copy(update=fields)})


def _present(parts: dict[str, int]) -> dict[str, int]:
    return {name: size for name, size in parts.items() if size}
