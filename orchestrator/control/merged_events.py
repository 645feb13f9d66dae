"""A run's events from two sources as one stream: the queue's, from the database, and the run's own `events.jsonl`.

Neither source knows of the other, so the order of the merged stream depends on when a reader looks. Its numbers are
positions in both: the ordinal of the newest queue event before it, and the byte in `events.jsonl` up to which it was
read. They increase, and a reader that continues with one misses nothing and gets nothing twice.
"""

import heapq
from collections.abc import Iterator
from pathlib import Path

from orchestrator.control.queue_store.event_table import QueueEvent
from orchestrator.domain.lease import LEASE, LeaseOrder, token_in
from orchestrator.json_values import JsonObject
from orchestrator.metrics.jsonl import parse_line
from orchestrator.wire.run_messages import RunEvent

BYTES_BITS = 32
"""Of a number: positions in files up to 4 GiB. 21 bits are left for ordinals below 2^53, which JavaScript counts to."""
LARGEST_NUMBER = (1 << 53) - 1
BACK_BYTES = 64 * 1024
"""Before the position: from the lines there it is known which driver's lines count."""

_Item = tuple[float, int, int, QueueEvent | JsonObject]
"""Time, source, place in it, event."""


def parts_of(number: int) -> tuple[int, int]:
    """(ordinal, byte) of a number."""
    return number >> BYTES_BITS, number & ((1 << BYTES_BITS) - 1)


def merged(queue: list[QueueEvent], file: Path, after: int, limit: int) -> list[RunEvent]:
    """At most `limit` events after the number `after`, by time. `queue`: the events with later ordinals, oldest first,
    at least `limit` of them if there are as many."""
    ordinal, position = parts_of(after)
    ours: Iterator[_Item] = ((event.time_s, 0, event.ordinal, event) for event in queue)
    theirs: Iterator[_Item] = ((_time_of(line), 1, end, line) for end, line in _lines(file, position))
    both = heapq.merge(ours, theirs, key=lambda each: each[:3])
    found: list[RunEvent] = []
    for _, _, place, item in both:
        if len(found) == limit:
            break
        if isinstance(item, QueueEvent):
            ordinal = place
            found.append(_of_queue(item, _number(ordinal, position)))
        else:
            position = place
            found.append(_of_run(item, _number(ordinal, position)))
    return found


def _lines(file: Path, position: int) -> Iterator[tuple[int, JsonObject]]:
    """(end, object) of each whole line after a position that counts. Nothing if there is no file."""
    try:
        stream = file.open("rb")
    except OSError:
        return
    with stream:
        start = max(0, position - BACK_BYTES)
        stream.seek(start)
        if start:
            stream.readline()
        order = LeaseOrder()
        while raw := stream.readline():
            if not raw.endswith(b"\n"):
                return  # still being written
            line = parse_line(raw)
            counts = line is not None and order.counts(token_in(line))
            if line is not None and counts and stream.tell() > position:
                yield stream.tell(), line


def _number(ordinal: int, position: int) -> int:
    return (ordinal << BYTES_BITS) | position


def _time_of(line: JsonObject) -> float:
    value = line.get("time_s")
    return float(value) if isinstance(value, int | float) else 0.0


def _of_queue(event: QueueEvent, number: int) -> RunEvent:
    data: dict[str, object] = {**event.data, "to": event.target.value}
    if event.source is not None:
        data["from"] = event.source.value
    return RunEvent(
        number=number, time_s=event.time_s, source="queue", kind=event.kind, message=event.message, data=data
    )


def _of_run(line: JsonObject, number: int) -> RunEvent:
    kind = str(line.get("kind", "unknown"))
    data: dict[str, object] = {
        name: value for name, value in line.items() if name not in ("time_s", "kind", "v", LEASE)
    }
    said = next((line[name] for name in ("message", "reason", "state") if isinstance(line.get(name), str)), None)
    message = f"{kind}: {said}" if said else kind
    return RunEvent(number=number, time_s=_time_of(line), source="run", kind=kind, message=message, data=data)
