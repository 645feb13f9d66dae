"""Drills: run a job twice, once undisturbed and once with real faults, and compare. The faults kill real processes."""

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import psutil

from orchestrator.checkpoint.catalog import list_checkpoints
from orchestrator.domain.errors import ClusterError, UsageError
from orchestrator.domain.events import Event, EventKind, Observer, RunState
from orchestrator.domain.layout import RunLayout
from orchestrator.domain.numeric import Arranged, Injection
from orchestrator.domain.report import StepReport
from orchestrator.domain.scorecard import (
    FP32_TOLERANCE,
    LOW_PRECISION_TOLERANCE,
    Fault,
    FaultResult,
    Scorecard,
    max_relative_difference,
    strike_steps,
)
from orchestrator.domain.stragglers import WINDOW_STEPS
from orchestrator.gang.draining import drain as announce_end
from orchestrator.service import RunOutcome, run_job
from orchestrator.spec.load import LoadedJob
from orchestrator.store.history import current_steps
from orchestrator.store.proof import prove
from orchestrator.store.runs import RunStore
from orchestrator.store.skips import read_skips

REAL = tuple(fault for fault in Fault if fault not in (Fault.RANDOM, Fault.SLOW_RANK))
SHORTEST_BURST_S = 0.02
LONGEST_SLOWNESS_S = 60.0
DRAIN_NOTICE_S = 20.0
"""Shorter than any cloud's (30 s to 2 minutes)."""
ON_NODES = (Fault.KILL_NODE, Fault.SILENCE_NODE, Fault.DRAIN_NODE)
ENDED = (RunState.SUCCEEDED, RunState.FAILED, RunState.STOPPED)

Planned = tuple[int, Fault]
"""The step after which to strike, and how."""


def drill(
    job: LoadedJob,
    home: Path,
    fault: Fault,
    times: int,
    seed: int,
    observers: Sequence[Observer],
    stop: threading.Event,
) -> Scorecard | None:
    """Run `job` undisturbed, then with `times` faults spread over its steps; None where stopped.

    Raises UsageError where the job cannot be drilled: it must run on a local cluster and have steps enough.
    """
    if job.spec.cluster.address is not None:
        raise UsageError(
            "a drill kills nodes, and does so on a local cluster only",
            hint="--set cluster.nodes=4, and remove cluster.address",
        )
    if fault is Fault.NAN and times > _numeric_faults_allowed(job):
        raise UsageError(
            f"{times} numeric faults are more than the job would get over: recovery.on_nan is"
            f" {job.spec.recovery.on_nan}, recovery.max_rollbacks {job.spec.recovery.max_rollbacks}",
            hint=f"--set recovery.on_nan=rollback_and_skip --set recovery.max_rollbacks={times}",
        )
    undisturbed = run_job(job, home, observers, stop)
    if stop.is_set():
        return None
    if undisturbed.state is not RunState.SUCCEEDED:
        raise UsageError(f"the job does not finish even undisturbed: {undisturbed.reason}")
    try:
        when = strike_steps(undisturbed.step, times)
    except ValueError as error:
        raise UsageError(str(error), hint="lower --times, or raise train.steps") from error
    if fault is Fault.SLOW_RANK and undisturbed.step < (times + 1) * 2 * WINDOW_STEPS:
        raise UsageError(
            f"workers are compared over {WINDOW_STEPS} steps: {undisturbed.step} are too few for {times} faults",
            hint=f"--set train.steps={(times + 1) * 2 * WINDOW_STEPS}",
        )
    draw = random.Random(seed)
    planned = _planned(job, fault, when, draw)
    workers = job.spec.resources.workers
    fewest = workers if isinstance(workers, int) else workers.min
    numeric = tuple(Injection("nan", step + 1, draw.randrange(fewest)) for step, what in planned if what is Fault.NAN)
    strikes = [each for each in planned if each[1] is not Fault.NAN]
    injector = Injector(home.absolute(), strikes, draw)
    outcome = run_job(job, home, [injector, *observers], stop, arranged=Arranged(injections=numeric))
    left_out = read_skips(RunLayout(outcome.run_dir))
    if left_out and not stop.is_set():
        # By design its losses are not those of a run that used these samples, but of one that never had them.
        given = tuple(replace(skip, from_step=0, fault=None) for skip in left_out)
        undisturbed = run_job(job, home, observers, stop, arranged=Arranged(skips=given))
    if stop.is_set():
        return None
    return _score(job, undisturbed, outcome, injector, len(when))


def _numeric_faults_allowed(job: LoadedJob) -> int:
    """How many of them the job gets over by its spec; with `stop` one shows that it does not."""
    recovery = job.spec.recovery
    return {"rollback_and_skip": recovery.max_rollbacks, "stop": 1, "continue": 0}[recovery.on_nan]


