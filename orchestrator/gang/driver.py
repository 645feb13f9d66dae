"""One run's way through a cluster: start it, reserve, start workers, keep them warm, train, tear down."""

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from orchestrator.checkpoint.survey.durability import VaultReport
from orchestrator.checkpoint.survey.inventory import WholeStep
from orchestrator.clusters.cluster_provider import ClusterProvider
from orchestrator.clusters.placement import WorkerRequest, explain, fitting_workers, request_of
from orchestrator.clusters.ray.cluster_choice import cluster_for, cluster_size
from orchestrator.clusters.ray.draining import DrainWatch
from orchestrator.clusters.ray.placement_groups import group_on, release_of_run, reserve
from orchestrator.data.executor import Executor
from orchestrator.domain.devices.device import deterministic_environment
from orchestrator.domain.devices.device_room import DeviceRoom, smallest
from orchestrator.domain.errors import ConvoyError
from orchestrator.domain.events import Emit
from orchestrator.domain.fault_plan import NodeAddress
from orchestrator.domain.generation import Adopted, ClusterSize, GenerationOutcome, LeftBehind, Shortage
from orchestrator.domain.lease import first_generation
from orchestrator.domain.scaling import ScaleDesk
from orchestrator.domain.session import Question, TrainPlan
from orchestrator.domain.step_report import StepReport
from orchestrator.gang.agent.worker_actor import worker_environment
from orchestrator.gang.elastic.granted_places import GrantedPlaces, seek_granted
from orchestrator.gang.elastic.resizer import seek
from orchestrator.gang.elastic.scale_requests import ScaleRequests
from orchestrator.gang.group.gang_policy import GRACE_S, SERVED_GRACE_S
from orchestrator.gang.group.reserved_workers import ReservedWorkers
from orchestrator.gang.health.head import Head
from orchestrator.gang.vaults.run_vaults import RunVaults
from orchestrator.metrics.event_bus import EventBus
from orchestrator.planner.model_shape import ModelShape
from orchestrator.planner.vault_memory import VaultNeed, check_room, least_worker_bytes, vault_need
from orchestrator.spec.job import JobSpec

if TYPE_CHECKING:
    from orchestrator.clusters.ray.handles import PlacementGroup
    from orchestrator.gang.group.gang_settings import GangSettings
    from orchestrator.gang.group.worker_group import Gang


