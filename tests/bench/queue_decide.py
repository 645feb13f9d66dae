"""Time of the scheduler's decision: 10,000 waiting runs, and 1,000 nodes that are full.

The steady state is a cluster without a free GPU. In `one run has ended`, eight GPUs are free and a waiting run starts.
"""

import random
import statistics
import time
from dataclasses import replace
from pathlib import Path

from orchestrator.clusters.placement import NodeCapacity, WorkerRequest
from orchestrator.control.policy.decide import decide
from orchestrator.control.policy.queue_facts import Decision, QueueFacts, QueueShare, ScheduledRun
from tests.bench.measure import Row

NODES, GPUS_PER_NODE, WAITING = 1_000, 8, 10_000
QUEUES = ("research", "product", "batch", "interactive")
USERS = 60
NOW_S = 1_800_000_000.0
REPEATS = 20
BAR_S = 0.050


def full_cluster(seed: int) -> QueueFacts:
    """Runs of one to 64 GPUs on all nodes, a third of them elastic, and as many waiting as the issue asks for."""
    rng = random.Random(seed)
    capacity = {"CPU": 64.0, "GPU": float(GPUS_PER_NODE), "memory": 2.0**39}
    nodes = tuple(NodeCapacity(f"node{i:04}", f"10.0.{i // 250}.{i % 250}", capacity, capacity) for i in range(NODES))
    running: list[ScheduledRun] = []
    free = [(node.node_id, GPUS_PER_NODE) for node in reversed(nodes)]
    while free:
        places: dict[str, int] = {}
        left = min(rng.choices((1, 2, 4, 8, 16, 32, 64), (50, 15, 12, 12, 6, 3, 2))[0], sum(n for _, n in free[-8:]))
        while left:
            node, room = free.pop()
            take = min(left, room)
            places[node] = take
            left -= take
            if room > take:
                free.append((node, room - take))
        running.append(_run(rng, len(running), sum(places.values()), False, places))
    waiting = [
        _run(rng, len(running) + i, rng.choices((1, 2, 4, 8, 16, 32, 64), (40, 15, 15, 15, 8, 5, 2))[0], True, {})
        for i in range(WAITING)
    ]
    shares = {name: QueueShare(name, weight) for name, weight in zip(QUEUES, (3.0, 2.0, 1.0, 1.0), strict=True)}
    return QueueFacts(NOW_S, nodes, (*running, *waiting), shares)


def _run(rng: random.Random, order: int, workers: int, waits: bool, places: dict[str, int]) -> ScheduledRun:
    user = rng.randrange(USERS)
    elastic = rng.random() < 1 / 3
    ask = WorkerRequest({"CPU": 4.0, "GPU": 1.0}, max(1, workers // 2) if elastic else workers, workers, "pack")
    work_s = workers * rng.lognormvariate(8.5, 1.5) if rng.random() < 0.8 else None
    return ScheduledRun(
        f"run-{order:05}", QUEUES[user % len(QUEUES)], f"user{user}", rng.choices((0, 10, 20), (20, 75, 5))[0], order,
        ask, waits, places=places, granted=places, since_s=NOW_S - 10.0 * order, work_s=work_s, limit_s=86_400.0 * 3,
    )  # fmt: skip


def settled(facts: QueueFacts) -> QueueFacts:
    """Facts after the decision has been carried out: suspended runs wait, shrunk ones are smaller."""
    for _ in range(200):
        decision = decide(facts)
        if not decision.grants and not decision.suspensions:
            break
        facts = replace(facts, runs=tuple(_carried_out(run, decision) for run in facts.runs))
    return facts


def _carried_out(run: ScheduledRun, decision: Decision) -> ScheduledRun:
    places = decision.grants.get(run.id)
    if places is not None:
        return replace(run, waits=False, places=places, granted=places, reserved=None)
    if run.id in decision.suspensions:
        return replace(run, waits=True, places={}, granted={})
    return replace(run, reserved=decision.reservations.get(run.id))


def one_ended(facts: QueueFacts) -> QueueFacts:
    """The same without one run of eight GPUs."""
    ended = next(run for run in facts.runs if sum(run.places.values()) == GPUS_PER_NODE)
    return replace(facts, runs=tuple(run for run in facts.runs if run is not ended))


def timed(facts: QueueFacts) -> list[float]:
    """Seconds of each of some decisions."""
    taken = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        decide(facts)
        taken.append(time.perf_counter() - begin)
    return taken


def measure(scratch: Path) -> list[Row]:
    rows = []
    steady = settled(full_cluster(1))
    for name, facts in (("nothing changes", steady), ("one run has ended", one_ended(steady))):
        taken = timed(facts)
        median = statistics.median(taken)
        note = f"median of {REPEATS}; the slowest took {max(taken) * 1000:.0f} ms"
        rows.append(
            Row(f"decision, {WAITING:,} waiting, {NODES:,} nodes, {name}", f"{median * 1000:.0f} ms", "", None,
                f"<= {BAR_S * 1000:.0f} ms", median <= BAR_S, note)
        )  # fmt: skip
    return rows
