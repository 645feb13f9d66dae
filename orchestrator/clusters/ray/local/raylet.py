"""Command lines of the processes of a local Ray cluster: one GCS, and a raylet for each node.

Ray's own launcher adds two agents (metrics, runtime environments) to every raylet and a dashboard process to the
head: ten more Python processes for four nodes, seconds of start on a small machine, and nothing that training
needs. The flags are those of `start_gcs_server` and `start_raylet` in Ray's `ray/_private/services.py`; the releases
they were checked with are in pyproject.toml.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from orchestrator.domain.fault_plan import NodeAddress

LOOPBACK = "127.0.0.1"
"""With this address Ray's servers listen on loopback only."""

UNUSED_PORT = 65535
"""Stands for the ports of agents that do not run; nothing connects to it."""

AGENT_PORT_FILES = (
    "metrics_agent_port",
    "metrics_export_port",
    "dashboard_agent_listen_port",
    "runtime_env_agent_port",
)
"""Files `<name>_<node id>` in the session directory that a raylet waits for before it starts."""

# A raylet insists on agents and ends when one does. This one sleeps, and dies with its raylet.
_KEEPER = "import ctypes,signal;ctypes.CDLL(None).prctl(1,9,0,0,0);signal.pause()"


@dataclass(frozen=True)
class RayFiles:
    """Executables and scripts of the installed Ray."""

    gcs: str
    raylet: str
    native_library: str
    worker_setup: str
    worker: str
    commit: str


def installed_ray() -> RayFiles:
    """Those of this Python."""
    import ray
    from ray._private import ray_constants, services

    workers = Path(services.__file__).parent / "workers"
    return RayFiles(
        gcs=services.GCS_SERVER_EXECUTABLE,
        raylet=services.RAYLET_EXECUTABLE,
        native_library=services.DEFAULT_NATIVE_LIBRARY_PATH,
        worker_setup=str(workers / ray_constants.SETUP_WORKER_FILENAME),
        worker=str(workers / "default_worker.py"),
        commit=ray.__commit__,
    )


@dataclass(frozen=True)
class ClusterFiles:
    """Where a local cluster keeps its sockets and logs. The root is short: a socket's path has at most 107 bytes."""

    root: Path

    @property
    def session_name(self) -> str:
        return "session"

    @property
    def session(self) -> Path:
        return self.root / self.session_name

    @property
    def logs(self) -> Path:
        return self.session / "logs"

    @property
    def runtime(self) -> Path:
        return self.session / "runtime_resources"

    def raylet_socket(self, index: int) -> Path:
        return self.session / "sockets" / f"raylet.{index}"

    def store_socket(self, index: int) -> Path:
        return self.session / "sockets" / f"store.{index}"

    def gcs_port(self, head_id: str) -> Path:
        return self.session / f"gcs_server_port_{head_id}"

    def agent_ports(self, node_id: str) -> tuple[Path, ...]:
        return tuple(self.session / f"{name}_{node_id}" for name in AGENT_PORT_FILES)


@dataclass(frozen=True)
class LocalNode:
    """One raylet to start."""

    index: int
    node_id: str
    resources: dict[str, float]
    object_store_bytes: int
    place: NodeAddress


def gcs_command(ray: RayFiles, files: ClusterFiles, head_id: str, address: str) -> list[str]:
    """Arguments that start the GCS; it writes the port it chose to `files.gcs_port`."""
    return [
        ray.gcs,
        f"--log_dir={files.logs}",
        "--config_list=e30=",  # base64 of {}
        "--gcs_server_port=0",
        f"--metrics-agent-port={UNUSED_PORT}",
        f"--node-ip-address={address}",
        f"--session-name={files.session_name}",
        f"--ray-commit={ray.commit}",
        f"--session-dir={files.session}",
        f"--node-id={head_id}",
        f"--stdout_filepath={files.logs / 'gcs.out'}",
        f"--stderr_filepath={files.logs / 'gcs.err'}",
    ]


def raylet_command(
    ray: RayFiles, files: ClusterFiles, node: LocalNode, gcs: str, cluster_id: str, worker: list[str]
) -> list[str]:
    """Arguments that start one node. `gcs` is `host:port`; `worker`: what the raylet runs for a worker process."""
    keeper = subprocess.list2cmdline([sys.executable, "-I", "-S", "-c", _KEEPER])
    resources = ",".join(f"{name},{amount}" for name, amount in node.resources.items())
    command = [
        ray.raylet,
        f"--raylet_socket_name={files.raylet_socket(node.index)}",
        f"--store_socket_name={files.store_socket(node.index)}",
        "--object_manager_port=0",
        "--min_worker_port=0",
        "--max_worker_port=0",
        "--node_manager_port=0",
        f"--node_id={node.node_id}",
        f"--node_ip_address={node.place.address}",
        f"--maximum_startup_concurrency={max(2, int(node.resources.get('CPU', 1)))}",
        f"--static_resource_list={resources}",
        f"--python_worker_command={subprocess.list2cmdline(worker)}",
        "--java_worker_command=",
        "--cpp_worker_command=",
        f"--native_library_path={ray.native_library}",
        f"--temp_dir={files.root}",
        f"--session_dir={files.session}",
        f"--log_dir={files.logs}",
        f"--resource_dir={files.runtime}",
        f"--metrics-agent-port={UNUSED_PORT}",
        f"--metrics_export_port={UNUSED_PORT}",
        f"--runtime_env_agent_port={UNUSED_PORT}",
        f"--object_store_memory={node.object_store_bytes}",
        "--plasma_directory=/dev/shm",
        f"--fallback_directory={files.session}",
        "--ray-debugger-external=0",
        f"--gcs-address={gcs}",
        f"--session-name={files.session_name}",
        f"--labels={json.dumps(dict(node.place.labels)) if node.place.labels else ''}",
        f"--cluster-id={cluster_id}",
        f"--stdout_filepath={files.logs / f'raylet-{node.index}.out'}",
        f"--stderr_filepath={files.logs / f'raylet-{node.index}.err'}",
        # The driver's connection waits for prestarted workers: none, they start when actors ask for them.
        "--num_prestart_python_workers=0",
        f"--dashboard_agent_command={keeper}",
        f"--runtime_env_agent_command={keeper}",
    ]
    return [*command, "--head"] if node.index == 0 else command


def worker_command(ray: RayFiles, files: ClusterFiles, node: LocalNode, gcs: str, cluster_id: str) -> list[str]:
    """Arguments that start a worker process of one node, as Ray's own launcher gives them."""
    return [
        sys.executable,
        ray.worker_setup,
        ray.worker,
        f"--node-ip-address={node.place.address}",
        "--node-manager-port=RAY_NODE_MANAGER_PORT_PLACEHOLDER",
        f"--object-store-name={files.store_socket(node.index)}",
        f"--raylet-name={files.raylet_socket(node.index)}",
        "--redis-address=None",
        f"--metrics-agent-port={UNUSED_PORT}",
        "--logging-rotate-bytes=0",
        "--logging-rotate-backup-count=0",
        f"--runtime-env-agent-port={UNUSED_PORT}",
        f"--gcs-address={gcs}",
        f"--session-name={files.session_name}",
        f"--temp-dir={files.root}",
        "--webui=None",
        f"--cluster-id={cluster_id}",
        "RAY_WORKER_DYNAMIC_OPTION_PLACEHOLDER",
    ]
