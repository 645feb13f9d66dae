"""What it costs a step to keep state in the vaults at the default budget: step times with and without, alternating.

Two figures: the difference of step times, which includes what the vaults' work in the background takes from the
training processes on the same cores but is noisy, and the share of step time that the copies themselves take.
"""

import itertools
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

from orchestrator.domain.report import StepReport
from tests.bench.course import MODEL_4M, Course, train
from tests.bench.head_and_nodes import head_and_nodes
from tests.bench.measure import Row, alternate, median_ratio
from tests.bench.peer_processes import say

WORKERS, STAGE, ROUNDS = 2, 1, 4
WARM_UP_STEPS, STEPS = 20, 80
LIMIT_S = 60.0
BAR = 0.02


@dataclass(frozen=True)
class Steps:
    """Of one run, after its warm-up."""

    median_s: float
    snapshot_share: float
    """Seconds of copies over seconds of steps, on the slowest rank of each."""


class StepsCourse(Course):
    """Stops the run after enough steps."""

    def on_step(self, report: StepReport) -> None:
        super().on_step(report)
        if len(self.steps) >= WARM_UP_STEPS + STEPS:
            self.over.set()

    def measured(self) -> Steps:
        """Raises StatisticsError where there are no steps."""
        steps = self.steps[WARM_UP_STEPS : WARM_UP_STEPS + STEPS]
        copied_s = sum(max(rank.phases.snapshot_s for rank in step.ranks) for step in steps)
        # From report to report: a copy is made after its step's own time is taken.
        between_s = [b.time_s - a.time_s for a, b in itertools.pairwise(steps)]
        return Steps(statistics.median(between_s), copied_s / sum(between_s))


def measure(scratch: Path) -> list[Row]:
    shares: list[float] = []
    with head_and_nodes(WORKERS) as cluster, tempfile.TemporaryDirectory(dir=scratch) as directory:

        def seconds(memory: bool) -> float:
            say(f"Convoy, ZeRO-{STAGE}, {WORKERS} workers, state in memory: {memory}")
            course = StepsCourse()
            train(
                Path(directory),
                cluster.address,
                course,
                MODEL_4M,
                LIMIT_S,
                zero={"stage": STAGE},
                resources={"workers": WORKERS},
                checkpoint={"memory": memory, "interval_steps": "never", "at_end": False},
            )
            found = course.measured()
            if memory:
                shares.append(found.snapshot_share)
            return found.median_s

        kept, bare = alternate(ROUNDS, lambda: seconds(True), lambda: seconds(False))
    cost, share = median_ratio(kept, bare) - 1.0, statistics.median(shares)
    figures = [f"{statistics.median(values) * 1000:.1f} ms a step" for values in (kept, bare)]
    pairs = ", ".join(f"{a / b - 1.0:+.1%}" for a, b in zip(kept, bare, strict=True))
    name, bar = f"ZeRO-{STAGE}, {WORKERS} workers, default budget", f"<= {BAR:.0%}"
    return [
        Row(
            f"step time with vaults against without, {name}", *figures, cost + 1.0, bar, cost <= BAR, f"pairs: {pairs}"
        ),
        Row(f"share of step time that the copies take, {name}", f"{share:.2%}", "", None, bar, share <= BAR),
    ]
