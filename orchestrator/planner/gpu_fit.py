"""Whether a run fits its GPUs: found out as early as it can be known, and told."""

from collections.abc import Callable
from typing import Any

from orchestrator.domain.device_room import DeviceRoom
from orchestrator.domain.events import EventKind
from orchestrator.json_values import JsonFields
from orchestrator.planner.device_fit import check_fit, planned_fields
from orchestrator.planner.device_memory import device_need
from orchestrator.planner.model_shape import ModelShape, known_vocab_size, model_shape
from orchestrator.spec.job import JobSpec

Emit = Callable[[EventKind, dict[str, Any]], None]


class GpuFit:
    """One driver's dealings with the memory of its run's GPUs; none where workers train on CPUs."""

    def __init__(self, spec: JobSpec, emit: Emit) -> None:
        """`emit` tells the run's observers."""
        self._spec, self._emit = spec, emit
        self._warned: tuple[int, ModelShape] | None = None
        self._told: dict[str, Any] | None = None

    def check_early(self, workers: int, room: DeviceRoom | None, config: JsonFields) -> None:
        """Before anything is downloaded or tokenised, as far as the model is known by then. `config`: as far as it is
        known. Raises ClusterError where the model's state alone is more than a GPU has."""
        vocab_size = known_vocab_size(self._spec, config)
        known = self._spec.model.architecture is not None or "model_type" in config
        if vocab_size is not None and known:
            self.check(workers, room, model_shape(config, vocab_size))

    def check(self, workers: int, room: DeviceRoom | None, shape: ModelShape) -> None:
        """Warn, once for a number of workers, where one sample at a time is not expected to fit. Raises ClusterError as
        above."""
        if room is None:
            return
        warning = check_fit(self._spec, shape, workers, room)
        if warning is not None and self._warned != (workers, shape):
            self._warned = (workers, shape)
            self._emit(EventKind.WARNING, {"message": warning})

    def tell(self, workers: int, room: DeviceRoom | None, shape: ModelShape, micro_batch: int) -> None:
        """What the plan expects a worker to need on its GPU, if that is not what was told last."""
        if room is None:
            return
        fields = planned_fields(device_need(self._spec, shape, workers), micro_batch, room)
        if fields != self._told:
            self._told = fields
            self._emit(EventKind.DEVICE_PLANNED, fields)
