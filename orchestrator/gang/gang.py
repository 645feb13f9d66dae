"""The driver's eyes and hands: starts workers, listens to them, ends them. Decisions are in `decide`."""

import contextlib
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from orchestrator.domain.errors import ClusterError
from orchestrator.domain.events import Event, EventKind, Observer
from orchestrator.domain.numeric import NumericFault
from orchestrator.domain.report import StepReport
from orchestrator.domain.session import TrainPlan, TrainResult
from orchestrator.gang.capture import last_lines
from orchestrator.gang.decide import (
    Action,
    Ending,
    Failure,
    GangFacts,
    decide,
    explain_death,
    is_consequence,
    is_out_of_memory,
    numeric_fault,
    root_cause,
    unseen_lines,
)
from orchestrator.gang.files import FileServer, remove_host_cache, write_marker
from orchestrator.gang.outbox import Batch, Lease, Published
from orchestrator.gang.placement import Request
from orchestrator.gang.processes import die_with_parent
from orchestrator.gang.ray_session import Assignment
from orchestrator.gang.worker_actor import AGENT_GROUP, AGENT_THREADS, FileAccess, Hello, Raised, WorkerActor

POLL_S = 0.5
"""A poll's longest wait in the worker: what happens there arrives at once all the same."""
TICK_S = 0.1
TAIL_LINES = 40
LAST_WORDS_S = 0.6
START_TIMEOUT_S = 120.0


@dataclass
class Member:
    """One worker as the driver knows it."""

    actor: Any
    hello: Hello
    assignment: Assignment
    run_ref: Any = None
    poll_ref: Any = None
    lease: Lease | None = None
    renewed_s: float = 0.0
    result: TrainResult | None = None
    failure: Failure | None = None
    recent: deque[str] = field(default_factory=lambda: deque(maxlen=TAIL_LINES))

    @property
    def rank(self) -> int:
        return self.assignment.rank

    @property
    def over(self) -> bool:
        return self.result is not None or self.failure is not None


@dataclass(frozen=True)
class GangOutcome:
    """How it ended. `failure` is the root cause; `stopped` says that somebody asked for the end."""

    results: tuple[TrainResult, ...]
    failure: Failure | None
    stopped: bool
    step: int
    """Last step that rank 0 reported or returned."""

    @property
    def out_of_memory(self) -> bool:
        """It failed for want of memory."""
        return self.failure is not None and is_out_of_memory(self.failure)

    @property
    def numeric_fault(self) -> NumericFault | None:
        """It stopped at a step that must not count."""
        return numeric_fault(self.failure) if self.failure is not None else None

    @property
    def lost_nobody(self) -> bool:
        """A worker's own code raised; no process and no node, as far as can be told, was lost."""
        return self.failure is not None and self.failure.ending is Ending.RAISED and not is_consequence(self.failure)


