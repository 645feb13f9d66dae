"""Goodput, effective training time ratio and money, from the sums of a ledger. Pure."""

from collections.abc import Mapping
from dataclasses import replace

from orchestrator.domain.events import RecoveryReason
from orchestrator.goodput.ledger_result import Cost, IncidentTime, LedgerResult
from orchestrator.goodput.time_class import RECOVERY_CLASSES, STEP_CLASSES, LossCause, TimeClass
from orchestrator.goodput.worker_terms import WorkerTerms

HOUR_S = 3600.0
MILLION_TOKENS = 1e6


def goodput_ratio(seconds: Mapping[TimeClass, float], reserved_s: float) -> float:
    """Runtime goodput, 0 to 1: worker time in steps that count, divided by reserved worker time.

    As defined by Google: time that makes progress which is kept, of the time in which all resources are there. Start,
    recovery, lost progress, waiting for data and pauses for checkpoints are badput; the inside of a step, with its
    communication, is not (ML Productivity Goodput, https://cloud.google.com/blog/products/ai-machine-learning/
    goodput-metric-as-measure-of-ml-productivity; arXiv:2502.06982).
    """
    return ratio(sum(seconds.get(each, 0.0) for each in STEP_CLASSES), reserved_s)


def ettr_ratio(training_s: float, elapsed_s: float) -> float:
    """Effective training time ratio, 0 to 1: productive runtime, divided by the wall-clock time that was available.

    `training_s`: wall-clock seconds of steps that count, without pauses for checkpoints and snapshots. `elapsed_s`:
    wall-clock seconds of the run, those before workers were reserved included. In contrast to goodput it does not
    depend on how many workers there are. (Kokolis et al., Revisiting Reliability in Large-Scale Machine Learning
    Research Clusters, arXiv:2410.21680: lost work, restarts and writing checkpoints are unproductive.)
    """
    return ratio(training_s, elapsed_s)


def ratio(part: float, whole: float) -> float:
    """0 to 1; 0 of nothing."""
    return min(1.0, max(0.0, part / whole)) if whole > 0.0 else 0.0


def losses(
    seconds: Mapping[TimeClass, float],
    incidents: list[IncidentTime],
    older: Mapping[RecoveryReason, Mapping[TimeClass, float]],
) -> dict[LossCause, float]:
    """Worker-seconds that were not productive, by cause: those of incidents by their reason, others by their class.
    `older`: of the incidents before those given."""
    left: dict[TimeClass, float] = {**seconds}
    left.pop(TimeClass.PRODUCTIVE, None)
    found: dict[LossCause, float] = {}
    charged = [*((each.reason, each.seconds) for each in incidents), *older.items()]
    for reason, spent in charged:
        for time_class, worker_s in spent.items():
            left[time_class] = left.get(time_class, 0.0) - worker_s
            cause = LossCause(reason.value)
            found[cause] = found.get(cause, 0.0) + worker_s
    for time_class, worker_s in left.items():
        of_fault = time_class in RECOVERY_CLASSES or time_class is TimeClass.RECOMPUTED
        cause = LossCause.UNKNOWN_FAULT if of_fault else LossCause(time_class.value)
        found[cause] = found.get(cause, 0.0) + max(0.0, worker_s)
    return found


def priced(result: LedgerResult, spent_usd: float | None) -> LedgerResult:
    """The same with money. All of a run's worker time has the same price."""
    if spent_usd is None:
        return result
    usd_per_s = spent_usd / result.reserved_s if result.reserved_s > 0.0 else 0.0
    tokens = result.tokens
    lost = {cause: worker_s * usd_per_s for cause, worker_s in result.lost_s.items()}
    nodes = [
        replace(node, lost_usd=usd_per_s * sum(s for c, s in node.seconds.items() if c is not TimeClass.PRODUCTIVE))
        for node in result.by_node
    ]
    return replace(
        result,
        by_node=tuple(nodes),
        by_incident=tuple(replace(each, lost_usd=each.lost_s * usd_per_s) for each in result.by_incident),
        cost=Cost(spent_usd, spent_usd * MILLION_TOKENS / tokens if tokens > 0 else None, lost),
    )


def spent_usd(terms: WorkerTerms, worker_s: float, node_s: float) -> float | None:
    """What reserved workers, or nodes with workers, have cost; None if the job does not say."""
    if terms.usd_per_hour is None:
        return None
    return terms.usd_per_hour * (node_s if terms.per_node else worker_s) / HOUR_S
