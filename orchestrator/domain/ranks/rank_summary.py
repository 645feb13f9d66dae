"""What the ranks of a gang report of one step, in a space that hardly grows with their number.

A summary has quantiles over the ranks and the reports of the slowest few. Every rank's report is added at intervals
(`every_rank_due`), so that the mean space of a step stays bounded.
"""

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

from orchestrator.domain.ranks.rank_report import CollectiveTimes, PhaseTimes, RankMemory, RankReport
from orchestrator.json_values import (
    JsonFields,
    JsonObject,
    JsonShapeError,
    integer,
    integers,
    mapping,
    number,
    numbers,
    objects,
    optional,
)

SLOWEST = 4
"""Reports of so many ranks are in each summary."""
EVERY_STEP_RANKS = 8
"""Up to so many ranks, each step has the reports of all."""
MEAN_RANKS = 4
"""With more ranks, a step has so many reports in the mean over the steps."""
_DECIMALS = 6
"""Of seconds in files: microseconds."""


def every_rank_interval(world_size: int) -> int:
    """From one step with the reports of every rank to the next, in steps."""
    return 1 if world_size <= EVERY_STEP_RANKS else -(-world_size // MEAN_RANKS)


def every_rank_due(step: int, world_size: int, first: bool) -> bool:
    """Whether a step's summary has the reports of every rank. `first`: it is the first step of its gang."""
    return first or step % every_rank_interval(world_size) == 0


@dataclass(frozen=True)
class Spread:
    """One figure over all ranks. A quantile q is the smallest value that at least the share q of the ranks does not
    exceed."""

    p50: float = 0.0
    p99: float = 0.0
    max: float = 0.0
    total: float = 0.0

    def mean(self, world_size: int) -> float:
        """Mean over the ranks."""
        return self.total / max(1, world_size)


@dataclass(frozen=True)
class RankSpread:
    """The figures of a step over all ranks, in seconds and bytes."""

    own_s: Spread = Spread()
    """What a rank took without waiting for others: see `RankReport.own_times_s`."""
    data_wait_s: Spread = Spread()
    forward_s: Spread = Spread()
    backward_s: Spread = Spread()
    optimizer_s: Spread = Spread()
    checkpoint_s: Spread = Spread()
    snapshot_s: Spread = Spread()
    collective_s: Spread = Spread()
    """The parts of forward, backward and optimizer in collectives: see `CollectiveTimes`."""
    rss_bytes: Spread = Spread()
    peak_rss_bytes: Spread = Spread()
    allocated_bytes: Spread | None = None
    """None on CPUs, like the next two."""
    reserved_bytes: Spread | None = None
    peak_allocated_bytes: Spread | None = None

    @property
    def communication_s(self) -> Spread | None:
        """Time in collectives; None if it was not measured in this step: on GPUs some steps are sampled."""
        return None if self.allocated_bytes is not None and not self.collective_s.total else self.collective_s

    def to_json(self) -> JsonObject:
        """By figure. Left out: what is zero on every rank, or not there."""
        return {name: dict(vars(spread)) for name, spread in vars(self).items() if spread not in (None, Spread())}

    @classmethod
    def from_json(cls, value: JsonFields) -> "RankSpread":
        """Raises JsonShapeError."""
        known = {name: _spread_from(value, name) for name in value if name in _FIGURES}
        return cls(**known)


@dataclass(frozen=True)
class OwnWork:
    """What each rank of a gang did itself in one step, without waiting for others; by rank, in single precision."""

    samples: "array[int]"
    phases_s: "tuple[array[float], array[float], array[float], array[float]]"
    """Data, forward, backward, optimizer."""

    @classmethod
    def of(cls, ranks: Sequence[RankReport]) -> "OwnWork":
        """From the reports of all ranks, in their order."""
        data, forward, backward, optimizer = zip(*(report.own_times_s for report in ranks), strict=True)
        phases = (array("f", data), array("f", forward), array("f", backward), array("f", optimizer))
        return cls(array("i", (report.samples for report in ranks)), phases)

    @cached_property
    def totals_s(self) -> list[float]:
        """Seconds of all phases together."""
        return [sum(seconds) for seconds in zip(*self.phases_s, strict=True)]

    @property
    def world_size(self) -> int:
        return len(self.samples)


@dataclass(frozen=True)
class RankSummary:
    """The ranks of one step."""

    spread: RankSpread
    slowest: tuple[RankReport, ...]
    """The ranks that took longest without waiting for others, the slowest first; at most `SLOWEST`."""
    every: tuple[RankReport, ...] = ()
    """All ranks in their order, if they are due; else empty."""
    work: OwnWork | None = None
    """Of every rank, for the comparison of workers. In no file."""

    def to_json(self) -> JsonObject:
        """What is in each line of `steps.jsonl`."""
        return {"spread": self.spread.to_json(), "slowest": [report.to_json() for report in self.slowest]}

    @classmethod
    def from_json(cls, value: JsonFields) -> "RankSummary":
        """From a line of `steps.jsonl`, or the message of a step, which may also have `ranks`. Raises
        JsonShapeError."""
        slowest = tuple(RankReport.from_json(each) for each in objects(value, "slowest"))
        ranks = optional(mapping, value, "ranks")
        every = ranks_from_columns(ranks) if ranks is not None else ()
        return cls(RankSpread.from_json(mapping(value, "spread")), slowest, every)


def summarise(ranks: Sequence[RankReport], every: bool = True) -> RankSummary:
    """The summary of all ranks' reports, in the order of the ranks. `every`: it has all of them, too."""
    if not ranks:
        return RankSummary(RankSpread(), ())
    work = OwnWork.of(ranks)
    order = sorted(range(len(ranks)), key=lambda rank: (-work.totals_s[rank], rank))
    phases, waits, memory = [r.phases for r in ranks], [r.waits for r in ranks], [r.memory for r in ranks]
    spread = RankSpread(
        own_s=_of_seconds(work.totals_s),
        data_wait_s=_of_seconds([p.data_wait_s for p in phases]),
        forward_s=_of_seconds([p.forward_s for p in phases]),
        backward_s=_of_seconds([p.backward_s for p in phases]),
        optimizer_s=_of_seconds([p.optimizer_s for p in phases]),
        checkpoint_s=_of_seconds([p.checkpoint_s for p in phases]),
        snapshot_s=_of_seconds([p.snapshot_s for p in phases]),
        collective_s=_of_seconds([w.forward_s + w.backward_s + w.optimizer_s for w in waits]),
        rss_bytes=_spread([m.rss_bytes for m in memory]),
        peak_rss_bytes=_spread([m.peak_rss_bytes for m in memory]),
        allocated_bytes=_of_devices([m.allocated_bytes for m in memory]),
        reserved_bytes=_of_devices([m.reserved_bytes for m in memory]),
        peak_allocated_bytes=_of_devices([m.peak_allocated_bytes for m in memory]),
    )
    slowest = tuple(_rounded(ranks[rank]) for rank in order[:SLOWEST])
    return RankSummary(spread, slowest, tuple(map(_rounded, ranks)) if every else (), work)


def ranks_to_columns(ranks: Sequence[RankReport]) -> JsonObject:
    """All ranks' reports as one list for each figure, in the order of the ranks. Left out: a figure that is zero on
    every rank, or that a rank does not have."""
    columns: JsonObject = {}
    for name, read in _COLUMNS.items():
        values = [read(report) for report in ranks]
        if any(values) and None not in values:
            columns[name] = values
    return {"world_size": len(ranks), **columns}


def ranks_from_columns(value: JsonFields) -> tuple[RankReport, ...]:
    """The reverse of `ranks_to_columns`. Raises JsonShapeError if the lists are not of the same length."""
    count = integer(value, "world_size")
    whole = {name: optional(integers, value, name) for name in _COLUMNS if not name.endswith("_s")}
    parts = {name: optional(numbers, value, name) or [0.0] * count for name in _COLUMNS if name.endswith("_s")}
    if any(len(column) != count for column in (*whole.values(), *parts.values()) if column is not None):
        raise JsonShapeError(f"the fields of {count} ranks have other numbers of values")
    return tuple(_rank_from(rank, whole, parts) for rank in range(count))


_COLUMNS: dict[str, Callable[[RankReport], float | None]] = {
    "samples": lambda r: r.samples,
    "tokens": lambda r: r.tokens,
    "data_wait_s": lambda r: r.phases.data_wait_s,
    "forward_s": lambda r: r.phases.forward_s,
    "backward_s": lambda r: r.phases.backward_s,
    "optimizer_s": lambda r: r.phases.optimizer_s,
    "checkpoint_s": lambda r: r.phases.checkpoint_s,
    "snapshot_s": lambda r: r.phases.snapshot_s,
    "forward_collective_s": lambda r: r.waits.forward_s,
    "backward_collective_s": lambda r: r.waits.backward_s,
    "optimizer_collective_s": lambda r: r.waits.optimizer_s,
    "rss_bytes": lambda r: r.memory.rss_bytes,
    "peak_rss_bytes": lambda r: r.memory.peak_rss_bytes,
    "allocated_bytes": lambda r: r.memory.allocated_bytes,
    "reserved_bytes": lambda r: r.memory.reserved_bytes,
    "peak_allocated_bytes": lambda r: r.memory.peak_allocated_bytes,
}
"""The lists of `ranks.jsonl`."""
_FIGURES = frozenset(figure.name for figure in fields(RankSpread))


def _rank_from(
    rank: int, whole: Mapping[str, Sequence[int] | None], parts: Mapping[str, Sequence[float]]
) -> RankReport:
    """One rank's report from the lists of all ranks."""

    def count(name: str) -> int:
        return _at(whole[name], rank) or 0

    def seconds(name: str) -> float:
        return parts[name][rank]

    return RankReport(
        rank,
        count("samples"),
        count("tokens"),
        PhaseTimes(*(seconds(f"{name}_s") for name in _PHASES)),
        RankMemory(
            count("rss_bytes"),
            count("peak_rss_bytes"),
            _at(whole["allocated_bytes"], rank),
            _at(whole["reserved_bytes"], rank),
            _at(whole["peak_allocated_bytes"], rank),
        ),
        CollectiveTimes(*(seconds(f"{name}_collective_s") for name in ("forward", "backward", "optimizer"))),
    )


_PHASES = ("data_wait", "forward", "backward", "optimizer", "checkpoint", "snapshot")


def _at(column: Sequence[int] | None, rank: int) -> int | None:
    return None if column is None else column[rank]


def _spread(values: Sequence[int]) -> Spread:
    ordered = sorted(values)
    return Spread(ordered[_place(ordered, 50)], ordered[_place(ordered, 99)], ordered[-1], sum(ordered))


def _of_devices(values: Sequence[int | None]) -> Spread | None:
    known = [value for value in values if value is not None]
    return _spread(known) if known else None


def _of_seconds(values: Sequence[float]) -> Spread:
    ordered = sorted(values)
    p50, p99 = ordered[_place(ordered, 50)], ordered[_place(ordered, 99)]
    return Spread(_second(p50), _second(p99), _second(ordered[-1]), _second(sum(ordered)))


def _place(ordered: Sequence[float], percent: int) -> int:
    """Index of a quantile; in whole numbers, so that 99% of a hundred is exact."""
    return -(-len(ordered) * percent // 100) - 1


def _second(value: float) -> float:
    return round(value, _DECIMALS)


def _rounded(report: RankReport) -> RankReport:
    """With seconds as they are written to files."""
    phases, waits = report.phases, report.waits
    return replace(
        report,
        phases=PhaseTimes(*map(_second, vars(phases).values())),
        waits=CollectiveTimes(*map(_second, vars(waits).values())),
    )


def _spread_from(value: JsonFields, name: str) -> Spread:
    found = mapping(value, name)
    return Spread(number(found, "p50"), number(found, "p99"), number(found, "max"), number(found, "total"))
