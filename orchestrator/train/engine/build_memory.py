"""Memory of a worker's GPU while its engine is built or restored: reports what other processes hold, and raises an
error that says that no micro batch is small enough if the GPU is full."""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from orchestrator.domain.devices.device import CUDA
from orchestrator.domain.devices.device_room import DeviceRoom
from orchestrator.domain.errors import DeviceMemoryError
from orchestrator.domain.events import WarningIssued
from orchestrator.domain.session import Session
from orchestrator.json_values import JsonObject, integer, optional
from orchestrator.planner.device_fit import build_problem, remedies
from orchestrator.planner.device_memory import device_need
from orchestrator.planner.model_shape import ModelShape, model_shape
from orchestrator.spec.job import JobSpec
from orchestrator.train.engine.gpu_check import device_room

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def shape_of(model: "PreTrainedModel", parameters: int) -> ModelShape:
    """The sizes of a Hugging Face model that has been built, with the number of its parameters counted."""
    return replace(shape_of_config(model.config), parameters=parameters)


def shape_of_config(config: "PretrainedConfig") -> ModelShape:
    """The sizes of the model that a Hugging Face config describes."""
    fields: JsonObject = config.to_dict()
    return model_shape(fields, optional(integer, fields, "vocab_size") or 1)


def tell_room(session: Session, device: torch.device) -> DeviceRoom | None:
    """Memory of this worker's GPU; a warning if others hold some of it. To be asked before there are NCCL's buffers,
    which would count as others'. None on a CPU."""
    room = device_room(device) if device.type == CUDA else None
    if room is not None and room.is_shared:
        session.report_event(WarningIssued(_shared_text(session, room)))
    return room


@contextmanager
def no_samples_yet(
    session: Session, spec: JobSpec, shape: Callable[[], ModelShape], room: DeviceRoom | None = None
) -> Iterator[None]:
    """For what is done before the first sample. `shape` is asked for the model's sizes if memory is short, `room` is
    what `tell_room` found. Raises DeviceMemoryError in place of torch's OutOfMemoryError."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise want_of_memory(error, session, spec, shape(), room) from error


def want_of_memory(
    error: Exception, session: Session, spec: JobSpec, shape: ModelShape, room: DeviceRoom | None
) -> DeviceMemoryError:
    """What an out-of-memory error means before the first sample, with the need by part and what would help."""
    workers = session.world_size
    problem = build_problem(device_need(spec, shape, workers), room)
    foreign_bytes = room.foreign_bytes if room is not None and room.is_shared else 0
    hint = None
    if room is not None:
        helps = "; ".join(remedies(spec, shape, workers, room)) or "GPUs with more memory, or a smaller model"
        hint = f"what would help: {helps}"
        if foreign_bytes:
            problem = f"{_shared_text(session, room)}; {problem}"
    first = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return DeviceMemoryError(f"out of memory on the GPU: {problem} ({first})", hint, foreign_bytes)


def _shared_text(session: Session, room: DeviceRoom) -> str:
    return (
        f"{room.shared_text} of rank {session.rank} on {socket.gethostname()} ({session.node_ip}); the memory of a "
        "killed worker may not be freed yet"
    )
