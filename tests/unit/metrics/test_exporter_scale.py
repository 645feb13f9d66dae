"""How many series a run of 1,024 workers on GPUs has, with everything that can have one."""

import random
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from orchestrator.checkpoint.memory.copy_totals import CopyTotals
from orchestrator.checkpoint.survey.durability import VaultReport
from orchestrator.checkpoint.survey.inventory import Holding
from orchestrator.domain.events import (
    CheckpointSaved,
    DataReady,
    EvalFinished,
    Event,
    FaultKind,
    GpuMeasured,
    MemoryMeasured,
    NumericFaultFound,
    RecoveryFinished,
    RecoveryStarted,
    RunState,
    ScaleAnswered,
    ScaleState,
    StateChanged,
    TrainingPlanned,
    VaultsPlanned,
    WorkerPhase,
    WorkerStarted,
)
from orchestrator.domain.ranks.rank_report import CollectiveTimes, RankMemory
from orchestrator.domain.ranks.rank_summary import summarise
from orchestrator.domain.run_layout import RunLayout
from orchestrator.domain.step_report import StepReport
from orchestrator.metrics.collectors.loop_pace import LoopPace
from orchestrator.metrics.durability_recorder import DurabilityRecorder
from orchestrator.metrics.exporter import MetricsObserver
from orchestrator.metrics.metric_catalog import CATALOG
from tests.events import event
from tests.unit.goodput.test_ledger_result import RESULT

pytestmark = pytest.mark.unit
Make = Callable[..., StepReport]
RANKS, MOST_SERIES = 1024, 2000


def vault_reports(ranks_per_node: int) -> list[VaultReport]:
    totals = CopyTotals()
    totals.snapshot(100)
    totals.replicated(100, 1, 0.2)
    found = []
    for node in range(RANKS // ranks_per_node):
        address, rank = f"10.{node >> 8}.{node & 255}.1:7", node * ranks_per_node
        held = (Holding(address, 1, rank, RANKS, 3, True),)
        found.append(VaultReport(f"node-{node}", address, True, held, 64, copies=totals.figures(5)))
    return found


def told(observer: MetricsObserver, ranks_per_node: int) -> None:
    """Every event that makes a series, and the GPUs of all ranks."""
    for kind, fields in [
        (TrainingPlanned, {"world_size": RANKS}),
        (StateChanged, {"state": RunState.RUNNING}),
        (DataReady, {}),
        (EvalFinished, {}),
        (CheckpointSaved, {}),
        (ScaleAnswered, {"state": ScaleState.ACCEPTED, "workers": RANKS}),
        (RecoveryStarted, {"reason": "node_died", "alive_s": 0.5}),
        (WorkerPhase, {"phase": "restore"}),
        (WorkerPhase, {"phase": "train"}),
        (RecoveryFinished, {}),
        *((NumericFaultFound, {"fault": fault}) for fault in FaultKind),
    ]:
        observer.on_event(event(kind, 1.0, **fields))
    sizes = dict.fromkeys(("parameters", "gradients", "optimizer", "activations"), 1 << 30)
    observer.on_event(Event(MemoryMeasured(sizes, sizes), 1.0))
    for rank in range(RANKS):
        node = rank // ranks_per_node
        observer.on_event(event(WorkerStarted, rank=rank, host=f"host-{node}", node_id=f"node-{node}"))
        gpu = GpuMeasured(rank, f"host-{node}", f"GPU-{rank}", "NVIDIA H100", 0.5, 1, 2, 3.0, 4.0, ("thermal",), 0, 0)
        observer.on_event(Event(gpu, 1.0))


@pytest.fixture(params=[8, 1], ids=["8 ranks a node", "1 rank a node"])
def observer(request: pytest.FixtureRequest, tmp_path: Path, report: Make) -> MetricsObserver:
    pace, durability = LoopPace(), DurabilityRecorder(RunLayout(tmp_path), lambda: 2)
    observer = MetricsObserver(
        "large-1",
        "large",
        lambda: RESULT,
        clock=lambda: 100.0,
        slowness=lambda: dict.fromkeys(range(RANKS), 1.0),
        durability=durability,
        pace=pace,
    )
    told(observer, request.param)
    durability.on_event(event(VaultsPlanned))
    durability.take(vault_reports(request.param))
    rng, step = random.Random(7), report(1, world_size=RANKS)
    for number in range(2, 30):
        pace.note(0.1 * number, 0.1)
        slow = rng.sample(range(RANKS), 4)  # others in each step: series of single ranks must not pile up
        ranks = [
            replace(
                rank,
                memory=RankMemory(1, 2, 3, 4, 5),
                waits=CollectiveTimes(0.01, 0.02, 0.03),
                phases=replace(rank.phases, forward_s=9.0 if rank.rank in slow else 0.3, snapshot_s=0.01),
            )
            for rank in step.ranks.every
        ]
        summary = summarise(ranks)
        observer.on_step(
            replace(step, step=number, mfu=0.4, protected_step=1, loss_scale=2.0, skipped=True, ranks=summary)
        )
    return observer


def test_a_run_of_1024_workers_has_at_most_2000_series(observer: MetricsObserver) -> None:
    families = list(observer.registry.collect())
    samples = [sample for family in families for sample in family.samples]
    assert 800 < len(samples) <= MOST_SERIES
    shown = {sample.labels["rank"] for sample in samples if "rank" in sample.labels}
    assert len(shown) == 8, "memory and GPUs of the slowest four, and the four with the largest ratio"
    served = {family.name for family in families if family.samples}
    elsewhere = {"convoy_data_processed_bytes", "convoy_data_to_process_bytes", "convoy_driver_loop_lag_seconds"}
    catalog = {metric.name.removesuffix("_total") for metric in CATALOG} - elsewhere
    assert catalog - served == set(), "everything has been counted"


@pytest.mark.needs("promtool")
def test_promtool_finds_nothing_in_any_family(observer: MetricsObserver) -> None:
    text = generate_latest(observer.registry)
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True)
    assert (checked.returncode, checked.stderr.decode()) == (0, "")
