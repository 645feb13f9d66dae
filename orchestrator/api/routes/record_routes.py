"""Routes of what a run has recorded: events, output, curves, progress, copies of its state, use of time."""

import json
import time
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request
from sse_starlette import EventSourceResponse
from starlette.concurrency import run_in_threadpool

from orchestrator.api.api_parts import ApiParts, Viewer, errors, holder_of
from orchestrator.api.progress_view import curve_view, progress_view
from orchestrator.api.routes.run_routes import RunQuery
from orchestrator.api.streams import StreamNews, StreamPool
from orchestrator.atomic_files import read_json
from orchestrator.domain.errors import NotFoundError, UsageError
from orchestrator.domain.queue.queue_states import FINAL
from orchestrator.domain.run_layout import RunLayout
from orchestrator.json_values import JsonObject
from orchestrator.metrics.jsonl import finite
from orchestrator.run_facts.log_pages import LogPiece, read_logs
from orchestrator.run_facts.run_watchers import RunWatchers
from orchestrator.run_facts.step_series import CURVES
from orchestrator.store.recorded_ledger import ledger_of
from orchestrator.wire.api_version import RESUME_HEADER
from orchestrator.wire.record_messages import CurvesView, EventPage, LogLine, LogPage, ProgressView, RecordView
from orchestrator.wire.run_messages import RunView

STREAM_EVENTS = 200
"""Events that one look of a stream reads."""
MOST_NUMBER = 2**53 - 1
"""Whole numbers that every JSON reader has exactly."""
NO_CURSOR = "-"
"""Of a stream of output that begins at the beginning."""

After = Annotated[int, Query(ge=0, le=MOST_NUMBER, description="Number of the last event that is known.")]
Rank = Annotated[int | None, Query(ge=0, le=1_000_000, description="Only this worker's output.")]
Tail = Annotated[int | None, Query(ge=0, le=10_000, description="Begin with so many last lines of each worker.")]
ResumeNumber = Annotated[
    str | None, Header(alias=RESUME_HEADER, pattern=r"^[0-9]{1,15}$", description="`id` of the last event.")
]
ResumeCursor = Annotated[
    str | None, Header(alias=RESUME_HEADER, max_length=8192, description="`id` of the last message.")
]


