"""JSON with types: what files and frames hold that another process, or an older version, wrote. Under all layers.

The readers take a field out of an object. They raise JsonShapeError, which names the field, where it is missing or of
another type, so that a file or a frame that does not fit is refused in one place.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias, TypeVar

JsonValue: TypeAlias = bool | int | float | str | Sequence["JsonValue"] | Mapping[str, "JsonValue"] | None
"""Anything that `json` writes. Lists and objects are covariant: a `dict[str, int]` is one too."""
JsonObject: TypeAlias = dict[str, JsonValue]
JsonFields: TypeAlias = Mapping[str, JsonValue]
"""An object to read from."""

T = TypeVar("T")


class JsonShapeError(ValueError):
    """A JSON object lacks a field, or a field has another type than expected."""


def parse_object(content: str | bytes) -> JsonObject:
    """The JSON object that a text holds. Raises JsonShapeError for anything else."""
    try:
        value: JsonValue = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise JsonShapeError(f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise JsonShapeError(f"expected a JSON object, found {kind_of(value)}")
    return value


def integer(fields: JsonFields, key: str) -> int:
    """A whole number. Raises JsonShapeError."""
    value = _present(fields, key)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise _mismatch(key, "a whole number", value)


def number(fields: JsonFields, key: str) -> float:
    """A number. Raises JsonShapeError."""
    value = _present(fields, key)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    raise _mismatch(key, "a number", value)


def text(fields: JsonFields, key: str) -> str:
    """A text. Raises JsonShapeError."""
    value = _present(fields, key)
    if isinstance(value, str):
        return value
    raise _mismatch(key, "a text", value)


def flag(fields: JsonFields, key: str) -> bool:
    """True or false. Raises JsonShapeError."""
    value = _present(fields, key)
    if isinstance(value, bool):
        return value
    raise _mismatch(key, "true or false", value)


def mapping(fields: JsonFields, key: str) -> JsonObject:
    """An object. Raises JsonShapeError."""
    value = _present(fields, key)
    if isinstance(value, dict):
        return value
    raise _mismatch(key, "an object", value)


def array(fields: JsonFields, key: str) -> list[JsonValue]:
    """A list; also a tuple, which is one in JSON. Raises JsonShapeError."""
    value = _present(fields, key)
    if isinstance(value, list | tuple):
        return list(value)
    raise _mismatch(key, "a list", value)


def objects(fields: JsonFields, key: str) -> list[JsonObject]:
    """A list of objects. Raises JsonShapeError."""
    return _items(mapping, fields, key, "a list of objects")


def texts(fields: JsonFields, key: str) -> list[str]:
    """A list of texts. Raises JsonShapeError."""
    return _items(text, fields, key, "a list of texts")


def integers(fields: JsonFields, key: str) -> list[int]:
    """A list of whole numbers. Raises JsonShapeError."""
    return _items(integer, fields, key, "a list of whole numbers")


def numbers(fields: JsonFields, key: str) -> list[float]:
    """A list of numbers. Raises JsonShapeError."""
    return _items(number, fields, key, "a list of numbers")


def integer_rows(fields: JsonFields, key: str) -> list[list[int]]:
    """A list of lists of whole numbers. Raises JsonShapeError."""
    return [integers({key: row}, key) for row in array(fields, key)]


def number_rows(fields: JsonFields, key: str) -> list[list[float]]:
    """A list of lists of numbers. Raises JsonShapeError."""
    return [numbers({key: row}, key) for row in array(fields, key)]


def number_mapping(fields: JsonFields, key: str) -> dict[str, float]:
    """An object whose values are numbers. Raises JsonShapeError."""
    value = mapping(fields, key)
    return {name: number(value, name) for name in value}


def text_mapping(fields: JsonFields, key: str) -> dict[str, str]:
    """An object whose values are texts. Raises JsonShapeError."""
    value = mapping(fields, key)
    return {name: text(value, name) for name in value}


def optional(read: Callable[[JsonFields, str], T], fields: JsonFields, key: str) -> T | None:
    """What `read` finds; None where the field is null or missing. Raises JsonShapeError."""
    return None if fields.get(key) is None else read(fields, key)


def kind_of(value: object) -> str:
    """The type of a JSON value, for messages."""
    names: tuple[tuple[type | tuple[type, ...], str], ...] = (
        (type(None), "null"),
        (bool, "true or false"),
        ((int, float), "a number"),
        (str, "a text"),
        ((list, tuple), "a list"),
        (Mapping, "an object"),
    )
    return next((name for kind, name in names if isinstance(value, kind)), type(value).__name__)


def _items(read: Callable[[JsonFields, str], T], fields: JsonFields, key: str, expected: str) -> list[T]:
    """A list whose items `read` accepts."""
    found: list[T] = []
    for item in array(fields, key):
        try:
            found.append(read({key: item}, key))
        except JsonShapeError:
            raise _mismatch(key, expected, item) from None
    return found


def _present(fields: JsonFields, key: str) -> JsonValue:
    if key not in fields:
        raise JsonShapeError(f"the field `{key}` is missing")
    return fields[key]


def _mismatch(key: str, expected: str, value: object) -> JsonShapeError:
    return JsonShapeError(f"the field `{key}` is {kind_of(value)}, expected {expected}")
