"""Requests to scale a run, and their answers, as files in its directory: the driver may be any process that sees it."""

import secrets
import time
from collections.abc import Iterator

from orchestrator.atomic_files import read_json, write_json
from orchestrator.domain.errors import ConvoyError, UsageError
from orchestrator.domain.events import ScaleState
from orchestrator.domain.queue.grant import GrantDesk
from orchestrator.domain.run_layout import RunLayout
from orchestrator.domain.scaling import ScaleAnswer, ScaleRequest
from orchestrator.store.driver_process import DriverProcess
from orchestrator.store.run_store import RunRecord, read_record

POLL_S = 0.2


class ScaleFiles:
    """`ScaleDesk` for this process, the driver of a run."""

    def __init__(self, layout: RunLayout, grants: GrantDesk | None = None) -> None:
        self._layout = layout
        self.grants = grants
        self._self = DriverProcess.current().to_json()
        before = read_json(layout.scale_request) or {}
        # What was asked of a driver before this one is not asked of this one.
        self._seen: str | None = str(before.get("id")) if before.get("driver") != self._self else None

    def newest(self) -> ScaleRequest | None:
        """A request for this driver that has not been given out yet."""
        request = ScaleRequest.from_json(read_json(self._layout.scale_request))
        if request is None or request.id == self._seen:
            return None
        self._seen = request.id
        if dict(request.driver) != self._self:
            message = "the request was addressed to a previous driver of this run; send it again"
            self.answer(ScaleAnswer(request.id, request.workers, ScaleState.REFUSED, message))
            return None
        return request

    def answer(self, answer: ScaleAnswer) -> None:
        """Write the answer for the requester. If the disk fails, the run continues without an answer."""
        value = answer.to_json()
        standing = self.standing() if answer.state is ScaleState.REFUSED else answer.workers
        try:
            write_json(self._layout.scale_answer, {**value, "standing": standing}, durable=False)
        except OSError:
            self._layout.scale_answer.unlink(missing_ok=True)

    def standing(self) -> int | None:
        """The last number that was accepted."""
        value = (read_json(self._layout.scale_answer) or {}).get("standing")
        return value if isinstance(value, int) else None


def ask(record: RunRecord, workers: int, by: str, force: bool) -> ScaleRequest:
    """Write a request for the driver of a run. Raises UsageError if the run has no active driver or the file cannot be
    written."""
    if not record.active or record.driver is None:
        raise UsageError(
            f"run {record.id} is {record.status} and has no active driver",
            hint=f"convoy run --resume {record.id}" if record.lost else "only an active run can be scaled",
        )
    request = ScaleRequest(secrets.token_hex(6), workers, by, time.time(), record.driver.to_json(), force)
    try:
        write_json(record.layout.scale_request, request.to_json(), durable=False)
    except OSError as error:
        raise UsageError(f"cannot write into {record.directory}: {error.strerror}") from error
    return request


def answers(record: RunRecord, request: ScaleRequest, timeout_s: float) -> Iterator[ScaleAnswer]:
    """The driver's answers to a request as they arrive, for at most `timeout_s`; the final answer ends it sooner.

    Raises ConvoyError if the run ends before, or another request supersedes this one.
    """
    deadline = time.monotonic() + timeout_s
    told: ScaleAnswer | None = None
    while time.monotonic() < deadline:
        # In this order: what a driver says before it ends is not missed.
        now, found = read_record(record.layout), ScaleAnswer.from_json(read_json(record.layout.scale_answer))
        if found is not None and found.id == request.id and found != told:
            told = found
            yield found
            if found.state is not ScaleState.ACCEPTED:
                return
        other = ScaleRequest.from_json(read_json(record.layout.scale_request))
        if other is not None and other.id != request.id:
            raise ConvoyError(f"superseded: {other.by} has requested {other.workers} workers since then")
        if now is None or not now.active:
            raise ConvoyError(
                f"run {record.id} has ended: {now.status if now is not None else 'its directory is gone'}"
            )
        time.sleep(POLL_S)
