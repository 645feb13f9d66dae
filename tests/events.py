"""Events for tests: a test names the fields that it is about, the others have plain values."""

from collections.abc import Mapping
from enum import StrEnum
from types import NoneType, UnionType
from typing import Union, get_args, get_origin

from orchestrator.domain.events import Event, EventBody
from orchestrator.domain.events.event_codec import encode_body, fields_of
from orchestrator.json_values import JsonObject

BROKEN_OBSERVERS: list[str] = []
"""Warnings of observers that raised, which do not end a run: a test's own observer must not fail unseen."""
_PLAIN: Mapping[object, object] = {int: 1, float: 1.0, str: "text", bool: False, NoneType: None}


def event(body_type: type[EventBody], time_s: float = 0.0, **given: object) -> Event:
    """An event of a kind. A field that is neither given nor has a default gets a value of its type."""
    return Event(body(body_type, **given), time_s)


def body(body_type: type[EventBody], **given: object) -> EventBody:
    """The same without a time."""
    fields = fields_of(body_type)
    missing = {field.name: sample(field.annotation) for field in fields if field.required}
    kinds = {field.name: field.annotation for field in fields}
    typed = {name: _member(kinds.get(name), value) for name, value in given.items()}
    return body_type(**{**missing, **typed})


def _member(annotation: object, value: object) -> object:
    """Members of enumerations may be given by their text."""
    if isinstance(annotation, type) and issubclass(annotation, StrEnum):
        return annotation(str(value))
    return value


def sample(annotation: object) -> object:
    """A value of a type that events have."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return None if NoneType in arguments else sample(arguments[0])
    if origin in (tuple, dict):
        return origin()
    if isinstance(annotation, type) and issubclass(annotation, StrEnum):
        return next(iter(annotation))
    return _PLAIN[annotation]


def recorded(body: EventBody) -> tuple[type[EventBody], JsonObject]:
    """The class of an event and its fields as JSON: what tests compare."""
    return type(body), encode_body(body)
