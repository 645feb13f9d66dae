"""Rules about what happens between the steps of a run: evaluation, checkpoints, failures, waiting, start-up."""

from collections import Counter
from itertools import pairwise

from orchestrator.goodput.time_class import RECOVERY_CLASSES, TimeClass
from orchestrator.run_facts.quantity_text import duration
from orchestrator.run_facts.run_model import RunFacts
from orchestrator.run_facts.why.bottleneck import Bottleneck, bottleneck

EVALUATION_SHARE = 0.10
CHECKPOINT_SHARE = 0.05
"""More than Young and Daly's interval costs, unless failures are frequent."""
FEWEST_RESULTS = 3
"""Evaluations or checkpoints: the first and the last one of a run say nothing about how often they are due."""
RECOVERING = (*RECOVERY_CLASSES, TimeClass.RECOMPUTED)
"""What recoveries cost."""
WANTED_SHARE = 0.02
"""What a suggested interval would take."""
RECOVERY_SHARE = 0.05
WAITING_SHARE = 0.05
START_UP_SHARE = 0.20
START_UP_LEAST_S = 600.0
"""A shorter start-up is not worth a sentence, whatever its share of a short run."""


def evaluation(run: RunFacts) -> Bottleneck | None:
    """The validation loss is measured too often, or on too many samples."""
    totals, wall_s = run.events.totals, run.wall_s
    taken_s = max(totals.evaluation_s, run.ledger_s(TimeClass.EVALUATION))
    share = taken_s / wall_s if wall_s > 0 else 0.0
    if totals.evaluations < FEWEST_RESULTS or share < EVALUATION_SHARE:
        return None
    mean = duration(totals.evaluation_s / totals.evaluations)
    evidence = [f"{totals.evaluations:,} evaluations of {mean} each"]
    every = _interval([each.step for each in run.events.evaluations])
    advice = ["evaluate fewer samples: `data.validation.max_samples`"]
    if every:
        evidence.append(f"one every {every} steps")
        wanted = _wider(every, share)
        advice.insert(0, f"`train.eval_interval_steps: {wanted}` would take {WANTED_SHARE:.0%} of the time")
    headline = "the validation loss is measured too often"
    return bottleneck("evaluation", taken_s, wall_s, headline, tuple(evidence), tuple(advice))


def checkpoints(run: RunFacts) -> Bottleneck | None:
    """Training pauses too often, or too long, for checkpoints."""
    totals, wall_s = run.events.totals, run.wall_s
    taken_s = max(totals.checkpoint_stall_s, run.ledger_s(TimeClass.CHECKPOINT_STALL))
    share = taken_s / wall_s if wall_s > 0 else 0.0
    written = totals.checkpoints + totals.failed_checkpoints
    if written < FEWEST_RESULTS or share < CHECKPOINT_SHARE:
        return None
    evidence = [f"{written:,} checkpoints, training paused {duration(taken_s / written)} for each"]
    if totals.failed_checkpoints:
        evidence.append(f"{totals.failed_checkpoints:,} of them could not be written")
    advice = ["`checkpoint.interval_steps: auto` writes them as often as their benefit is worth their cost"]
    every = _interval([each.step for each in run.events.checkpoints])
    if every:
        evidence.append(f"one every {every} steps")
        advice.append(f"or `checkpoint.interval_steps: {_wider(every, share)}`, {WANTED_SHARE:.0%} of the time")
    advice.append("use faster storage (`checkpoint.storage`), and keep `checkpoint.memory` on: vaults write beside it")
    headline = "training pauses too often for checkpoints"
    return bottleneck("checkpoints", taken_s, wall_s, headline, tuple(evidence), tuple(advice))


