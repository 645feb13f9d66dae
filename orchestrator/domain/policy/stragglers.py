"""Which workers are slower than the others, and in which phase. Pure: ranks' own times in, ratios out. It ends no
worker.

In a synchronous gang all workers take equally long, because the fast ones wait for the slow ones. So the comparison
uses a rank's own time (`RankReport.own_times_s`), which is each phase without its time in collectives.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.domain.ranks.rank_summary import OwnWork

WINDOW_STEPS = 20
MIN_STEPS = 8
"""Fewer say nothing."""
SLOW_RATIO = 1.5
"""From here on a worker is called slow,"""
RECOVERED_RATIO = 1.25
"""and from here on no longer: between the two it stays what it was."""
MIN_LOSS_S = 0.005
"""By how much a step of a slow worker takes longer, at least: less is the noise of small steps."""
TRIMMED = 0.1
"""The share of a rank's longest steps in the window that is left out: one long pause makes no straggler."""
PHASES = ("data", "forward", "backward", "optimizer")


@dataclass(frozen=True)
class Slowness:
    """One rank against the others."""

    rank: int
    ratio: float
    """Its own time of a step, for as many samples, divided by the median of the others'."""
    loss_s: float
    """Its own time of a step beyond the others' median."""


def compare(steps: Sequence[OwnWork]) -> tuple[Slowness, ...]:
    """Every rank against the others, over steps of one gang; nothing if there are too few steps, or one rank."""
    if len(steps) < MIN_STEPS or steps[-1].world_size < 2:
        return ()
    totals = _usual_s([step.totals_s for step in steps])
    medians_s = _medians_of_others(totals)
    samples = [float(sum(counts)) for counts in zip(*(step.samples for step in steps), strict=True)]
    usual_samples = _medians_of_others(samples)
    found = []
    for rank, total_s in enumerate(totals):
        # A rank that has more samples than the others is expected to take longer.
        own_s = total_s / max(1.0, samples[rank] / max(1.0, usual_samples[rank]))
        ratio = own_s / medians_s[rank] if medians_s[rank] > 0.0 else 1.0
        found.append(Slowness(rank, ratio, own_s - medians_s[rank]))
    return tuple(found)


def slow_phase(steps: Sequence[OwnWork], rank: int) -> str:
    """The phase in which a rank loses most against the others; of `PHASES`."""
    excess_s = []
    for phase in range(len(PHASES)):
        usual_s = _usual_s([step.phases_s[phase] for step in steps])
        excess_s.append(usual_s[rank] - _medians_of_others(usual_s)[rank])
    return PHASES[excess_s.index(max(excess_s))]


def changes(slow: Mapping[int, bool], found: Sequence[Slowness]) -> tuple[tuple[Slowness, bool], ...]:
    """Who becomes slow (True) and who no longer is (False); `slow` holds those who are now."""
    changed = []
    for item in found:
        if slow.get(item.rank, False):
            if item.ratio <= RECOVERED_RATIO:
                changed.append((item, False))
        elif item.ratio >= SLOW_RATIO and item.loss_s >= MIN_LOSS_S:
            changed.append((item, True))
    return tuple(changed)


def _usual_s(steps: Sequence[Sequence[float]]) -> list[float]:
    """From each step's seconds by rank, each rank's mean without its longest steps."""
    kept = max(1, round(len(steps) * (1.0 - TRIMMED)))
    return [sum(sorted(seconds)[:kept]) / kept for seconds in zip(*steps, strict=True)]


def _medians_of_others(values: Sequence[float]) -> list[float]:
    """For each of at least two values the median of the others, the upper one of two."""
    order = sorted(range(len(values)), key=lambda index: values[index])
    middle = (len(values) - 1) // 2
    lower, upper = values[order[middle]], values[order[middle + 1]]
    place = {index: position for position, index in enumerate(order)}
    return [upper if place[index] <= middle else lower for index in range(len(values))]
