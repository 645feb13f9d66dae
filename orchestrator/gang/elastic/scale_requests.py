"""Planned changes of a gang: the requested number of workers, and the nodes that are draining."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from orchestrator.clusters.placement import WorkerRequest
from orchestrator.clusters.ray.draining import DrainWatch
from orchestrator.domain.errors import ConvoyError, UsageError
from orchestrator.domain.events import Emit, Event, NodeDraining, ScaleAnswered, ScaleState, WarningIssued
from orchestrator.domain.scaling import (
    ScaleAnswer,
    ScaleDesk,
    ScaleRequest,
    check_workers,
    fewest_workers,
)
from orchestrator.domain.step_report import StepReport
from orchestrator.gang.elastic.granted_places import GrantedPlaces
from orchestrator.spec.job import JobSpec

if TYPE_CHECKING:
    from orchestrator.gang.group.worker_handle import WorkerHandle

LOOK_S = 0.5


class ScaleRequests:
    """The requests to the gang, kept through its generations. For the driver's thread only.

    It observes steps: the first step at the requested size completes the request.
    """

    def __init__(
        self,
        spec: JobSpec,
        request: WorkerRequest,
        desk: ScaleDesk,
        emit: Emit,
        granted: GrantedPlaces | None = None,
    ) -> None:
        """`request`: from the spec; a request that an earlier driver accepted takes precedence. `granted`: the places
        that a server grants; they alone count then."""
        self._spec, self._asked, self._desk, self._emit = spec, request, desk, emit
        self.request = request
        """The present request: `maximum` workers, and at least `minimum`."""
        self.draining: dict[str, float | None] = {}
        """Nodes that are draining, or have left after such notice; their deadlines (Unix seconds)."""
        self._watch: DrainWatch | None = None
        self._can_hold: Callable[[WorkerRequest], ConvoyError | None] = lambda _: None
        self._pending: ScaleRequest | None = None
        self._looked_s = -math.inf
        self.granted = granted
        if granted is not None:
            self.take_grant()
            return
        standing = desk.standing()
        if standing is not None:
            self._aim(standing)

    def begin(self, watch: DrainWatch, can_hold: Callable[[WorkerRequest], ConvoyError | None]) -> None:
        """The cluster is ready. `can_hold` returns why it could never satisfy a request, or None."""
        self._watch, self._can_hold = watch, can_hold

    def close(self) -> None:
        """Stop looking. Idempotent."""
        if self._watch is not None:
            self._watch.close()

    def look(self, members: Sequence["WorkerHandle"], now_s: float) -> bool:
        """Check for drain notices and scale requests, at most twice a second; return whether anything has changed."""
        if now_s - self._looked_s < LOOK_S:
            return False
        self._looked_s = now_s
        fresh = [
            node for node in (self._watch.draining if self._watch is not None else {}) if node not in self.draining
        ]
        if self._watch is not None:
            self.draining.update(self._watch.draining)
        for node_id in fresh:
            self._tell_draining(node_id, members)
        regranted = self.granted is not None and self.granted.look(now_s)
        self.take_grant()
        return self._read_request(members) or bool(fresh) or regranted

    def take_grant(self) -> None:
        """From now on the run is to have what the newest grant says that was read."""
        if self.granted is not None:
            self._aim(max(1, self.granted.grant.workers))

    def leaving(self, members: Sequence["WorkerHandle"]) -> list["WorkerHandle"]:
        """The members that live and must not be in the next generation: their node is about to go, or their place is
        no longer granted."""
        going = [member for member in members if member.lives and member.hello.node_id in self.draining]
        if self.granted is not None:
            gone = {id(member) for member in going}
            going += self.granted.surplus([member for member in members if member.lives and id(member) not in gone])
        return going

    def warn(self, message: str) -> None:
        """Emit a warning."""
        self._emit(WarningIssued(message))

    def on_event(self, event: Event) -> None:
        """Nothing: only steps matter."""

    def on_step(self, report: StepReport) -> None:
        """Complete the request if this step had the requested size."""
        request = self._pending
        if request is not None and report.world_size == request.workers:
            self._pending = None
            self._say(
                request, ScaleState.DONE, f"{_workers(report.world_size)} from step {report.step} on", report.step
            )

    def _tell_draining(self, node_id: str, members: Sequence["WorkerHandle"]) -> None:
        there = [member for member in members if member.hello.node_id == node_id]
        deadline_s = self.draining[node_id]
        draining = NodeDraining(
            node=node_id,
            address=there[0].hello.node_ip if there else None,
            ranks=tuple(member.rank for member in there if member.lives),
            deadline_s=deadline_s,
            notice_s=deadline_s - time.time() if deadline_s is not None else None,
        )
        self._emit(draining)

    def _read_request(self, members: Sequence["WorkerHandle"]) -> bool:
        request = self._desk.newest()
        if request is None:
            return False
        problem = self._problem(request)
        if problem is not None:
            message = problem.message + (f"; {problem.hint}" if problem.hint else "")
            self._say(request, ScaleState.REFUSED, f"refused: {message}", None)
            return False
        self._aim(request.workers)
        self._pending = request
        now = sum(member.lives for member in members)
        what = "leave" if request.workers < now else "join"
        more = f"{abs(request.workers - now)} {what} at a step boundary" if request.workers != now else "no change"
        self._say(request, ScaleState.ACCEPTED, f"{_workers(request.workers)} requested, {now} active: {more}", None)
        return True

    def _problem(self, request: ScaleRequest) -> ConvoyError | None:
        if self.granted is not None:
            return UsageError(
                "a server decides how many workers this run has", hint="`convoy scale` against that server asks for it"
            )
        try:
            check_workers(self._spec, request.workers, request.force)
        except ConvoyError as error:
            return error
        return self._can_hold(replace(self._asked, minimum=request.workers, maximum=request.workers))

    def _aim(self, workers: int) -> None:
        self.request = replace(self._asked, minimum=fewest_workers(self._asked.minimum, workers), maximum=workers)

    def _say(self, request: ScaleRequest, state: ScaleState, message: str, step: int | None) -> None:
        self._desk.answer(ScaleAnswer(request.id, request.workers, state, message, step))
        self._emit(ScaleAnswered(request.id, request.by, request.asked_s, request.workers, state, message, step))


def _workers(count: int) -> str:
    return f"{count} worker{'s' if count != 1 else ''}"
