"""The life of the state that a run keeps in the memory of its nodes: planned, surveyed, adopted, left for a resume."""

import time
from collections.abc import Callable

from orchestrator.domain.errors import ClusterError
from orchestrator.domain.events import Emit, VaultsAdopted, VaultsKept, VaultsPlanned, WarningIssued
from orchestrator.domain.run_layout import RunLayout
from orchestrator.domain.step_report import StepReport
from orchestrator.metrics.durability_recorder import DurabilityRecorder
from orchestrator.planner.model_shape import ModelShape
from orchestrator.planner.snapshot_costs import snapshots_planned
from orchestrator.run.group_protocol import WorkerGroup
from orchestrator.spec.job import JobSpec


class MemoryCheckpoints:
    """One driver's dealings with the vaults of its run, beside training itself."""

    def __init__(
        self,
        spec: JobSpec,
        layout: RunLayout,
        emit: Emit,
        stored_step: Callable[[], int | None],
        recorded: Callable[[], int],
    ) -> None:
        """`stored_step`: of the newest checkpoint, None if there is none; `recorded`: the last step on record."""
        self._spec = spec
        self._recorded = recorded
        self._emit, self._stored_step = emit, stored_step
        self._told: VaultsPlanned | None = None
        self._warned = False
        self.recorder = DurabilityRecorder(layout, stored_step)
        """Observer that keeps `durability.json`."""

    def begin(self, group: WorkerGroup, resumed: bool, record: Callable[[StepReport], None]) -> bool:
        """Adopt the vaults that an earlier driver has left if the run is `resumed`, and have the vaults surveyed from
        now on; whether vaults were adopted.

        The earlier driver's workers may have trained after its end: `record` gets the steps that it has not recorded.
        Raises ClusterError.
        """
        adopted = group.adopt() if resumed else None
        if adopted is not None:
            recorded = self._recorded()
            for report in group.reports_after(recorded):
                record(report)
                recorded = report.step
            step = next((whole.step for whole in group.survey() if whole.step <= recorded), None)
            self._emit(VaultsAdopted(step, adopted.vaults, adopted.workers_ended, adopted.seconds))
        self.recorder.memory_kept_s = group.memory_kept_s
        group.survey_vaults(self.recorder.take)
        return adopted is not None

    def tell_missing(self, step: int) -> None:
        """Warn of steps that a resume continues after, but that no driver has recorded."""
        recorded = self._recorded()
        if step > recorded:
            what = f"steps {recorded + 1} to {step}" if step > recorded + 1 else f"step {step}"
            message = (
                f"the records of {what} were lost with the driver that was killed: their training counts, but "
                "`convoy data verify` cannot prove their data"
            )
            self._emit(WarningIssued(message))

    def plan(self, group: WorkerGroup, shape: ModelShape) -> int:
        """Emit what the vaults will take. Returns the bytes that a worker without a memory limit must leave them.

        Raises ClusterError if it does not fit, before the first step; later that is a warning, and training continues.
        """
        try:
            need, warning = group.plan_vaults(shape)
        except ClusterError as error:
            if self._told is None:
                raise
            need, warning = None, f"{error.message}; hint: {error.hint}"
        if warning is not None and not self._warned:
            self._warned = True
            self._emit(WarningIssued(warning))
        if need is None:
            return 0
        if need.planned != self._told:
            self._told = need.planned
            self._emit(need.planned)
            self._emit(snapshots_planned(self._spec, shape, group.workers_by_node))
        return 0 if group.reserves_memory else need.cell_bytes * (1 + need.copies)

    def end(self, group: WorkerGroup, succeeded: bool) -> None:
        """The run is over. Where it did not succeed and the vaults know more than storage, they stay for a resume."""
        left = None if succeeded else group.leave_vaults(self._stored_step() or 0)
        if left is not None:
            self._emit(VaultsKept(left.step, left.vaults, time.time() + left.kept_s))
        self.recorder.end(kept=left is not None)
