"""The driver's hands: starts workers, forms gangs of them, ends them. Decisions are in `gang_policy`."""

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from orchestrator.clusters.ray.handles import ActorClass, ActorHandle, PlacementGroup
from orchestrator.domain.engine_errors import Cause
from orchestrator.domain.errors import ClusterError
from orchestrator.domain.events import Event, WorkerFailed
from orchestrator.domain.generation import Ending, GenerationOutcome
from orchestrator.domain.session import Leave, Question, TrainPlan
from orchestrator.gang.agent.worker_actor import AGENT_GROUP, AGENT_THREADS, FileAccess, Hello, WorkerActor
from orchestrator.gang.elastic.resize_policy import Lineup, going
from orchestrator.gang.elastic.scale_requests import ScaleRequests
from orchestrator.gang.elastic.unblock_survivors import interrupt
from orchestrator.gang.file_transfer import BoundFileServer, FileServer, remove_host_cache, write_marker
from orchestrator.gang.group.device_checks import DeviceChecks
from orchestrator.gang.group.gang_policy import Action, GangFacts, decide, patience_s, root_cause
from orchestrator.gang.group.gang_settings import GangSettings
from orchestrator.gang.group.pending_workers import PendingWorkers
from orchestrator.gang.group.polling import TICK_S, Listener
from orchestrator.gang.group.report_inbox import ReportInbox
from orchestrator.gang.group.reservations import FAULTS, Reservations
from orchestrator.gang.group.standby_pool import StandbyPool
from orchestrator.gang.group.startup_question import ask
from orchestrator.gang.group.worker_handle import WorkerHandle, assignments, first_line, oom_kills, taken_places
from orchestrator.gang.health.hang_monitor import HangMonitor
from orchestrator.gang.health.head import Head
from orchestrator.gang.health.health_monitor import HealthMonitor
from orchestrator.gang.vaults.adoption import worker_name
from orchestrator.gang.vaults.checkpoint_committer import CheckpointCommitter, Pacer
from orchestrator.gang.vaults.vault_care import VaultCare, protect
from orchestrator.gang.vaults.vault_clients import VaultClients
from orchestrator.metrics.event_bus import EventBus

START_TIMEOUT_S = 120.0
SAVES_S, STOP_SAVES_S = 60.0, 1.0
"""How long the end of a run waits for checkpoints while nothing of them is written, and the end of one that is stopped
at most: a newer one was written before, in the foreground."""
CLEAN_S = 0.3
"""How long workers that leave may take to tidy their host."""


