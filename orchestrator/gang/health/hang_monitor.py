"""Hangs of a gang: observes the members, takes stacks, and gives up the ones that the others wait for.

The decisions are in `domain.policy.hang`; this module collects the facts and carries the decisions out.
"""

import contextlib
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import ray

from orchestrator.clusters.ray.handles import ObjectRef
from orchestrator.domain.events import CheckpointSaved, WarningIssued, WorkerHung
from orchestrator.domain.policy.driver_pauses import PAUSE_S
from orchestrator.domain.policy.hang import (
    ALL_STORAGE_S,
    STORAGE_S,
    Finding,
    Pace,
    Phase,
    Pulse,
    State,
    judge_pulses,
)
from orchestrator.domain.run_layout import RunLayout
from orchestrator.domain.step_report import StepReport
from orchestrator.gang.agent.process_activity import BLOCKED_S, BlockedThreads, Look, look_at
from orchestrator.gang.group.worker_handle import WorkerHandle
from orchestrator.gang.health.stacks import Stacks, end_worker, foreign_stacks
from orchestrator.gang.vaults.vault_clients import VaultClients, node_answers
from orchestrator.metrics.event_bus import EventBus

STACKS_PATIENCE_S = 12.0
"""How long to wait for stacks of a hung gang."""
LATE_S = 1.5
"""How long an agent may be silent before its process is inspected from outside. It answers twice a second."""
LOOK_S_PER_WORKER = 0.0005
"""From one look at a gang's progress to the next, for each worker: of 1,024 workers twice a second."""
REMEMBERED_STEPS = 50
SHOWN_LINES = 40
"""Lines of a culprit's stack in the event."""

_Beat = tuple[int, int, Phase, int]
"""Step, beats in it, phase, progress."""