def _planned(job: LoadedJob, fault: Fault, when: Sequence[int], draw: random.Random) -> list[Planned]:
    """Each fault with its step; `random` ones are drawn, numeric ones among them as many as the job gets over."""
    planned: list[Planned] = []
    for step in when:
        numeric = sum(1 for _, each in planned if each is Fault.NAN)
        full = numeric >= _numeric_faults_allowed(job)
        choices = [each for each in REAL if not (full and each is Fault.NAN)] if fault is Fault.RANDOM else [fault]
        planned.append((step, draw.choice(choices)))
    return planned


class Injector:
    """Observer that strikes when a step it waits for has been reported, one fault at a time, and keeps the score.

    The next fault waits until the one before is got over. Numeric faults are not its own: the workers make them, at
    the step arranged, and tell.
    """

    def __init__(self, home: Path, planned: Sequence[Planned], draw: random.Random) -> None:
        self.results: list[FaultResult] = []
        self._home, self._draw = home, draw
        self._planned = list(planned)
        self._world_size = 0
        self._layout: RunLayout | None = None
        self._address = ""
        self._furthest = 0
        self._left = False
        """The gang was formed anew since a node was announced to go."""
        self._pids: dict[int, int] = {}
        self._struck_s: float | None = None
        self._brake: _Brake | None = None
        self._slow: set[int] = set()

    def on_event(self, event: Event) -> None:
        """Learn where the workers are, and how the run gets over a fault."""
        fields = event.fields
        if event.kind is EventKind.RUN_CREATED:
            self._layout = RunLayout(self._home / str(fields["run_id"]))
        elif event.kind is EventKind.WORKER_STARTED:
            self._pids[int(fields["rank"])] = int(fields["pid"])
        elif event.kind is EventKind.CLUSTER_READY:
            self._address = str(fields["address"])
        elif event.kind is EventKind.RESIZED:
            self._pids.clear()  # ranks are dealt out anew
            self._left = self._left or self._draining
        elif event.kind is EventKind.NODE_DRAINING and self._draining and self.results[-1].detection_s is None:
            self.results[-1] = replace(self.results[-1], detection_s=event.time_s - (self._struck_s or event.time_s))
        elif event.kind is EventKind.PLAN:
            self._world_size = int(fields["world_size"])
        elif event.kind is EventKind.FAULT_INJECTED:
            self._note(str(fields["fault"]), int(fields["step"]) - 1, int(fields["rank"]), event.time_s)
        elif event.kind is EventKind.RECOVERY_STARTED:
            self._pids.clear()  # ranks are dealt out anew
            if self._brake is not None:  # it was to be slow, and somebody was lost for it: not what must happen
                self._release()
                self._struck_s = None
            if self._struck_s is not None and self.results[-1].detection_s is None:
                self.results[-1] = replace(self.results[-1], detection_s=float(fields["detected_s"]) - self._struck_s)
        elif event.kind is EventKind.WORKER_SLOW:
            self._take_slowness(int(fields["rank"]), bool(fields["slow"]), event.time_s)
        elif event.kind is EventKind.STATE_CHANGED and RunState(fields["state"]) in ENDED:
            self._release()
        elif event.kind is EventKind.RECOVERED and self._struck_s is not None:
            self.results[-1] = replace(
                self.results[-1],
                first_step_s=event.time_s - self._struck_s,
                steps_recomputed=int(fields["steps_recomputed"]),
                workers_after=int(fields["world_size"]),
            )
            self._struck_s, self._left = None, False

    def on_step(self, report: StepReport) -> None:
        """Strike where it is time to."""
        struck_s, again = self._struck_s, max(0, self._furthest - report.step + 1)
        slow = struck_s is not None and self.results[-1].fault == Fault.SLOW_RANK.value
        if struck_s is not None and ((slow and self._brake is None) or self._left):
            self._got_over(report, struck_s, again)
        self._furthest = max(self._furthest, report.step)
        if self._struck_s is None and self._planned and report.step >= self._planned[0][0] and self._pids:
            _, fault = self._planned.pop(0)
            self._strike(fault, report)

    def _take_slowness(self, rank: int, slow: bool, time_s: float) -> None:
        self._slow = self._slow | {rank} if slow else self._slow - {rank}
        if slow and self._brake is not None and self._struck_s is not None and rank == self.results[-1].rank:
            self.results[-1] = replace(self.results[-1], detection_s=time_s - self._struck_s)
            self._release()

    @property
    def _draining(self) -> bool:
        return self._struck_s is not None and self.results[-1].fault == Fault.DRAIN_NODE.value

    def _got_over(self, report: StepReport, struck_s: float, again: int) -> None:
        """A slow worker was named, or a node left before it went, and another step is made by everybody."""
        self.results[-1] = replace(
            self.results[-1],
            first_step_s=report.time_s - struck_s,
            steps_recomputed=again,
            workers_after=report.world_size,
        )
        self._struck_s, self._left = None, False

    def _release(self) -> None:
        brake, self._brake = self._brake, None
        if brake is not None:
            brake.release()

    def _strike(self, fault: Fault, report: StepReport) -> None:
        """Carry it out. A process that has just ended by itself is no victim: one fault less, and the card says so."""
        with contextlib.suppress(psutil.Error, ProcessLookupError, ClusterError):
            self._carry_out(fault, report)

    def _carry_out(self, fault: Fault, report: StepReport) -> None:
        on_other_nodes = {rank: pid for rank, pid in self._pids.items() if not _is_head(_raylet(pid))}
        if fault in ON_NODES and not on_other_nodes:
            return  # fewer faults than planned: the scorecard says so
        candidates = sorted(on_other_nodes or self._pids)
        if fault is Fault.SLOW_RANK:  # who is slow by itself will not be called slow once more
            candidates = [rank for rank in candidates if rank not in self._slow] or candidates
        rank = self._draw.choice(candidates)
        pid = self._pids[rank]
        if fault is Fault.CORRUPT_SHARD:
            self._corrupt()
        struck_s = time.time()
        if fault is Fault.DRAIN_NODE:
            self._drain(_raylet(pid))
        elif fault in ON_NODES:
            _send(_raylet(pid), signal.SIGKILL if fault is Fault.KILL_NODE else signal.SIGSTOP)
        elif fault is Fault.SLOW_RANK:
            self._brake = _Brake(pid, max(SHORTEST_BURST_S, report.step_time_s))
        else:
            os.kill(pid, signal.SIGSTOP if fault is Fault.HANG_RANK else signal.SIGKILL)
        self._note(fault.value, report.step, rank, struck_s)

    def _drain(self, raylet: psutil.Process) -> None:
        """Announce the end of a node, and end it then."""
        node_id = next(word for word in raylet.cmdline() if word.startswith("--node_id=")).partition("=")[2]
        announce_end(self._address, node_id, DRAIN_NOTICE_S, "a drill takes it away")
        end = threading.Timer(DRAIN_NOTICE_S, _send, args=(raylet, signal.SIGKILL))
        end.daemon = True
        end.start()

    def _note(self, fault: str, step: int, rank: int, struck_s: float) -> None:
        self._struck_s = struck_s
        self.results.append(FaultResult(fault, step, rank, None, None, None, self._world_size, None))

    def _corrupt(self) -> None:
        """Flip one bit in the middle of a shard of the newest checkpoint."""
        found = list_checkpoints(self._layout.checkpoints) if self._layout is not None else []
        shard = next((path for entry in found[:1] for path in sorted(entry.path.glob("*.bin"))), None)
        if shard is None:
            return
        with shard.open("r+b") as file:
            file.seek(shard.stat().st_size // 2)
            byte = file.read(1)[0]
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 0x10]))


