"""The one that strikes: real faults on the processes, the network and the storage of a run."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from orchestrator.clusters.ray.node_processes import is_head, node_id_of, raylet_of
from orchestrator.domain.errors import CheckpointError, ClusterError
from orchestrator.domain.events import (
    ClusterReady,
    Event,
    GangResized,
    RecoveryStarted,
    RunCreated,
    RunState,
    StateChanged,
    WorkerSlow,
    WorkerStarted,
)
from orchestrator.domain.policy.scorecard import DrillFault
from orchestrator.domain.run_layout import RunLayout
from orchestrator.domain.step_report import StepReport
from orchestrator.drill.bucket_proxy import Link
from orchestrator.drill.drill_plan import ON_NODES, ON_STORAGE, Planned
from orchestrator.drill.drill_tally import DrillTally
from orchestrator.drill.limited_disk import Disk
from orchestrator.drill.node_network import Network
from orchestrator.drill.process_faults import Brake, send
from orchestrator.drill.shard_damage import corrupt_newest

SHORTEST_BURST_S = 0.02
DRAIN_NOTICE_S = 20.0
"""Shorter than any cloud's (30 s to 2 minutes)."""
ANNOUNCE_S = 20.0
ENDED = (RunState.SUCCEEDED, RunState.FAILED, RunState.STOPPED)


@dataclass
class Means:
    """What the faults of a drill need, set up before the run begins."""

    environment: Mapping[str, str]
    """Of the run's driver."""
    kill_driver: Callable[[], None]
    storage: str | None = None
    """`checkpoint.storage` of the job."""
    fills_disk: bool = False
    """The run's checkpoints go to a file system of their own."""
    link: Link | None = None
    network: Network | None = None


