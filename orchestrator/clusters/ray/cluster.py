"""The Ray cluster of a run, and the raylets that are started on this machine for it."""

import contextlib
import fcntl
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from orchestrator.clusters.placement import NodeCapacity, WorkerRequest, can_ever_fit
from orchestrator.clusters.ray.fork_server.fork_launch import ForkServer, find_fork_server
from orchestrator.clusters.ray.gpus import machine_mask_variable
from orchestrator.clusters.ray.node_processes import descendants
from orchestrator.clusters.ray.processes import kept_signal_handlers, kill_processes, start_bound
from orchestrator.clusters.ray.raylet import (
    LOOPBACK,
    UNUSED_PORT,
    ClusterFiles,
    LocalNode,
    RayFiles,
    gcs_command,
    raylet_command,
    worker_command,
)
from orchestrator.domain.device import NO_GPUS, dealt
from orchestrator.domain.errors import ClusterError
from orchestrator.domain.fault_plan import NodeAddress

NAMESPACE = "convoy"
START_TIMEOUT_S = 30.0
OBJECT_STORE_BYTES = 80 * 1024 * 1024
"""Of each local node. Ray refuses less than 75 MiB. Pages are taken only when touched."""
DIRECTORY_PREFIX = "convoy-ray-"

LOCAL_ENV = {
    "RAY_worker_niceness": "0",  # Ray's default runs workers at nice 15
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_event_stats": "0",
    # A killed node is seen in about 3 s instead of 14.
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "500",
    "RAY_health_check_failure_threshold": "3",
    # A worker waits for the fork server's imports before it registers; Ray's default ends it after 60 s.
    "RAY_worker_register_timeout_seconds": "180",
    "PYTHONUNBUFFERED": "1",
}
GUARDED_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass
class Cluster:
    """A connection to Ray, and the local processes behind it if we started them."""

    address: str
    local: bool
    seconds: float
    """From the request to the connection."""
    files: ClusterFiles | None = None
    forks: ForkServer | None = None
    """What local raylets get worker processes from; None if they start each anew."""
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    workers: set[psutil.Process] = field(default_factory=set)
    """Processes of ours on local nodes, to be sure that they are gone in the end."""
    _lock: int | None = None
    _offered: dict[str, float] = field(default_factory=dict)
    """What each local node offers."""
    _env: dict[str, str] = field(default_factory=dict)
    """Of the local raylets."""

    def nodes(self) -> tuple[NodeCapacity, ...]:
        """Every live node: what it has and what is free."""
        return live_nodes()

    @property
    def running_nodes(self) -> int | None:
        """Raylets of ours whose processes run: known before Ray notices that one is gone. None where not ours."""
        return sum(process.poll() is None for process in self.processes[1:]) if self.local else None

    def hopeless(self, request: WorkerRequest) -> bool:
        """Whether the nodes of ours that run could not hold the minimum, whatever ended on them."""
        nodes = self.nodes()
        running = self.running_nodes
        # Ray counts a dead node for seconds. Local nodes are all alike.
        return not can_ever_fit(request, nodes[: len(nodes) if running is None else running])

    def add_node(self) -> str:
        """One more node for a local cluster, like the others, but without a GPU; its id. It dies with the calling
        thread. Raises ClusterError where it does not come up."""
        import ray._private.services as services
        from ray._raylet import GcsClient  # type: ignore[attr-defined]

        assert self.files is not None
        client = GcsClient(address=self.address)
        index = len(self.processes) - 1
        (node,) = _local_nodes(range(index, index + 1), self._offered)
        _start_raylet(self, _ray_files(services), node, client, {**self._env, **NO_GPUS})
        try:
            _wait_for_node(client, self.processes[-1:], node.node_id, time.monotonic() + START_TIMEOUT_S)
        except ConvoyTimeout as error:
            raise ClusterError(f"node {index} did not join the local cluster: {error}") from None
        return node.node_id

    def remember(self, pids: Iterable[int]) -> None:
        """See to it that these processes of local nodes are gone in the end. They live now."""
        for pid in pids:
            with contextlib.suppress(psutil.NoSuchProcess):
                self.workers.add(psutil.Process(pid))

    @property
    def autoscales(self) -> bool:
        """An autoscaler reports to the GCS: nodes may come when asked for."""
        if self.local:
            return False
        import ray

        client: Any = ray._private.worker.global_worker.gcs_client
        return client.internal_kv_get(b"__autoscaling_error", None) is not None or bool(
            client.internal_kv_get(b"__autoscaler_v2_enabled", None)
        )

    def close(self) -> None:
        """Leave the cluster; a local one ends, every process of it, within a second or two. Idempotent."""
        import ray

        with contextlib.suppress(RuntimeError):
            ray.shutdown()
        self._end_processes()

    def _end_processes(self) -> None:
        # Workers notice the end of their raylet by themselves, but not at once.
        self.workers.update(process for raylet in self.processes for process in descendants(raylet.pid))
        # Raylets take many seconds to end on SIGTERM, and have nothing to save.
        for process in reversed(self.processes):
            process.kill()
        for process in self.processes:
            process.wait()
        self.processes.clear()
        if self.forks is not None:
            self.forks.close()
        kill_processes(self.workers, patience_s=1.0)
        self.workers.clear()
        if self.files is not None:
            shutil.rmtree(self.files.root, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def start_local(
    nodes: int,
    resources: Mapping[str, float],
    gpus: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    sign: str | None = None,
    places: Sequence[NodeAddress] = (),
    preload: Sequence[str] | None = None,
) -> Cluster:
    """Start a GCS and `nodes` raylets, each offering `resources`, and connect to them as driver.

    `gpus` of this machine, by ordinal or identifier, are dealt out evenly. `env` is added to the environment of every
    worker. All listen on loopback, unless `places` has another address for each. The processes die with the calling
    thread. `preload`: modules that a fork server imports once for all workers; None: workers start as on any other
    cluster. Raises ClusterError if the processes do not come up.
    """
    started = time.monotonic()
    sweep_stale(Path(tempfile.gettempdir()))
    files, lock = _make_directory(nodes, sign)
    cluster = Cluster("", local=True, seconds=0.0, files=files, _lock=lock)
    try:
        cluster._offered, cluster._env = dict(resources), {**os.environ, **LOCAL_ENV, **(env or {})}
        if preload is not None:
            cluster.forks = find_fork_server(files.root, preload, os.environ, cluster._env)
        _start_processes(cluster, files, _local_nodes(range(nodes), resources, places), gpus)
        attach(cluster.address, loopback=not places)
        cluster.seconds = time.monotonic() - started
        return cluster
    except BaseException as error:
        tail = _log_tail(files)
        cluster.close()
        if isinstance(error, ConvoyTimeout):
            raise ClusterError(
                f"the local Ray cluster did not start: {error}", hint=f"Ray's last output: {tail}" if tail else None
            ) from None
        raise


def live_nodes() -> tuple[NodeCapacity, ...]:
    """Nodes of the connected cluster that are alive and not about to go, head first, with total and free resources."""
    import ray
    from ray._private.state import available_resources_per_node, state

    free, draining = available_resources_per_node(), state.get_draining_nodes()
    found = []
    for node in ray.nodes():
        if node["Alive"] and node["NodeID"] not in draining:
            total = {str(k): float(v) for k, v in node["Resources"].items()}
            available = free.get(node["NodeID"], {})
            found.append(
                NodeCapacity(
                    node_id=node["NodeID"],
                    address=node["NodeManagerAddress"],
                    total=total,
                    free={k: float(available.get(k, 0.0)) for k in total},
                )
            )
    return tuple(sorted(found, key=lambda n: ("node:__internal_head__" not in n.total, n.node_id)))


def sweep_stale(directory: Path) -> None:
    """Remove what killed drivers left: cluster directories whose lock nobody holds."""
    for root in directory.glob(f"{DIRECTORY_PREFIX}*"):
        with contextlib.suppress(OSError):
            descriptor = os.open(root / "lock", os.O_RDWR)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(root, ignore_errors=True)
            finally:
                os.close(descriptor)


class ConvoyTimeout(Exception):
    """Something of ours took too long; turned into a ClusterError by whoever knows what to say."""


def _make_directory(nodes: int, sign: str | None) -> tuple[ClusterFiles, int]:
    files = ClusterFiles(Path(tempfile.mkdtemp(prefix=DIRECTORY_PREFIX + (f"{sign}-" if sign else ""))))
    longest = len(str(files.store_socket(nodes)))
    if longest > 100:
        shutil.rmtree(files.root)
        raise ClusterError(
            f"the directory for temporary files is too deep for sockets: {files.root}", hint="set TMPDIR=/tmp"
        )
    lock = os.open(files.root / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    for directory in (files.logs, files.raylet_socket(0).parent, files.runtime):
        directory.mkdir(parents=True)
    return files, lock


def _local_nodes(indices: range, resources: Mapping[str, float], places: Sequence[NodeAddress] = ()) -> list[LocalNode]:
    nodes = []
    for index in indices:
        place = places[index] if places else NodeAddress(LOOPBACK, "lo", None)
        offered = {f"node:{place.address}": 1.0, **resources, "object_store_memory": float(OBJECT_STORE_BYTES)}
        if index == 0:
            offered["node:__internal_head__"] = 1.0
        nodes.append(LocalNode(index, secrets.token_hex(28), offered, OBJECT_STORE_BYTES, place))
    return nodes


def _start_processes(cluster: Cluster, files: ClusterFiles, nodes: list[LocalNode], gpus: Sequence[str]) -> None:
    import ray._private.services as services
    from ray._common.usage import usage_lib
    from ray._private import ray_constants
    from ray._raylet import GcsClient  # type: ignore[attr-defined]

    ray_files, env = _ray_files(services), cluster._env
    head_id, head = nodes[0].node_id, nodes[0].place.address
    cluster.processes.append(start_bound(gcs_command(ray_files, files, head_id, head), env))
    deadline = time.monotonic() + START_TIMEOUT_S
    cluster.address = f"{head}:{_wait_for_port(files.gcs_port(head_id), cluster.processes[0], deadline)}"
    client = GcsClient(address=cluster.address)
    # What `ray.init` and workers look up; Ray's own launcher of a head node writes the same.
    usage_lib.put_cluster_metadata(client, ray_init_cluster=False)
    client.internal_kv_put(b"session_name", files.session_name.encode(), False, ray_constants.KV_NAMESPACE_SESSION)
    for node in nodes:
        share = dealt(gpus, len(nodes), node.index)
        if share:
            node.resources["GPU"] = float(len(share))
        # Ray takes its ids of a node's GPUs from the node's mask.
        mask = {machine_mask_variable(): ",".join(share)} if share else NO_GPUS if gpus else {}
        _start_raylet(cluster, ray_files, node, client, {**env, **mask})
    for node in nodes:
        _wait_for_node(client, cluster.processes, node.node_id, deadline)


def _start_raylet(cluster: Cluster, ray_files: RayFiles, node: LocalNode, client: Any, env: dict[str, str]) -> None:
    files = cluster.files
    assert files is not None
    for path in files.agent_ports(node.node_id):
        path.write_text(str(UNUSED_PORT))
    worker = worker_command(ray_files, files, node, cluster.address, client.cluster_id.hex())
    if cluster.forks is not None:
        worker = cluster.forks.command(worker)
    command = raylet_command(ray_files, files, node, cluster.address, client.cluster_id.hex(), worker)
    place = node.place
    if place.address != LOOPBACK:  # gloo and NCCL would go by the host's name, which is of no address in a namespace
        env = {**env, "GLOO_SOCKET_IFNAME": place.interface, "NCCL_SOCKET_IFNAME": place.interface}
    cluster.processes.append(start_bound(command, env, place.namespace))


def _ray_files(services: Any) -> RayFiles:
    import ray
    from ray._private import ray_constants

    workers = Path(services.__file__).parent / "workers"
    return RayFiles(
        gcs=services.GCS_SERVER_EXECUTABLE,
        raylet=services.RAYLET_EXECUTABLE,
        native_library=services.DEFAULT_NATIVE_LIBRARY_PATH,
        worker_setup=str(workers / ray_constants.SETUP_WORKER_FILENAME),
        worker=str(workers / "default_worker.py"),
        commit=ray.__commit__,
    )


def _wait_for_port(path: Path, process: subprocess.Popen[bytes], deadline: float) -> int:
    while True:
        with contextlib.suppress(OSError, ValueError):
            return int(path.read_text())
        _check_time([process], deadline, "the GCS")
        time.sleep(0.005)


def _wait_for_node(client: Any, processes: list[subprocess.Popen[bytes]], node_id: str, deadline: float) -> None:
    while not any(key.hex() == node_id and node.state == 0 for key, node in client.get_all_node_info().items()):
        _check_time(processes, deadline, f"node {node_id}")
        time.sleep(0.01)


def _check_time(processes: list[subprocess.Popen[bytes]], deadline: float, what: str) -> None:
    for process in processes:
        if process.poll() is not None:
            raise ConvoyTimeout(f"a Ray process ended with code {process.returncode} while {what} started")
    if time.monotonic() > deadline:
        raise ConvoyTimeout(f"{what} did not start within {START_TIMEOUT_S:.0f} s")


def _log_tail(files: ClusterFiles) -> str:
    lines: list[str] = []
    for path in sorted(files.logs.glob("*.err")):
        with contextlib.suppress(OSError):
            lines += [line for line in path.read_text(errors="replace").splitlines() if line.strip()][:2]
    return " | ".join(lines)[:1000]


def attach(address: str, loopback: bool) -> None:
    """Connect this process to Ray as a driver; `loopback`: the cluster listens nowhere else. Raises ClusterError."""
    import ray

    with kept_signal_handlers(GUARDED_SIGNALS), _loopback_allowed(loopback), _quiet():
        try:
            ray.init(
                address=address,
                namespace=NAMESPACE,
                log_to_driver=False,
                logging_level="ERROR",
                configure_logging=False,
            )
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            raise ClusterError(
                f"cannot join the Ray cluster at {address}: {error}",
                hint="run convoy on a node of the cluster, with the cluster's versions of Ray and Python",
            ) from error


@contextlib.contextmanager
def _loopback_allowed(loopback: bool) -> Iterator[None]:
    """Ray replaces a loopback address by the machine's outer one, at which a loopback cluster does not listen."""
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    if loopback:
        ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Ray warns about environment variables of accelerators that we set on purpose, and starts a thread that prints
    the cluster's errors to stdout, which is for data. What they say reaches us by other ways."""
    import warnings

    from ray._private import worker

    listen, worker.listen_error_messages = worker.listen_error_messages, _say_nothing
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        worker.listen_error_messages = listen


def _say_nothing(worker: Any, threads_stopped: Any) -> None:
    """In place of Ray's thread that prints."""
