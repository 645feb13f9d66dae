"""A Ray cluster of this machine, started for one run: a GCS, and a raylet for each node."""

import contextlib
import os
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Self

import psutil

from orchestrator.clusters.placement import NodeCapacity, WorkerRequest, can_ever_fit
from orchestrator.clusters.ray.attachment import attach, detach
from orchestrator.clusters.ray.fork_server.fork_launch import ForkServer, find_fork_server
from orchestrator.clusters.ray.gcs import GcsConnection
from orchestrator.clusters.ray.gpus import machine_mask_variable
from orchestrator.clusters.ray.live_nodes import HEAD_RESOURCE, NodeLabels, live_nodes
from orchestrator.clusters.ray.local.local_files import log_tail, make_directory, sweep_stale
from orchestrator.clusters.ray.local.raylet import (
    LOOPBACK,
    UNUSED_PORT,
    ClusterFiles,
    LocalNode,
    gcs_command,
    installed_ray,
    raylet_command,
    worker_command,
)
from orchestrator.clusters.ray.node_processes import descendants
from orchestrator.clusters.ray.processes import kill_processes, start_bound
from orchestrator.clusters.ray.ray_settings import LOCAL_ENV
from orchestrator.domain.devices.device import NO_GPUS, dealt
from orchestrator.domain.errors import ClusterError
from orchestrator.domain.fault_plan import NodeAddress

START_TIMEOUT_S = 30.0
OBJECT_STORE_BYTES = 80 * 1024 * 1024
"""Of each node. Ray refuses less than 75 MiB. Pages are allocated only when they are touched."""