class Gang:
    """Workers of one run, one actor on each bundle of a placement group."""

    def __init__(self, group: Any, count: int, request: Request, env: dict[str, str], local: bool) -> None:
        """Ask Ray for the actors; `ready` waits for them. `local`: their processes die with their raylet."""
        self._group, self._local = group, local
        actor_class = _actor_class()
        self._actors = [
            actor_class.options(
                num_cpus=request.bundle.get("CPU", 0),
                num_gpus=request.bundle.get("GPU", 0),
                memory=request.bundle.get("memory"),
                resources={k: v for k, v in request.bundle.items() if k not in ("CPU", "GPU", "memory")},
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, index),
            ).remote(env, local)
            for index in range(count)
        ]
        self._hello_refs = [actor.hello.remote() for actor in self._actors]
        self.members: list[Member] = []
        self._server: Any = None
        self._step = 0
        self._oom_kills_before = _oom_kills()

    def warm(self, entries: tuple[str, ...]) -> None:
        """Let the workers import while the driver does something else."""
        self._warm_refs = [actor.warm.remote(entries) for actor in self._actors]

    def ready(self, stopped: Callable[[], bool]) -> bool:
        """Wait for every worker process; ranks follow nodes. False where `stopped`. Raises ClusterError."""
        deadline = time.monotonic() + START_TIMEOUT_S
        waiting = list(self._hello_refs)
        while waiting:
            if stopped():
                return False
            _, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=TICK_S)
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"{len(waiting)} of {len(self._actors)} worker processes did not start in {START_TIMEOUT_S:.0f} s",
                    hint="the nodes are overloaded, or Python there cannot import convoy: see Ray's logs on them",
                )
        try:
            hellos: list[Hello] = ray.get(self._hello_refs)
        except ray.exceptions.RayError as error:
            raise ClusterError(
                f"a worker process did not start: {_first_line(error)}",
                hint="convoy must be installed on every node, in the same version",
            ) from error
        self.members = _ranked(self._actors, hellos)
        return True

    @property
    def worker_pids(self) -> set[int]:
        """Processes of the workers; meaningful where all nodes are on this host."""
        return {member.hello.pid for member in self.members}

    def run(
        self,
        entry: str,
        plan: TrainPlan,
        readable: Sequence[str],
        observers: Sequence[Observer],
        stopped: Callable[[], bool],
    ) -> GangOutcome:
        """Run the entry point on every worker until all returned, one failed, or a stop was asked for and done."""
        access = self._serve_files(plan, readable)
        now_s = time.monotonic()
        for member in self.members:
            member.renewed_s = now_s
            member.run_ref = member.actor.run.remote(entry, plan, member.assignment, access)
            member.poll_ref = member.actor.poll.remote(POLL_S)
        stop_since_s: float | None = None
        while True:
            self._listen(observers)
            if stop_since_s is None and stopped():
                stop_since_s = time.monotonic()
                for member in self.members:
                    member.actor.notify.remote({}, True)
            action = decide(self._facts(stop_since_s))
            if action in (Action.FINISH, Action.FAIL, Action.KILL):
                return self._conclude(action, observers, stop_since_s is not None)

    def kill(self) -> None:
        """End every worker process now, and give the reservation back."""
        from ray.util.placement_group import remove_placement_group

        for actor in [*self._actors, self._server]:
            if actor is not None:
                with contextlib.suppress(ray.exceptions.RayError):
                    ray.kill(actor, no_restart=True)
        with contextlib.suppress(ray.exceptions.RayError):
            remove_placement_group(self._group)

    def _facts(self, stop_since_s: float | None) -> GangFacts:
        return GangFacts(
            now_s=time.monotonic(),
            world_size=len(self.members),
            returned=sum(1 for member in self.members if member.result is not None),
            failures=tuple(member.failure for member in self.members if member.failure is not None),
            stop_since_s=stop_since_s,
        )

    def _listen(self, observers: Sequence[Observer]) -> None:
        """Take in whatever has arrived, waiting a tick for something."""
        refs = {ref: member for member in self.members for ref in (member.poll_ref, member.run_ref) if ref is not None}
        if not refs:
            return
        ready, _ = ray.wait(list(refs), num_returns=1, timeout=TICK_S)
        if ready:
            ready, _ = ray.wait(list(refs), num_returns=len(refs), timeout=0)
        for ref in sorted(ready, key=lambda ref: ref is refs[ref].run_ref):  # what it said before how it ended
            member = refs[ref]
            if ref is member.run_ref:
                self._take_end(member)
            else:
                self._take_poll(member, observers)

    def _take_poll(self, member: Member, observers: Sequence[Observer]) -> None:
        try:
            batch: Batch = ray.get(member.poll_ref)
        except ray.exceptions.RayError:
            member.poll_ref = None  # its run ends in the same way, and says more
            return
        member.poll_ref = None if member.over else member.actor.poll.remote(POLL_S)
        self._digest(member, batch, observers)

    def _digest(self, member: Member, batch: Batch, observers: Sequence[Observer]) -> None:
        member.lease, member.renewed_s = batch.lease, time.monotonic()
        published = {item.key: item.value for item in batch.items if isinstance(item, Published)}
        if published:
            for other in self.members:
                if other is not member:
                    other.actor.notify.remote(published, False)
        for item in batch.items:
            if isinstance(item, StepReport):
                self._step = item.step
                for observer in observers:
                    observer.on_step(item)
            elif isinstance(item, Event):
                for observer in observers:
                    observer.on_event(item)
        lines = list(batch.lines)
        if batch.lines_dropped:
            lines.insert(0, f"[{batch.lines_dropped} lines were dropped here: too many at once]")
        self._log(member, lines, observers)

    def _log(self, member: Member, lines: Sequence[str], observers: Sequence[Observer]) -> None:
        now_s = time.time()
        member.recent.extend(lines)
        for line in lines:
            event = Event(EventKind.WORKER_LOG, now_s, {"rank": member.rank, "line": line})
            for observer in observers:
                observer.on_event(event)

    def _take_end(self, member: Member) -> None:
        ref, member.run_ref = member.run_ref, None
        now_s = time.monotonic()
        try:
            ended: TrainResult | Raised = ray.get(ref)
        except ray.exceptions.RayError as error:
            member.failure = self._describe_death(member, error, now_s)
            return
        if isinstance(ended, Raised):
            message = f"{ended.type}: {ended.message}" if ended.message else ended.type
            member.failure = Failure(
                ended.rank, Ending.RAISED, now_s, message, ended.traceback_text, ended.hint, ended.details
            )
        else:
            member.result = ended

    def _describe_death(self, member: Member, error: Exception, now_s: float) -> Failure:
        text = str(error)
        where = f"on {member.hello.host} ({member.hello.node_ip}), process {member.hello.pid}"
        if isinstance(error, ray.exceptions.NodeDiedError) or "node has died" in text or "its node" in text:
            return Failure(
                member.rank,
                Ending.NODE_DIED,
                now_s,
                f"its node died {where}",
                _first_line(error),
                "the machine, its network or its raylet is gone",
            )
        tail = last_lines(Path(member.hello.output), TAIL_LINES)
        oom_kills = _oom_kills() - self._oom_kills_before if self._local else 0
        cause, hint = explain_death(text, tail or member.recent, oom_kills)
        return Failure(
            member.rank,
            Ending.PROCESS_DIED,
            now_s,
            f"its process {cause} {where}",
            "\n".join(tail or member.recent),
            hint,
        )

    def _conclude(self, action: Action, observers: Sequence[Observer], stopping: bool) -> GangOutcome:
        """Collect what can still be said, kill who is left, name the cause."""
        self._last_words(observers)
        failures = [member.failure for member in self.members if member.failure is not None]
        cause = root_cause(failures) if action is Action.FAIL else None
        if action is not Action.KILL:
            refs = [m.actor.clean.remote(self._run_id) for m in self.members if m.result is not None]
            ray.wait(refs, num_returns=len(refs), timeout=0.5) if refs else None
        self.kill()
        remove_host_cache(self._run_id)  # a worker of this host that was killed could not
        if cause is not None:
            event = Event(
                EventKind.WORKER_FAILED,
                time.time(),
                {"rank": cause.rank, "error": cause.message, "traceback": cause.detail},
            )
            for observer in observers:
                observer.on_event(event)
        results = tuple(member.result for member in self.members if member.result is not None)
        stopped = stopping and not (len(results) == len(self.members) and all(r.finished for r in results))
        return GangOutcome(
            results,
            cause,
            stopped,
            max([self._step, *(m.result.step for m in self.members[:1] if m.result is not None)]),
        )

    def _last_words(self, observers: Sequence[Observer]) -> None:
        """Everything still queued in workers, or left in the output files of those that died; briefly."""
        refs: dict[Any, Member] = {}
        for member in self.members:
            if member.failure is not None and member.failure.ending is not Ending.RAISED:
                tail = last_lines(Path(member.hello.output), 1000)
                self._log(member, unseen_lines(tail, list(member.recent)), observers)
                continue
            if member.poll_ref is not None:
                refs[member.poll_ref] = member
                member.poll_ref = None
            refs[member.actor.poll.remote(0.0)] = member
        if not refs:
            return
        ready, _ = ray.wait(list(refs), num_returns=len(refs), timeout=LAST_WORDS_S)
        for ref in [ref for ref in refs if ref in set(ready)]:  # in the order they were asked for
            with contextlib.suppress(ray.exceptions.RayError):
                self._digest(refs[ref], ray.get(ref), observers)

    def _serve_files(self, plan: TrainPlan, readable: Sequence[str]) -> FileAccess:
        run_dir = Path(plan.run_dir)
        self._run_id = run_dir.name
        marker, word = write_marker(run_dir)
        here = ray.get_runtime_context().get_node_id()
        roots = (plan.run_dir, *readable, *([plan.resume_from] if plan.resume_from else []))
        server_class = ray.remote(num_cpus=0, max_concurrency=4)(_BoundFileServer if self._local else FileServer)
        self._server = server_class.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=False)
        ).remote(roots, plan.run_dir)
        return FileAccess(self._server, str(marker), word, self._run_id)


