"""Checks as early as possible whether a run fits its GPUs, and reports the result."""

from orchestrator.domain.devices.device_room import DeviceRoom
from orchestrator.domain.events import DevicePlanned, Emit, WarningIssued
from orchestrator.json_values import JsonFields
from orchestrator.planner.device_fit import check_fit, device_planned
from orchestrator.planner.device_memory import device_need
from orchestrator.planner.model_shape import ModelShape, known_vocab_size, model_shape
from orchestrator.spec.job import JobSpec


class GpuFit:
    """One driver's dealings with the memory of its run's GPUs; none if workers train on CPUs."""

    def __init__(self, spec: JobSpec, emit: Emit) -> None:
        """`emit` publishes events of the run."""
        self._spec, self._emit = spec, emit
        self._warned: tuple[int, ModelShape] | None = None
        self._told: DevicePlanned | None = None

    def check_early(self, workers: int, room: DeviceRoom | None, config: JsonFields) -> None:
        """Before anything is downloaded or tokenised, as far as the model is known by then. `config`: as far as it is
        known. Raises ClusterError if the model's state alone is more than a GPU has."""
        vocab_size = known_vocab_size(self._spec, config)
        known = self._spec.model.architecture is not None or "model_type" in config
        if vocab_size is not None and known:
            self.check(workers, room, model_shape(config, vocab_size))

    def check(self, workers: int, room: DeviceRoom | None, shape: ModelShape) -> None:
        """Warn, once for a number of workers, if one sample at a time is not expected to fit. Raises ClusterError as
        above."""
        if room is None:
            return
        warning = check_fit(self._spec, shape, workers, room)
        if warning is not None and self._warned != (workers, shape):
            self._warned = (workers, shape)
            self._emit(WarningIssued(warning))

    def tell(self, workers: int, room: DeviceRoom | None, shape: ModelShape, micro_batch: int) -> None:
        """Report what the plan expects a worker to need on its GPU, if that has changed."""
        if room is None:
            return
        planned = device_planned(device_need(self._spec, shape, workers), micro_batch, room)
        if planned != self._told:
            self._told = planned
            self._emit(planned)
