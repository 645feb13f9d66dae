"""The driver's hands: starts workers, forms gangs of them, ends them. Decisions are in `decide`."""

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from orchestrator.domain.errors import ClusterError
from orchestrator.domain.events import Event, EventKind, Observer
from orchestrator.domain.numeric import NumericFault
from orchestrator.domain.session import Leave, TrainPlan, TrainResult
from orchestrator.gang.decide import (
    Action,
    Ending,
    Failure,
    GangFacts,
    Quiet,
    decide,
    is_consequence,
    is_out_of_memory,
    numeric_fault,
    root_cause,
    silent_nodes,
    wants_regroup,
)
from orchestrator.gang.files import FileServer, remove_host_cache, write_marker
from orchestrator.gang.hangs import PAUSE_S, HangWatch
from orchestrator.gang.listening import POLL_S, TICK_S, Listener
from orchestrator.gang.member import Member, assignments, first_line, oom_kills
from orchestrator.gang.placement import Request, release
from orchestrator.gang.processes import die_with_parent
from orchestrator.gang.recruits import Recruits
from orchestrator.gang.vaults import Vaults, node_answers
from orchestrator.gang.worker_actor import AGENT_GROUP, AGENT_THREADS, FileAccess, Hello, WorkerActor

START_TIMEOUT_S = 120.0
INTERRUPT_S = 2.0
"""How long a worker may take to leave a collective that cannot end; then its process is given up."""
VAULT_TIMEOUT_S = 10.0
PROBES = 2
"""Unanswered ones in a row before a silent node is given up."""


