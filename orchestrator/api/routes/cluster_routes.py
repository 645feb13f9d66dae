"""Routes of the cluster, the queues and the server itself."""

import time
from typing import Annotated

from fastapi import APIRouter, Path

from orchestrator.api.api_parts import Admin, ApiParts, ResponseTable, Viewer, errors
from orchestrator.store.metric_targets import announcements
from orchestrator.wire.api_version import API_VERSION
from orchestrator.wire.cluster_messages import NodeView, QueueView, ServerView
from orchestrator.wire.record_messages import HealthView, TargetGroup
from orchestrator.wire.request_messages import DrainRequest

NodeQuery = Annotated[
    str, Path(min_length=1, max_length=200, description="Id of a node, a unique beginning of one, or its address.")
]
MOST_TARGETS = 10_000


class ClusterRoutes:
    """`/nodes`, `/queues`, `/server`, `/health`, `/prometheus/targets`."""

    def __init__(self, parts: ApiParts) -> None:
        self._service, self._settings = parts.service, parts.settings

    def router(self) -> APIRouter:
        """With all routes."""
        router = APIRouter(tags=["cluster"])
        router.add_api_route("/nodes", self.nodes, methods=["GET"], responses=errors())
        router.add_api_route(
            "/nodes/{node}/drain", self.drain, methods=["POST"], responses=errors(400, 404, 408, 409, 413)
        )
        router.add_api_route("/queues", self.queues, methods=["GET"], responses=errors())
        router.add_api_route("/server", self.server, methods=["GET"], responses=errors())
        router.add_api_route("/prometheus/targets", self.targets, methods=["GET"], responses=errors())
        return router

    def open_router(self) -> APIRouter:
        """Routes that need no token."""
        router = APIRouter(tags=["cluster"])
        unavailable: ResponseTable = {status: errors()[status] for status in (426, 503)}
        router.add_api_route("/health", self.health, methods=["GET"], responses=unavailable)
        return router

    def nodes(self, caller: Viewer) -> list[NodeView]:
        """The nodes of the cluster, and what is booked on each."""
        return self._service.nodes(caller)

    def drain(self, node: NodeQuery, body: DrainRequest, caller: Admin) -> NodeView:
        """Move all workers away from a node, at step boundaries, and place no others on it."""
        deadline_s = time.time() + body.deadline_s if body.deadline_s is not None else None
        return self._service.drain(node, deadline_s, caller)

    def queues(self, caller: Viewer) -> list[QueueView]:
        """The queues: shares, quotas, who runs and who waits."""
        return self._service.queues(caller)

    def server(self, caller: Viewer) -> ServerView:
        """Version, cluster, and whether this server acts."""
        return self._service.server()

    def health(self) -> HealthView:
        """Whether the server works. Without a token."""
        view = self._service.server()
        status = "ok" if view.acting and view.cluster is not None else "degraded"
        return HealthView(status=status, version=view.version, api=API_VERSION)

    def targets(self, caller: Viewer) -> list[TargetGroup]:
        """Where the runs of this server serve their metrics, as Prometheus' `http_sd` reads it."""
        found = []
        for _, each in announcements(self._settings.home):
            labels = {"instance": each.run_id, "__meta_convoy_run": each.run_id, "__meta_convoy_job": each.job,
                      "__meta_convoy_auth": "bearer" if each.bearer else "none"}  # fmt: skip
            found.append(TargetGroup(targets=[each.target], labels=labels))
            if len(found) == MOST_TARGETS:
                break
        return found
