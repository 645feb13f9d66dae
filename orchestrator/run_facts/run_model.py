"""The read model of a run: everything that its files say, as typed values. All displays are made from it."""

import contextlib
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from orchestrator.atomic_files import read_json
from orchestrator.checkpoint.storage.storage import is_url
from orchestrator.domain.events import CheckpointSaved
from orchestrator.domain.events.event_codec import encode_body
from orchestrator.domain.ranks.rank_report import RankReport
from orchestrator.domain.run_layout import RunLayout
from orchestrator.domain.step_report import StepReport
from orchestrator.goodput.ledger_result import LedgerResult
from orchestrator.goodput.time_class import TimeClass
from orchestrator.json_values import JsonObject, JsonShapeError
from orchestrator.metrics.jsonl import last_object
from orchestrator.run_facts.event_history import EventHistory
from orchestrator.run_facts.step_history import Deadline, StepsRead, read_step_series
from orchestrator.store.recorded_ledger import ledger_of
from orchestrator.store.run_history import read_events, read_last_ranks
from orchestrator.store.run_store import RunRecord


@dataclass(frozen=True)
class TrainingFigures:
    """Figures over all steps that count; the first is left out of the pace if there are more: it warms up."""

    first_loss: float | None
    last_loss: float | None
    epoch: float | None
    tokens: int
    tokens_per_s: float | None
    step_time_s: float
    data_wait_share: float | None
    """0 to 1, mean over the ranks."""
    mfu: float | None
    world_size: int
    on_gpus: bool
    peak_total_bytes: int
    """Peak memory of all workers in the last step: of their GPUs, or on CPUs resident."""
    peak_most_bytes: int
    """The same of the worker with the most."""
    peak_rss_bytes: list[int]
    """Of each rank, when all of them were last recorded."""
    peak_device_bytes: list[int] | None
    """Of each rank; None on CPUs."""


@dataclass(frozen=True)
class RunFacts:
    """Everything known about a run, at one moment. What its files do not say is None or empty."""

    record: RunRecord
    now_s: float
    """Unix time at which it was read."""
    events: EventHistory
    steps: StepsRead
    kept: tuple[bool | None, ...]
    """For each checkpoint in `events.checkpoints`, whether it is still there; None: a bucket would have to be asked."""
    training: TrainingFigures | None
    ranks: tuple[RankReport, ...]
    """Every rank, when all of them were last recorded."""
    data: JsonObject | None
    """`data.json`."""
    ledger: LedgerResult | None
    """What the time of the workers was spent on; None if nothing was recorded."""
    durability: JsonObject | None
    """`durability.json`."""

    @property
    def end_s(self) -> float:
        """Unix time up to which the run is accounted for: now, or when its driver was last seen."""
        if self.record.active:
            return max(self.now_s, self.events.periods.last_s or 0.0)
        last = self.steps.series.last
        return max(self.events.periods.last_s or 0.0, last.time_s if last is not None else 0.0)

    @property
    def wall_s(self) -> float:
        """Wall time in which the run had a driver, in seconds."""
        driven_s = self.events.periods.elapsed_s(self.end_s)
        ledger_s = self.ledger.elapsed_s if self.ledger is not None else 0.0
        return max(driven_s, ledger_s) if self.record.active or not ledger_s else ledger_s

    def ledger_s(self, *classes: TimeClass) -> float:
        """Seconds of wall clock for the share of the workers' time that belongs to some classes; 0 without a ledger."""
        ledger = self.ledger
        if ledger is None or ledger.reserved_s <= 0:
            return 0.0
        return sum(ledger.seconds.get(each, 0.0) for each in classes) / ledger.reserved_s * self.wall_s

    @property
    def losses(self) -> list[float]:
        """Of each step; of a long run, means over ranges of steps."""
        return self.steps.series.curves["loss"].means

    def to_json(self) -> JsonObject:
        """For programs; what the run's files do not hold is null or empty."""
        record, saved = self.record, zip(self.events.checkpoints, self.kept, strict=True)
        return {
            **record.to_json(),
            "driver": record.driver.to_json() if record.driver else None,
            **self.events.to_json(),
            "checkpoints": [{**encode_body(each), "kept": kept} for each, kept in saved],
            "training": None if self.training is None else asdict(self.training),
            "losses": self.losses,
            "data": self.data,
            "ledger": None if self.ledger is None else self.ledger.to_json(),
        }


def read_facts(record: RunRecord, now_s: float | None = None, deadline: Deadline | None = None) -> RunFacts:
    """What the files of a run say. After `deadline` the steps are left out, see `StepsRead.complete`."""
    layout, events = record.layout, EventHistory()
    for event in read_events(layout.events):
        events.take(event)
    steps = read_step_series(layout.steps, deadline)
    ranks = read_last_ranks(layout) or _ranks_of_version_1(layout)
    return RunFacts(
        record=record,
        now_s=time.time() if now_s is None else now_s,
        events=events,
        steps=steps,
        kept=tuple(_kept(saved, layout) for saved in events.checkpoints),
        training=training_figures(steps, ranks),
        ranks=ranks,
        data=read_json(layout.data),
        ledger=ledger_of(layout),
        durability=read_json(layout.durability),
    )


def _ranks_of_version_1(layout: RunLayout) -> tuple[RankReport, ...]:
    """Lines of version 1 have every rank's report."""
    last = last_object(layout.steps)
    with contextlib.suppress(JsonShapeError):
        return StepReport.from_json(last).ranks.every if last is not None else ()
    return ()


def training_figures(read: StepsRead, ranks: Sequence[RankReport]) -> TrainingFigures | None:
    """The figures of a series; None without steps. `ranks`: the newest reports of every rank."""
    first, last = read.series.first, read.series.last
    if first is None or last is None:
        return None
    steady = read.series.steady
    seconds = steady.step_time_s
    device = [rank.memory.peak_allocated_bytes for rank in ranks if rank.memory.peak_allocated_bytes is not None]
    return TrainingFigures(
        first_loss=first.loss,
        last_loss=last.loss,
        epoch=last.epoch,
        tokens=read.series.totals.tokens,
        tokens_per_s=steady.tokens / seconds if seconds > 0 else None,
        step_time_s=seconds / max(1, steady.steps),
        data_wait_share=steady.phase_s("data_wait") / seconds if seconds > 0 else None,
        mfu=steady.mfu,
        world_size=last.world_size,
        on_gpus=last.on_gpus,
        peak_total_bytes=int(last.memory_total_bytes),
        peak_most_bytes=int(last.memory_max_bytes),
        peak_rss_bytes=[rank.memory.peak_rss_bytes for rank in ranks],
        peak_device_bytes=device or None,
    )


def _kept(saved: CheckpointSaved, layout: RunLayout) -> bool | None:
    """Whether a checkpoint is still there: old ones are removed as new ones are written. None if a bucket would have to
    be asked."""
    if is_url(saved.path):
        return None
    return layout.checkpoint(saved.step).is_dir() or (bool(saved.path) and Path(saved.path).is_dir())
