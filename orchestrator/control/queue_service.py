"""What the HTTP API asks of the queue. `LiveQueue` implements it; nothing here knows of HTTP."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from orchestrator.wire.cluster_messages import NodeView, QueueView, ServerView
from orchestrator.wire.run_messages import RunEvent, RunList, RunView, Submission, SubmitAnswer


@dataclass(frozen=True)
class Caller:
    """Who asks."""

    user: str
    team: str
    role: str
    """viewer, submitter or admin."""


class QueueService(Protocol):
    """Thread-safe. Every method may raise UsageError (a mistake of the caller), NotFoundError, ForbiddenError,
    ConflictError or UnavailableError (the database is locked or full, or another server acts)."""

    def submit(self, submission: Submission, caller: Caller, key: str | None) -> SubmitAnswer:
        """Queue a job durably. `key`: a second submission with the same key returns the runs of the first."""

    def runs(
        self, caller: Caller, states: Sequence[str] = (), queue: str | None = None, user: str | None = None,
        group: str | None = None, limit: int = 100, cursor: str | None = None,
    ) -> RunList:  # fmt: skip
        """Runs that the caller may see, newest first."""

    def run(self, query: str, caller: Caller) -> RunView:
        """The run with this id, unique prefix of an id, or name (its newest). The error suggests near ones."""

    def cancel(self, query: str, caller: Caller) -> RunView: ...

    def pause(self, query: str, caller: Caller) -> RunView: ...

    def resume(self, query: str, caller: Caller) -> RunView: ...

    def retry(self, query: str, caller: Caller) -> RunView: ...

    def scale(self, query: str, workers: int, caller: Caller) -> RunView: ...

    def events(self, query: str, after: int, limit: int, caller: Caller) -> list[RunEvent]:
        """Events of the queue and of the run with numbers above `after`, oldest first."""

    def queues(self, caller: Caller) -> list[QueueView]: ...

    def nodes(self, caller: Caller) -> list[NodeView]: ...

    def drain(self, node: str, deadline_s: float | None, caller: Caller) -> NodeView: ...

    def server(self) -> ServerView: ...
