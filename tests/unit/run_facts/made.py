"""Made-up runs for the tests of the read model: a test names what it is about, the rest is plain."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.domain.events import Event, EventBody, RunCreated, RunState, StateChanged, TrainingPlanned
from orchestrator.domain.ranks.rank_report import CollectiveTimes, PhaseTimes, RankMemory, RankReport
from orchestrator.domain.ranks.rank_summary import summarise
from orchestrator.domain.run_layout import RunLayout
from orchestrator.domain.step_report import StepReport
from orchestrator.goodput.ledger_result import LedgerResult
from orchestrator.goodput.time_class import TimeClass
from orchestrator.json_values import JsonObject
from orchestrator.run_facts.event_history import EventHistory
from orchestrator.run_facts.run_model import RunFacts, training_figures
from orchestrator.run_facts.step_history import StepsRead
from orchestrator.run_facts.step_point import point_from_report
from orchestrator.run_facts.step_series import StepSeries
from orchestrator.store.recorded_progress import RecordedProgress
from orchestrator.store.run_store import RunRecord
from tests import events

T0 = 1_700_000_000.0


@dataclass(frozen=True)
class Rank:
    """What one rank did in a step, in seconds."""

    data_s: float = 0.0
    forward_s: float = 0.3
    backward_s: float = 0.6
    optimizer_s: float = 0.1
    snapshot_s: float = 0.0
    collective_s: float = 0.0
    """Of the backward pass."""
    samples: int = 8


def step(number: int, *ranks: Rank, time_s: float | None = None, step_time_s: float = 1.0, **fields: Any) -> StepReport:
    """A report of a step that took a second, unless said otherwise."""
    reports = [
        RankReport(
            index,
            each.samples,
            500,
            PhaseTimes(each.data_s, each.forward_s, each.backward_s, each.optimizer_s, 0.0, each.snapshot_s),
            RankMemory((index + 1) << 30, (index + 2) << 30),
            CollectiveTimes(backward_s=each.collective_s),
        )
        for index, each in enumerate(ranks or (Rank(), Rank()))
    ]
    tokens = 500 * len(reports)
    plain: dict[str, Any] = {
        "step": number, "time_s": T0 + number if time_s is None else time_s, "epoch": number / 100,
        "loss": 8.0 / number, "grad_norm": 1.0, "lr": 1e-3, "tokens": tokens, "target_tokens": tokens - 1,
        "samples": sum(each.samples for each in reports), "first_position": 16 * number, "data_digest": 1,
        "step_time_s": step_time_s, "tokens_per_s": tokens / step_time_s, "tokens_per_s_per_worker": 500.0,
        "tflops_per_s": None, "mfu": None, "world_size": len(reports), "micro_batch": 8, "accumulation": 1,
        "ranks": summarise(reports), "positions": tokens,
    }  # fmt: skip
    return StepReport(**{**plain, **fields})


def event(kind: type[EventBody], at_s: float, **fields: object) -> Event:
    """An event `at_s` seconds after the run's beginning."""
    return events.event(kind, T0 + at_s, **fields)


def beginning(workers: int = 2, **plan: object) -> list[Event]:
    """What every run begins with."""
    shares = [8] * workers
    return [
        event(RunCreated, 0.0),
        event(TrainingPlanned, 0.0, world_size=workers, shares=shares, total_steps=1000, parameters=10**7, **plan),
        event(StateChanged, 0.0, state="running"),
    ]


def ledger(elapsed_s: float, workers: int = 2, **seconds: float) -> LedgerResult:
    """A ledger; `seconds`: worker-seconds by class, which add up to those that were reserved."""
    by_class = {TimeClass(name): taken_s for name, taken_s in seconds.items()}
    return LedgerResult(T0 + elapsed_s, elapsed_s, sum(seconds.values()), workers, by_class, 0.8, 0.7, 0.0, 1000)


def facts(
    steps: Iterable[StepReport] = (),
    more: Sequence[Event] = (),
    ended_s: float | None = 100.0,
    now_s: float = 100.0,
    ledger: LedgerResult | None = None,
    data: JsonObject | None = None,
) -> RunFacts:
    """A run; `ended_s`: it has succeeded by then, None: it is active. Times are seconds after its beginning."""
    series, history = StepSeries(), EventHistory()
    for report in steps:
        series.add(point_from_report(report))
    over = [] if ended_s is None else [event(StateChanged, ended_s, state="succeeded")]
    for each in [*beginning(), *more, *over]:
        history.take(each)
    read = StepsRead(series)
    last = series.last
    state = RunState.RUNNING if ended_s is None else RunState.SUCCEEDED
    progress = RecordedProgress(step=last.step if last else 0, total_steps=1000)
    record = RunRecord(
        "made-1", "made", state, None, T0, T0, None, False, progress, None, RunLayout(Path("/nowhere/made-1"))
    )
    ranks = ()
    kept = (None,) * len(history.checkpoints)
    return RunFacts(record, T0 + now_s, history, read, kept, training_figures(read, ranks), ranks, data, ledger, None)
