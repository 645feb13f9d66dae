"""The JSON Schema of a line of `events.jsonl`, made from the event classes and their docstrings."""

from dataclasses import is_dataclass
from enum import StrEnum
from types import NoneType, UnionType
from typing import Union, get_args, get_origin

from orchestrator.domain.events import EVENT_TYPES, EventBody
from orchestrator.domain.events.event_codec import VERSION, fields_of
from orchestrator.json_values import JsonObject, JsonValue
from orchestrator.spec.describe.docstrings import class_doc, field_docs

_PLAIN: dict[type, JsonObject] = {
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    # Files have null for what is no number.
    float: {"type": ["number", "null"]},
    str: {"type": "string"},
    NoneType: {"type": "null"},
}


def events_schema() -> JsonObject:
    """Draft 2020-12. Objects may have further fields and kinds: newer versions add some, and readers ignore them."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A line of events.jsonl",
        "oneOf": [_event(body_type) for body_type in EVENT_TYPES],
    }


def _event(body_type: type[EventBody]) -> JsonObject:
    inner = _object(body_type)
    envelope: JsonObject = {
        "kind": {"const": body_type.KIND},
        "time_s": {"type": "number", "description": "Unix time in seconds."},
        "v": {"type": "integer", "description": f"Version of the format; {VERSION} now, 1 if it is missing."},
    }
    properties, required = inner["properties"], inner["required"]
    assert isinstance(properties, dict)
    assert isinstance(required, list)
    return {**inner, "properties": {**envelope, **properties}, "required": ["kind", "time_s", *required]}


def _object(value_type: type) -> JsonObject:
    docs = field_docs(value_type)
    properties: JsonObject = {
        field.name: {**_schema(field.annotation), "description": docs[field.name]} for field in fields_of(value_type)
    }
    required: list[JsonValue] = [field.name for field in fields_of(value_type) if field.required]
    return {
        "type": "object",
        "description": class_doc(value_type),
        "properties": properties,
        "required": required,
    }


def _schema(annotation: object) -> JsonObject:
    """Raises TypeError for a type that no event may have."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return {"anyOf": [_schema(option) for option in arguments]}
    if origin is tuple:
        return {"type": "array", "items": _schema(arguments[0])}
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema(arguments[1])}
    if isinstance(annotation, type):
        if issubclass(annotation, StrEnum):
            return {"enum": [member.value for member in annotation]}
        if is_dataclass(annotation):
            return _object(annotation)
        if annotation in _PLAIN:
            return dict(_PLAIN[annotation])
    raise TypeError(f"no JSON Schema for {annotation}")