class Injector:
    """Observer that injects a fault when a planned step has been reported, one fault at a time.

    The next fault waits until the run has recovered from the previous one. Faults that workers inject themselves
    (`drill_plan.INJECTED`) are part of the run's plan.
    """

    def __init__(self, home: Path, planned: Sequence[Planned], draw: random.Random, means: Means) -> None:
        self.tally = DrillTally()
        self._home, self._draw, self._means = home, draw, means
        self._planned = list(planned)
        self._layout: RunLayout | None = None
        self._address = ""
        self._pids: dict[int, int] = {}
        self._nodes: dict[int, str] = {}
        """Addresses, by rank."""
        self._brake: Brake | None = None
        self._disk: Disk | None = None
        self._lasts = False
        """A fault that lasts is on."""
        self._slow: set[int] = set()

    def on_event(self, event: Event) -> None:
        """Record where the workers are; end a fault that lasts until it is detected."""
        self.tally.on_event(event)
        match event.body:
            case RunCreated() as run:
                self._begin(RunLayout(self._home / run.run_id))
            case WorkerStarted() as worker:
                self._pids[worker.rank] = worker.pid
                self._nodes[worker.rank] = worker.node
            case ClusterReady() as cluster:
                self._address = cluster.address
            case GangResized():
                self._pids.clear()  # the ranks are assigned again
            case RecoveryStarted():
                self._pids.clear()
                if self._brake is not None:  # a worker was lost because it was slow, which must not happen
                    self._lift()
                    self.tally.give_up()
            case WorkerSlow() as worker:
                self._slow = self._slow | {worker.rank} if worker.slow else self._slow - {worker.rank}
            case StateChanged(state) if state in ENDED:
                self._lift()
        if self.tally.known:
            self._lift()

    def _begin(self, layout: RunLayout) -> None:
        """A driver has taken up the run."""
        self._pids.clear()
        if self._means.network is not None:  # another driver's cluster has nodes at the same places
            self._means.network.mend()
        self._layout = layout
        if self._means.fills_disk and self._disk is None:
            self._disk = Disk(Path(self._place(layout)))

    def on_step(self, report: StepReport) -> None:
        """Inject a fault if it is due."""
        self.tally.on_step(report)
        if self.tally.open is None and self._planned and report.step >= self._planned[0][0] and self._pids:
            _, fault = self._planned.pop(0)
            # A process that has just ended by itself is no victim: one fault less, and the card says so.
            with contextlib.suppress(psutil.Error, ProcessLookupError, ClusterError, CheckpointError):
                self._strike(fault, report)

    def close(self) -> None:
        """End faults that still last, and move the run's checkpoints back to their place."""
        self._lift()
        disk, self._disk = self._disk, None
        if disk is not None:
            disk.close()

    def _place(self, layout: RunLayout) -> str:
        return layout.checkpoint_place(self._means.storage)

    def _lift(self) -> None:
        """End a fault that lasts: the brake, the full disk, the cut way to the bucket."""
        lasts, self._lasts = self._lasts, False
        if not lasts:
            return
        brake, self._brake = self._brake, None
        if brake is not None:
            brake.release()
        if self._disk is not None:
            self._disk.empty()
        if self._means.link is not None:
            self._means.link.mend()

    def _strike(self, fault: DrillFault, report: StepReport) -> None:
        rank: int | None = None
        struck_s = time.time()
        self._lasts = fault in (*ON_STORAGE, DrillFault.SLOW_RANK)
        if fault is DrillFault.DISK_FULL and self._disk is not None:
            self._disk.fill()
        elif fault is DrillFault.BUCKET_DOWN and self._means.link is not None:
            self._means.link.cut()
        elif fault is DrillFault.KILL_DRIVER:
            self._means.kill_driver()
        else:
            rank = self._victim(fault)
            if rank is None or not self._hit(fault, rank, report):
                return  # fewer faults than planned: the scorecard says so
            struck_s = struck_s if fault is not DrillFault.CORRUPT_SHARD else time.time()
        self.tally.struck(fault, report.step, rank, struck_s)

    def _victim(self, fault: DrillFault) -> int | None:
        """A rank, on a node other than the head if there is one; None if there is no target."""
        on_other_nodes = {rank: pid for rank, pid in self._pids.items() if not is_head(raylet_of(pid))}
        if fault in ON_NODES and not on_other_nodes:
            return None
        candidates = sorted(on_other_nodes or self._pids)
        if fault is DrillFault.SLOW_RANK:  # who is slow by itself will not be called slow once more
            candidates = [rank for rank in candidates if rank not in self._slow] or candidates
        return self._draw.choice(candidates)

    def _hit(self, fault: DrillFault, rank: int, report: StepReport) -> bool:
        """Carry it out on a worker or its node; False if it cannot be."""
        pid = self._pids[rank]
        if fault is DrillFault.CORRUPT_SHARD and not self._corrupt(pid):
            return False
        if fault is DrillFault.DRAIN_NODE:
            self._drain(raylet_of(pid))
        elif fault is DrillFault.PARTITION and self._means.network is not None:
            self._means.network.cut(self._nodes[rank])
        elif fault in ON_NODES:
            send(raylet_of(pid), signal.SIGKILL if fault is DrillFault.KILL_NODE else signal.SIGSTOP)
        elif fault is DrillFault.SLOW_RANK:
            self._brake = Brake(pid, max(SHORTEST_BURST_S, report.step_time_s))
        else:
            os.kill(pid, signal.SIGSTOP if fault is DrillFault.HANG_RANK else signal.SIGKILL)
        return True

    def _corrupt(self, pid: int) -> bool:
        """Damage the newest checkpoint while a worker is stopped: it could not be the newest any more otherwise."""
        os.kill(pid, signal.SIGSTOP)
        damaged = False
        try:
            damaged = self._layout is not None and corrupt_newest(self._place(self._layout))
        finally:
            if not damaged:
                os.kill(pid, signal.SIGCONT)
        return damaged

    def _drain(self, raylet: psutil.Process) -> None:
        """Announce the end of a node, and end it then.

        In a process of its own: this one is no part of the cluster, and does not become one.
        """
        said = [self._address, node_id_of(raylet), str(DRAIN_NOTICE_S), "a drill takes it away"]
        command = [sys.executable, "-m", "orchestrator.clusters.ray.draining", *said]
        try:
            done = subprocess.run(
                command, env=dict(self._means.environment), capture_output=True, timeout=ANNOUNCE_S, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise ClusterError("a node could not be announced as draining") from error
        if done.returncode:
            raise ClusterError(f"a node could not be announced as draining: {done.stderr.decode()[-500:]}")
        end = threading.Timer(DRAIN_NOTICE_S, send, args=(raylet, signal.SIGKILL))
        end.daemon = True
        end.start()
