"""What is asked of a cluster's GCS (Global Control Service), with types. Ray's client of it is private."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray import ActorID
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.core.generated.common_pb2 import ActorDeathCause
    from ray.core.generated.gcs_pb2 import ActorTableData

BACKSTOP_S = 1.0
"""How much later than Ray's own limit an answer is given up."""
PREEMPTION = 2
"""`DRAIN_NODE_REASON_PREEMPTION` in Ray's autoscaler.proto: the node cannot refuse."""
_ALIVE = 0
"""`GcsNodeInfo.ALIVE` in Ray's gcs.proto."""


@dataclass(frozen=True)
class GcsNode:
    """A node as the GCS knows it."""

    node_id: str
    address: str
    alive: bool


class GcsConnection:
    """Questions to one GCS. Methods raise ray.exceptions.RayError if it does not answer."""

    def __init__(self, client: "GcsClient") -> None:
        """`client`: Ray's `GcsClient`."""
        self._client = client

    @classmethod
    def to(cls, address: str) -> "GcsConnection":
        """A connection of its own, to `host:port`. May wait for a GCS that does not answer."""
        from ray._raylet import GcsClient  # type: ignore[attr-defined]

        return cls(GcsClient(address=address))

    @classmethod
    def of_this_process(cls) -> "GcsConnection":
        """The connection of a process that has joined a cluster."""
        import ray

        return cls(ray._private.worker.global_worker.gcs_client)

    @property
    def cluster_id(self) -> str:
        """Hexadecimal."""
        return str(self._client.cluster_id.hex())

    def nodes(self, timeout_s: float | None = None) -> list[GcsNode]:
        """All nodes, those that have died included."""
        found = self._client.get_all_node_info(timeout=timeout_s).items()
        return [GcsNode(key.hex(), str(node.node_manager_address), node.state == _ALIVE) for key, node in found]

    def draining(self, timeout_s: float) -> dict[str, float | None]:
        """Nodes that are about to go, by id: when (Unix seconds), if that was announced."""
        ask = getattr(self._client, "get_draining_nodes", None)
        found: dict[str, int] = ask(timeout=timeout_s) if ask is not None else self._draining_before_2_60(timeout_s)
        return {node: ms / 1000 if ms else None for node, ms in found.items()}

    def _draining_before_2_60(self, timeout_s: float) -> dict[str, int]:
        """The same as `get_draining_nodes` of later releases. The question for deadlines has no time limit there: it is
        asked only if the GCS has just said that a node is draining."""
        from ray._private.state import state
        from ray.core.generated import autoscaler_pb2

        reply = autoscaler_pb2.GetClusterResourceStateReply()
        reply.ParseFromString(self._client.get_cluster_resource_state(timeout_s=timeout_s))
        nodes = reply.cluster_resource_state.node_states
        draining = any(node.status == autoscaler_pb2.NodeStatus.DRAINING for node in nodes)
        return state.get_draining_nodes() if draining else {}

    def drain(self, node_id: str, notice_s: float | None, message: str, timeout_s: float) -> str | None:
        """Announce that a node will be preempted in `notice_s` (None: nobody says when); None if it is accepted,
        otherwise why not."""
        deadline_ms = int((time.time() + notice_s) * 1000) if notice_s is not None else 0
        accepted, why = self._client.drain_node(node_id, PREEMPTION, message, deadline_ms, timeout=timeout_s)
        return None if accepted else str(why)

    def announce_session(self, session_name: str) -> None:
        """Store what drivers and workers look up when they connect, as Ray's launcher of a head node does."""
        from ray._common.usage import usage_lib
        from ray._private import ray_constants

        usage_lib.put_cluster_metadata(self._client, ray_init_cluster=False)
        namespace = ray_constants.KV_NAMESPACE_SESSION
        self._client.internal_kv_put(b"session_name", session_name.encode(), False, namespace)

    def has_autoscaler(self) -> bool:
        """Whether an autoscaler of either version has reported to this GCS."""
        return self._client.internal_kv_get(b"__autoscaling_error", None) is not None or bool(
            self._client.internal_kv_get(b"__autoscaler_v2_enabled", None)
        )

    def death_cause(self, actor_id: str, timeout_s: float) -> "ActorDeathCause | None":
        """Of an actor that has died; None if none is recorded. Raises RayError,
        OSError, RuntimeError, ValueError if the GCS does not answer in time."""
        import ray

        wanted = ray.ActorID.from_hex(actor_id)
        found = asyncio.run(self._actor_info(wanted, timeout_s))
        record = found.get(wanted)
        return record.death_cause if record is not None and record.HasField("death_cause") else None

    async def _actor_info(self, actor_id: "ActorID", timeout_s: float) -> "Mapping[ActorID, ActorTableData]":
        """Called within an event loop: Ray's asynchronous methods bind their answer to the running one."""
        answer = self._client.async_get_all_actor_info(actor_id=actor_id, timeout=timeout_s)
        # Ray keeps to its limit; ours is a backstop. Ray complains about an answer that comes for a cancelled question.
        found: Mapping[ActorID, ActorTableData] = await asyncio.wait_for(answer, timeout_s + BACKSTOP_S)
        return found