class HangMonitor:
    """Watches one generation after the other and keeps the measurements of earlier ones. For the driver's thread."""

    def __init__(self, one_host: bool, vaults: VaultClients | None, timeout_s: float | None = None) -> None:
        """`one_host`: all nodes are on the driver's host. `timeout_s`: without progress; None: judged by measured step
        times."""
        self._timeout_s = timeout_s
        self._eyes = _Eyes(one_host, vaults)
        self._steps_s: deque[float] = deque(maxlen=REMEMBERED_STEPS)
        self._checkpoints_s: deque[float] = deque(maxlen=REMEMBERED_STEPS)
        self._members: Sequence[WorkerHandle] = ()
        self._bus = EventBus()
        self._layout = RunLayout(Path())
        self._begin_s = 0.0

    def begin(self, members: Sequence[WorkerHandle], run_dir: str, bus: EventBus) -> None:
        """Start watching a generation."""
        self._members, self._bus, self._layout = members, bus, RunLayout(Path(run_dir))
        self._begin_s = self._step_s = time.monotonic()
        self._last: StepReport | None = None
        self._beats: dict[int, tuple[_Beat, float]] = {}
        """By rank: the last beat or progress, and when it was first seen."""
        self._blocked_s: dict[int, float] = {}
        """By rank: since when it is blocked in storage."""
        self._told_storage = False
        self._look_again_s = 0.0
        self._eyes.forget()

    def round(self, now_s: float, gap_s: float, last: StepReport | None) -> None:
        """One round, `gap_s` after the previous one; `last`: this generation's newest report."""
        if gap_s > PAUSE_S:
            self._step_s += gap_s
            self._beats = {rank: (beat, since_s + gap_s) for rank, (beat, since_s) in self._beats.items()}
            self._blocked_s = {rank: since_s + gap_s for rank, since_s in self._blocked_s.items()}
            self._eyes.paused(gap_s)
        self._take_step(last, now_s)
        if now_s < self._look_again_s and gap_s <= PAUSE_S:
            return
        self._look_again_s = now_s + LOOK_S_PER_WORKER * len(self._members)
        members = {member.rank: member for member in self._members if not member.over and member.run_ref is not None}
        pulses = [self._pulse(member, now_s) for member in members.values()]
        pace = Pace(tuple(self._steps_s), tuple(self._checkpoints_s), self._last is not None)
        finding = judge_pulses(pulses, now_s - self._step_s, pace, self._timeout_s)
        self._tell_storage(finding, members)
        if finding.state is State.FINE:
            self._eyes.close()
        elif finding.state is State.SUSPICIOUS:
            self._eyes.open(members, pulses, now_s)
        elif self._not_the_node(finding, members, pulses):
            self._eyes.open(members, pulses, now_s)
            if self._eyes.ready(now_s):
                self._give_up(finding, members, now_s)

    def _not_the_node(self, finding: Finding, members: dict[int, WorkerHandle], pulses: Sequence[Pulse]) -> bool:
        """Whether the silent members to give up are on nodes that answer: silent nodes are handled elsewhere."""
        silent = [pulse.rank for pulse in pulses if not pulse.heard]
        suspects = [rank for rank in finding.culprits or silent if rank in silent]
        return all(self._eyes.node_lives(members[rank], list(members.values()), pulses) for rank in suspects)

    def take_checkpoint(self, saved: CheckpointSaved) -> None:
        """A checkpoint was saved. Only those that training waited for are measured: one that the vaults wrote pauses
        training only briefly."""
        if saved.write_seconds is None:
            self._checkpoints_s.append(saved.seconds)

    def _take_step(self, last: StepReport | None, now_s: float) -> None:
        if last is None or last is self._last:
            return
        if self._last is not None:  # the first step is not typical
            self._steps_s.append(max(0.0, last.step_time_s - last.ranks.spread.checkpoint_s.max))
        self._last, self._step_s = last, now_s

    def _pulse(self, member: WorkerHandle, now_s: float) -> Pulse:
        heartbeat, rank = member.heartbeat, member.rank
        beat: _Beat = (0, 0, Phase.START, 0)
        if heartbeat is not None:
            beat = (heartbeat.step, heartbeat.beat, heartbeat.phase, heartbeat.progress)
        quiet_s, blocked = max(0.0, now_s - member.renewed_s), heartbeat is not None and heartbeat.blocked
        if self._eyes.has_nothing_of(rank, quiet_s):
            still_s = self._still_s(rank, beat, blocked, now_s)
            return Pulse(rank, beat[0], beat[1], beat[2], still_s, quiet_s, blocked=blocked)
        pulse = Pulse(rank, beat[0], beat[1], beat[2], 0.0, quiet_s, blocked=blocked)
        pulse = self._eyes.look(member, pulse, now_s)
        return replace(pulse, still_s=self._still_s(rank, beat, pulse.blocked, now_s))

    def _still_s(self, rank: int, beat: _Beat, blocked: bool, now_s: float) -> float:
        """For how long a rank has been without progress; time in which its storage blocked it is not counted twice."""
        known, since_s = self._beats.get(rank, (None, self._begin_s))
        if known is not None and beat != known:
            since_s = now_s
        if blocked:
            self._blocked_s.setdefault(rank, now_s - BLOCKED_S)
        elif rank in self._blocked_s:  # it gets the rest of its time
            since_s = min(now_s, since_s + now_s - self._blocked_s.pop(rank))
        self._beats[rank] = (beat, since_s)
        return now_s - since_s

    def _tell_storage(self, finding: Finding, members: dict[int, WorkerHandle]) -> None:
        """Warn once that storage prevents progress of the gang."""
        if not finding.excused:
            self._told_storage = False
        elif not self._told_storage:
            self._told_storage = True
            ranks = ", ".join(str(rank) for rank in finding.excused)
            limit_s = ALL_STORAGE_S if len(finding.excused) == len(members) else STORAGE_S
            message = (
                f"no progress for {finding.still_s:.0f} s: the storage of worker {ranks} does not answer; "
                f"the gang waits for it for at most {limit_s:.0f} s"
            )
            self._bus.emit(WarningIssued(message))

    def _give_up(self, finding: Finding, members: dict[int, WorkerHandle], now_s: float) -> None:
        """Record the stacks, emit events, and end the culprits' processes, or all of them if no culprit is known."""
        directory = self._write_stacks(members)
        for rank in finding.culprits or (None,):
            step, _, phase, _ = max(beat for beat, _ in self._beats.values()) if rank is None else self._beats[rank][0]
            hung = WorkerHung(
                rank=rank,
                node=None if rank is None else members[rank].hello.node_ip,
                step=step,
                phase=phase.value,
                seconds=finding.still_s,
                reason=finding.reason,
                stacks=directory,
                stack=None if rank is None else _shown(self._eyes.taken.get(rank)),
            )
            self._bus.emit(hung)
        message = f"no progress for {finding.still_s:.1f} s: {finding.reason};"
        for rank in finding.culprits or tuple(members):
            members[rank].take_hang(message, now_s, finding.still_s)
            self._eyes.end(members[rank])
        self._eyes.close()

    def _write_stacks(self, members: dict[int, WorkerHandle]) -> str | None:
        """Write a file for each worker; return their directory, relative to the run's."""
        directory = self._layout.incident_stacks(len(list(self._layout.incidents.glob("incident-*.md"))) + 1)
        try:
            directory.mkdir(parents=True, exist_ok=True)
            for rank, member in members.items():
                taken = self._eyes.taken.get(rank, Stacks("no stacks: the process was not asked, or did not answer"))
                title = f"worker {rank}, process {member.hello.pid} on {member.hello.host}"
                (directory / f"rank-{rank}.txt").write_text(f"{title}\n\n{taken.text}\n", encoding="utf-8")
        except OSError as error:
            self._bus.emit(WarningIssued(f"stacks could not be written: {error.strerror}: {directory}"))
            return None
        return str(directory.relative_to(self._layout.root))


