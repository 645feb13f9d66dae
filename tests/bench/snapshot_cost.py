"""What it costs a step to keep state in the vaults at the default budget.

Runs differ from one another by more than the 2% in question, steps of one run do not. So a snapshot's cost is taken
from a run that makes one every few steps: by how much the steps it falls into are longer than the others, whatever
makes them so (the copy itself, what it takes from the caches, the vaults' work on the same cores). At the default
budget that is paid as often as a run with defaults takes one. Whole runs with and without are shown too.
"""

import itertools
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.domain.report import StepReport
from tests.bench.course import MODEL_4M, Course, train
from tests.bench.head_and_nodes import head_and_nodes
from tests.bench.measure import Row, alternate, median_ratio
from tests.bench.peer_processes import say

WORKERS, STAGE, ROUNDS = 2, 1, 3
PERIOD = 4
"""Steps from one snapshot to the next in the run that shows what one costs."""
WARM_UP_STEPS, STEPS = 20, 120
LIMIT_S = 90.0
BAR = 0.02


@dataclass(frozen=True)
class Steps:
    """Of one run, after its warm-up."""

    median_s: float
    snapshot_share: float
    """Seconds of copies over seconds of steps, on the slowest rank of each."""
    every: float
    """Steps from one snapshot to the next."""


class StepsCourse(Course):
    """Stops the run after enough steps."""

    def on_step(self, report: StepReport) -> None:
        super().on_step(report)
        if len(self.steps) >= WARM_UP_STEPS + STEPS:
            self.over.set()

    def measured(self) -> Steps:
        """Raises StatisticsError where there are no steps."""
        steps = self.steps[WARM_UP_STEPS : WARM_UP_STEPS + STEPS]
        copied = [max(rank.phases.snapshot_s for rank in step.ranks) for step in steps]
        # From report to report: a copy is made after its step's own time is taken.
        between_s = [b.time_s - a.time_s for a, b in itertools.pairwise(steps)]
        every = len(copied) / max(1, sum(seconds > 0 for seconds in copied))
        return Steps(statistics.median(between_s), sum(copied) / sum(between_s), every)

    def snapshot_s(self) -> float:
        """What a snapshot costs, where one is taken every `PERIOD` steps."""
        by_phase: dict[int, list[float]] = {}
        for before, step in itertools.pairwise(self.steps[WARM_UP_STEPS:]):
            by_phase.setdefault(step.step % PERIOD, []).append(step.time_s - before.time_s)
        usual = sorted(statistics.median(values) for values in by_phase.values())
        return sum(value - usual[0] for value in usual)


def measure(scratch: Path) -> list[Row]:
    kept_runs: list[Steps] = []
    with head_and_nodes(WORKERS) as cluster, tempfile.TemporaryDirectory(dir=scratch) as directory:

        def course(**checkpoint: Any) -> StepsCourse:
            say(f"Convoy, ZeRO-{STAGE}, {WORKERS} workers: {checkpoint or 'defaults'}")
            seen = StepsCourse()
            train(
                Path(directory),
                cluster.address,
                seen,
                MODEL_4M,
                LIMIT_S,
                zero={"stage": STAGE},
                resources={"workers": WORKERS},
                checkpoint={"interval_steps": "never", "at_end": False, **checkpoint},
            )
            return seen

        def kept_s() -> float:
            kept_runs.append(course().measured())
            return kept_runs[-1].median_s

        kept, bare = alternate(ROUNDS, kept_s, lambda: course(memory=False).measured().median_s)
        snapshot_s = course(memory_interval_steps=PERIOD).snapshot_s()
    every = statistics.median(run.every for run in kept_runs)
    cost = snapshot_s / every / statistics.median(bare)
    share = statistics.median(run.snapshot_share for run in kept_runs)
    figures = [f"{statistics.median(values) * 1000:.1f} ms a step" for values in (kept, bare)]
    pairs = ", ".join(f"{a / b - 1.0:+.1%}" for a, b in zip(kept, bare, strict=True))
    name, bar = f"ZeRO-{STAGE}, {WORKERS} workers, default budget", f"<= {BAR:.0%}"
    how = f"{snapshot_s * 1000:.1f} ms a snapshot, one in {every:.1f} steps of {figures[1]}"
    ratio = median_ratio(kept, bare)
    return [
        Row(f"cost of vault snapshots, {name}", f"{cost:.1%} of step time", "", None, bar, cost <= BAR, how),
        Row(f"share of it that is the copies' own time, {name}", f"{share:.2%}", "", None, "", None),
        Row(f"whole runs with vaults and without, {name}", *figures, ratio, "", None, f"pairs: {pairs}"),
    ]
