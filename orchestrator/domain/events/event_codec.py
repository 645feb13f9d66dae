"""Events as lines of JSON and back: what `events.jsonl`, `convoy run --json` and a drill's driver write.

A line holds `time_s`, `kind`, `v` and the fields of its kind. `v` is the version of the format; lines without it are of
version 1, which has the same fields. Readers keep what they do not know: see `decode_event`.
"""

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from enum import StrEnum
from functools import cache
from types import NoneType, UnionType
from typing import Union, get_args, get_origin, get_type_hints

from orchestrator.domain.events import EVENT_TYPES, Event, EventBody, UnknownEvent
from orchestrator.json_values import JsonFields, JsonObject, JsonShapeError, JsonValue, kind_of

VERSION = 2
"""Of the lines that this version writes."""
ENVELOPE = ("time_s", "kind", "v")
"""What every line has; no kind has a field of that name."""


def encode_event(event: Event) -> JsonObject:
    """The object of a line. It may hold NaN and infinity: whoever writes it decides what becomes of them."""
    line: JsonObject = {"time_s": event.time_s, "kind": event.body.kind, "v": VERSION}
    return {**line, **encode_body(event.body), **event.extra}


def encode_body(body: EventBody) -> JsonObject:
    """The fields of an event's kind."""
    if isinstance(body, UnknownEvent):
        return dict(body.fields)
    return {field.name: _plain(getattr(body, field.name)) for field in fields(body)}


def decode_event(line: JsonFields) -> Event | None:
    """The event of a line; None if the line is not an event.

    Fields that are unknown here are in `Event.extra`. An event of an unknown kind, or without the fields that its kind
    has here, is an `UnknownEvent` with all its fields.
    """
    kind, time_s = line.get("kind"), line.get("time_s")
    if not isinstance(kind, str) or isinstance(time_s, bool) or not isinstance(time_s, int | float):
        return None
    rest = {name: value for name, value in line.items() if name not in ENVELOPE}
    body_type = types_by_kind().get(kind)
    if body_type is None:
        return Event(UnknownEvent(kind, rest), float(time_s))
    try:
        body = _build(body_type, rest)
    except JsonShapeError:
        return Event(UnknownEvent(kind, rest), float(time_s))
    assert isinstance(body, EventBody)
    known = {field.name for field in fields(body_type)}
    return Event(body, float(time_s), {name: value for name, value in rest.items() if name not in known})


@cache
def types_by_kind() -> Mapping[str, type[EventBody]]:
    """The class of each kind."""
    return {body_type.KIND: body_type for body_type in EVENT_TYPES}


@dataclass(frozen=True)
class EventField:
    """A field of an event, as its class declares it."""

    name: str
    annotation: object
    required: bool
    """It has no default: lines of every version have it."""


@cache
def fields_of(body_type: type) -> tuple[EventField, ...]:
    """The fields of an event's class, or of a value in one."""
    hints = get_type_hints(body_type)
    return tuple(
        EventField(field.name, hints[field.name], field.default is MISSING and field.default_factory is MISSING)
        for field in fields(body_type)
    )


def _build(value_type: type, values: JsonFields) -> object:
    """Raises JsonShapeError."""
    given: dict[str, object] = {}
    for field in fields_of(value_type):
        if field.name in values:
            given[field.name] = _read(field.annotation, values[field.name], field.name)
        elif field.required:
            raise JsonShapeError(f"the field `{field.name}` is missing")
    built: object = value_type(**given)
    return built


def _read(annotation: object, value: JsonValue, name: str) -> object:
    """A value of the annotated type. Raises JsonShapeError."""
    origin = get_origin(annotation)
    if origin in (Union, UnionType):
        return _read_one_of(get_args(annotation), value, name)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_read(get_args(annotation)[0], item, name) for item in value)
    if origin is dict and isinstance(value, Mapping):
        return {key: _read(get_args(annotation)[1], item, name) for key, item in value.items()}
    if isinstance(annotation, type):
        if is_dataclass(annotation) and isinstance(value, Mapping):
            return _build(annotation, value)
        return _read_plain(annotation, value, name)
    raise _mismatch(annotation, value, name)


def _read_one_of(options: tuple[object, ...], value: JsonValue, name: str) -> object:
    if value is None and NoneType in options:
        return None
    for option in options:
        if option is not NoneType:
            try:
                return _read(option, value, name)
            except JsonShapeError:
                continue
    raise _mismatch(options, value, name)


def _read_plain(kind: type, value: JsonValue, name: str) -> object:
    if issubclass(kind, StrEnum) and value in [member.value for member in kind]:
        return kind(str(value))
    if kind is float and value is None:
        return math.nan  # files have null for what is no number
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if kind in (bool, int, str) and type(value) is kind:
        return value
    raise _mismatch(kind, value, name)


def _mismatch(expected: object, value: JsonValue, name: str) -> JsonShapeError:
    shown = expected.__name__ if isinstance(expected, type) else expected
    return JsonShapeError(f"the field `{name}` is {kind_of(value)}, expected {shown}")


def _plain(value: object) -> JsonValue:
    """Dataclasses as objects, tuples as lists, enumerations as text."""
    if isinstance(value, StrEnum):
        return value.value
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    raise TypeError(f"no JSON for {type(value).__name__}")