class _BoundFileServer(FileServer):
    """The file server of a local cluster: its process dies with its raylet."""

    def __init__(self, roots: tuple[str, ...], writable: str) -> None:
        die_with_parent()
        super().__init__(roots, writable)


def _actor_class() -> Any:
    """`WorkerActor` as a Ray actor: the agent's methods in a concurrency group of their own."""
    methods = {name: getattr(WorkerActor, name) for name in ("poll", "notify")}
    grouped = {name: ray.method(concurrency_group=AGENT_GROUP)(method) for name, method in methods.items()}
    return ray.remote(max_restarts=0, max_task_retries=0, concurrency_groups={AGENT_GROUP: AGENT_THREADS})(
        type("ConvoyWorker", (WorkerActor,), grouped)
    )


def _ranked(actors: Sequence[Any], hellos: Sequence[Hello]) -> list[Member]:
    """Members in the order of ranks: those of a node next to each other, nodes as their first bundle comes."""
    order: dict[str, int] = {}
    for hello in hellos:
        order.setdefault(hello.node_id, len(order))
    placed = sorted(range(len(actors)), key=lambda index: (order[hellos[index].node_id], index))
    on_host: dict[tuple[str, str], int] = {}
    members = []
    for rank, index in enumerate(placed):
        hello = hellos[index]
        host = (hello.host, hello.node_ip)
        local_rank = on_host.get(host, 0)
        on_host[host] = local_rank + 1
        members.append(Member(actors[index], hello, Assignment(rank, len(actors), local_rank, hello.node_ip)))
    return members


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _oom_kills() -> int:
    """Processes this host's kernel has killed for memory since it booted; 0 where it does not say."""
    try:
        text = Path("/proc/vmstat").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("oom_kill ")), 0)


def cpu_count() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0))