class Gang:
    """Workers of one run. They form a gang, generation after generation, as workers are lost and come."""

    def __init__(
        self,
        groups: Sequence[PlacementGroup],
        settings: GangSettings,
        vaults: VaultClients | None,
        saves: CheckpointCommitter | None,
        planned: ScaleRequests,
        head: Head,
        seek_more: Callable[[], None],
    ) -> None:
        """Ask Ray for an actor in each of the `groups`; `ready` waits for them. `saves`: checkpoints that the vaults
        write; `seek_more`: has workers started for empty places."""
        self._settings, self.vaults, self.saves = settings, vaults, saves
        self._env = dict(settings.env)
        self._request, self._cluster, self._run_id = settings.request, settings.cluster, settings.run_id
        self.places = Reservations(groups)
        self._on_gpus = self._request.bundle.get("GPU", 0) > 0
        self._actors = [self._start(group) for group in groups]
        self._hello_refs = [actor.hello.remote() for actor in self._actors]
        self.members: list[WorkerHandle] = []
        self.generation, self.replicas = settings.generation, settings.replicas
        self.recruits = PendingWorkers(self._start, ())
        self.spares = StandbyPool(self._start_spare, 0, ())
        self.pacer = Pacer(settings.saves_by_cost)
        self.hangs = HangMonitor(self._cluster.one_host, vaults, settings.hang_timeout_s)
        self.vault_care = VaultCare(self)
        self.planned, self.head, self.seek_more = planned, head, seek_more
        self._inbox = ReportInbox()
        try:
            self._inbox.open(own_node_address(), len(groups))
        except (OSError, RuntimeError) as error:
            planned.warn(f"workers cannot connect to the driver and are polled instead: {error}")
        self._server: FileAccess | None = None
        self._step = 0
        self._step_s = 0.0
        """Of the last step."""
        self._oom_kills_before = oom_kills()

    def warm(
        self, entries: tuple[str, ...], later: tuple[str, ...], check: str | None, question: Question | None
    ) -> None:
        """Let the workers import while the driver does something else; those that come `later` have time for more. They
        answer a `question` first. `check`: see `DeviceChecks`."""
        self.device_checks = DeviceChecks(self._actors, self._hello_refs, check)
        asked = self._actors[:1] if self._cluster.one_host else self._actors  # one answers for its host
        self.answers = ask(asked, question) if question is not None else []
        self._warm_refs = [actor.warm.remote(entries) for actor in self._actors]
        self.recruits = PendingWorkers(self._start, (*entries, *later), check, self.planned.warn)
        self.spares = StandbyPool(self._start_spare, self._settings.standby, (*entries, *later))

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
        groups = self.places.empty(())
        found = zip(self._actors, hellos, groups, self.device_checks.rooms, strict=True)
        arrived = [WorkerHandle(actor, hello, group, room=room) for actor, hello, group, room in found]
        self._form(arrived)
        return True

    def reform(self, line: Lineup) -> int:
        """Form the next generation; how many they are. Who is not of it is ended, and its place given back."""
        before, doomed = self.members, self.doomed
        formed = self.staying[: line.kept] + self.recruits.join(line.joined) + doomed[: line.lent]
        self._form(formed)
        gone = [member for member in before if member.lives and member not in formed]
        hosts = {member.hello.host for member in formed}
        cleaned = [member.actor.clean.remote(self._run_id) for member in gone if member.hello.host not in hosts]
        ray.wait(cleaned, num_returns=len(cleaned), timeout=CLEAN_S) if cleaned else None
        for member in gone:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.kill(member.actor, no_restart=True)
        self.places.give_back([member.group for member in gone])
        return len(self.members)

    def replace_lost(self) -> None:
        """Put spares into the places of members whose processes are lost, as far as there are some on their nodes."""
        taken = taken_places(self.members)
        for lost in [member for member in self.members if not member.lives and member.group not in taken]:
            spare = None if self.places.left_out(lost.group) else self.spares.take(lost.hello.node_id)
            if spare is not None:
                actor, hello = spare
                if self._on_gpus:
                    actor.take_gpus.remote(lost.hello.gpus)  # before all that it is asked next
                self.members.append(WorkerHandle(actor, replace(hello, gpus=lost.hello.gpus), lost.group))

    @property
    def staying(self) -> list[WorkerHandle]:
        """Members who can take part in another generation, and keep their places: see `ScaleRequests.leaving`."""
        leaving = {id(member) for member in self.planned.leaving(self.members)}
        return [member for member in self.members if member.lives and id(member) not in leaving]

    @property
    def doomed(self) -> list[WorkerHandle]:
        """Members who live and have to leave, as long as it is worth beginning anything on their nodes."""
        over = going(self.planned.draining, time.time(), self._step_s)
        return [member for member in self.planned.leaving(self.members) if member.hello.node_id not in over]

    @property
    def workers_by_node(self) -> tuple[int, ...]:
        """How many members each node has that has any."""
        return tuple(Counter(member.hello.node_id for member in self.members).values())

    @property
    def worker_pids(self) -> set[int]:
        """Processes of the workers; meaningful where all nodes are on this host."""
        return {member.hello.pid for member in self.members}

    def run(
        self,
        entry: str,
        plan: TrainPlan,
        readable: Sequence[str],
        bus: EventBus,
        stopped: Callable[[], bool],
    ) -> GenerationOutcome:
        """Run the entry point on every worker until all returned, one failed, or a stop was asked for and done."""
        access = self._serve_files(plan, readable)
        protect(self, bus, stopped)
        listener = Listener(self.members, self.generation, bus, self._oom_kills, self._inbox)
        listener.saves, listener.pacer, listener.hangs = self.saves, self.pacer, self.hangs
        for member in self.members:
            member.run_ref = member.actor.run.remote(entry, plan, member.assignment, access)
        listener.begin()
        self.hangs.begin(self.members, plan.run_dir, bus)
        watch = HealthMonitor(self, listener)
        stop_since_s: float | None = None
        now_s = time.monotonic()
        while True:
            listener.listen()
            watch.round(time.monotonic())
            round_s, now_s = now_s, time.monotonic()
            bus.pace.note(now_s, now_s - round_s)
            if stop_since_s is None and stopped():
                stop_since_s = time.monotonic()
                self.ask_to_leave(Leave.STOP)
            action = decide(self._facts(stop_since_s))
            if action in (Action.FINISH, Action.FAIL, Action.KILL):
                return self._conclude(action, listener, stopped, stop_since_s is not None)

    def ask_to_leave(self, leave: Leave) -> None:
        """Have all members leave at the next step boundary."""
        for member in self.members:
            member.actor.notify.remote(self.generation, {}, leave)

    def ask_to_save(self) -> None:
        """Have a checkpoint written of the next step boundary."""
        for member in self.members:
            member.actor.save.remote(self.generation)

    def hang_up(self) -> None:
        """Listen to no worker any more. Idempotent."""
        self._inbox.close()

    def kill(self) -> None:
        """End every worker process now, and give the reservation back."""
        self.hang_up()
        self.recruits.dismiss()
        self.spares.dismiss()
        actors = {*self._actors, *(member.actor for member in self.members)}
        for actor in [*actors, self._server.server if self._server is not None else None]:
            if actor is not None:
                with contextlib.suppress(ray.exceptions.RayError):
                    ray.kill(actor, no_restart=True)
        self.places.give_all_back()

    def shield(self) -> None:
        """Have copies kept on nodes that are not about to go, from now on."""
        if self.vaults is not None:
            self.vaults.assign(self.generation, self.node_ids(), self.replicas, self.planned.draining.keys())

    def _start(self, group: PlacementGroup) -> ActorHandle:
        resources = self._request.bundle
        # Another driver must be able to find those that may outlive this one.
        named = {"name": worker_name(self._run_id)} if self._cluster.outlives_driver else {}
        return (
            _actor_class()
            .options(
                num_cpus=resources.get("CPU", 0),
                num_gpus=resources.get("GPU", 0),
                memory=resources.get("memory"),
                resources={k: v for k, v in resources.items() if k not in ("CPU", "GPU", "memory")},
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, 0),
                **named,
            )
            .remote(self._env, not self._cluster.outlives_driver, self._cluster.one_host)
        )

    def _start_spare(self, node_id: str) -> ActorHandle:
        """Holds no reservation: see `StandbyPool`."""
        named = {"name": worker_name(self._run_id)} if self._cluster.outlives_driver else {}
        where = NodeAffinitySchedulingStrategy(node_id, soft=False)
        spare = _actor_class().options(num_cpus=0, scheduling_strategy=where, **named)
        return spare.remote(self._env, not self._cluster.outlives_driver, self._cluster.one_host)

    def _form(self, members: list[WorkerHandle]) -> None:
        self.generation += 1
        now_s = time.monotonic()
        formed = []
        for index, assignment in assignments([member.hello for member in members]):
            reports = self._inbox.access(members[index].name)
            members[index].begin(replace(assignment, generation=self.generation, reports=reports), now_s)
            formed.append(members[index])
        self.members = formed
        if self.vaults is not None:
            self.vaults.bury(self.node_ids())
            self.vaults.start(self.node_ids())

    def node_ids(self) -> list[str]:
        return list(dict.fromkeys(member.hello.node_id for member in self.members))

    def _facts(self, stop_since_s: float | None) -> GangFacts:
        return GangFacts(
            now_s=time.monotonic(),
            world_size=len(self.members),
            returned=sum(1 for member in self.members if member.result is not None),
            failures=tuple(member.failure for member in self.members if member.failure is not None),
            stop_since_s=stop_since_s,
            grace_s=self._settings.stop_grace_s,
        )

    def _conclude(
        self, action: Action, listener: Listener, stopped: Callable[[], bool], stopping: bool
    ) -> GenerationOutcome:
        """Collect what can still be said, name the cause, end what cannot go on."""
        failures = [member.failure for member in self.members if member.failure is not None]
        cause = root_cause(failures) if action is Action.FAIL else None
        if cause is not None:
            self.pacer.failures += 1
            step_s = listener.last.step_time_s if listener.last is not None else self._step_s
            interrupt(self.members, self.generation, patience_s(self._on_gpus, step_s), listener)
            self._leave_broken_gpus()
        self._forget_vaults()
        listener.drain()
        if cause is not None:
            cause = root_cause([member.failure for member in self.members if member.failure is not None])
            listener.tell([Event(WorkerFailed(cause.rank, cause.message, cause.detail), time.time())])
        results = tuple(member.result for member in self.members if member.result is not None)
        regroup = action is Action.FINISH and any(result.regroup for result in results)
        if cause is None and not regroup:
            if self.saves is not None:
                listener.tell(self.saves.end(STOP_SAVES_S) if stopping else self.saves.end(SAVES_S, stopped))
            self._end(action)
        self._step = max([self._step, *(m.result.step for m in self.members if m.result is not None)])
        if listener.last is not None:
            self._step, self._step_s = max(self._step, listener.last.step), listener.last.step_time_s
        cut_short = stopping and not (len(results) == len(self.members) and all(r.finished for r in results))
        return GenerationOutcome(results, cause, cut_short, self._step, regroup)

    def _oom_kills(self) -> int:
        """Processes that this host's kernel has killed for memory since the run began; 0 if workers run elsewhere."""
        return oom_kills() - self._oom_kills_before if self._cluster.one_host else 0

    def _forget_vaults(self) -> None:
        """Nobody is to wait for the vaults of nodes that are gone or silent."""
        for member in self.members:
            ending = member.failure.ending if member.failure is not None else None
            if self.vaults is not None and ending in (Ending.NODE_DIED, Ending.NODE_SILENT):
                self.vaults.lose(member.hello.node_id)

    def _leave_broken_gpus(self) -> None:
        """Count errors of GPUs by place, and leave out a place whose GPU fails again."""
        for member in self.members:
            failure = member.failure
            if failure is not None and failure.details.cause is Cause.DEVICE and self.places.blame(member.group):
                where = f"a GPU of {member.hello.host} ({member.hello.node_ip})"
                self.planned.warn(f"{where} failed {FAULTS} times and is left out of this run: {failure.message}")

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
        marker, word = write_marker(run_dir)
        here = ray.get_runtime_context().get_node_id()
        roots = (plan.run_dir, *readable, *([plan.resume_from] if plan.resume_from else []))
        kind = FileServer if self._cluster.outlives_driver else BoundFileServer
        server_class = ray.remote(num_cpus=0, max_concurrency=4)(kind)
        server = server_class.options(scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=False)).remote(
            roots, plan.run_dir
        )
        self._server = FileAccess(server, str(marker), word, self._run_id)
        return self._server


def own_node_address() -> str:
    """Address of the driver's own node, as the other nodes reach it."""
    here = ray.get_runtime_context().get_node_id()
    return next(str(node["NodeManagerAddress"]) for node in ray.nodes() if node["NodeID"] == here)


def _actor_class() -> ActorClass:
    """`WorkerActor` as a Ray actor: the agent's methods in a concurrency group of their own."""
    methods = {
        name: getattr(WorkerActor, name) for name in ("poll", "notify", "save", "use_vault", "interrupt", "stacks")
    }
    grouped = {name: ray.method(concurrency_group=AGENT_GROUP)(method) for name, method in methods.items()}
    return ray.remote(max_restarts=0, max_task_retries=0, concurrency_groups={AGENT_GROUP: AGENT_THREADS})(
        type("ConvoyWorker", (WorkerActor,), grouped)
    )