class LocalCluster:
    """Implements `ClusterProvider`. Every process of it ends with this process, at the latest."""

    one_host = True
    outlives_driver = False
    autoscales = False
    resume_hint = "continue from the last checkpoint: convoy run --resume last"

    def __init__(
        self,
        nodes: int,
        resources: Mapping[str, float],
        gpus: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        sign: str | None = None,
        places: Sequence[NodeAddress] = (),
        preload: Sequence[str] | None = None,
    ) -> None:
        """`nodes` that offer `resources` each. `gpus` of this machine, by ordinal or identifier, are dealt out evenly.
        `env` is added to the environment of every worker. All listen on loopback, unless `places` gives another
        address for each. `preload`: modules that a fork server imports once for all workers; None: workers start as
        on any other cluster. `sign` becomes part of the name of the directory."""
        self.address, self.start_s = "", 0.0
        self.processes: list[subprocess.Popen[bytes]] = []
        """The GCS and the raylets, in the order of the nodes."""
        self.workers: set[psutil.Process] = set()
        """Worker processes that must have ended after `close`."""
        self._nodes, self._offered, self._gpus, self._places = nodes, dict(resources), gpus, places
        self._sign, self._preload = sign, preload
        self._env = {**os.environ, **LOCAL_ENV, **(env or {})}
        self._files: ClusterFiles | None = None
        self._lock: int | None = None
        self._forks: ForkServer | None = None
        self._warned = False
        self._labels = NodeLabels()

    def start(self) -> Self:
        """See `ClusterProvider`. The processes die with the calling thread."""
        started = time.monotonic()
        self.bring_up()
        try:
            attach(self.address, loopback=all(place.address == LOOPBACK for place in self._places))
        except BaseException:
            self.close()
            raise
        self.start_s = time.monotonic() - started
        return self

    def bring_up(self) -> None:
        """Start the cluster, without joining it. The processes die with the calling thread. Raises ClusterError."""
        sweep_stale(Path(tempfile.gettempdir()))
        files, self._lock = make_directory(self._nodes, self._sign)
        self._files = files
        try:
            if self._preload is not None:
                self._forks = find_fork_server(files.root, self._preload, os.environ, self._env)
            self._start_processes(files)
        except BaseException as error:
            tail = log_tail(files)
            self.close()
            if isinstance(error, _StartTimeout):
                raise ClusterError(
                    f"the local Ray cluster did not start: {error}",
                    hint=f"Ray's last output: {tail}" if tail else None,
                ) from None
            raise

    def close(self) -> None:
        """See `ClusterProvider`. Every process ends within a second or two."""
        detach()
        # Workers notice the end of their raylet by themselves, but not at once.
        self.workers.update(process for raylet in self.processes for process in descendants(raylet.pid))
        # Raylets take many seconds to end on SIGTERM, and have nothing to save.
        for process in reversed(self.processes):
            process.kill()
        for process in self.processes:
            process.wait()
        self.processes.clear()
        if self._forks is not None:
            self._forks.close()
        kill_processes(self.workers, patience_s=1.0)
        self.workers.clear()
        if self._files is not None:
            shutil.rmtree(self._files.root, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def nodes(self) -> tuple[NodeCapacity, ...]:
        """See `ClusterProvider`."""
        return live_nodes()

    def labels(self, node_ids: Collection[str]) -> Mapping[str, Mapping[str, str]]:
        """See `ClusterProvider`."""
        return self._labels.of(node_ids)

    def can_never_hold(self, request: WorkerRequest) -> bool:
        """See `ClusterProvider`: no node joins a local cluster."""
        running = sum(process.poll() is None for process in self.processes[1:])
        # Ray counts a dead node for seconds; its process is known to have ended at once. Local nodes are all alike.
        return not can_ever_fit(request, self.nodes()[:running])

    def memory_per_node_bytes(self, request: WorkerRequest) -> int:
        """See `ClusterProvider`: an equal share of what is free on this host."""
        return int(psutil.virtual_memory().available) // max(1, len(self.nodes()))

    def memory_per_worker_bytes(self, request: WorkerRequest, workers: int) -> int:
        """See `ClusterProvider`: an equal share of what is free on this host."""
        return int(psutil.virtual_memory().available) // workers

    @property
    def data_processes(self) -> int:
        """See `ClusterProvider`: one for each processor that this process may use."""
        return len(os.sched_getaffinity(0))

    def remember(self, pids: Collection[int]) -> None:
        """See `ClusterProvider`. They live now: a process is known by its pid and its start time."""
        for pid in pids:
            with contextlib.suppress(psutil.NoSuchProcess):
                self.workers.add(psutil.Process(pid))

    def start_warning(self) -> str | None:
        """See `ClusterProvider`: why the fork server is not used."""
        reason = self._forks.bypassed() if self._forks is not None and not self._warned else None
        if reason is None:
            return None
        self._warned = True
        return f"worker processes start without the fork server: {reason}"

    def add_node(self, offered: Mapping[str, float] | None = None) -> str:
        """Start one more node, for tests: like the others, or with these resources, without a GPU; its id. It dies
        with the calling thread. Raises ClusterError if it does not come up."""
        assert self._files is not None
        gcs, index = GcsConnection.to(self.address), len(self.processes) - 1
        node = self._local_node(index, dict(offered) if offered is not None else self._offered)
        self._start_raylet(self._files, node, gcs.cluster_id, {**self._env, **NO_GPUS})
        try:
            _wait_for_node(gcs, self.processes[-1:], node.node_id, time.monotonic() + START_TIMEOUT_S)
        except _StartTimeout as error:
            raise ClusterError(f"node {index} did not join the local cluster: {error}") from None
        return node.node_id

    def ended(self) -> list[int]:
        """Indexes of the nodes whose raylets have ended; -1 stands for the GCS."""
        return [index - 1 for index, process in enumerate(self.processes) if process.poll() is not None]

    def replace_node(self, index: int) -> str:
        """Start a node in place of one that has ended, with its resources and its GPUs; its id. It dies with the
        calling thread. Raises ClusterError if it does not come up."""
        assert self._files is not None
        for socket in (self._files.raylet_socket(index), self._files.store_socket(index)):
            socket.unlink(missing_ok=True)
        gcs, node = GcsConnection.to(self.address), self._local_node(index, self._offered)
        before = self.processes[index + 1]
        self._start_sharing(self._files, node, gcs.cluster_id)
        self.processes[index + 1] = self.processes.pop()
        try:
            _wait_for_node(gcs, [self.processes[index + 1]], node.node_id, time.monotonic() + START_TIMEOUT_S)
        except _StartTimeout as error:
            self.processes[index + 1].kill()
            raise ClusterError(f"node {index} did not join the local cluster again: {error}") from None
        before.wait()
        return node.node_id

    def _local_node(self, index: int, resources: Mapping[str, float]) -> LocalNode:
        place = self._places[index] if index < len(self._places) else NodeAddress(LOOPBACK, "lo", None)
        offered = {f"node:{place.address}": 1.0, **resources, "object_store_memory": float(OBJECT_STORE_BYTES)}
        if index == 0:
            offered[HEAD_RESOURCE] = 1.0
        # Ids are sorted as the nodes are numbered: listings, and which node gets which worker, are the same each time.
        node_id = f"{index:04x}{secrets.token_hex(26)}"
        return LocalNode(index, node_id, offered, OBJECT_STORE_BYTES, place)

    def _start_processes(self, files: ClusterFiles) -> None:
        nodes = [self._local_node(index, self._offered) for index in range(self._nodes)]
        head_id, head = nodes[0].node_id, nodes[0].place.address
        self.processes.append(start_bound(gcs_command(installed_ray(), files, head_id, head), self._env))
        deadline = time.monotonic() + START_TIMEOUT_S
        self.address = f"{head}:{_wait_for_port(files.gcs_port(head_id), self.processes[0], deadline)}"
        gcs = GcsConnection.to(self.address)
        gcs.announce_session(files.session_name)
        for node in nodes:
            self._start_sharing(files, node, gcs.cluster_id)
        for node in nodes:
            _wait_for_node(gcs, self.processes, node.node_id, deadline)

    def _start_sharing(self, files: ClusterFiles, node: LocalNode, cluster_id: str) -> None:
        """Start a node with its share of the GPUs."""
        share = dealt(self._gpus, self._nodes, node.index)
        if share:
            node.resources["GPU"] = float(len(share))
        # Ray takes its ids of a node's GPUs from the node's mask.
        mask = {machine_mask_variable(): ",".join(share)} if share else NO_GPUS if self._gpus else {}
        self._start_raylet(files, node, cluster_id, {**self._env, **mask})

    def _start_raylet(self, files: ClusterFiles, node: LocalNode, cluster_id: str, env: dict[str, str]) -> None:
        for path in files.agent_ports(node.node_id):
            path.write_text(str(UNUSED_PORT))
        worker = worker_command(installed_ray(), files, node, self.address, cluster_id)
        if self._forks is not None:
            worker = self._forks.command(worker)
        command = raylet_command(installed_ray(), files, node, self.address, cluster_id, worker)
        place = node.place
        if place.address != LOOPBACK:  # gloo and NCCL would use the host's name, which has no address in a namespace
            env = {**env, "GLOO_SOCKET_IFNAME": place.interface, "NCCL_SOCKET_IFNAME": place.interface}
        self.processes.append(start_bound(command, env, place.namespace))


class _StartTimeout(Exception):
    """A process of the cluster took too long, or ended."""


def _wait_for_port(path: Path, process: subprocess.Popen[bytes], deadline: float) -> int:
    while True:
        with contextlib.suppress(OSError, ValueError):
            return int(path.read_text())
        _check_time([process], deadline, "the GCS")
        time.sleep(0.005)


def _wait_for_node(
    gcs: GcsConnection, processes: Sequence[subprocess.Popen[bytes]], node_id: str, deadline: float
) -> None:
    while not any(node.node_id == node_id and node.alive for node in gcs.nodes()):
        _check_time(processes, deadline, f"node {node_id}")
        time.sleep(0.01)


def _check_time(processes: Sequence[subprocess.Popen[bytes]], deadline: float, what: str) -> None:
    for process in processes:
        if process.poll() is not None:
            raise _StartTimeout(f"a Ray process ended with code {process.returncode} while {what} started")
    if time.monotonic() > deadline:
        raise _StartTimeout(f"{what} did not start within {START_TIMEOUT_S:.0f} s")
