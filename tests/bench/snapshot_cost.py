"""What it costs a step to keep state in the vaults at the default budget.

Runs differ from one another by more than the 2% in question, neighbouring steps of one run do not. So a snapshot's
cost is taken from a run that makes one every fourth step: by how much the step it ends and the one after it (other
ranks' copies, what is missing in the caches, the vaults' work on the same cores) are longer than the two after those,
the median over all such fours. At the default budget that is paid as often as a run with defaults takes a snapshot.
Whole runs with and without are shown too.
"""

import itertools
import math
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.domain.step_report import StepReport
from tests.bench.course import MODEL_4M, Course, train
from tests.bench.head_and_nodes import head_and_nodes
from tests.bench.measure import Row, alternate, median_ratio
from tests.bench.peer_processes import say

WORKERS, STAGE, ROUNDS = 2, 1, 3
PERIOD = 4
"""Steps from one snapshot to the next in the run that shows what one costs."""
WARM_UP_STEPS, STEPS, MANY_STEPS = 20, 120, 600
"""Of whole runs, and of the run that shows what a snapshot costs."""

LIMIT_S = 240.0
BAR = 0.02


@dataclass(frozen=True)
class Steps:
    """Of one run, after its warm-up."""

    median_s: float
    snapshot_share: float
    """Seconds of copies over seconds of steps, on the slowest rank of each."""
    every: float
    """Steps from one snapshot to the next."""


@dataclass(frozen=True)
class Estimate:
    """Of what a snapshot costs."""

    seconds: float
    error_s: float
    """Its standard error."""
    count: int


class StepsCourse(Course):
    """Stops the run after enough steps."""

    def __init__(self, steps: int = STEPS) -> None:
        super().__init__()
        self._count = WARM_UP_STEPS + steps

    def on_step(self, report: StepReport) -> None:
        super().on_step(report)
        if len(self.steps) >= self._count:
            self.over.set()

    def measured(self) -> Steps:
        """Raises StatisticsError where there are no steps."""
        steps = self.steps[WARM_UP_STEPS : self._count]
        copied = [max(rank.phases.snapshot_s for rank in step.ranks.every) for step in steps]
        # From report to report: a copy is made after its step's own time is taken.
        between_s = [b.time_s - a.time_s for a, b in itertools.pairwise(steps)]
        every = len(copied) / max(1, sum(seconds > 0 for seconds in copied))
        return Steps(statistics.median(between_s), sum(copied) / sum(between_s), every)

    def snapshot(self) -> Estimate:
        """What one costs, where one is taken every `PERIOD` steps."""
        steps = self.steps[WARM_UP_STEPS:]
        between_s = [b.time_s - a.time_s for a, b in itertools.pairwise(steps)]
        # A step tells of the copy before it: of the step before that.
        after = [i - 1 for i, step in enumerate(steps) if i and step.ranks.every[0].phases.snapshot_s > 0]
        fours = [between_s[i - 1 : i + 3] for i in after if i >= 1 and i + 3 <= len(between_s)]
        found = [sum(four[:2]) - sum(four[2:]) for four in fours]
        quarters = statistics.quantiles(found, n=4)
        # Of a median, from the distance of the quartiles, 1.35 deviations of a normal distribution.
        error_s = 1.253 * (quarters[2] - quarters[0]) / 1.349 / math.sqrt(len(found))
        return Estimate(statistics.median(found), error_s, len(found))


def measure(scratch: Path) -> list[Row]:
    kept_runs: list[Steps] = []
    with head_and_nodes(WORKERS) as cluster, tempfile.TemporaryDirectory(dir=scratch) as directory:

        def course(steps: int = STEPS, **checkpoint: Any) -> StepsCourse:
            say(f"Convoy, ZeRO-{STAGE}, {WORKERS} workers: {checkpoint or 'defaults'}")
            seen = StepsCourse(steps)
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
        one = course(MANY_STEPS, memory_interval_steps=PERIOD).snapshot()
    every = statistics.median(run.every for run in kept_runs)
    cost = one.seconds / every / statistics.median(bare)
    share = statistics.median(run.snapshot_share for run in kept_runs)
    figures = [f"{statistics.median(values) * 1000:.1f} ms a step" for values in (kept, bare)]
    pairs = ", ".join(f"{a / b - 1.0:+.1%}" for a, b in zip(kept, bare, strict=True))
    name, bar = f"ZeRO-{STAGE}, {WORKERS} workers, default budget", f"<= {BAR:.0%}"
    how = (
        f"{one.seconds * 1000:.1f} ms a snapshot (standard error {one.error_s * 1000:.1f}, of {one.count}), one in "
        f"{every:.1f} steps of {figures[1]}"
    )
    ratio = median_ratio(kept, bare)
    return [
        Row(f"cost of vault snapshots, {name}", f"{cost:.1%} of step time", "", None, bar, cost <= BAR, how),
        Row(f"share of it that is the copies' own time, {name}", f"{share:.2%}", "", None, "", None),
        Row(f"whole runs with vaults and without, {name}", *figures, ratio, "", None, f"pairs: {pairs}"),
    ]
