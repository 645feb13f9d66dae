"""One run's way through a cluster: start it, reserve, start workers, keep them warm, train, tear down."""

import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import psutil

from orchestrator.checkpoint.storage.retention import Rule
from orchestrator.checkpoint.survey.durability import VaultReport
from orchestrator.checkpoint.survey.inventory import WholeStep, whole_steps
from orchestrator.checkpoint.survey.surveyor import Surveyor
from orchestrator.clusters.placement import (
    NodeCapacity,
    WorkerRequest,
    explain,
    fitting_nodes,
    fitting_workers,
    group_on,
    local_resources,
    release_of_run,
    request_of,
    reserve,
)
from orchestrator.clusters.ray.cluster import Cluster, start_local
from orchestrator.clusters.ray.draining import DrainWatch
from orchestrator.clusters.ray.gpus import gpus_for
from orchestrator.clusters.ray.joining import connect
from orchestrator.domain.device import deterministic_environment
from orchestrator.domain.device_room import DeviceRoom, smallest
from orchestrator.domain.errors import ClusterError, ConvoyError, LeaseLostError
from orchestrator.domain.events import Observer
from orchestrator.domain.fault_plan import NodeAddress
from orchestrator.domain.lease import first_generation, token_of
from orchestrator.domain.scaling import ScaleDesk
from orchestrator.domain.session import Question, TrainPlan
from orchestrator.domain.step_report import StepReport
from orchestrator.gang.agent.worker_actor import worker_environment
from orchestrator.gang.elastic.resize_policy import Wait, lineup, replaced_later, worth_telling
from orchestrator.gang.elastic.resizer import leave_lost_nodes, seek
from orchestrator.gang.elastic.scale_requests import Emit, ScaleRequests
from orchestrator.gang.group.gang_policy import wants_regroup
from orchestrator.gang.health.head import Head
from orchestrator.gang.vaults.found import Adopted, ClusterSize, Left
from orchestrator.planner.model_shape import ModelShape
from orchestrator.planner.vault_memory import VaultNeed, check_room, least_worker_bytes, vault_need
from orchestrator.spec.job import JobSpec
from orchestrator.spec.loading.load import spec_hash


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
        of a local cluster's nodes, where they are not on loopback. `lease`: the token of this driver: the generations
        of its gangs are above those of all drivers before it."""
        self._places = places
        self._spec, self._env, self._stopped, self._emit, self._run_id = spec, env, stopped, emit, run_id
        self.planned = ScaleRequests(spec, request_of(spec.resources), desk, emit)
        self._worker_env = worker_environment(
            spec.resources.cpus_per_worker, spec.resources.gpus_per_worker, env, spec.resources.env
        )
        self._worker_env.update(deterministic_environment(spec.train.deterministic))
        self._cluster: Cluster | None = None
        self._gang: Any = None
        self._vaults: Any = None
        self._surveyor: Surveyor | None = None
        self._head: Head | None = None
        self._lease = lease
        self._generation = first_generation(lease)
        """Below those of this driver's gangs, and not below those of the drivers before it."""

    def connect(self, preload: Sequence[str] = ()) -> ClusterSize:
        """Start the local cluster, or join the one that the spec names. `preload`: see `start_local`. Raises
        ClusterError."""
        cluster = self._spec.cluster
        if cluster.address is not None:
            self._cluster = connect(cluster.address)
        else:
            offered = local_resources(self._spec.resources, cluster, psutil.virtual_memory().available)
            gpus = gpus_for(self._spec.resources.gpus_per_worker, self._env, self.planned.warn)
            self._cluster = start_local(
                cluster.nodes or 1, offered, gpus, self._worker_env, places=self._places, preload=preload
            )
        nodes = self._cluster.nodes()
        watch = DrainWatch(self._cluster.address)
        self._head = Head(self._cluster.address, watch, self._cluster.local, self._emit)
        self.planned.begin(watch, self._cannot_hold)
        return ClusterSize(
            address=self._cluster.address,
            nodes=len(nodes),
            cpus=sum(node.total.get("CPU", 0.0) for node in nodes),
            gpus=sum(node.total.get("GPU", 0.0) for node in nodes),
            seconds=self._cluster.seconds,
        )

    def adopt(self) -> Adopted | None:
        """Take over what a driver of this run left on a cluster that outlives drivers: its vaults, with the state in
        them. Its workers are ended. None where there are no vaults. Raises ClusterError where workers do not end."""
        if self._require_cluster().local:
            return None
        from orchestrator.gang.vaults.adoption import end_workers, find_vaults

        started = time.monotonic()
        found = find_vaults(self._run_id)
        ended: set[int] = set()
        if found:
            self._vaults = self._new_vaults()
            self._generation = max(self._generation, self._vaults.adopt(found))
            if token_of(self._generation) > self._lease:
                raise LeaseLostError(
                    f"the vaults of run {self._run_id} belong to a later driver (lease {token_of(self._generation)}; "
                    f"this driver has lease {self._lease})"
                )
            gone, left = self._vaults.fence(self._generation + 1)
            if left:
                raise ClusterError(
                    f"workers of the run's driver before this one cannot be ended: processes {left}",
                    hint="end them on their nodes: the run cannot go on while they might train",
                )
            ended = set(gone)
        workers = max(end_workers(self._run_id, self._stopped), len(ended))
        release_of_run(self._run_id)
        if not found:
            return None
        return Adopted(len(found), workers, time.monotonic() - started)

    def survey_vaults(self, take: Callable[[Sequence[VaultReport]], None]) -> None:
        """From now on ask the vaults every few seconds what they hold; `take` is called from another thread."""
        self._surveyor = Surveyor(lambda: self._vaults.contacts() if self._vaults is not None else (), take)

    @property
    def memory_kept_s(self) -> float:
        """How long the vaults keep what they have without a driver; 0 where they end with it."""
        outlive = self._spec.checkpoint.memory and not self._require_cluster().local and not self._headless
        return self._spec.recovery.memory_kept_s if outlive else 0.0

    def plan_vaults(self, shape: ModelShape) -> tuple[VaultNeed | None, str | None]:
        """What the vaults of this gang will take, and a warning where a recovery may not find room. Nothing where the
        run was stopped. Raises ClusterError where it does not fit."""
        if not self._arrived():
            return None, None
        by_node = self._gang.workers_by_node
        need = vault_need(self._spec, shape, by_node)
        if need is None:
            return None, None
        workers = sum(by_node)
        each = self.request.bundle.get("memory")
        if each is None or self._require_cluster().local:
            each = least_worker_bytes(self._spec, shape, workers)
        return need, check_room(need, self._memory_per_node_bytes(), int(each) * max(by_node))

    @property
    def spec(self) -> JobSpec:
        """The job."""
        return self._spec

    @property
    def workers_by_node(self) -> tuple[int, ...]:
        """How many members of the gang each node has that has any."""
        return tuple(self._gang.workers_by_node)

    def _arrived(self) -> bool:
        """Wait for the worker processes. False if stopped. Raises ClusterError."""
        cluster = self._require_cluster()
        if not self._gang.ready(self._stopped):
            return False
        if cluster.local:
            cluster.remember(self._gang.worker_pids)
        if cluster.forks is not None:
            cluster.forks.tell_bypassed(self._emit)
        return True

    def leave_vaults(self, stored_step: int) -> Left | None:
        """The run is over without success: leave the vaults behind where another driver could go on from them, and
        they know more than storage; None where they do not, and end."""
        if self._vaults is None or not self.memory_kept_s:
            return None
        whole = self.survey()
        if not whole or whole[0].step <= stored_step:
            return None
        left = Left(whole[0].step, len(self._vaults.contacts()), self.memory_kept_s)
        self._vaults.release()
        self._vaults = None
        return left

    def _new_vaults(self) -> Any:
        from orchestrator.gang.vaults.vault_clients import VaultClients

        kept_s = self._spec.recovery.memory_kept_s
        return VaultClients(self._require_cluster().local, self._run_id, kept_s)

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
        from orchestrator.gang.vaults.checkpoint_committer import CheckpointCommitter, Pacer

        cluster = self._require_cluster()
        spec = self._spec
        found = reserve(
            self.request,
            cluster.nodes,
            cluster.autoscales,
            spec.resources.placement_timeout_s,
            spec.train.global_batch,
            self._stopped,
            self._run_id,
        )
        if found is None:
            return None
        if self._vaults is None and spec.checkpoint.memory:
            self._vaults = self._new_vaults()
        assert self._head is not None  # connected
        self._gang = Gang(
            found, self.request, self._worker_env, cluster.local, self._vaults, self.planned, self._head, self._run_id
        )
        self._gang.generation = self._generation
        self._gang.seek_more = self.seek
        self._gang.pacer = Pacer(spec.checkpoint.interval_steps == "auto")
        self._gang.standby = spec.resources.standby
        self._gang.replicas = spec.checkpoint.replicas
        if self._vaults is not None:
            keep = spec.checkpoint
            rule = Rule(keep.keep_last, keep.keep_every, keep.keep_best)
            self._gang.saves = CheckpointCommitter(self._vaults.contacts, rule, spec_hash(spec), self._lease)
        asked = spec.recovery.hang_timeout_s
        self._gang.hangs.asked_s = None if asked == "auto" else asked
        self._gang.warm(warm, later, check, question)
        return len(found) if self._gang.device_checks.passed(self._stopped, self.planned.warn) else None

    def wait_for_answers(self) -> str | None:
        """See `asking.wait_for_answers`: what the workers say to the question of `start_workers`."""
        from orchestrator.gang.group.startup_question import wait_for_answers

        return wait_for_answers(self._gang.answers, self._stopped)

    @property
    def request(self) -> WorkerRequest:
        """What is asked of the cluster now."""
        return self.planned.request

    def reform(self, waits: Callable[[Wait | None], None]) -> int | None:
        """Form the next gang of who is left and who has come; how many workers it has. None where stopped.

        Where that is fewer than the minimum, wait for those who take the empty places; the states in the vaults are
        safe meanwhile. `waits` is told when there is more to wait for than processes that start, and again (None) when
        that is over. Raises ClusterError where they can never come, or not within `recovery.max_wait_s`.
        """
        from orchestrator.gang.elastic.liveness_probe import LivenessProbe

        gang, cluster, began_s = self._gang, self._require_cluster(), time.monotonic()
        gang.head.outlast(gang.saves, self._stopped)
        roll, told, enough_since_s = LivenessProbe(), False, float("inf")
        gang.replace_lost()
        leave_lost_nodes(gang)
        if not replaced_later(len(gang.staying), gang.recruits.coming, self.request.minimum, self.request.maximum):
            self.seek()
        while not self._stopped():
            if self.planned.look(gang.members, time.monotonic()) or gang.recruits.pause_ended():
                self.seek()
            gang.recruits.look()
            if roll.look(gang.members):  # who waited is lost too: that place is to be taken as well
                gang.replace_lost()
                self.seek()
            now_s, request, recruits = time.monotonic(), self.request, gang.recruits
            line = lineup(len(gang.staying), recruits.ready, len(gang.doomed), request.minimum, request.maximum)
            if line is not None:
                enough_since_s = min(enough_since_s, now_s)
                if line.kept >= request.minimum or line.lent:
                    break
                if wants_regroup(recruits.ready, recruits.arriving, now_s - enough_since_s):
                    break
            elif cluster.local and cluster.hopeless(request):
                raise explain(request, cluster.nodes())
            if line is None:
                starting = recruits.ready + recruits.arriving
                wait = Wait(len(gang.staying), request.minimum, starting, now_s - began_s, told)
                self._check_patience(wait)
                if worth_telling(wait):
                    told = True
                    waits(wait)
            time.sleep(0.02)
        if self._stopped():
            return None
        if told:
            waits(None)
        return int(gang.reform(line))

    def _check_patience(self, wait: Wait) -> None:
        """Raises ClusterError where a gang has waited as long as the spec lets it."""
        limit_s = self._spec.recovery.max_wait_s
        if limit_s is not None and wait.waited_s > limit_s:
            raise ClusterError(
                f"waited {limit_s:g} s for {wait.need} workers, {wait.have} there: recovery.max_wait_s",
                hint="resume the run when there are nodes again, or let it go on with fewer (resources.workers.min)",
            )

    def seek(self) -> None:
        """Have workers started for the empty places, in the background; they join when they are ready."""
        seek(self._gang, self.request.maximum, self._new_place)

    def _new_place(self) -> Any | None:
        """A reservation for one worker more: wherever there is room, or will be; with a strict placement on a node
        that may be used, if there is one now."""
        request = self.request
        if not request.placement.startswith("strict"):
            return group_on(None, request.bundle, self._run_id)
        used = {member.hello.node_id for member in self._gang.members if member.lives}
        nodes = [node for node in self._require_cluster().nodes() if fitting_workers([node], request.bundle, "pack")]
        spreads = request.placement == "strict_spread"
        fits = [node for node in nodes if (node.node_id in used) is not spreads]
        return (
            group_on(fits[0].node_id, request.bundle, self._run_id) if fits and not self._gang.recruits.coming else None
        )

    def _cannot_hold(self, request: WorkerRequest) -> ConvoyError | None:
        """Why a local cluster can never hold a request; any other may get nodes."""
        cluster = self._require_cluster()
        return explain(request, cluster.nodes()) if cluster.local and cluster.hopeless(request) else None

    def survey(self) -> list[WholeStep]:
        """The steps that the vaults hold whole, the newest first."""
        return whole_steps(self._vaults.survey()) if self._vaults is not None else []

    def reports_after(self, step: int) -> list[StepReport]:
        """Reports that the vaults have of the steps after the last one on record; empty where they have none."""
        found = self._vaults.reports_after(step) if self._vaults is not None else []
        return [StepReport.from_json(json.loads(data)) for data in found]

    def executor(self) -> Any:
        """An `Executor` over this cluster's nodes."""
        from orchestrator.gang.group.worker_handle import cpu_count
        from orchestrator.gang.ray_executor import RayExecutor

        cluster = self._require_cluster()
        cpus = cpu_count() if cluster.local else int(sum(node.total.get("CPU", 0.0) for node in cluster.nodes()))
        return RayExecutor(max(1, cpus), self._stopped)

    def memory_per_worker_bytes(self, workers: int) -> int:
        """Host memory that one worker may use: what the spec reserves, or its share of its node."""
        asked = self.request.bundle.get("memory")
        if asked:
            return int(asked)
        cluster = self._require_cluster()
        if cluster.local:
            return int(psutil.virtual_memory().available) // workers
        return self._memory_per_node_bytes() // -(-workers // max(1, len(self._fitting_nodes())))

    def device_room(self) -> DeviceRoom | None:
        """Memory of the smallest GPU of the workers that have been started; None where they train on CPUs."""
        members = self._gang.members
        return smallest([member.room for member in members] if members else self._gang.device_checks.rooms)

    def _memory_per_node_bytes(self) -> int:
        """What the smallest node that holds workers has. Local nodes are all of this host, and share it."""
        cluster = self._require_cluster()
        if cluster.local:
            return int(psutil.virtual_memory().available) // max(1, len(cluster.nodes()))
        return int(min((node.total.get("memory", 0.0) for node in self._fitting_nodes()), default=0.0))

    def _fitting_nodes(self) -> list[NodeCapacity]:
        return fitting_nodes(self._require_cluster().nodes(), self.request)

    def train(self, entry: str, plan: TrainPlan, readable: Sequence[str], observers: Sequence[Observer]) -> Any:
        """Run `entry` on the gang; a `GangOutcome`, or None where it was stopped before it began."""
        if not self._arrived():
            return None
        return self._gang.run(entry, plan, readable, [*observers, self.planned], self._stopped)

    def close(self) -> None:
        """End the workers and leave the cluster; a local one ends with every process of it. Idempotent."""
        self.planned.close()
        surveyor, self._surveyor = self._surveyor, None
        if surveyor is not None:
            surveyor.close()
        cluster, self._cluster = self._cluster, None
        gang, self._gang = self._gang, None
        vaults, self._vaults = self._vaults, None
        if cluster is None:
            return
        # Without its head nobody can end what runs on a cluster, and Ray does so soon.
        ends_others = not cluster.local and not self._headless
        try:
            if gang is not None and ends_others:
                gang.kill()
            if vaults is not None and ends_others:
                vaults.close()
        finally:
            cluster.close()

    @property
    def _headless(self) -> bool:
        return self._head is not None and self._head.lost

    def _require_cluster(self) -> Cluster:
        if self._cluster is None:
            raise RuntimeError("not connected")
        return self._cluster
