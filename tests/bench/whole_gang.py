"""The whole gang is lost at once, and restarts.

`storage`: all worker processes are killed, nothing is kept in memory, standby processes are warm: the bar.
`vaults`: the same, with state in memory too. `nodes`: all nodes but the head are killed, as many new ones join at
once: processes and imports start from nothing. The peer is stock elastic Ray Train in the same cases.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator.clusters.ray.node_processes import descendants, raylet_of
from tests.bench.course import MODEL_4M, NODES, Striker, Struck, train, where_they_go
from tests.bench.head_and_nodes import HeadAndNodes, head_and_nodes
from tests.bench.measure import Row
from tests.bench.peer_figures import Peers
from tests.bench.peer_processes import say
from tests.bench.recovery import peer_seconds
from tests.cluster.gang_runs import command_of

LEAST = 2
STAGE = 1
LIMIT_S = 120.0
BAR_S, TIMES_FASTER = 8.0, 8.0
IDLE_FOR_S, IDLE_CPU_S = 2.0, 0.1
"""A process that has used no more than so much of a core for so long has nothing to import any more."""
CHECKPOINT_EVERY = 5
"""As the peers."""

Case = tuple[str, str, int, bool]
"""Name, fault, standby processes a node, state in memory."""
CASES: tuple[Case, ...] = (
    ("storage", "workers", 1, False),
    ("vaults", "workers", 1, True),
    ("nodes", "nodes", 0, True),
)
PEERS = {"workers": "gang-lost", "nodes": "nodes-lost"}


class GangStriker(Striker):
    """Without memory there is no protected step to wait for: a checkpoint has to be there instead.

    Nor does it strike before the standby processes have imported what they need: that is what is measured.
    """

    def __init__(self, fault: str, standby: int, cluster: HeadAndNodes) -> None:
        super().__init__([fault], NODES, cluster)
        self._standby = standby
        self._looked_s, self._seen_cpu_s = 0.0, dict[int, float]()

    def steady(self, report: Any, workers: int) -> bool:
        full = report.world_size == workers == len(self.pids)
        return full and self.steps_since_change >= 4 * CHECKPOINT_EVERY and self._warm(report.time_s)

    def _warm(self, now_s: float) -> bool:
        """Whether all standby processes are there and have done next to nothing for a while."""
        if now_s - self._looked_s < IDLE_FOR_S:
            return False
        self._looked_s, before, self._seen_cpu_s = now_s, self._seen_cpu_s, {}
        for pid in self.pids.values():
            for process in descendants(raylet_of(pid).pid):
                if process.pid not in self.pids.values() and "ray::ConvoyWorker" in command_of(process):
                    self._seen_cpu_s[process.pid] = sum(process.cpu_times()[:2])
        idle = [pid for pid, cpu_s in self._seen_cpu_s.items() if cpu_s - before.get(pid, 0.0) < IDLE_CPU_S]
        return len(idle) == len(self._seen_cpu_s) == self._standby * NODES


def lost_gang(scratch: Path, case: Case, limit_s: float = LIMIT_S) -> Struck:
    """Raises RuntimeError where it does not come back in time."""
    name, fault, standby, memory = case
    say(f"Convoy, ZeRO-{STAGE}, {NODES} nodes: the whole gang is lost ({name})")
    with head_and_nodes(NODES) as cluster, tempfile.TemporaryDirectory(dir=scratch) as directory:
        striker = GangStriker(fault, standby, cluster)
        train(
            Path(directory),
            cluster.address,
            striker,
            MODEL_4M,
            limit_s,
            zero={"stage": STAGE},
            resources={"workers": {"min": LEAST, "max": NODES}, "standby": standby},
            checkpoint={"interval_steps": CHECKPOINT_EVERY, "memory": memory, "at_end": False},
        )
    return striker.struck[0]


def row(case: Case, struck: Struck, peers: Peers) -> Row:
    """One line."""
    name, fault, standby, _ = case
    peer_case = PEERS[fault]
    found = peers.get(f"{peer_case}-zero{STAGE}", lambda: peer_seconds(peer_case, STAGE))
    theirs = found.values["seconds"] if found is not None else None
    barred = name == "storage"
    fast = theirs is None or theirs / struck.seconds >= TIMES_FASTER
    how = "standby processes warm" if standby else "new nodes, nothing warm"
    notes: Sequence[str] = [
        f"from {struck.source}, {struck.steps_recomputed} steps recomputed, {struck.workers_after} workers after it",
        where_they_go([struck]),
        *([f"Ray Train measured on {found.date}"] if found is not None else []),
    ]
    return Row(
        f"whole gang lost ({name}), ZeRO-{STAGE}, {NODES} nodes, {how}",
        f"{struck.seconds:.2f} s",
        f"{theirs:.1f} s" if theirs is not None else "",
        struck.seconds / theirs if theirs is not None else None,
        f"<= {BAR_S:g} s, {TIMES_FASTER:g}x faster" if barred else "",
        (struck.seconds <= BAR_S and fast) if barred else None,
        "; ".join(notes),
    )


def measure(scratch: Path, peers: Peers) -> list[Row]:
    return [row(case, lost_gang(scratch, case), peers) for case in CASES]
