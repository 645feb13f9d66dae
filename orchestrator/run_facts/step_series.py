"""The steps that count, added up: exact totals and curves, in memory that does not grow with the number of steps."""

from collections import Counter
from dataclasses import dataclass, field, replace

from orchestrator.run_facts.curve import Curve
from orchestrator.run_facts.step_point import OWN_PHASES, PHASES, StepPoint

CURVES = (
    "loss", "grad_norm", "lr", "tokens_per_s", "step_time_s", "own_median_s", "own_max_s", "memory_max_bytes",
    "memory_median_bytes", "world_size", *(f"{phase}_s" for phase in PHASES),
)  # fmt: skip
"""Names of the curves."""
MOST_RANKS = 1024
"""Ranks whose straggling is added up one by one."""


@dataclass
class StepTotals:
    """Exact sums over the steps. Mutable: `add` changes it. Seconds of phases are means over the ranks."""

    steps: int = 0
    tokens: int = 0
    samples: int = 0
    step_time_s: float = 0.0
    worker_s: float = 0.0
    """Step times multiplied by the number of ranks."""
    positions: int = 0
    """Of the steps that recorded them,"""
    positions_tokens: int = 0
    """and the real tokens among them."""
    phases_s: list[float] = field(default_factory=lambda: [0.0] * len(PHASES))
    """By phase, in the order of `PHASES`."""
    data_wait_max_s: float = 0.0
    """Of each step's rank that waited longest for its samples."""
    collective_s: float = 0.0
    collective_steps_s: float = 0.0
    """Step times of the steps in which collectives were measured: on GPUs a sample of them."""
    transfer_s: float = 0.0
    """Time in collectives of each step's slowest rank, which waits for no other rank."""
    own_median_s: float = 0.0
    straggling_s: float = 0.0
    """By how much the slowest rank of each step was behind the median."""
    straggling_by_rank_s: dict[int, float] = field(default_factory=dict)
    straggling_by_phase_s: list[float] = field(default_factory=lambda: [0.0] * len(OWN_PHASES))
    slowest_by_rank: Counter[int] = field(default_factory=Counter)
    """Steps in which a rank was the slowest."""
    mfu_total: float = 0.0
    mfu_steps: int = 0

    def phase_s(self, phase: str) -> float:
        """Seconds of one of `PHASES`."""
        return self.phases_s[PHASES.index(phase)]

    @property
    def mfu(self) -> float | None:
        """Mean model FLOP utilisation of the steps that have one."""
        return self.mfu_total / self.mfu_steps if self.mfu_steps else None

    @property
    def padding_share(self) -> float | None:
        """Share of the computed positions that is padding; None if it was not recorded."""
        return 1.0 - self.positions_tokens / self.positions if self.positions > 0 else None

    def of_all_steps(self, seconds: float) -> float:
        """From seconds in collectives, in the steps in which they were measured, to those of all steps."""
        return seconds * self.step_time_s / self.collective_steps_s if self.collective_steps_s > 0 else 0.0

    def add(self, point: StepPoint) -> None:
        """Add a step."""
        self.steps += 1
        self.tokens += point.tokens
        self.samples += point.samples
        self.step_time_s += point.step_time_s
        self.worker_s += point.step_time_s * point.world_size
        if point.positions:
            self.positions += point.positions
            self.positions_tokens += point.tokens
        for index, seconds in enumerate(point.phases_s):
            self.phases_s[index] += seconds
        self.data_wait_max_s += point.data_wait_max_s
        self.collective_s += point.collective_s
        if point.collective_s > 0 or not point.on_gpus:
            self.collective_steps_s += point.step_time_s
        self.transfer_s += point.transfer_s
        self.own_median_s += point.own_median_s
        if point.mfu is not None:
            self.mfu_total += point.mfu
            self.mfu_steps += 1
        if point.slowest_rank is not None:
            self._add_slowest(point, point.slowest_rank)

    def _add_slowest(self, point: StepPoint, rank: int) -> None:
        self.straggling_s += point.straggling_s
        for index, seconds in enumerate(point.slowest_phases_s):
            self.straggling_by_phase_s[index] += seconds
        if rank in self.straggling_by_rank_s or len(self.straggling_by_rank_s) < MOST_RANKS:
            self.straggling_by_rank_s[rank] = self.straggling_by_rank_s.get(rank, 0.0) + point.straggling_s
            self.slowest_by_rank[rank] += 1

    def copy(self) -> "StepTotals":
        """An independent copy."""
        return replace(
            self,
            phases_s=list(self.phases_s),
            straggling_by_rank_s=dict(self.straggling_by_rank_s),
            straggling_by_phase_s=list(self.straggling_by_phase_s),
            slowest_by_rank=Counter(self.slowest_by_rank),
        )


class StepSeries:
    """Totals and curves of steps that come in ascending order."""

    def __init__(self) -> None:
        self.totals = StepTotals()
        self.curves: dict[str, Curve] = {name: Curve() for name in CURVES}
        self.first: StepPoint | None = None
        self.last: StepPoint | None = None

    def add(self, point: StepPoint) -> None:
        """Add a step after all others."""
        if self.first is None:
            self.first = point
        self.last = point
        self.totals.add(point)
        step, curves = point.step, self.curves
        tokens_per_s = point.tokens / point.step_time_s if point.step_time_s > 0 else None
        for name, value in (
            ("loss", point.loss),
            ("grad_norm", point.grad_norm),
            ("lr", point.lr),
            ("tokens_per_s", tokens_per_s),
            ("step_time_s", point.step_time_s),
            ("own_median_s", point.own_median_s),
            ("own_max_s", point.own_max_s),
            ("memory_max_bytes", point.memory_max_bytes),
            ("memory_median_bytes", point.memory_median_bytes),
            ("world_size", point.world_size),
            *zip(_PHASE_CURVES, point.phases_s, strict=True),
        ):
            curves[name].add(step, value)

    @property
    def steady(self) -> StepTotals:
        """The totals without the first step, which warms up, if there are others."""
        totals, first = self.totals, self.first
        if first is None or totals.steps < 2:
            return totals
        rest = totals.copy()
        rest.steps -= 1
        rest.tokens -= first.tokens
        rest.samples -= first.samples
        rest.step_time_s -= first.step_time_s
        rest.worker_s -= first.step_time_s * first.world_size
        rest.phases_s = [all_s - first_s for all_s, first_s in zip(rest.phases_s, first.phases_s, strict=True)]
        if first.mfu is not None:
            rest.mfu_total -= first.mfu
            rest.mfu_steps -= 1
        return rest


_PHASE_CURVES = tuple(f"{phase}_s" for phase in PHASES)
