"""The queue's database under load: 10,000 queued jobs, a history of a million, submissions one after another and many
at once. Everything is real but drivers and cluster, which are not asked here."""

import json
import os
import resource
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

from orchestrator.clusters.placement import NodeCapacity
from orchestrator.control.live_queue import LiveQueue
from orchestrator.control.policy.decide import decide
from orchestrator.control.policy.queue_facts import QueueFacts
from orchestrator.control.ports import DriverFacts
from orchestrator.control.queue_board import QueueBoard
from orchestrator.control.queue_service import Caller
from orchestrator.control.queue_store.live_runs import LiveRuns
from orchestrator.control.queue_store.queue_store import QueueStore
from orchestrator.control.queue_store.queue_table import all_queues
from orchestrator.control.queue_store.run_rows import COLUMNS
from orchestrator.control.server_lease import ServerLease
from orchestrator.control.ticker import Ticker, TickerPorts
from orchestrator.control.ticking.fact_building import FactBuilder
from orchestrator.control.ticking.run_clocks import RunClocks
from orchestrator.domain.events import RunState
from orchestrator.store.run_store import RunStore
from orchestrator.wire.run_messages import Submission
from tests.bench.measure import Row

QUEUED, HISTORY, NODES = 10_000, 1_000_000, 1_000
USERS = 50
CALLER = Caller("user7", "team2", "admin")
REPEATS = 21
FACTS_BAR_S, LIST_BAR_S, RATE_BAR, P99_BAR_S, SLOWER_BAR, MEMORY_BAR_BYTES = 0.1, 0.2, 200.0, 0.1, 2.0, 300e6
SUBMISSIONS, CLIENTS = 1000, 8
NOISE_S = 0.002
"""Operations that take less than this are not compared: they are scheduling noise."""

JOB = """\
name: bench-{number}
model: {{architecture: gpt2, config: {{n_layer: 2, n_head: 2, n_embd: 64}}}}
tokenizer: {{train: {{vocab_size: 512}}}}
data: {{sources: [{{files: ["*.txt"]}}], sequence_length: 64}}
train: {{steps: 100, global_batch: 8, lr: 1e-3, warmup_steps: 10, schedule: cosine, clip_grad_norm: 1.0}}
zero: {{stage: 2}}
resources: {{workers: {{min: 1, max: 4}}, cpus_per_worker: 1}}
checkpoint: {{interval_steps: 50, keep_last: 2}}
"""


class NoCluster:
    """Is not asked."""

    address, autoscales = "127.0.0.1:6379", False

    def nodes(self) -> tuple[NodeCapacity, ...] | None:
        return None

    def held(self, run_ids: object) -> dict[str, dict[str, int]]:
        return {}

    def drain(self, node_id: str, reason: str, deadline_s: float | None) -> None:
        raise NotImplementedError


class FullCluster(NoCluster):
    """`NODES` nodes, each with one run whose driver is well."""

    def __init__(self, running: dict[str, dict[str, int]]) -> None:
        self._running = running
        self._nodes = tuple(
            NodeCapacity(node, node, {"CPU": 4.0}, {"CPU": 0.0}) for places in running.values() for node in places
        )

    def nodes(self) -> tuple[NodeCapacity, ...]:
        return self._nodes

    def held(self, run_ids: object) -> dict[str, dict[str, int]]:
        return self._running

    def look(self, runs: Mapping[str, Path]) -> dict[str, DriverFacts]:
        return {
            run: DriverFacts(True, True, RunState.RUNNING, None, None, 1, self._running[run], 10, 100, 1.0)
            for run in runs
        }

    def no_effect(self, *_: object) -> None:
        raise NotImplementedError

    launch = grant = stop = kill = no_effect


def run_id(seq: int) -> str:
    return f"bench-{seq:07d}-20260101-000000-{seq % 65536:04x}"


def tick_s(store: QueueStore, home: Path) -> tuple[float, float]:
    """Seconds of a tick in which nothing changes, and of one in which a run was submitted: every node is in use,
    `QUEUED` runs wait."""
    fill(store.path, QUEUED + 1, NODES, "active")
    cluster = FullCluster({run_id(QUEUED + 1 + node): {f"node{node}": 4} for node in range(NODES)})
    lease, board = ServerLease(store, threaded=False), QueueBoard()
    lease.turn()
    ticker = Ticker(store, lease, RunStore(home), TickerPorts(cluster, cluster, decide), board)
    quiet_s = median_s(ticker.tick)
    assert board.view is not None
    assert len(board.view.outlooks) == QUEUED, board.view.problem
    queue, times = service(store, home), []
    for number in range(5):
        queue.submit(Submission(spec=JOB.format(number=number)), CALLER, None)
        began_s = time.perf_counter()
        ticker.tick()
        times.append(time.perf_counter() - began_s)
    lease.close()
    return quiet_s, statistics.median(times)