@dataclass(frozen=True)
class GangOutcome:
    """How one generation ended. `failure` is the root cause; `stopped` says that somebody asked for the end."""

    results: tuple[TrainResult, ...]
    failure: Failure | None
    stopped: bool
    step: int
    """Last step that rank 0 reported or returned."""
    regroup: bool = False
    """All left at a step boundary for the gang to be formed anew."""

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
    """Workers of one run. They form a gang, generation after generation, as workers are lost and come."""

    def __init__(
        self, groups: Sequence[Any], request: Request, env: dict[str, str], local: bool, vaults: Vaults | None
    ) -> None:
        """Ask Ray for the actors; `ready` waits for them. `local`: their processes die with their raylet."""
        self._groups, self._request, self._env, self._local, self._vaults = list(groups), request, env, local, vaults
        self._actors = [self._start(group) for group in groups]
        self._hello_refs = [actor.hello.remote() for actor in self._actors]
        self.members: list[Member] = []
        self.generation = 0
        self.recruits = Recruits(self._start, ())
        self.replicas = 0
        self.hangs = HangWatch(local, vaults)
        self._server: FileAccess | None = None
        self._run_id = ""
        self._step = 0
        self._oom_kills_before = oom_kills()

    def warm(self, entries: tuple[str, ...]) -> None:
        """Let the workers import while the driver does something else; those who come later do too."""
        self._warm_refs = [actor.warm.remote(entries) for actor in self._actors]
        self.recruits = Recruits(self._start, entries)

    def ready(self, stopped: Callable[[], bool]) -> bool:
        """Wait for every worker process; ranks follow nodes. False where `stopped`. Raises ClusterError."""
        if self.members:
            return True
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
                f"a worker process did not start: {first_line(error)}",
                hint="convoy must be installed on every node, in the same version",
            ) from error
        arrived = [
            Member(actor, hello, group) for actor, hello, group in zip(self._actors, hellos, self._groups, strict=True)
        ]
        self._form(arrived)
        return True

    def reform(self, most: int) -> int:
        """Form the next generation of who is left and who has come, `most` at most; how many they are."""
        left = [member for member in self.members if member.lives]
        self._form(left[:most] + self.recruits.join(most - len(left)))
        return len(self.members)

    @property
    def survivors(self) -> int:
        """Members who can take part in another generation."""
        return sum(member.lives for member in self.members)

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
        self._protect()
        listener = Listener(
            self.members, self.generation, observers, lambda: oom_kills() - self._oom_kills_before if self._local else 0
        )
        for member in self.members:
            member.run_ref = member.actor.run.remote(entry, plan, member.assignment, access)
        self.hangs.begin(self.members, plan.run_dir, observers)
        watch = _Watch(self, listener)
        stop_since_s: float | None = None
        while True:
            listener.listen()
            watch.round(time.monotonic())
            if stop_since_s is None and stopped():
                stop_since_s = time.monotonic()
                self.ask_to_leave(Leave.STOP)
            action = decide(self._facts(stop_since_s))
            if action in (Action.FINISH, Action.FAIL, Action.KILL):
                return self._conclude(action, listener, observers, stop_since_s is not None)

    def ask_to_leave(self, leave: Leave) -> None:
        """Have all members leave at the next step boundary."""
        for member in self.members:
            member.actor.notify.remote(self.generation, {}, leave)

    def kill(self) -> None:
        """End every worker process now, and give the reservation back."""
        self.recruits.dismiss()
        actors = {*self._actors, *(member.actor for member in self.members)}
        for actor in [*actors, self._server.server if self._server is not None else None]:
            if actor is not None:
                with contextlib.suppress(ray.exceptions.RayError):
                    ray.kill(actor, no_restart=True)
        release(self._groups)
        self._groups.clear()

    def seek(self, target: int, new_group: Callable[[], Any] | None) -> None:
        """Have workers started for places that are empty, up to `target` workers: where members were lost, else in
        groups of their own that `new_group` makes."""
        missing = target - self.survivors - self.recruits.coming
        taken = [member.group for member in self.members if member.lives] + self.recruits.groups
        empty = [group for group in self._groups if group not in taken]
        for _ in range(missing):
            if not empty and new_group is None:
                return
            if not empty and new_group is not None:
                empty.append(new_group())
                self._groups.append(empty[0])
            self.recruits.call(empty.pop(0))

    def _start(self, group: Any) -> Any:
        resources = self._request.bundle
        return (
            _actor_class()
            .options(
                num_cpus=resources.get("CPU", 0),
                num_gpus=resources.get("GPU", 0),
                memory=resources.get("memory"),
                resources={k: v for k, v in resources.items() if k not in ("CPU", "GPU", "memory")},
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, 0),
            )
            .remote(self._env, self._local)
        )

    def _form(self, members: list[Member]) -> None:
        self.generation += 1
        now_s = time.monotonic()
        formed = []
        for index, assignment in assignments([member.hello for member in members]):
            members[index].begin(replace(assignment, generation=self.generation), now_s)
            formed.append(members[index])
        self.members = formed
        if self._vaults is not None:
            self._vaults.start(self._node_ids())

    def _node_ids(self) -> list[str]:
        return list(dict.fromkeys(member.hello.node_id for member in self.members))

    def _protect(self) -> None:
        """Give every member its node's vault, and every vault its peers."""
        if self._vaults is None:
            return
        self._vaults.wait(self._node_ids(), VAULT_TIMEOUT_S)
        self._vaults.assign(self.generation, self._node_ids(), {}, self.replicas)
        now_s = time.monotonic()
        for member in self.members:
            vault = self._vaults.access(member.hello.node_id, self.generation)
            member.begin(replace(member.assignment, vault=vault), now_s)

    def _facts(self, stop_since_s: float | None) -> GangFacts:
        return GangFacts(
            now_s=time.monotonic(),
            world_size=len(self.members),
            returned=sum(1 for member in self.members if member.result is not None),
            failures=tuple(member.failure for member in self.members if member.failure is not None),
            stop_since_s=stop_since_s,
        )

    def _conclude(
        self, action: Action, listener: Listener, observers: Sequence[Observer], stopping: bool
    ) -> GangOutcome:
        """Collect what can still be said, name the cause, end what cannot go on."""
        failures = [member.failure for member in self.members if member.failure is not None]
        cause = root_cause(failures) if action is Action.FAIL else None
        if cause is not None:
            self._unblock(listener)
        listener.drain()
        if cause is not None:
            cause = root_cause([member.failure for member in self.members if member.failure is not None])
            event = Event(
                EventKind.WORKER_FAILED,
                time.time(),
                {"rank": cause.rank, "error": cause.message, "traceback": cause.detail},
            )
            for observer in observers:
                observer.on_event(event)
        results = tuple(member.result for member in self.members if member.result is not None)
        regroup = action is Action.FINISH and any(result.regroup for result in results)
        if cause is None and not regroup:
            self._end(action)
        self._step = max([self._step, *(m.result.step for m in self.members if m.result is not None)])
        if listener.last is not None:
            self._step = max(self._step, listener.last.step)
        stopped = stopping and not (len(results) == len(self.members) and all(r.finished for r in results))
        return GangOutcome(results, cause, stopped, self._step, regroup)

    def _unblock(self, listener: Listener) -> None:
        """Get everybody who lives out of the collective that cannot end; who does not come out is ended."""
        for member in self.members:
            if member.run_ref is not None and member.lives:
                member.actor.interrupt.remote(self.generation, INTERRUPT_S)
        waited_s = 0.0
        while any(m.run_ref is not None and m.lives for m in self.members) and waited_s < INTERRUPT_S + POLL_S:
            started_s = time.monotonic()
            listener.listen(TICK_S)
            waited_s += min(
                time.monotonic() - started_s, 2 * TICK_S
            )  # if the driver was paused, that is not their time
        for member in self.members:
            if member.run_ref is not None and member.lives:
                member.take_silence("its process could not be interrupted", time.monotonic())
            if not member.lives:
                with contextlib.suppress(ray.exceptions.RayError):
                    ray.kill(member.actor, no_restart=True)  # should it wake up, it has no part in this any more

    def _end(self, action: Action) -> None:
        if action is not Action.KILL:
            refs = [m.actor.clean.remote(self._run_id) for m in self.members if m.result is not None]
            ray.wait(refs, num_returns=len(refs), timeout=0.5) if refs else None
        self.kill()
        remove_host_cache(self._run_id)  # a worker of this host that was killed could not

    def _serve_files(self, plan: TrainPlan, readable: Sequence[str]) -> FileAccess:
        if self._server is not None:
            return self._server
        run_dir = Path(plan.run_dir)
        self._run_id = run_dir.name
        marker, word = write_marker(run_dir)
        here = ray.get_runtime_context().get_node_id()
        roots = (plan.run_dir, *readable, *([plan.resume_from] if plan.resume_from else []))
        server_class = ray.remote(num_cpus=0, max_concurrency=4)(_BoundFileServer if self._local else FileServer)
        server = server_class.options(scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=False)).remote(
            roots, plan.run_dir
        )
        self._server = FileAccess(server, str(marker), word, self._run_id)
        return self._server


