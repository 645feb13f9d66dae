"""A real queue behind the real API, without drivers: what is submitted waits. The cluster is the outside world, and is
scripted."""

import contextlib
import socket
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn
from starlette.testclient import TestClient
from starlette.types import ASGIApp

from orchestrator.api.access.issued_tokens import IssuedTokens
from orchestrator.api.api_app import create_app
from orchestrator.api.api_settings import ApiSettings
from orchestrator.client.convoy_client import ConvoyClient
from orchestrator.client.server_choice import ServerAddress
from orchestrator.clusters.placement import NodeCapacity
from orchestrator.control.live_queue import LiveQueue
from orchestrator.control.queue_board import QueueBoard, TickView
from orchestrator.control.queue_store.queue_store import QueueStore
from orchestrator.control.submitting import SubmitSettings
from orchestrator.store.run_store import RunStore
from orchestrator.store.uploads.file_store import FileStore
from orchestrator.wire.request_messages import Role, TokenRequest
from orchestrator.wire.run_messages import RunView, Submission

IN_PROCESS = "http://testserver"
JOB = """\
name: tiny
task: pretrain
model: {architecture: gpt2, config: {n_layer: 1, n_embd: 32, n_head: 2}}
tokenizer: {train: {vocab_size: 300}}
data:
  sources:
    - files: [FILES]
  sequence_length: 16
train: {steps: 5, global_batch: 4, lr: 1e-3}
resources: {workers: 2}
"""


@dataclass
class StandingCluster:
    """Two nodes of four CPUs that nothing happens to."""

    address: str = "127.0.0.1:6379"
    autoscales: bool = False
    drained: list[tuple[str, float | None]] = field(default_factory=list)
    """Nodes, and when they go away: Unix seconds."""

    def nodes(self) -> tuple[NodeCapacity, ...]:
        return tuple(
            NodeCapacity(f"{number:028x}", f"10.0.0.{number}", {"CPU": 4.0}, {"CPU": 4.0}) for number in (1, 2)
        )

    def held(self, run_ids: Collection[str]) -> Mapping[str, Mapping[str, int]]:
        return {}

    def drain(self, node_id: str, reason: str, deadline_s: float | None) -> None:
        self.drained.append((node_id, deadline_s))


class ServedQueue:
    """Everything of a server but the processes."""

    def __init__(
        self, home: Path, settings: ApiSettings | None = None, variables: dict[str, str] | None = None
    ) -> None:
        self.home = home
        self.store = QueueStore(home / "server" / "queue.db")
        self.tokens = IssuedTokens(self.store, time.time)
        self.files = FileStore(home / "server" / "files")
        self.cluster, self.board = StandingCluster(), QueueBoard()
        self.board.publish(TickView(time.time(), True, self.cluster.nodes()))
        self.service = LiveQueue(
            self.store, RunStore(home), self.board, self.cluster,
            SubmitSettings(files=self.files),
        )  # fmt: skip
        self.log: list[str] = []
        self.settings = settings or ApiSettings(home)
        self.app: ASGIApp = create_app(self.service, self.tokens, self.files, self.settings, self.log.append)
        self.text = home.parent / "text.txt"
        self.text.write_text("all work and no play\n" * 50)
        self._made = 0

    def close(self) -> None:
        self.store.close()

    def job(self, name: str = "tiny") -> str:
        return JOB.replace("FILES", str(self.text)).replace("name: tiny", f"name: {name}")

    def secret(self, role: Role = "submitter", team: str = "nlp", user: str = "ann") -> str:
        self._made += 1
        return self.tokens.create(TokenRequest(name=f"t{self._made}", user=user, team=team, role=role)).secret

    def client(self, role: Role = "submitter", team: str = "nlp", user: str = "ann") -> ConvoyClient:
        """In this process, without a network."""
        return ConvoyClient(
            ServerAddress(IN_PROCESS, self.secret(role, team, user), None, "test"),
            transport=TestClient(self.app, raise_server_exceptions=False)._transport,
        )

    def raw(self, secret: str | None = None) -> TestClient:
        """Requests as any program may make them."""
        headers = {"Authorization": f"Bearer {secret}"} if secret is not None else {}
        return TestClient(self.app, raise_server_exceptions=False, headers=headers)

    def submitted(self, name: str = "tiny", client: ConvoyClient | None = None) -> RunView:
        (run,) = (client or self.client()).submit(Submission(spec=self.job(name))).runs
        return run


@contextlib.contextmanager
def listening(app: ASGIApp) -> Iterator[str]:
    """A real HTTP server in a thread; its URL."""
    bound = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, access_log=False, log_level="warning", lifespan="off", ws="none",
                                           timeout_graceful_shutdown=2))  # fmt: skip
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        bound.close()
