"""A Ray cluster that exists already and that a run joins."""

import socket
import threading
import time
from collections.abc import Collection, Mapping
from typing import Self

from orchestrator.clusters.placement import NodeCapacity, WorkerRequest, fitting_nodes
from orchestrator.clusters.ray.attachment import attach, detach
from orchestrator.clusters.ray.gcs import GcsConnection
from orchestrator.clusters.ray.live_nodes import NodeLabels, live_nodes
from orchestrator.clusters.ray.local.raylet import LOOPBACK
from orchestrator.domain.errors import ClusterError

REACH_TIMEOUT_S = 10.0


class JoinedCluster:
    """Implements `ClusterProvider`. Nodes may join and leave, and the cluster stays when the run is over."""

    outlives_driver = True
    resume_hint = (
        "when a cluster is available again, continue from the last checkpoint: convoy run --resume last "
        "(--set cluster.address=HOST:PORT if it has another address)"
    )

    def __init__(self, address: str) -> None:
        """`address`: `host:port` of its GCS, or `auto` for the cluster on this machine."""
        self.address, self.start_s = address, 0.0
        self.one_host = False
        """See `ClusterProvider`: known after `start`."""
        self._labels = NodeLabels()

    def start(self) -> Self:
        """See `ClusterProvider`. Raises ClusterError within about 15 s if there is no cluster."""
        started = time.monotonic()
        if self.address.startswith("ray://"):
            raise ClusterError(
                f"cluster.address {self.address} is a Ray Client address, which cannot carry a training run",
                hint="run convoy on a node of the cluster and give `host:6379` (the GCS) or `auto`",
            )
        resolved = _find_running() if self.address == "auto" else self.address
        _require_reachable(resolved)
        # Nobody else reaches a cluster on loopback: all of its nodes are on this host.
        self.one_host = resolved.startswith((LOOPBACK, "localhost")) and _gcs_is_loopback(resolved)
        attach(resolved, loopback=self.one_host)
        self.address, self.start_s = resolved, time.monotonic() - started
        return self

    def close(self) -> None:
        """See `ClusterProvider`."""
        detach()

    def nodes(self) -> tuple[NodeCapacity, ...]:
        """See `ClusterProvider`."""
        return live_nodes()

    def labels(self, node_ids: Collection[str]) -> Mapping[str, Mapping[str, str]]:
        """See `ClusterProvider`."""
        return self._labels.of(node_ids)

    @property
    def autoscales(self) -> bool:
        """See `ClusterProvider`."""
        return GcsConnection.of_this_process().has_autoscaler()

    def can_never_hold(self, request: WorkerRequest) -> bool:
        """See `ClusterProvider`: nodes may join at any time."""
        return False

    def memory_per_node_bytes(self, request: WorkerRequest) -> int:
        """See `ClusterProvider`."""
        nodes = fitting_nodes(self.nodes(), request)
        return int(min((node.total.get("memory", 0.0) for node in nodes), default=0.0))

    def memory_per_worker_bytes(self, request: WorkerRequest, workers: int) -> int:
        """See `ClusterProvider`."""
        nodes = len(fitting_nodes(self.nodes(), request))
        return self.memory_per_node_bytes(request) // -(-workers // max(1, nodes))

    @property
    def data_processes(self) -> int:
        """See `ClusterProvider`: one for each processor of the cluster."""
        return max(1, int(sum(node.total.get("CPU", 0.0) for node in self.nodes())))

    def remember(self, pids: Collection[int]) -> None:
        """See `ClusterProvider`: Ray ends them when their actors are killed."""

    def start_warning(self) -> str | None:
        """See `ClusterProvider`: workers start as they always do here."""
        return None


def _find_running() -> str:
    from ray._private import services

    try:
        found = services.get_ray_address_from_environment("auto", None)
    except ConnectionError:
        found = None
    if not found:
        raise ClusterError(
            "cluster.address is `auto`, but no Ray cluster runs on this machine",
            hint="start one with `ray start --head`, or leave cluster.address out for a local one",
        )
    return str(found)


def _require_reachable(address: str) -> None:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise ClusterError(f"cluster.address {address!r} is not host:port", hint="e.g. 10.0.0.5:6379, or `auto`")
    hint = "check that the cluster is up and that this machine can reach that port; `ray status` on its head shows it"
    try:
        socket.create_connection((host, int(port)), timeout=REACH_TIMEOUT_S / 2).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(f"no Ray cluster can be reached at {address}: {error}", hint=hint) from error
    # A socket that accepts proves little: Ray itself would try for minutes to talk to a web server.
    answer: list[Exception | None] = []
    thread = threading.Thread(target=lambda: answer.append(_ask_gcs(address)), daemon=True)
    thread.start()
    thread.join(REACH_TIMEOUT_S / 2)
    if not answer:
        raise ClusterError(f"the process at {address} does not answer as a Ray GCS", hint=hint)
    if answer[0] is not None:
        raise _refusal(address, answer[0])


def _ask_gcs(address: str) -> Exception | None:
    """None if a GCS answers; otherwise its error."""
    from ray.exceptions import RayError

    try:
        GcsConnection.to(address).nodes()
    except (RayError, OSError, RuntimeError, ValueError) as error:
        refused: Exception = error
        return refused
    return None


def _refusal(address: str, error: Exception) -> ClusterError:
    from ray.exceptions import AuthenticationError

    if isinstance(error, AuthenticationError):
        return ClusterError(
            f"the Ray cluster at {address} requires a token, and none or a wrong one is set",
            hint="set RAY_AUTH_MODE=token, and set the cluster's token for Ray (RAY_AUTH_TOKEN, or "
            "RAY_AUTH_TOKEN_PATH for a file)",
        )
    return ClusterError(f"the Ray cluster at {address} refuses the connection: {error}", hint="see the logs of its GCS")


def _gcs_is_loopback(address: str) -> bool:
    """Whether the nodes know each other by loopback addresses, as in a cluster that Convoy or a test started here."""
    return any(node.address == LOOPBACK for node in GcsConnection.to(address).nodes())
