"""The frames in which a worker's reports travel to the driver, over the protocol of `checkpoint.memory.wire`.

After the token the worker sends its name (`{"worker": ...}`), then a frame for each batch of its queue, and between
them heartbeats. The driver answers a batch with its number (`{"seen": ...}`). Nothing is unpickled.
"""

import base64
from array import array
from dataclasses import dataclass, field, replace

from orchestrator.domain.events import Event
from orchestrator.domain.events.event_codec import decode_event, encode_event
from orchestrator.domain.policy.hang import Phase
from orchestrator.domain.ranks.rank_summary import OwnWork
from orchestrator.domain.step_report import StepReport
from orchestrator.gang.agent.report_queue import Heartbeat, Published, ReportBatch, ReportItem
from orchestrator.json_values import (
    JsonFields,
    JsonObject,
    JsonShapeError,
    integer,
    mapping,
    objects,
    optional,
    text,
    text_mapping,
    texts,
)

BEAT_S = 0.5
"""From one heartbeat of a worker to the next, over a connection or as answers to polls."""


@dataclass(frozen=True)
class ReportAccess:
    """How a worker reaches the driver with its reports."""

    address: str
    """`host:port`."""
    worker: str
    """The name under which the driver knows the worker's process."""
    token: str = field(repr=False)


def encode_batch(batch: ReportBatch) -> JsonObject:
    """A batch, or a heartbeat if it holds nothing, as a frame's object."""
    beat = batch.heartbeat
    frame: JsonObject = {
        "beat": (
            beat.rank, beat.step, beat.phase.value, beat.beat, round(beat.still_s, 3), beat.progress, beat.blocked,
            beat.generation,
        )
    }  # fmt: skip
    if batch.items or batch.lines or batch.lines_dropped:
        frame["number"] = batch.number
        frame["items"] = [_encode_item(item) for item in batch.items]
        frame["lines"] = batch.lines
        frame["dropped"] = batch.lines_dropped
    return frame


def decode_batch(frame: JsonFields) -> ReportBatch:
    """The reverse of `encode_batch`. Raises JsonShapeError, ValueError."""
    beat = decode_beat(frame)
    if "number" not in frame:
        return ReportBatch(beat)
    items = tuple(_decode_item(item) for item in objects(frame, "items"))
    return ReportBatch(beat, integer(frame, "number"), items, tuple(texts(frame, "lines")), integer(frame, "dropped"))


def decode_beat(frame: JsonFields) -> Heartbeat:
    """The heartbeat that every frame has. Raises JsonShapeError, ValueError."""
    match frame.get("beat"):
        case [
            int() as rank, int() as step, str() as phase, int() as beat, int() | float() as still_s, int() as progress,
            bool() as blocked, int() as generation, *_,
        ]:  # fmt: skip
            return Heartbeat(rank, step, Phase(phase), beat, still_s, progress, blocked, generation)
    raise JsonShapeError("the field `beat` is not a heartbeat")


def _encode_item(item: ReportItem) -> JsonObject:
    if isinstance(item, Published):
        return {"published": {item.key: item.value}}
    if isinstance(item, Event):
        return {"event": encode_event(item)}
    work = item.ranks.work
    return {"step": item.to_message(), "work": None if work is None else _encode_work(work)}


def _decode_item(item: JsonFields) -> ReportItem:
    if "step" in item:
        report = StepReport.from_json(mapping(item, "step"))
        work = optional(mapping, item, "work")
        return report if work is None else replace(report, ranks=replace(report.ranks, work=_decode_work(work)))
    if "event" in item:
        event = decode_event(mapping(item, "event"))
        if event is None:
            raise JsonShapeError("the field `event` is no event")
        return event
    for key, value in text_mapping(item, "published").items():
        return Published(key, value)
    raise JsonShapeError("the field `published` is empty")


def _encode_work(work: OwnWork) -> JsonObject:
    """Numbers of 4 bytes, as all machines of a cluster have them in memory, in base64: 27 KB at 1,024 ranks."""
    return {"samples": _text_of(work.samples), "phases_s": [_text_of(seconds) for seconds in work.phases_s]}


def _decode_work(value: JsonFields) -> OwnWork:
    data, forward, backward, optimizer = (_floats(each) for each in texts(value, "phases_s"))
    samples: array[int] = array("i")
    samples.frombytes(_bytes_of(text(value, "samples")))
    return OwnWork(samples, (data, forward, backward, optimizer))


def _text_of(column: "array[int] | array[float]") -> str:
    return base64.b64encode(column.tobytes()).decode()


def _bytes_of(encoded: str) -> bytes:
    return base64.b64decode(encoded, validate=True)


def _floats(encoded: str) -> "array[float]":
    column: array[float] = array("f")
    column.frombytes(_bytes_of(encoded))
    return column
