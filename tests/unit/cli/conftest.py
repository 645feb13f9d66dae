"""A recorded run, to show: what a driver would tell its observers, with times of its own."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.domain.events import (
    CheckpointSaved,
    ClusterReady,
    DataProgress,
    DataReady,
    EvalFinished,
    Event,
    EventBody,
    MetricsServing,
    ModelExported,
    Observer,
    RunCreated,
    RunState,
    SampleGenerated,
    StateChanged,
    TrainingPlanned,
    WorkerFailed,
    WorkerLog,
    WorkerPhase,
    WorkerStarted,
)
from orchestrator.domain.ranks.rank_report import PhaseTimes, RankMemory, RankReport
from orchestrator.domain.ranks.rank_summary import summarise
from orchestrator.domain.run_layout import RunLayout
from orchestrator.domain.step_report import StepReport
from orchestrator.goodput.ledger_recorder import LedgerRecorder
from orchestrator.goodput.worker_terms import WorkerTerms
from orchestrator.metrics.run_recorder import RunRecorder
from orchestrator.store.run_store import RunStore
from tests import events

T0 = 1_700_000_000.0
WORKERS = 2
STEPS = 10


def step_report(step: int, time_s: float, loss: float) -> StepReport:
    phases = PhaseTimes(data_wait_s=0.01, forward_s=0.3, backward_s=0.5, optimizer_s=0.1)
    ranks = tuple(
        RankReport(rank, 8, 1000, phases, RankMemory(rss_bytes=2**30, peak_rss_bytes=2**30 + 2**20))
        for rank in range(WORKERS)
    )
    return StepReport(
        step=step, time_s=time_s, epoch=step / 100, loss=loss, grad_norm=1.0, lr=1e-3, tokens=2000,
        target_tokens=1900, samples=16, first_position=16 * (step - 1), data_digest=1, step_time_s=1.0,
        tokens_per_s=2000.0, tokens_per_s_per_worker=1000.0, tflops_per_s=None, mfu=None, world_size=WORKERS,
        micro_batch=8, accumulation=1, ranks=summarise(ranks),
    )  # fmt: skip


def recording(layout: RunLayout, fails_at: int | None = None) -> Iterator[Event | StepReport]:
    """30 s: 5 of data, 3 of cluster, 4 of workers, 2 of building, 10 steps of 1 s, export; or a failure at a step."""

    def event(kind: type[EventBody], at_s: float, **fields: object) -> Event:
        return events.event(kind, T0 + at_s, **fields)

    yield event(RunCreated, 0, run_id=layout.run_id, resumed_from_step=None)
    yield event(StateChanged, 0, state="preparing", reason=None)
    progress = {"total_bytes": 4 * 2**20, "documents": 100, "tokens": 0, "cached": False}
    yield event(DataProgress, 1, phase="tokenize", done_bytes=0, **progress)
    yield event(DataProgress, 3, phase="tokenize", done_bytes=2 * 2**20, **progress)
    yield event(
        DataReady, 5, fingerprint="f", cached=False, documents=100, bad_records=1, tokens=1_500_000,
        train_samples=700, validation_samples=32, seconds=5.0,
    )  # fmt: skip
    yield event(ClusterReady, 8, address="127.0.0.1:1", nodes=2, cpus=2.0, gpus=0, seconds=3.0)
    yield event(
        TrainingPlanned, 8, world_size=WORKERS, shares=[8, 8], micro_batch=8, accumulation=1, total_steps=STEPS,
        parameters=4_200_000,
    )  # fmt: skip
    yield event(StateChanged, 8, state="starting", reason=None)
    for rank in range(WORKERS):
        yield event(WorkerStarted, 11, rank=rank, node="127.0.0.1", pid=1, device="cpu", seconds=3.0)
        yield event(WorkerLog, 11, rank=rank, line=f"hello from {rank}")
    yield event(WorkerPhase, 12, rank=0, phase="build")
    yield event(WorkerPhase, 14, rank=0, phase="train")
    yield event(StateChanged, 14, state="running", reason=None)
    yield event(EvalFinished, 15, step=0, loss=8.0, perplexity=2981.0, tokens=100, seconds=1.0)
    yield event(MetricsServing, 15, url="http://127.0.0.1:9464/metrics")
    for step in range(1, STEPS + 1):
        if step == fails_at:
            for rank, error in ((1, "ValueError: boom"), (0, "ConnectionError: peer gone")):
                text = f"Traceback (most recent call last):\n  in rank {rank}\n{error}\x1b[31m"
                yield event(WorkerFailed, 15 + step, rank=rank, error=error, traceback=text)
            yield event(StateChanged, 15 + step, state="failed", reason="worker 1: ValueError: boom")
            return
        yield step_report(step, T0 + 15 + step, loss=8.0 - 0.4 * step)
        if step == 5:
            fields = {"bytes": 50 * 2**20, "seconds": 0.2, "world_size": 2, "stage": 2}
            yield event(CheckpointSaved, 20, step=5, path=str(layout.checkpoint(5)), **fields)
    yield event(EvalFinished, 26, step=10, loss=4.5, perplexity=90.0, tokens=100, seconds=1.0)
    yield event(WorkerPhase, 26, rank=0, phase="export")
    yield event(ModelExported, 28, path=str(layout.export), bytes=2**24, parameters=4_200_000, seconds=2.0)
    yield event(SampleGenerated, 28, prompt="def ", text="def f(x):\n    [bold]\x1b]0;evil\x07")
    yield event(StateChanged, 28, state="succeeded", reason=None)


def feed(observers: list[Observer], facts: Iterator[Event | StepReport]) -> None:
    for fact in facts:
        for observer in observers:
            if isinstance(fact, Event):
                observer.on_event(fact)
            else:
                observer.on_step(fact)


@pytest.fixture
def recorded(tmp_path: Path) -> Callable[..., RunLayout]:
    """Make a finished run on disk."""

    def make(name: str = "tiny", fails_at: int | None = None) -> RunLayout:
        store = RunStore(tmp_path / "runs")
        layout = store.create(name, T0)
        now_s = [T0]

        class Clock:
            def on_event(self, event: Event) -> None:
                now_s[0] = event.time_s

            def on_step(self, report: StepReport) -> None:
                now_s[0] = report.time_s

        recorder = RunRecorder(layout)
        ledger = LedgerRecorder(layout, lambda: now_s[0], WorkerTerms(), lambda _: ())
        feed([Clock(), recorder, ledger], recording(layout, fails_at))
        recorder.close()
        ledger.close()
        layout.checkpoint(5).mkdir(parents=True)
        state = RunState.FAILED if fails_at else RunState.SUCCEEDED
        store.set_state(layout, state, "worker 1: ValueError: boom" if fails_at else None, now_s=now_s[0])
        return layout

    return make