class GangDriver:
    """The cluster and the gang of one run. Every method is for one thread; `close` ends everything."""

    def __init__(
        self,
        spec: JobSpec,
        env: dict[str, str],
        stopped: Callable[[], bool],
        desk: ScaleDesk,
        emit: Emit,
        run_id: str,
        places: Sequence[NodeAddress] = (),
        lease: int = 0,
    ) -> None:
        """`env` is the driver's environment; at the `desk` other processes ask for another number of workers. `places`:
        of a local cluster's nodes, if they are not on loopback. `lease`: the token of this driver; the generations of
        its gangs are above those of all drivers before it."""
        self._places = places
        self._spec, self._env, self._stopped, self._emit, self._run_id = spec, env, stopped, emit, run_id
        self._granted = GrantedPlaces(desk.grants) if desk.grants is not None else None
        self.planned = ScaleRequests(spec, request_of(spec.resources), desk, emit, self._granted)
        self._worker_env = worker_environment(
            spec.resources.cpus_per_worker, spec.resources.gpus_per_worker, env, spec.resources.env
        )
        self._worker_env.update(deterministic_environment(spec.train.deterministic))
        self._cluster: ClusterProvider | None = None
        self._gang: Gang | None = None
        self._vaults = RunVaults(spec, run_id, lease)
        self._head: Head | None = None
        self._generation = first_generation(lease)
        """Below those of this driver's gangs, and not below those of the drivers before it."""
        self._reserved = ReservedWorkers(emit, granted=self._granted)

    def connect(self, preload: Sequence[str] = ()) -> ClusterSize:
        """Start the local cluster, or join the one that the spec names. `preload`: see `LocalCluster`. Raises
        ClusterError."""
        env, warn = self._env, self.planned.warn
        self._cluster = cluster_for(self._spec, env, self._worker_env, self._places, preload, warn).start()
        watch = DrainWatch(self._cluster.address)
        self._head = Head(self._cluster.address, watch, self._cluster.resume_hint, self._emit)
        self.planned.begin(watch, self._cannot_hold)
        return cluster_size(self._cluster)

    def adopt(self) -> Adopted | None:
        """Take over what a driver of this run left on a cluster that outlives drivers: its vaults, with the state in
        them. Its workers are ended. None if there are no vaults. Raises ClusterError if workers do not end,
        LeaseLostError if a later driver has been there."""
        cluster = self._require_cluster()
        if not cluster.outlives_driver:
            return None
        from orchestrator.gang.vaults.adoption import end_workers

        started = time.monotonic()
        vaults, generation = self._vaults.adopt(cluster)
        self._generation = max(self._generation, generation)
        ended = self._vaults.fence(self._generation + 1) if vaults else frozenset()
        workers = max(end_workers(self._run_id, self._stopped), len(ended))
        release_of_run(self._run_id)
        return Adopted(vaults, workers, time.monotonic() - started) if vaults else None

    def survey_vaults(self, take: Callable[[Sequence[VaultReport]], None]) -> None:
        """From now on ask the vaults every few seconds what they hold; `take` is called from another thread."""
        self._vaults.watch(take)

    @property
    def memory_kept_s(self) -> float:
        """How long the vaults keep what they have without a driver; 0 if they end with it."""
        outlive = self._spec.checkpoint.memory and self._require_cluster().outlives_driver and not self._headless
        return self._spec.recovery.memory_kept_s if outlive else 0.0

    def plan_vaults(self, shape: ModelShape) -> tuple[VaultNeed | None, str | None]:
        """What the vaults of this gang will take, and a warning if a recovery may not find room. Nothing if the run was
        stopped. Raises ClusterError if it does not fit."""
        if not self._arrived():
            return None, None
        gang = self._require_gang()
        by_node, most = gang.workers_by_node, None
        if self._vaults.clients is not None:
            most = self._vaults.clients.plan_copies(gang.node_ids(), self._spec.checkpoint.replicas, self.planned.warn)
        need = vault_need(self._spec, shape, by_node, most)
        if need is None:
            return None, None
        workers = sum(by_node)
        each = self.request.bundle.get("memory")
        cluster = self._require_cluster()
        if each is None or cluster.one_host:
            each = least_worker_bytes(self._spec, shape, workers)
        return need, check_room(need, cluster.memory_per_node_bytes(self.request), int(each) * max(by_node))

    @property
    def workers_by_node(self) -> tuple[int, ...]:
        """How many members of the gang each node has that has any."""
        return self._require_gang().workers_by_node

    @property
    def reserves_memory(self) -> bool:
        """See `WorkerGroup`."""
        return bool(self.request.bundle.get("memory"))

    def _arrived(self) -> bool:
        """Wait for the worker processes. False if stopped. Raises ClusterError."""
        cluster = self._require_cluster()
        if not self._require_gang().ready(self._stopped):
            return False
        cluster.remember(self._require_gang().worker_pids)
        warning = cluster.start_warning()
        if warning is not None:
            self.planned.warn(warning)
        return True

    def leave_vaults(self, stored_step: int) -> LeftBehind | None:
        """The run has ended without success: leave the vaults behind if another driver could continue from them and
        they hold more than storage; else None."""
        kept_s = self.memory_kept_s
        return self._vaults.leave(stored_step, kept_s) if kept_s else None

    def start_workers(
        self, warm: tuple[str, ...], later: tuple[str, ...], check: str | None, question: Question | None = None
    ) -> int | None:
        """Reserve and start as many workers as fit; they answer the `question`, then import `warm` meanwhile, and those
        that come to a gang that trains do what `later` names too. Waits for what `check` names, see `DeviceChecks`.
        None if stopped.

        Raises ClusterError that says what was asked, what there is, and what would fit; DeviceError where a GPU that
        was promised cannot be used.
        """
        from orchestrator.gang.group.worker_group import Gang

        cluster = self._require_cluster()
        found = self._reserve(cluster)
        if found is None:
            return None
        vaults = self._vaults.start(cluster)
        assert self._head is not None  # connected
        settings = self._gang_settings(cluster)
        gang = Gang(found, settings, vaults, self._vaults.committer(), self.planned, self._head, self.seek)
        self._gang = gang
        self._reserved.begin(gang, len(found))
        gang.warm(warm, later, check, question)
        return len(found) if gang.device_checks.passed(self._stopped, self.planned.warn) else None

    def _reserve(self, cluster: ClusterProvider) -> "list[PlacementGroup] | None":
        """A reservation for each worker of the first gang; None if stopped. Raises ClusterError."""
        spec, timeout_s = self._spec, self._spec.resources.placement_timeout_s
        if self._granted is not None:
            bundle = self.request.bundle
            found = self._granted.reserve(bundle, cluster.nodes, timeout_s, self._stopped, self._run_id)
            self.planned.take_grant()
            return found
        return reserve(
            self.request,
            cluster.nodes,
            cluster.autoscales,
            timeout_s,
            spec.train.global_batch,
            self._stopped,
            self._run_id,
        )

    def _gang_settings(self, cluster: ClusterProvider) -> "GangSettings":
        from orchestrator.gang.group.gang_settings import GangSettings

        spec = self._spec
        hang_timeout_s = spec.recovery.hang_timeout_s
        return GangSettings(
            request=self.request,
            env=self._worker_env,
            cluster=cluster,
            run_id=self._run_id,
            generation=self._generation,
            standby=spec.resources.standby,
            replicas=spec.checkpoint.replicas,
            hang_timeout_s=None if hang_timeout_s == "auto" else hang_timeout_s,
            saves_by_cost=spec.checkpoint.interval_steps == "auto",
            stop_grace_s=GRACE_S if self._granted is None else SERVED_GRACE_S,
        )

    def wait_for_answers(self) -> str | None:
        """The workers' answers to the question of `start_workers`: see `startup_question.wait_for_answers`."""
        from orchestrator.gang.group.startup_question import wait_for_answers

        return wait_for_answers(self._require_gang().answers, self._stopped)

    @property
    def request(self) -> WorkerRequest:
        """What is asked of the cluster now."""
        return self.planned.request

    def reform(self, waits: Callable[[Shortage | None], None]) -> int | None:
        """Form the next gang from the workers that are left and those that have joined: see `Reformation`. How many
        workers it has; None if stopped. Raises ClusterError if there can never be enough, or not within
        `recovery.max_wait_s`."""
        from orchestrator.gang.elastic.reformation import Reformation

        def reported(shortage: Shortage | None) -> None:
            self._reserved.look()
            waits(shortage)

        gang, cluster = self._require_gang(), self._require_cluster()
        limit_s = self._spec.recovery.max_wait_s
        return Reformation(gang, cluster, self.planned, self.seek, reported, limit_s).form(self._stopped)

    def seek(self) -> None:
        """Have workers started for the empty places, in the background; they join when they are ready."""
        gang, granted = self._require_gang(), self._granted
        if granted is None:
            seek(gang, self.request.maximum, self._new_place)
            return
        live = {node.node_id for node in self._require_cluster().nodes()}
        seek_granted(gang, granted, live, lambda node: granted.bind(node, self.request.bundle, self._run_id))

    def _new_place(self) -> "PlacementGroup | None":
        """A reservation for one worker more: wherever there is room, or will be; with a strict placement on a node
        that may be used, if there is one now."""
        request = self.request
        if not request.placement.startswith("strict"):
            return group_on(None, request.bundle, self._run_id)
        used = {member.hello.node_id for member in self._require_gang().members if member.lives}
        nodes = [node for node in self._require_cluster().nodes() if fitting_workers([node], request.bundle, "pack")]
        spreads = request.placement == "strict_spread"
        fits = [node for node in nodes if (node.node_id in used) is not spreads]
        if not fits or self._require_gang().recruits.coming:
            return None
        return group_on(fits[0].node_id, request.bundle, self._run_id)

    def _cannot_hold(self, request: WorkerRequest) -> ConvoyError | None:
        """Why the cluster can never hold a request; None if it can, or if nodes may join."""
        cluster = self._require_cluster()
        return explain(request, cluster.nodes()) if cluster.can_never_hold(request) else None

    def survey(self) -> list[WholeStep]:
        """The steps that are complete in the vaults, the newest first."""
        return self._vaults.survey()

    def reports_after(self, step: int) -> list[StepReport]:
        """Reports in the vaults of the steps after the last one on record; empty if there are none."""
        return self._vaults.reports_after(step)

    def executor(self) -> Executor:
        """Over this cluster's nodes."""
        from orchestrator.gang.ray_executor import RayExecutor

        return RayExecutor(self._require_cluster().data_processes, self._stopped)

    def memory_per_worker_bytes(self, workers: int) -> int:
        """Host memory that one worker may use: what the spec reserves, or its share of its node."""
        asked = self.request.bundle.get("memory")
        if asked:
            return int(asked)
        return self._require_cluster().memory_per_worker_bytes(self.request, workers)

    def device_room(self) -> DeviceRoom | None:
        """Memory of the smallest GPU of the workers that have been started; None where they train on CPUs."""
        members = self._require_gang().members
        return smallest([member.room for member in members] if members else self._require_gang().device_checks.rooms)

    def train(self, entry: str, plan: TrainPlan, readable: Sequence[str], bus: EventBus) -> GenerationOutcome | None:
        """Run `entry` on the gang; None if it was stopped before it began."""
        if not self._arrived():
            return None
        bus.add("scale requests", self.planned)
        bus.add("the reserved workers", self._reserved)
        self._reserved.look()
        outcome = self._require_gang().run(entry, plan, readable, bus, self._stopped)
        self._reserved.look()
        return outcome

    def close(self) -> None:
        """End the workers and leave the cluster; a local one ends with every process of it. Idempotent."""
        self.planned.close()
        self._vaults.stop_watching()
        cluster, self._cluster = self._cluster, None
        gang, self._gang = self._gang, None
        vaults, self._vaults.clients = self._vaults.clients, None
        if gang is not None:
            gang.hang_up()
        if cluster is None:
            return
        # Without its head nobody can end what runs on a cluster, and Ray does so soon.
        ends_others = cluster.outlives_driver and not self._headless
        try:
            if gang is not None and ends_others:
                gang.kill()
            if vaults is not None and ends_others:
                vaults.close()
        finally:
            cluster.close()
            self._reserved.end()

    @property
    def _headless(self) -> bool:
        return self._head is not None and self._head.lost

    def _require_gang(self) -> "Gang":
        if self._gang is None:
            raise RuntimeError("no workers were started")
        return self._gang

    def _require_cluster(self) -> ClusterProvider:
        if self._cluster is None:
            raise RuntimeError("not connected")
        return self._cluster