class _Eyes:
    """Inspects and ends worker processes from outside: on this host by the driver, on others by the node's vault."""

    def __init__(self, one_host: bool, vaults: VaultClients | None) -> None:
        self._one_host, self._vaults = one_host, vaults
        self._here: str | None = None
        self.forget()

    def forget(self) -> None:
        """Start a new generation."""
        self._stopped_since_s: dict[int, float] = {}
        self._threads: dict[int, BlockedThreads] = {}
        self._looks: dict[int, ObjectRef] = {}
        self._said: dict[int, Look | None] = {}
        self.close()

    def close(self) -> None:
        """There is no hang: drop the stacks."""
        self._open_s: float | None = None
        self._asked: dict[ObjectRef, int] = {}
        self._itself: dict[int, ObjectRef] = {}
        """By rank: the requests in `_asked` that went to the processes themselves."""
        self.taken: dict[int, Stacks] = {}

    def paused(self, gap_s: float) -> None:
        """The driver was paused for this long."""
        self._stopped_since_s = {rank: since_s + gap_s for rank, since_s in self._stopped_since_s.items()}
        for threads in self._threads.values():
            threads.shift(gap_s)
        if self._open_s is not None:
            self._open_s += gap_s

    def has_nothing_of(self, rank: int, quiet_s: float) -> bool:
        """Whether `look` would add nothing to the pulse of a rank."""
        memory = (self.taken, self._stopped_since_s, self._threads, self._said)
        return quiet_s < LATE_S and not self._asked and not any(rank in each for each in memory)

    def look(self, member: WorkerHandle, pulse: Pulse, now_s: float) -> Pulse:
        """Add to a pulse the state of a process whose agent is late, and what its stack shows.

        An agent is late if its process is stopped, or if a thread waits for storage while holding the interpreter lock.
        """
        self._collect()
        taken = self.taken.get(member.rank)
        pulse = pulse if taken is None else replace(pulse, waits=taken.waits, counts=taken.counts)
        if pulse.quiet_s < LATE_S:
            for forgotten in (self._stopped_since_s, self._threads, self._said):
                forgotten.pop(member.rank, None)
            return pulse
        seen = self._look_at(member)
        threads = self._threads.setdefault(member.rank, BlockedThreads())
        blocked = threads.take(seen.blocked if seen is not None else (), now_s) or (pulse.heard and pulse.blocked)
        if seen is None or not seen.stopped:
            self._stopped_since_s.pop(member.rank, None)
            return replace(pulse, looked=seen is not None, blocked=blocked)
        since_s = self._stopped_since_s.setdefault(member.rank, now_s)
        return replace(pulse, looked=True, stopped_s=now_s - since_s, blocked=blocked)

    def open(self, members: dict[int, WorkerHandle], pulses: Sequence[Pulse], now_s: float) -> None:
        """Request the stacks of all members once; if a process that was asked falls silent, also from outside."""
        if self._open_s is None:
            self._open_s = now_s
            for pulse in pulses:
                self._ask(members[pulse.rank], pulse)
            return
        for pulse in pulses:
            pending = self._itself.get(pulse.rank)
            if pending is not None and not pulse.heard:
                del self._itself[pulse.rank]
                if self._asked.pop(pending, None) is not None:
                    self._ask(members[pulse.rank], pulse)

    def _ask(self, member: WorkerHandle, pulse: Pulse) -> None:
        vault = self._vaults.actor(member.hello.node_id) if self._vaults is not None else None
        if pulse.heard:
            self._itself[pulse.rank] = member.actor.stacks.remote()
            self._asked[self._itself[pulse.rank]] = pulse.rank
        elif vault is not None:
            self._asked[vault.stacks.remote(member.hello.pid)] = pulse.rank
        elif self._is_here(member):
            self.taken[pulse.rank] = foreign_stacks(member.hello.pid)
        else:
            text = "no stacks: its agent does not answer, and there is no vault on its node (checkpoint.memory)"
            self.taken[pulse.rank] = Stacks(text)

    def ready(self, now_s: float) -> bool:
        """Whether all stacks had arrived when pulses were last taken, or the wait for them is over."""
        return not self._asked or (self._open_s is not None and now_s - self._open_s >= STACKS_PATIENCE_S)

    def node_lives(self, member: WorkerHandle, members: Sequence[WorkerHandle], pulses: Sequence[Pulse]) -> bool:
        """Whether something else on a member's node answers. If not, the node is silent, not only the process."""
        node = {other.rank for other in members if other.hello.node_id == member.hello.node_id}
        if any(pulse.heard for pulse in pulses if pulse.rank in node):
            return True
        return node_answers(self._vaults, member.hello.node_id)

    def end(self, member: WorkerHandle) -> None:
        """End a process that may be unable to exit itself."""
        vault = self._vaults.actor(member.hello.node_id) if self._vaults is not None else None
        if self._is_here(member):
            end_worker(member.hello.pid)
        elif vault is not None:
            vault.end_worker.remote(member.hello.pid)
        with contextlib.suppress(ray.exceptions.RayError):
            ray.kill(member.actor, no_restart=True)

    def _look_at(self, member: WorkerHandle) -> Look | None:
        """Inspect a process from outside; None if that is impossible."""
        if self._is_here(member):
            return look_at(member.hello.pid)
        vault = self._vaults.actor(member.hello.node_id) if self._vaults is not None else None
        asked = self._looks.get(member.rank)
        if asked is not None and ray.wait([asked], timeout=0)[0]:
            with contextlib.suppress(ray.exceptions.RayError):
                self._said[member.rank] = ray.get(asked)
            del self._looks[member.rank]
        if vault is not None and member.rank not in self._looks:
            self._looks[member.rank] = vault.look_at.remote(member.hello.pid)
        return self._said.get(member.rank)

    def _collect(self) -> None:
        if not self._asked:
            return
        ready, _ = ray.wait(list(self._asked), num_returns=len(self._asked), timeout=0)
        for ref in ready:
            rank = self._asked.pop(ref)
            try:
                self.taken[rank] = ray.get(ref)
            except ray.exceptions.RayError as error:
                self.taken[rank] = Stacks(f"no stacks: {error}")

    def _is_here(self, member: WorkerHandle) -> bool:
        if self._one_host:
            return True
        if self._here is None:
            self._here = ray.get_runtime_context().get_node_id()
        return bool(member.hello.node_id == self._here)


def _shown(stacks: Stacks | None) -> str | None:
    """The end of the training thread's stack, if it is known which thread that is."""
    if stacks is None:
        return None
    text = stacks.text if stacks.waits is None else stacks.text.split("\n\n")[0]
    return "\n".join(text.splitlines()[-SHOWN_LINES:])