def recoveries(run: RunFacts) -> Bottleneck | None:
    """Lost workers and rollbacks: from detection to the first step after it, and the steps that were repeated."""
    totals, steps, wall_s = run.events.totals, run.steps.series.totals, run.wall_s
    step_s = steps.step_time_s / steps.steps if steps.steps else 0.0
    repeated_s = totals.steps_recomputed * step_s
    open_s = _open_recovery_s(run)
    lost_s = max(totals.recovery_s + repeated_s + open_s, run.ledger_s(*RECOVERING))
    if wall_s <= 0 or lost_s / wall_s < RECOVERY_SHARE:
        return None
    found = run.events.periods.recoveries
    number = totals.recoveries + (1 if open_s else 0)
    evidence = [
        f"{number:,} recover{'y' if number == 1 else 'ies'}, {duration(totals.recovery_s + open_s)} from detection to"
        f" the next step in all, {totals.steps_recomputed:,} steps repeated ({duration(repeated_s)})",
    ]
    causes = Counter(each.cause.split("\n")[0][:120] for each in found)
    if causes:
        cause, times = causes.most_common(1)[0]
        evidence.append(f"most frequent cause ({times} of {len(found)}): {cause}")
    ranks = Counter(each.rank for each in found if not each.rolled_back)
    if ranks and len(found) > 2:
        rank, times = ranks.most_common(1)[0]
        node = run.events.nodes.get(rank)
        if times > len(found) / 2:
            evidence.append(f"rank {rank}{f', now on node {node},' if node else ''} failed {times} times")
    advice = (
        f"read the pages in {run.record.layout.incidents}: they have the last output of each lost worker",
        "`resources.standby: 1` keeps a process ready on each node: a lost one costs about a second",
        "`checkpoint.memory: true` with `replicas: 1` or more: then a lost node repeats a step or two",
    )
    return bottleneck("recoveries", lost_s, wall_s, "recoveries take long", tuple(evidence), advice)


def waiting(run: RunFacts) -> Bottleneck | None:
    """Too few workers were available, and the run waited for more."""
    wall_s = run.wall_s
    waited_s = max(run.events.periods.waited_s(run.end_s), run.ledger_s(TimeClass.WAITING))
    if wall_s <= 0 or waited_s / wall_s < WAITING_SHARE:
        return None
    evidence = (f"the run was {duration(waited_s)} in the state `waiting`",)
    advice = (
        "lower `resources.workers.min`: the run then trains with the workers that there are",
        "add nodes, or use ones that are preempted less often",
    )
    return bottleneck("waiting", waited_s, wall_s, "the run waits for workers", evidence, advice)


def start_up(run: RunFacts) -> Bottleneck | None:
    """Everything before the first step: preparing data, the cluster, the workers, the model."""
    wall_s, seconds = run.wall_s, run.ledger_s(TimeClass.STARTUP)
    if seconds < START_UP_LEAST_S or seconds / wall_s < START_UP_SHARE:
        return None
    evidence = ["processes, data, model and engine before the first step, of every driver"]
    if run.events.data_s:
        evidence.append(f"preparing the data took {duration(run.events.data_s)}")
    advice = (
        "`convoy data prepare JOB` prepares the data ahead of time, without the cluster; it is cached",
        "let runs share `data.cache_dir`: equal data is prepared once",
    )
    return bottleneck("start_up", seconds, wall_s, "the start takes long", tuple(evidence), advice)


def _open_recovery_s(run: RunFacts) -> float:
    """Of a recovery that is not over, so far."""
    found = run.events.periods.recoveries
    last = found[-1] if found else None
    if last is None or last.seconds is not None or not run.record.active:
        return 0.0
    return max(0.0, run.end_s - last.detected_s)


def _interval(steps: list[int]) -> int | None:
    """The usual distance of two results in steps."""
    gaps = Counter(after - before for before, after in pairwise(steps) if after > before)
    return gaps.most_common(1)[0][0] if gaps else None


def _wider(every: int, share: float) -> int:
    """An interval that takes `WANTED_SHARE`, rounded up to two digits."""
    wanted = every * share / WANTED_SHARE
    unit = 10 ** max(0, len(str(int(wanted))) - 2)
    return int(-(-wanted // unit) * unit)