def fill(path: Path, first: int, count: int, state: str) -> None:
    """Rows as submissions and ticks would leave them, with two events each, written directly: quickly."""
    active = state == "active"
    final = state == "succeeded"
    values = {
        "group_name": None, "queue": "default", "spec_digest": "d", "bundle": '{"CPU":1.0}', "placement": "spread",
        "shape": "s", "limit_s": None, "retries": 3, "state": state, "reason": None, "settled": int(final),
        "changes": 2, "started_s": 1.0 if final else None, "ended_s": 2.0 if final else None, "active_s": 0.0,
        "min_workers": 1, "max_workers": 4, "grant_number": 0, "granted": "{}", "booked": "{}", "launched": 0,
        "granted_s": None,
        "attempt": 1, "failures": 0, "retry_at_s": None, "lost_drivers": 0, "step": 0, "total_steps": 100,
        "loss": None, "step_time_s": None,
    }  # fmt: skip

    def rows() -> Iterator[list[object]]:
        for seq in range(first, first + count):
            own = {
                "seq": seq, "id": run_id(seq), "name": f"bench-{seq % 997}",
                "team": f"team{seq % 5}", "user": f"user{seq % USERS}", "priority": 20,
                "directory": f"/runs/bench-{seq:07d}", "submitted_s": float(seq), "since_s": float(seq),
            }  # fmt: skip
            if active:
                places = json.dumps({f"node{seq - first}": 4})
                own |= {"granted": places, "booked": places, "grant_number": 1, "launched": 1, "min_workers": 4}
            yield [{**values, **own}[name] for name in COLUMNS]

    marks = ", ".join("?" * len(COLUMNS))
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("INSERT OR IGNORE INTO specs VALUES ('d', 'name: bench')")
        connection.executemany(f"INSERT INTO runs ({', '.join(COLUMNS)}) VALUES ({marks})", rows())
        connection.executemany(
            "INSERT INTO events (run, ordinal, time_s, kind, source, target, message, data) "
            "VALUES (?, ?, 1.0, 'state', NULL, ?, 'because', '{}')",
            ((seq, ordinal, state) for seq in range(first, first + count) for ordinal in (1, 2)),
        )
        connection.commit()


def median_s(action: Callable[[], object]) -> float:
    """Of several times, after one that is not counted."""
    action()
    times = []
    for _ in range(REPEATS):
        began_s = time.perf_counter()
        action()
        times.append(time.perf_counter() - began_s)
    return statistics.median(times)


def side_by_side(
    ours: dict[str, Callable[[], object]], theirs: dict[str, Callable[[], object]]
) -> tuple[dict[str, float], dict[str, float]]:
    """Median seconds of both, measured in turns: what else the machine does concerns both."""
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in ours}
    for _ in range(REPEATS):
        for name, (few, many) in times.items():
            for action, kept in ((ours[name], few), (theirs[name], many)):
                action()
                began_s = time.perf_counter()
                action()
                kept.append(time.perf_counter() - began_s)
    few_s = {name: statistics.median(few) for name, (few, _) in times.items()}
    return few_s, {name: statistics.median(many) for name, (_, many) in times.items()}


def facts_s(store: QueueStore) -> tuple[float, float]:
    """Seconds to load the facts of a tick: for the first time, and when one run has changed since."""
    began_s = time.perf_counter()
    live, builder, clocks = LiveRuns(store), FactBuilder(), RunClocks()

    def load() -> QueueFacts:
        rows = live.refresh()
        clocks.advance([row for row in rows.values() if row.booked], {}, time.monotonic(), time.time())
        return QueueFacts(time.time(), (), builder.run_facts(rows.values(), {}, {}, clocks, {}), store.read(all_queues))

    assert len(load().runs) >= QUEUED
    return time.perf_counter() - began_s, median_s(load)


