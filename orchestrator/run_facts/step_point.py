"""What the read model keeps of one optimizer step: the figures of its report that curves and totals are made from.

It is read from a line of `steps.jsonl` without building the whole report: a run may have a million of them.
"""

from collections.abc import Sequence
from typing import NamedTuple

from orchestrator.domain.step_report import StepReport
from orchestrator.json_values import JsonFields, JsonShapeError
from orchestrator.run_facts.lenient_json import fields_of_object, list_of_objects, number_or_none, whole_or_none

PHASES = ("data_wait", "forward", "backward", "optimizer", "checkpoint", "snapshot")
"""Of a step, in the order in which a display stacks them."""
OWN_PHASES = ("data", "forward", "backward", "optimizer")
"""In which a rank can be slower than the others."""
_COLLECTIVE = ("forward_s", "backward_s", "optimizer_s")


class StepPoint(NamedTuple):
    """One step. Seconds are of this step; means are over the ranks."""

    step: int
    time_s: float
    """Unix time at its end."""
    step_time_s: float
    loss: float | None
    grad_norm: float | None
    lr: float | None
    epoch: float | None
    tokens: int
    positions: int | None
    """Positions that were computed, padding included; None if it was not recorded."""
    samples: int
    world_size: int
    micro_batch: int
    accumulation: int
    mfu: float | None
    protected_step: int | None
    phases_s: tuple[float, ...]
    """Mean of each of `PHASES`."""
    data_wait_max_s: float
    """Of the rank that waited longest for its samples."""
    collective_s: float
    """Mean time in collectives."""
    own_median_s: float
    """Median over the ranks of the time without what a rank waited for others."""
    own_max_s: float
    slowest_rank: int | None
    """The rank with the largest own time; None with one rank, or if it was not recorded."""
    straggling_s: float
    """By how much its own time exceeds the median, a larger share of the samples taken into account."""
    slowest_phases_s: tuple[float, ...]
    """By how much it exceeds the fastest recorded rank in each of `OWN_PHASES`."""
    transfer_s: float
    """Its time in collectives: it waits for nobody, so this is the communication itself."""
    on_gpus: bool
    memory_total_bytes: float
    """Peak memory of all ranks: of their GPUs, or on CPUs resident."""
    memory_max_bytes: float
    """Of the rank with the most."""
    memory_median_bytes: float


def point_from_line(line: JsonFields) -> StepPoint | None:
    """The point of a line of any version; None if the line is no step."""
    if "spread" not in line and "ranks" in line:
        return _from_version_1(line)
    step, time_s = whole_or_none(line, "step"), number_or_none(line, "time_s")
    if step is None or time_s is None:
        return None
    return _point(line, step, time_s)


def point_from_report(report: StepReport) -> StepPoint:
    """The point of a report."""
    return _point(report.to_json(), report.step, report.time_s)


def _from_version_1(line: JsonFields) -> StepPoint | None:
    try:
        return point_from_report(StepReport.from_json(line))
    except JsonShapeError:
        return None


def _point(line: JsonFields, step: int, time_s: float) -> StepPoint:
    spread, world_size = fields_of_object(line, "spread"), whole_or_none(line, "world_size") or 1
    own, memory = fields_of_object(spread, "own_s"), _memory(spread)
    samples = whole_or_none(line, "samples") or 0
    slowest = list_of_objects(line, "slowest")
    median_s, max_s = number_or_none(own, "p50") or 0.0, number_or_none(own, "max") or 0.0
    straggling_s, excess_s = _straggling(slowest, max_s, median_s, samples / world_size)
    return StepPoint(
        step=step,
        time_s=time_s,
        step_time_s=number_or_none(line, "step_time_s") or 0.0,
        loss=number_or_none(line, "loss"),
        grad_norm=number_or_none(line, "grad_norm"),
        lr=number_or_none(line, "lr"),
        epoch=number_or_none(line, "epoch"),
        tokens=whole_or_none(line, "tokens") or 0,
        positions=whole_or_none(line, "positions"),
        samples=samples,
        world_size=world_size,
        micro_batch=whole_or_none(line, "micro_batch") or 0,
        accumulation=whole_or_none(line, "accumulation") or 1,
        mfu=number_or_none(line, "mfu"),
        protected_step=whole_or_none(line, "protected_step"),
        phases_s=tuple(_total(spread, f"{phase}_s") / world_size for phase in PHASES),
        data_wait_max_s=number_or_none(fields_of_object(spread, "data_wait_s"), "max") or 0.0,
        collective_s=_total(spread, "collective_s") / world_size,
        own_median_s=median_s,
        own_max_s=max_s,
        slowest_rank=whole_or_none(slowest[0], "rank") if len(slowest) > 1 else None,
        straggling_s=straggling_s,
        slowest_phases_s=excess_s,
        transfer_s=_transfer_s(slowest[0]) if slowest else 0.0,
        on_gpus="peak_allocated_bytes" in spread,
        memory_total_bytes=number_or_none(memory, "total") or 0.0,
        memory_max_bytes=number_or_none(memory, "max") or 0.0,
        memory_median_bytes=number_or_none(memory, "p50") or 0.0,
    )


def _memory(spread: JsonFields) -> JsonFields:
    return fields_of_object(spread, "peak_allocated_bytes") or fields_of_object(spread, "peak_rss_bytes")


def _total(spread: JsonFields, figure: str) -> float:
    return number_or_none(fields_of_object(spread, figure), "total") or 0.0


def _straggling(
    slowest: Sequence[JsonFields], own_max_s: float, own_median_s: float, mean_samples: float
) -> tuple[float, tuple[float, ...]]:
    """How far the slowest rank is behind, in seconds: in all, and by phase against the fastest recorded one."""
    if len(slowest) < 2:
        return 0.0, (0.0,) * len(OWN_PHASES)
    first, last = slowest[0], slowest[-1]
    # A rank that has more samples than the others is expected to take longer.
    own_samples, others = whole_or_none(first, "samples") or 0, whole_or_none(last, "samples") or 0
    more = max(1.0, own_samples / max(1.0, min(mean_samples, others or mean_samples)))
    excess_s = tuple(max(0.0, a / more - b) for a, b in zip(_own_times_s(first), _own_times_s(last), strict=True))
    return max(0.0, own_max_s / more - own_median_s), excess_s


def _own_times_s(rank: JsonFields) -> tuple[float, ...]:
    """As `RankReport.own_times_s`."""
    phases, waits = fields_of_object(rank, "phases"), fields_of_object(rank, "waits")
    data_s, forward_s = number_or_none(phases, "data_wait_s") or 0.0, number_or_none(phases, "forward_s") or 0.0
    if fields_of_object(rank, "memory").get("allocated_bytes") is not None:
        return (data_s, forward_s, 0.0, 0.0)
    computed = [max(0.0, (number_or_none(phases, n) or 0.0) - (number_or_none(waits, n) or 0.0)) for n in _COLLECTIVE]
    return (data_s, *computed)


def _transfer_s(rank: JsonFields) -> float:
    waits = fields_of_object(rank, "waits")
    return sum(number_or_none(waits, name) or 0.0 for name in _COLLECTIVE)
