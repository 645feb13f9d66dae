"""Which workers are slower than the others, and in which phase. Pure: step reports in, ratios out. It ends no worker.

In a synchronous gang all workers take equally long, because the fast ones wait for the slow ones. So the comparison
uses a rank's own time, which is each phase without its time in collectives.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.domain.step_report import RankReport, StepReport

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
    """Its own time of a step, for as many samples, to the median of the others'."""
    phase: str
    """The phase in which it loses most against the others."""
    loss_s: float
    """Its own time of a step beyond the others' median."""


def own_times_s(report: RankReport) -> tuple[float, ...]:
    """A rank's own seconds by phase, as in `PHASES`: without what it waited in collectives.

    On a GPU the waits of the device are not measured, so only phases without collectives count: data and forward. With
    ZeRO stage 3 forward has some, too, and a slow GPU can go unnoticed there.
    """
    phases, waits = report.phases, report.waits
    if report.memory.allocated_bytes is not None:
        return (phases.data_wait_s, phases.forward_s, 0.0, 0.0)
    return (
        phases.data_wait_s,
        max(0.0, phases.forward_s - waits.forward_s),
        max(0.0, phases.backward_s - waits.backward_s),
        max(0.0, phases.optimizer_s - waits.optimizer_s),
    )


def compare(steps: Sequence[StepReport]) -> tuple[Slowness, ...]:
    """Every rank against the others, over steps of one gang; nothing if there are too few steps, or one rank."""
    if len(steps) < MIN_STEPS or len(steps[-1].ranks) < 2:
        return ()
    ranks, phases = range(len(steps[-1].ranks)), range(len(PHASES))
    kept = max(1, round(len(steps) * (1.0 - TRIMMED)))
    own_s = [[own_times_s(step.ranks[rank]) for step in steps] for rank in ranks]
    totals = [_mean_of_least([sum(times) for times in own_s[rank]], kept) for rank in ranks]
    by_phase = [[_mean_of_least([times[phase] for times in own_s[rank]], kept) for rank in ranks] for phase in phases]
    usual_s = _medians_of_others(totals)
    usual_by_phase = [_medians_of_others(values) for values in by_phase]
    samples = [float(sum(step.ranks[rank].samples for step in steps)) for rank in ranks]
    usual_samples = _medians_of_others(samples)
    found = []
    for rank in ranks:
        # Who has more samples than the others is to take longer.
        own = totals[rank] / max(1.0, samples[rank] / max(1.0, usual_samples[rank]))
        excess = [by_phase[phase][rank] - usual_by_phase[phase][rank] for phase in phases]
        ratio = own / usual_s[rank] if usual_s[rank] > 0.0 else 1.0
        found.append(Slowness(rank, ratio, PHASES[excess.index(max(excess))], own - usual_s[rank]))
    return tuple(found)


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


def _mean_of_least(values: Sequence[float], count: int) -> float:
    return sum(sorted(values)[:count]) / count


def _medians_of_others(values: Sequence[float]) -> list[float]:
    """For each of at least two values the median of the others, the upper one of two."""
    order = sorted(range(len(values)), key=lambda index: values[index])
    middle = (len(values) - 1) // 2
    lower, upper = values[order[middle]], values[order[middle + 1]]
    place = {index: position for position, index in enumerate(order)}
    return [upper if place[index] <= middle else lower for index in range(len(values))]
