"""A simulated week through the real decision, against FIFO, backfill, and priority with kills.

Jobs are those of `week_trace`. All schedulers know the exact run times, so this says nothing about estimates. A job
waits from its submission to its end whenever it has no GPUs, also after a suspension or a kill. Intervals are 95%,
bootstrapped over the seeds; ratios are of the same seeds.
"""

import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from orchestrator.clusters.placement import NodeCapacity
from orchestrator.control.policy.decide import decide
from tests.bench.measure import Row
from tests.bench.peer_processes import say
from tests.bench.week_picture import draw
from tests.bench.week_policies import Policy, backfill, fifo, kill_for_priority
from tests.bench.week_simulator import WeekResult, WeekSimulation
from tests.bench.week_trace import week_of

NODES, GPUS_PER_NODE = 8, 8
LOAD = 0.95
SEEDS = range(100, 110)
"""None of these was looked at when the constants of the scheduler were chosen; that was done with 0 to 7."""
SHARES = (0.0, 0.3, 0.6)
DRAWS = 2_000
MARGIN = 0.01
"""Without elastic runs, the interval of a ratio to backfill has to exclude that we are worse by that."""
OURS = "Convoy"
SCHEDULERS: dict[str, tuple[Policy, bool]] = {
    OURS: (decide, True), "FIFO": (fifo, False), "backfill": (backfill, False), "kills": (kill_for_priority, True),
}  # fmt: skip
"""And whether priorities count."""
MEASURES: dict[str, tuple[Callable[[WeekResult], float], bool]] = {
    "utilisation": (lambda result: result.utilisation, True),
    "mean wait": (lambda result: result.mean_wait_s, False),
    "p95 wait": (lambda result: result.p95_wait_s, False),
}
"""And whether more is better."""

Results = dict[tuple[float, str], list[WeekResult]]


def simulate(seeds: Sequence[int] = SEEDS, shares: Sequence[float] = SHARES) -> Results:
    """Every scheduler with every seed and share. Without elastic runs the others' weeks do not depend on the share."""
    capacity = {"GPU": float(GPUS_PER_NODE)}
    nodes = tuple(NodeCapacity(f"node-{i:02}", f"node-{i:02}", capacity, capacity) for i in range(NODES))
    results: Results = {}
    for share in shares:
        for name, (policy, priorities) in SCHEDULERS.items():
            begin = time.perf_counter()
            if name != OURS and share != shares[0]:
                results[share, name] = results[shares[0], name]
                continue
            weeks = [week_of(seed, NODES * GPUS_PER_NODE, LOAD, share) for seed in seeds]
            results[share, name] = [
                WeekSimulation(week, nodes, policy, name == OURS, priorities).run() for week in weeks
            ]
            shown = ", ".join(
                f"{label} {statistics.fmean(of(each) for each in results[share, name]):.4g}"
                for label, (of, _) in MEASURES.items()
            )
            say(f"{share:.0%} elastic, {name}: {shown}, {time.perf_counter() - begin:.0f} s")
    return results


def interval(values: Sequence[Sequence[float]], of: Callable[..., float]) -> tuple[float, float]:
    """The 95% bootstrap interval of a statistic of parallel samples (Efron and Tibshirani, 1993, section 13.3)."""
    rng = random.Random(0)
    count = len(values[0])
    found = []
    for _ in range(DRAWS):
        picked = [rng.randrange(count) for _ in range(count)]
        found.append(of(*([sample[at] for at in picked] for sample in values)))
    found.sort()
    return found[int(0.025 * DRAWS)], found[int(0.975 * DRAWS)]


def ratio_of_means(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Ours by theirs."""
    return statistics.fmean(ours) / statistics.fmean(theirs)


def _shown(label: str, values: Sequence[float]) -> str:
    scale, unit = (100.0, "%") if label == "utilisation" else (1 / 3600.0, " h")
    low, high = interval([values], statistics.fmean)
    digits = 1 if label == "utilisation" else 2
    return (
        f"{statistics.fmean(values) * scale:.{digits}f}{unit} ({low * scale:.{digits}f} to {high * scale:.{digits}f})"
    )


def compared(results: Results, share: float, label: str, peer: str) -> Row:
    """One measure against one scheduler."""
    of, more = MEASURES[label]
    ours, theirs = ([of(each) for each in results[share, name]] for name in (OURS, peer))
    ratio = ratio_of_means(ours, theirs)
    low, high = interval([ours, theirs], ratio_of_means)
    if share > 0:
        bar, met = "better", low > 1.0 if more else high < 1.0
    elif peer == "backfill":
        bar, met = f"no worse by {MARGIN:.0%}", low > 1.0 - MARGIN if more else high < 1.0 + MARGIN
    else:
        bar, met = "", None
    name = f"{label}, {share:.0%} elastic, against {peer}"
    shown = f"{_shown(label, theirs)}; ratio {low:.2f} to {high:.2f}"
    return Row(name, _shown(label, ours), shown, ratio, bar, met)


def rows_of(results: Results) -> list[Row]:
    """The table."""
    shares = sorted({share for share, _ in results})
    peers = [name for name in SCHEDULERS if name != OURS]
    rows = [compared(results, share, label, peer) for share in shares for label in MEASURES for peer in peers]
    for share in shares:
        own = results[share, OURS]
        late, promised = sum(each.late for each in own), sum(each.promised for each in own)
        latest_s = max(each.latest_s for each in own)
        rows.append(
            Row(f"wide jobs later than their reservation, {share:.0%} elastic", f"{late} of {promised}", "", None,
                "none", late == 0, f"the latest started {max(0.0, latest_s):.0f} s after its reservation")
        )  # fmt: skip
    return rows


def measure(scratch: Path) -> list[Row]:
    say(f"{NODES * GPUS_PER_NODE} GPUs on {NODES} nodes, load {LOAD:g}, {len(SEEDS)} seeds")
    results = simulate()
    waits = {
        (share, name): ([each.mean_wait_s / 3600 for each in found], [each.p95_wait_s / 3600 for each in found])
        for (share, name), found in results.items()
    }
    intervals = {key: tuple(interval([each], statistics.fmean) for each in both) for key, both in waits.items()}
    means = {key: tuple(statistics.fmean(each) for each in both) for key, both in waits.items()}
    (scratch / "queue-week.svg").write_text(draw(list(SHARES), list(SCHEDULERS), means, intervals), encoding="utf-8")
    return rows_of(results)