def operations(queue: LiveQueue, run: str) -> dict[str, Callable[[], object]]:
    """What commands ask for."""
    return {
        "ps": lambda: queue.runs(CALLER, limit=100),
        "ps --all, a page in the middle": lambda: queue.runs(CALLER, limit=100, cursor=str(QUEUED // 2)),
        "ps of a user": lambda: queue.runs(CALLER, user="user7"),
        "ps of a state": lambda: queue.runs(CALLER, states=["queued", "active", "suspended"]),
        "ps of a queue and a state": lambda: queue.runs(CALLER, states=["failed"], queue="default"),
        "status by id": lambda: queue.run(run, CALLER),
        "status by prefix": lambda: queue.run(run[:20], CALLER),
        "status by name": lambda: queue.run("bench-7", CALLER),
        "events": lambda: queue.events(run, 0, 100, CALLER),
        "queue": lambda: queue.queues(CALLER),
        "pause and resume": lambda: (queue.pause(run, CALLER), queue.resume(run, CALLER)),
    }


def submissions(queue: LiveQueue) -> tuple[float, float, float]:
    """(a second, p99 in seconds) of many clients at once; a second of one client."""
    took: list[float] = []

    def submit(number: int) -> None:
        began_s = time.perf_counter()
        queue.submit(Submission(spec=JOB.format(number=number)), CALLER, f"key-{number}")
        took.append(time.perf_counter() - began_s)

    began_s = time.perf_counter()
    for number in range(100):
        submit(number)
    alone = 100 / (time.perf_counter() - began_s)
    took.clear()
    began_s = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(submit, range(100, 100 + SUBMISSIONS)))
    return SUBMISSIONS / (time.perf_counter() - began_s), sorted(took)[int(0.99 * len(took))], alone


def service(store: QueueStore, home: Path) -> LiveQueue:
    return LiveQueue(store, RunStore(home / "runs"), QueueBoard(), NoCluster())


def measure(scratch: Path) -> list[Row]:
    """The rows of the table."""
    run = run_id(QUEUED)
    with tempfile.TemporaryDirectory(dir=scratch) as base:
        few, many = (QueueStore(Path(base) / name / "queue.db") for name in ("few", "many"))
        fill(few.path, 1, QUEUED, "queued")
        before_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        first_s, later_s = facts_s(few)
        queue = service(few, few.path.parent)
        queue.queues(CALLER)
        memory_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        full = QueueStore(Path(base) / "full" / "queue.db")
        fill(full.path, 1, QUEUED, "queued")
        quiet_s, changed_s = tick_s(full, full.path.parent / "runs")
        full.close()
        fill(many.path, 1, QUEUED, "queued")
        fill(many.path, QUEUED + 1, HISTORY, "succeeded")
        os.sync()
        _, long_facts_s = facts_s(many)
        short, long = side_by_side(operations(queue, run), operations(service(many, many.path.parent), run))
        rate, p99_s, alone = submissions(service(many, many.path.parent))
        few.close()
        many.close()
    listed_s = short["ps"]
    worst = max(long, key=lambda name: max(long[name], NOISE_S) / max(short[name], NOISE_S))
    ratio = max(long[worst], NOISE_S) / max(short[worst], NOISE_S)
    facts = f"{1000 * first_s:.0f} ms when the server starts; {1000 * long_facts_s:.1f} ms with the history"
    each = ", ".join(f"{name} {1000 * short[name]:.1f} / {1000 * long[name]:.1f} ms" for name in short)
    clients = f"{CLIENTS} clients, each with a spec of its own; one client: {alone:.0f} a second"
    memory = f"{before_bytes / 1e6:.0f} MB before the facts were loaded"
    what = f"slowest operation with {HISTORY:,} runs of history"
    without = f"{1000 * short[worst]:.1f} ms without"
    return [
        row(
            f"facts of a tick, {QUEUED:,} queued", f"{1000 * later_s:.1f} ms", "< 100 ms", later_s < FACTS_BAR_S, facts
        ),
        row(
            f"a tick with {NODES:,} nodes, all in use",
            f"{1000 * quiet_s:.0f} ms",
            "< 100 ms",
            quiet_s < FACTS_BAR_S,
            f"{1000 * changed_s:.0f} ms if a run was submitted before it",
        ),
        row("`convoy ps`, the server's part", f"{1000 * listed_s:.1f} ms", "< 200 ms", listed_s < LIST_BAR_S),
        Row(what, f"{1000 * long[worst]:.1f} ms", without, ratio, "<= 2", ratio <= SLOWER_BAR, f"{worst}; {each}"),
        row("submissions a second, durable", f"{rate:.0f}", ">= 200", rate >= RATE_BAR, clients),
        row("p99 of a submission", f"{1000 * p99_s:.0f} ms", "< 100 ms", p99_s < P99_BAR_S),
        row(
            "memory of the process", f"{memory_bytes / 1e6:.0f} MB", "< 300 MB", memory_bytes < MEMORY_BAR_BYTES, memory
        ),
    ]


def row(name: str, ours: str, bar: str, met: bool, note: str = "") -> Row:
    """A line without a peer."""
    return Row(name, ours, "", None, bar, met, note)