class _Brake:
    """Stops a process again and again for a moment, from a thread, until it is released: two thirds of the time."""

    def __init__(self, pid: int, burst_s: float) -> None:
        self._process, self._burst_s = psutil.Process(pid), burst_s
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._run, name="brake", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Let it run; returns when it does."""
        self._released.set()
        self._thread.join()

    def _run(self) -> None:
        until_s = time.monotonic() + LONGEST_SLOWNESS_S
        with contextlib.suppress(psutil.NoSuchProcess):
            try:
                while not self._released.is_set() and time.monotonic() < until_s:
                    self._process.send_signal(signal.SIGSTOP)
                    time.sleep(self._burst_s)
                    self._process.send_signal(signal.SIGCONT)
                    self._released.wait(self._burst_s / 2)
            finally:
                self._process.send_signal(signal.SIGCONT)


def _send(raylet: psutil.Process, number: signal.Signals) -> None:
    """A signal for a node's raylet and every process of it, as far as they are still there."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in [raylet, *raylet.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):  # workers die with their raylet
                process.send_signal(number)


def _raylet(pid: int) -> psutil.Process:
    """The raylet that a worker of a local cluster belongs to."""
    return next(parent for parent in psutil.Process(pid).parents() if parent.name() == "raylet")


def _is_head(raylet: psutil.Process) -> bool:
    return "--head" in raylet.cmdline()


def _score(job: LoadedJob, undisturbed: RunOutcome, outcome: RunOutcome, injector: Injector, planned: int) -> Scorecard:
    proof = prove(RunStore(outcome.run_dir.parent).read(outcome.run_id))
    losses = _losses(outcome) if proof.ok else []
    return Scorecard(
        run=outcome.run_id,
        undisturbed_run=undisturbed.run_id,
        faults=tuple(injector.results),
        planned=planned,
        finished=outcome.state is RunState.SUCCEEDED,
        reason=outcome.reason,
        data_exact=proof.ok,
        max_loss_difference=max_relative_difference(losses, _losses(undisturbed)),
        samples_left_out=proof.skipped_samples,
        tolerance=FP32_TOLERANCE if job.spec.train.precision == "fp32" else LOW_PRECISION_TOLERANCE,
    )


def _losses(outcome: RunOutcome) -> list[float]:
    return [step.loss for step in current_steps(RunLayout(outcome.run_dir).steps)]
