"""Routes of runs: submitting, listing, and what a person may do with one."""

from typing import Annotated

from fastapi import APIRouter, Header, Path, Query, Response

from orchestrator.api.api_parts import ApiParts, Submitter, Viewer, errors
from orchestrator.domain.queue.queue_states import QueueState
from orchestrator.wire.api_version import KEY_HEADER
from orchestrator.wire.run_messages import RunList, RunView, ScaleRequestBody, Submission, SubmitAnswer

RunQuery = Annotated[
    str,
    Path(min_length=1, max_length=200, description="Id of a run, a unique beginning of one, or a name."),
]
Key = Annotated[
    str | None,
    Header(
        alias=KEY_HEADER,
        min_length=1,
        max_length=200,
        pattern=r"^[\x21-\x7e]+$",
        description="A second submission with the same key returns the runs of the first.",
    ),
]
Word = Annotated[str | None, Query(min_length=1, max_length=200)]


class RunRoutes:
    """`/runs`."""

    def __init__(self, parts: ApiParts) -> None:
        self._service = parts.service

    def router(self) -> APIRouter:
        """With all routes."""
        router = APIRouter(prefix="/runs", tags=["runs"])
        router.add_api_route(
            "", self.submit, methods=["POST"], status_code=201, responses={
                200: {"model": SubmitAnswer, "description": "Nothing new was queued: a known key, or a dry run."},
                **errors(400, 404, 408, 409, 413),
            },
        )  # fmt: skip
        router.add_api_route("", self.list_runs, methods=["GET"], responses=errors())
        router.add_api_route("/{run}", self.get, methods=["GET"], responses=errors(404))
        for action in (self.cancel, self.pause, self.resume, self.retry):
            path = f"/{{run}}/{action.__name__}"
            router.add_api_route(path, action, methods=["POST"], responses=errors(404, 409))
        router.add_api_route("/{run}/scale", self.scale, methods=["POST"], responses=errors(400, 404, 408, 409, 413))
        return router

    def submit(self, submission: Submission, caller: Submitter, response: Response, key: Key = None) -> SubmitAnswer:
        """Queue a job. It is on disk when this returns."""
        answer = self._service.submit(submission, caller, key)
        if answer.existing or submission.dry_run:
            response.status_code = 200
        return answer

    def list_runs(
        self,
        caller: Viewer,
        state: Annotated[list[QueueState] | None, Query(max_length=20, description="Only these states.")] = None,
        queue: Word = None,
        user: Word = None,
        group: Word = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        cursor: Annotated[str | None, Query(max_length=500, description="`next_cursor` of the page before.")] = None,
    ) -> RunList:
        """Runs that the caller may see, the newest first."""
        states = [each.value for each in state or []]
        return self._service.runs(caller, states, queue, user, group, limit, cursor)

    def get(self, run: RunQuery, caller: Viewer) -> RunView:
        """One run: its state, why it waits, its progress."""
        return self._service.run(run, caller)

    def cancel(self, run: RunQuery, caller: Submitter) -> RunView:
        """End a run for good."""
        return self._service.cancel(run, caller)

    def pause(self, run: RunQuery, caller: Submitter) -> RunView:
        """Save the state of a run and release its capacity until a person resumes it."""
        return self._service.pause(run, caller)

    def resume(self, run: RunQuery, caller: Submitter) -> RunView:
        """Queue a paused run again."""
        return self._service.resume(run, caller)

    def retry(self, run: RunQuery, caller: Submitter) -> RunView:
        """Queue a failed or cancelled run again: it continues from its newest state."""
        return self._service.retry(run, caller)

    def scale(self, run: RunQuery, body: ScaleRequestBody, caller: Submitter) -> RunView:
        """Change how many workers a run has at most, and if there is room, has."""
        return self._service.scale(run, body.workers, caller)
