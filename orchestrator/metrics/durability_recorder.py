"""How safe a run's state is, for those who look: `durability.json` and the metrics of it."""

import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import median

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from orchestrator.atomic_files import write_json
from orchestrator.checkpoint.survey.durability import Durability, Surroundings, VaultReport, assess
from orchestrator.domain.events import (
    CheckpointRejected,
    CheckpointSaved,
    Event,
    RecoveryStarted,
    SnapshotsPlanned,
    VaultsAdopted,
    VaultsPlanned,
)
from orchestrator.domain.run_layout import RunLayout
from orchestrator.domain.step_report import StepReport
from orchestrator.metrics.catalog import metric_family, safety_metrics
from orchestrator.metrics.collectors.copy_counters import CopyCounter
from orchestrator.metrics.collectors.families import Labels, family
from orchestrator.planner.snapshot_costs import measured_loss

COMPUTED = (
    safety_metrics.STEPS_AT_RISK,
    safety_metrics.TIER_STEP,
    safety_metrics.COPIES_MIN,
    safety_metrics.UNRECOVERABLE_NODES,
    safety_metrics.VAULT_UP,
    safety_metrics.VAULT_BYTES,
    safety_metrics.VAULT_PLANNED_BYTES,
)
"""Metrics that are worked out from the newest survey when they are asked for."""

NODES_SHOWN = 256
"""Nodes that have series of their own: those without an answer first, then those that use the most memory."""
STEPS = 20
"""Step times that count for what a step takes."""


class DurabilityRecorder:
    """Observer that knows how far the run is, and takes the surveys of its vaults.

    Observing and taking may happen in different threads. A disk that fails is reported once on stderr.
    """

    def __init__(
        self, layout: RunLayout, stored_step: Callable[[], int | None], clock: Callable[[], float] = time.time
    ) -> None:
        """`stored_step`: newest complete checkpoint; called again only after one was written or rejected."""
        self._layout, self._stored_step, self._clock = layout, stored_step, clock
        self._step, self._protected_step = 0, 0
        self._storage_step: int | None = None
        self._storage_changed = True
        self._planned_bytes: int | None = None
        self._snapshots: SnapshotsPlanned | None = None
        self._steps_s: deque[float] = deque(maxlen=STEPS)
        self._failed = False
        self.memory_kept_s = 0.0
        """See `Durability.memory_kept_s`."""
        self.last: Durability | None = None
        self.copies = CopyCounter()

    def on_event(self, event: Event) -> None:
        """Learn of checkpoints, of the plan, and of state that is gone back to."""
        self.copies.on_event(event)
        match event.body:
            case CheckpointSaved() | CheckpointRejected():
                self._storage_changed = True
            case VaultsPlanned() as planned:
                self._planned_bytes = planned.node_bytes
            case SnapshotsPlanned() as snapshots:
                self._snapshots = snapshots
            case VaultsAdopted() as adopted:
                self._step = max(self._step, adopted.step or 0)
            case RecoveryStarted() as recovery:
                self._step, self._protected_step = recovery.from_step, 0

    def on_step(self, report: StepReport) -> None:
        """A step is finished."""
        self._step, self._protected_step = report.step, report.protected_step or 0
        self._steps_s.append(report.step_time_s)

    def take(self, reports: Sequence[VaultReport]) -> None:
        """The vaults have answered: write what that means."""
        self.copies.take(reports)
        if self._storage_changed:
            self._look_at_storage()
        known = Surroundings(self._clock(), self._step, self._storage_step, self._planned_bytes, self.memory_kept_s)
        self._write(replace(assess(reports, known), node_loss=self._node_loss()))

    def end(self, kept: bool) -> None:
        """The driver leaves; `kept`: without ending the vaults."""
        if self.last is not None:
            self._look_at_storage()
            now_s, stored = self._clock(), self._storage_step
            self._write(replace(self.last, step=self._step, storage_step=stored, over_s=now_s, kept=kept))

    def steps_at_risk(self) -> int | None:
        """The present state: steps continue between surveys, and their reports contain the protected step."""
        last = self.last
        if last is None:
            return None
        safe = max(last.safe_step, self._protected_step) if last.copies_min > 1 else last.safe_step
        return max(0, self._step - safe)

    def _node_loss(self) -> dict[str, float] | None:
        """What the loss of a node would cost; None if nothing is planned, or no step has been made."""
        steps_s = list(self._steps_s)  # a copy: steps are observed in another thread
        if self._snapshots is None or not steps_s:
            return None
        return measured_loss(self._snapshots, median(steps_s))

    def _look_at_storage(self) -> None:
        """If it cannot be read now, the known value stays, and the next survey tries again."""
        self._storage_changed = False
        try:
            self._storage_step = self._stored_step()
        except OSError as error:
            self._storage_changed = True
            self._complain(f"cannot look at the checkpoints: {error}")

    def _write(self, value: Durability) -> None:
        self.last = value
        try:
            write_json(self._layout.durability, value.to_json(), durable=False)
        except OSError as error:
            self._complain(f"cannot write {self._layout.durability}: {error}")

    def _complain(self, text: str) -> None:
        if not self._failed:
            self._failed = True
            print(f"warning: {text}", file=sys.stderr)


class DurabilityCollector(Collector):
    """The metrics of the newest survey: a node that is gone has none."""

    def __init__(self, common: tuple[str, str], recorder: DurabilityRecorder) -> None:
        """`common`: values of `metric_family.COMMON_LABELS`."""
        self._common, self._recorder = common, recorder

    def collect(self) -> Iterable[Metric]:
        """One family for each of `COMPUTED` that has a value."""
        last = self._recorder.last
        if last is None:
            return
        tiers = {"own": last.own_step, "peers": last.peers_step, "storage": last.storage_step}
        yield self._family(safety_metrics.STEPS_AT_RISK, {(): self._recorder.steps_at_risk()})
        yield self._family(safety_metrics.TIER_STEP, {(tier,): step for tier, step in tiers.items()})
        yield self._family(safety_metrics.COPIES_MIN, {(): last.copies_min})
        yield self._family(safety_metrics.UNRECOVERABLE_NODES, {(): len(last.unrecoverable)})
        shown = sorted(last.nodes, key=lambda node: (node.answers, -node.memory_bytes, node.node))[:NODES_SHOWN]
        yield self._family(safety_metrics.VAULT_UP, {(node.node,): int(node.answers) for node in shown})
        yield self._family(safety_metrics.VAULT_BYTES, {(node.node,): node.memory_bytes for node in shown})
        yield self._family(safety_metrics.VAULT_PLANNED_BYTES, {(): last.planned_bytes})

    def _family(self, metric: metric_family.Metric, values: Mapping[Labels, float | None]) -> Metric:
        return family(metric, self._common, values)