class _Watch:
    """What the driver looks at besides the members' words, each round of its loop, while one generation trains."""

    def __init__(self, gang: Gang, listener: Listener) -> None:
        self._gang, self._listener = gang, listener
        self._round_s = time.monotonic()
        self._asked = False
        self._unanswered: dict[str, int] = {}
        self._forgotten = False
        self._arriving_since_s: float | None = None

    def round(self, now_s: float) -> None:
        """One look."""
        gap_s, self._round_s = now_s - self._round_s, now_s
        if gap_s > PAUSE_S:
            for member in self._gang.members:
                member.renewed_s += gap_s
        self._silence(now_s)
        self._gang.hangs.round(now_s, gap_s, self._listener.last)
        self._old_states()
        self._regroup(now_s)

    def _silence(self, now_s: float) -> None:
        """Give up members of nodes that are silent altogether: the worker, and another process beside it."""
        gang, vaults = self._gang, self._gang._vaults
        quiet = [
            Quiet(member.hello.node_id, now_s - member.renewed_s)
            for member in gang.members
            if not member.over and member.run_ref is not None
        ]
        for node_id in silent_nodes(quiet):
            answers = node_answers(vaults, node_id)
            self._round_s = time.monotonic()
            self._unanswered[node_id] = 0 if answers else self._unanswered.get(node_id, 0) + 1
            if self._unanswered[node_id] < PROBES:
                continue
            for member in gang.members:
                if member.hello.node_id == node_id and not member.over:
                    member.take_silence("nothing is heard of its process nor of any other on its node", self._round_s)
            if vaults is not None:
                vaults.lose(node_id)

    def _old_states(self) -> None:
        """What earlier generations left can go once this one's is whole."""
        last, vaults = self._listener.last, self._gang._vaults
        if not self._forgotten and vaults is not None and last is not None and last.protected_step is not None:
            self._forgotten = True
            vaults.forget(self._gang.generation)

    def _regroup(self, now_s: float) -> None:
        recruits = self._gang.recruits
        if self._asked or self._listener.last is None or not recruits.coming:
            return
        node_ids = recruits.look()
        if self._gang._vaults is not None:
            self._gang._vaults.start(node_ids)
        if not recruits.ready:
            self._arriving_since_s = None
            return
        if self._arriving_since_s is None:
            self._arriving_since_s = now_s
        if wants_regroup(recruits.ready, recruits.arriving, now_s - self._arriving_since_s):
            self._asked = True
            self._gang.ask_to_leave(Leave.REGROUP)


class _BoundFileServer(FileServer):
    """The file server of a local cluster: its process dies with its raylet."""

    def __init__(self, roots: tuple[str, ...], writable: str) -> None:
        die_with_parent()
        super().__init__(roots, writable)


def _actor_class() -> Any:
    """`WorkerActor` as a Ray actor: the agent's methods in a concurrency group of their own."""
    methods = {name: getattr(WorkerActor, name) for name in ("poll", "notify", "interrupt", "stacks")}
    grouped = {name: ray.method(concurrency_group=AGENT_GROUP)(method) for name, method in methods.items()}
    return ray.remote(max_restarts=0, max_task_retries=0, concurrency_groups={AGENT_GROUP: AGENT_THREADS})(
        type("ConvoyWorker", (WorkerActor,), grouped)
    )
