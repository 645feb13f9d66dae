"""Joining a Ray cluster that is there already."""

import socket
import threading
import time

from orchestrator.clusters.ray.cluster import Cluster, attach
from orchestrator.clusters.ray.raylet import LOOPBACK
from orchestrator.domain.errors import ClusterError

REACH_TIMEOUT_S = 10.0


def connect(address: str) -> Cluster:
    """Join a running cluster as driver. Raises ClusterError within about 15 s where there is none."""
    started = time.monotonic()
    if address.startswith("ray://"):
        raise ClusterError(
            f"cluster.address {address} is a Ray Client address, which cannot carry a training run",
            hint="run convoy on a node of the cluster and give `host:6379` (the GCS) or `auto`",
        )
    resolved = _find_running() if address == "auto" else address
    _require_reachable(resolved)
    attach(resolved, loopback=resolved.startswith((LOOPBACK, "localhost")) and _gcs_is_loopback(resolved))
    return Cluster(resolved, local=False, seconds=time.monotonic() - started)


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
    """None where a GCS answers us; what it says where it refuses."""
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.exceptions import RayError

    try:
        GcsClient(address=address).get_all_node_info()
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
    """Whether the cluster's nodes know each other by loopback (one that convoy or a test started here)."""
    from ray._raylet import GcsClient  # type: ignore[attr-defined]

    nodes = GcsClient(address=address).get_all_node_info().values()
    return any(node.node_manager_address == LOOPBACK for node in nodes)
