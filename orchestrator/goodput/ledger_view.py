"""The result of a ledger at a moment: what is open is shown as what it will probably be. Pure."""

from dataclasses import replace

from orchestrator.goodput.crew import UNKNOWN_NODE, key_of
from orchestrator.goodput.goodput_ratios import HOUR_S, ettr_ratio, goodput_ratio, losses, priced, spent_usd
from orchestrator.goodput.ledger import Ledger
from orchestrator.goodput.ledger_result import LedgerResult, NodeTime
from orchestrator.goodput.step_lineage import LINEAGE_CLASSES, TOKENS, WALL
from orchestrator.goodput.time_books import ClassSeconds
from orchestrator.goodput.time_class import TimeClass
from orchestrator.goodput.timeline import Timeline
from orchestrator.goodput.worker_terms import WorkerTerms

NOTHING_S = 1e-9
"""Less than this is what rounding leaves of nothing."""


def result_of(ledger: Ledger, now_s: float, terms: WorkerTerms, nodes: bool = True) -> LedgerResult:
    """What the ledger says at `now_s`, in Unix seconds: not before its last fact. It is not changed. `nodes`: with what
    each node has spent, which takes milliseconds for a thousand of them."""
    timeline = ledger.timeline
    crew, lineage = timeline.books.crew, timeline.lineage
    now_s = max(now_s, timeline.now_s)
    passed_s = now_s - timeline.now_s
    elapsed_s = timeline.elapsed_s + (passed_s if timeline.driven else 0.0)
    reserved_s, node_s = timeline.reserved_s + passed_s * crew.workers, timeline.node_s + passed_s * crew.nodes
    seconds, undone_s = _seconds(timeline, now_s)
    pending = {**timeline.pending(now_s), TimeClass.RECOMPUTED: undone_s}
    incidents = timeline.incidents.all({name: s for name, s in pending.items() if name is not TimeClass.PRODUCTIVE})
    lost_s = losses(seconds, incidents, timeline.incidents.older)
    result = LedgerResult(
        time_s=now_s,
        elapsed_s=elapsed_s,
        reserved_s=reserved_s,
        workers=crew.workers,
        seconds=seconds,
        goodput=goodput_ratio(seconds, reserved_s),
        ettr=ettr_ratio(lineage.counted[WALL], elapsed_s),
        gpu_hours=reserved_s * terms.gpus / HOUR_S,
        tokens=round(lineage.counted[TOKENS]),
        lost_s={cause: worker_s for cause, worker_s in lost_s.items() if worker_s > NOTHING_S},
        by_node=_nodes(timeline, now_s) if nodes else (),
        by_incident=tuple(replace(each, seconds=_known(dict(each.seconds))) for each in incidents),
    )
    return priced(result, spent_usd(terms, reserved_s, node_s))


def _seconds(timeline: Timeline, now_s: float) -> tuple[ClassSeconds, float]:
    """Worker-seconds by class with what is open, and those of steps that are undone as far as is known."""
    seconds = dict(timeline.books.seconds)
    for time_class, worker_s in timeline.pending(now_s).items():
        seconds[time_class] = seconds.get(time_class, 0.0) + worker_s
    undone_s = 0.0
    for step_sum in timeline.lineage.undone():
        for time_class, worker_s in zip(LINEAGE_CLASSES, step_sum.amounts, strict=False):
            seconds[time_class] = seconds.get(time_class, 0.0) - worker_s
            undone_s += worker_s
    seconds[TimeClass.RECOMPUTED] = seconds.get(TimeClass.RECOMPUTED, 0.0) + undone_s
    return _known(seconds), undone_s


def _known(seconds: ClassSeconds) -> ClassSeconds:
    """In the order of the classes, without those that have no time."""
    return {each: seconds[each] for each in TimeClass if seconds.get(each, 0.0) > NOTHING_S}


def _nodes(timeline: Timeline, now_s: float) -> tuple[NodeTime, ...]:
    """By node, those with workers first. Steps that are undone are still what they were there."""
    books, crew = timeline.books, timeline.books.crew
    member = timeline.member_class
    open_s = {member: max(0.0, now_s - timeline.open_s)}
    joining_s = {timeline.joining_class: max(0.0, now_s - timeline.joining_open_s)}
    seconds = {key: dict(each) for key, each in books.by_node().items()}
    workers = dict.fromkeys(seconds, 0)
    for place in crew.places:
        mine = seconds.setdefault(key_of(place), {})
        workers[key_of(place)] = workers.get(key_of(place), 0) + place.members + place.joining
        for spent, count in ((open_s, place.members), (joining_s, place.joining)):
            for time_class, each_s in spent.items():
                mine[time_class] = mine.get(time_class, 0.0) + each_s * count
    found = [
        NodeTime(node, node_id, workers[node, node_id], _known(spent), books.caused.get((node, node_id), 0.0))
        for (node, node_id), spent in seconds.items()
        if (node, node_id) != UNKNOWN_NODE or _known(spent)
    ]
    return tuple(sorted(found, key=lambda each: (-each.workers, each.node, each.node_id)))