class RecordRoutes:
    """`/runs/{run}/...`."""

    def __init__(self, parts: ApiParts, streams: StreamPool) -> None:
        self._service, self._streams, self._watchers = parts.service, streams, RunWatchers()

    def router(self) -> APIRouter:
        """With all routes."""
        router = APIRouter(prefix="/runs/{run}", tags=["records"])
        pages = (self.events, self.logs, self.steps, self.progress, self.durability, self.goodput)
        for page in pages:
            router.add_api_route(f"/{page.__name__}", page, methods=["GET"], responses=errors(404))
        for path, stream in (("/events/stream", self.stream_events), ("/logs/stream", self.stream_logs)):
            text = {"content": {"text/event-stream": {}}, "description": "Server-sent events, until the run has ended."}
            router.add_api_route(
                path, stream, methods=["GET"], response_class=EventSourceResponse, responses={**errors(404), 200: text}
            )
        return router

    def events(
        self, run: RunQuery, caller: Viewer, after: After = 0, limit: Annotated[int, Query(ge=1, le=1000)] = 100
    ) -> EventPage:
        """Events of the queue and of the run, the oldest first."""
        found = self._service.events(run, after, limit, caller)
        return EventPage(events=found, next_after=found[-1].number if found else after)

    async def stream_events(
        self, request: Request, run: RunQuery, caller: Viewer, after: After = 0, last_event_id: ResumeNumber = None
    ) -> EventSourceResponse:
        """Events as they come. The id of each is its number: a reader resumes with `Last-Event-ID`."""
        if last_event_id is not None:
            after = int(last_event_id)
        view = await run_in_threadpool(self._service.run, run, caller)

        def look(cursor: str) -> StreamNews:
            state = self._service.run(view.id, caller)
            found = self._service.events(view.id, int(cursor), STREAM_EVENTS, caller)
            messages = tuple((each.kind, str(each.number), each.model_dump_json()) for each in found)
            next_cursor = str(found[-1].number) if found else cursor
            return StreamNews(messages, next_cursor, len(found) == STREAM_EVENTS, _ended(state) if not found else None)

        return self._streams.stream(holder_of(request).token_id, str(after), look)

    def logs(
        self, run: RunQuery, caller: Viewer, rank: Rank = None, tail: Tail = None,
        cursor: Annotated[str | None, Query(max_length=8192, description="`cursor` of the page before.")] = None,
    ) -> LogPage:  # fmt: skip
        """A page of the output of the workers."""
        view = self._service.run(run, caller)
        return _page(read_logs(_layout(view), rank, cursor or None, tail, view.state in FINAL))

    async def stream_logs(
        self, request: Request, run: RunQuery, caller: Viewer, rank: Rank = None, tail: Tail = None,
        last_event_id: ResumeCursor = None,
    ) -> EventSourceResponse:  # fmt: skip
        """The output of the workers as it comes. Each message has the lines of a page, and its id is the cursor after
        them."""
        view = await run_in_threadpool(self._service.run, run, caller)

        def look(cursor: str) -> StreamNews:
            state = self._service.run(view.id, caller)
            begun = cursor != NO_CURSOR
            piece = read_logs(_layout(state), rank, cursor if begun else None, None if begun else tail,
                              state.state in FINAL)  # fmt: skip
            messages = (("lines", piece.cursor, _page(piece).model_dump_json()),) if piece.lines else ()
            over = piece.complete and not piece.lines
            return StreamNews(messages, piece.cursor, bool(piece.lines), _ended(state) if over else None)

        first = last_event_id or NO_CURSOR
        await run_in_threadpool(look, first)  # what is wrong with the request is said with a status
        return self._streams.stream(holder_of(request).token_id, first, look)

    def steps(
        self,
        run: RunQuery,
        caller: Viewer,
        curve: Annotated[list[str] | None, Query(max_length=len(CURVES), description="Names of curves.")] = None,
        points: Annotated[int, Query(ge=2, le=800, description="At most so many points of each curve.")] = 400,
    ) -> CurvesView:
        """Curves over the steps, for charts: loss, throughput, phases of a step."""
        names = tuple(curve or ("loss", "tokens_per_s"))
        unknown = [name for name in names if name not in CURVES]
        if unknown:
            raise UsageError(f"there is no curve {unknown[0][:40]!r}", f"the curves are {', '.join(CURVES)}")
        view = self._service.run(run, caller)
        return curve_view(view.id, self._watchers.curves(_layout(view), names, points))

    def progress(self, run: RunQuery, caller: Viewer) -> ProgressView:
        """Step, loss, speed, time left and the last incidents."""
        view = self._service.run(run, caller)
        facts = self._watchers.progress(_layout(view))
        if facts is None or facts.record.queued:
            raise NotFoundError(
                f"run {view.id} has recorded nothing yet", "it has no driver yet: `convoy status` says why"
            )
        return progress_view(view.id, facts)

    def durability(self, run: RunQuery, caller: Viewer) -> RecordView:
        """How many copies of the training state there are, and what the loss of a node would cost."""
        view = self._service.run(run, caller)
        recorded = read_json(_layout(view).durability)
        if recorded is None:
            raise NotFoundError(f"run {view.id} has no survey of its memory", "it is written once its workers train")
        return _record(view, {**recorded, "age_s": time.time() - _time_in(recorded)})

    def goodput(self, run: RunQuery, caller: Viewer) -> RecordView:
        """What the time of the workers was spent on, and its cost."""
        view = self._service.run(run, caller)
        ledger = ledger_of(_layout(view))
        if ledger is None:
            raise NotFoundError(f"run {view.id} has no account of its time", "it is written once it has a driver")
        return _record(view, ledger.to_json())


def _layout(view: RunView) -> RunLayout:
    return RunLayout(Path(view.directory))


def _ended(view: RunView) -> str | None:
    return json.dumps({"state": view.state.value, "reason": view.reason}) if view.state in FINAL else None


def _page(piece: LogPiece) -> LogPage:
    lines = [LogLine(rank=rank, text=text) for rank, text in piece.lines]
    return LogPage(lines=lines, cursor=piece.cursor, complete=piece.complete)


def _record(view: RunView, recorded: JsonObject) -> RecordView:
    status = view.run_state.value if view.run_state is not None else view.state.value
    return RecordView.model_validate({"run": view.id, "status": status, "recorded": finite(recorded)})


def _time_in(recorded: JsonObject) -> float:
    time_s = recorded.get("time_s")
    return float(time_s) if isinstance(time_s, int | float) else 0.0
