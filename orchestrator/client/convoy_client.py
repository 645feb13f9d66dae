"""The typed client of a server: `with ConvoyClient(address) as client: client.submit(...)`."""

import secrets
from collections.abc import Iterator, Sequence
from types import TracebackType
from urllib.parse import quote

import httpx2

from orchestrator.client.server_choice import ServerAddress
from orchestrator.client.server_requests import ServerRequests, StreamMessage
from orchestrator.wire.cluster_messages import NodeView, QueueView, ServerView, TokenView
from orchestrator.wire.record_messages import (
    CurvesView,
    EventPage,
    HealthView,
    LogPage,
    ProgressView,
    RecordView,
)
from orchestrator.wire.request_messages import DrainRequest, FileView, MissingFiles, NewToken, TokenRequest
from orchestrator.wire.run_messages import RunEvent, RunList, RunView, ScaleRequestBody, Submission, SubmitAnswer

RUN_ACTIONS = ("cancel", "pause", "resume", "retry")


class ConvoyClient:
    """Everything that a server can be asked. Every method may raise ApiError and UnreachableError. Not
    thread-safe."""

    def __init__(self, address: ServerAddress, transport: httpx2.BaseTransport | None = None) -> None:
        """`transport`: for tests; default: HTTP over TCP."""
        self._requests = ServerRequests(address, transport=transport)
        self.address = address

    def __enter__(self) -> "ConvoyClient":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._requests.close()

    def submit(self, submission: Submission, key: str | None = None) -> SubmitAnswer:
        """Queue a job. `key`: an idempotency key; without one each call has its own, so that a request that is repeated
        because its answer was lost queues nothing twice."""
        return self._requests.post("/runs", SubmitAnswer, submission, key=key or secrets.token_hex(16))

    def runs(
        self, states: Sequence[str] = (), queue: str | None = None, user: str | None = None,
        group: str | None = None, limit: int = 100, cursor: str | None = None,
    ) -> RunList:  # fmt: skip
        """A page of runs, the newest first."""
        params = {"state": list(states), "queue": queue, "user": user, "group": group, "limit": limit, "cursor": cursor}
        return self._requests.get("/runs", RunList, params)

    def run(self, run: str) -> RunView:
        """The run with this id, unique beginning of an id, or name."""
        return self._requests.get(_run(run), RunView)

    def act(self, run: str, action: str) -> RunView:
        """One of `RUN_ACTIONS`."""
        if action not in RUN_ACTIONS:
            raise ValueError(f"{action} is none of {', '.join(RUN_ACTIONS)}")
        return self._requests.post(f"{_run(run)}/{action}", RunView)

    def scale(self, run: str, workers: int) -> RunView:
        """Change the number of workers."""
        return self._requests.post(f"{_run(run)}/scale", RunView, ScaleRequestBody(workers=workers), again=True)

    def events(self, run: str, after: int = 0, limit: int = 100) -> EventPage:
        """A page of events, the oldest first."""
        return self._requests.get(f"{_run(run)}/events", EventPage, {"after": after, "limit": limit})

    def follow_events(self, run: str, after: int = 0) -> Iterator[RunEvent]:
        """Events as they come, until the run has ended."""
        for message in self._requests.stream(f"{_run(run)}/events/stream", {"after": after}):
            if message.event != "end":
                yield RunEvent.model_validate_json(message.data)

    def logs(self, run: str, rank: int | None = None, tail: int | None = None, cursor: str | None = None) -> LogPage:
        """A page of the output of the workers."""
        return self._requests.get(f"{_run(run)}/logs", LogPage, {"rank": rank, "tail": tail, "cursor": cursor})

    def follow_logs(self, run: str, rank: int | None = None, tail: int | None = None) -> Iterator[LogPage]:
        """The output of the workers as it comes, until the run has ended."""
        for message in self._log_stream(run, rank, tail):
            if message.event != "end":
                yield LogPage.model_validate_json(message.data)

    def _log_stream(self, run: str, rank: int | None, tail: int | None) -> Iterator[StreamMessage]:
        return self._requests.stream(f"{_run(run)}/logs/stream", {"rank": rank, "tail": tail})

    def curves(self, run: str, curves: Sequence[str] = (), points: int = 400) -> CurvesView:
        """Curves for charts."""
        return self._requests.get(f"{_run(run)}/steps", CurvesView, {"curve": list(curves), "points": points})

    def progress(self, run: str) -> ProgressView:
        """Step, loss, speed, time left."""
        return self._requests.get(f"{_run(run)}/progress", ProgressView)

    def durability(self, run: str) -> RecordView:
        """Copies of the training state."""
        return self._requests.get(f"{_run(run)}/durability", RecordView)

    def goodput(self, run: str) -> RecordView:
        """Use of the workers' time."""
        return self._requests.get(f"{_run(run)}/goodput", RecordView)

    def queues(self) -> list[QueueView]:
        """The queues."""
        return self._requests.get_list("/queues", QueueView)

    def nodes(self) -> list[NodeView]:
        """The nodes."""
        return self._requests.get_list("/nodes", NodeView)

    def drain(self, node: str, deadline_s: float | None = None) -> NodeView:
        """Empty a node."""
        body = DrainRequest(deadline_s=deadline_s)
        return self._requests.post(f"/nodes/{quote(node, safe='')}/drain", NodeView, body, again=True)

    def server(self) -> ServerView:
        """Version, cluster, and whether the server acts."""
        return self._requests.get("/server", ServerView)

    def health(self) -> HealthView:
        """Whether the server works; needs no token."""
        return self._requests.get("/health", HealthView)

    def create_token(self, request: TokenRequest) -> NewToken:
        """A new token, with its secret."""
        return self._requests.post("/tokens", NewToken, request)

    def tokens(self) -> list[TokenView]:
        """All tokens."""
        return self._requests.get_list("/tokens", TokenView)

    def own_token(self) -> TokenView:
        """The token that this client uses."""
        return self._requests.get("/tokens/self", TokenView)

    def revoke_token(self, token: str) -> TokenView:
        """Make a token invalid."""
        return self._requests.delete(f"/tokens/{quote(token, safe='')}", TokenView)

    def missing_files(self, digests: Sequence[str]) -> list[str]:
        """Which files the server does not have."""
        body = MissingFiles(sha256=list(digests))
        return self._requests.post("/missing-files", MissingFiles, body, again=True).sha256

    def put_file(self, sha256: str, content: bytes) -> FileView:
        """Upload a file."""
        return self._requests.put(f"/files/{sha256}", FileView, content)


def _run(run: str) -> str:
    return f"/runs/{quote(run, safe='')}"
