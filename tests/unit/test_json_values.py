"""JSON with types: what is read out of an object, and what is said of one that does not fit."""

from collections.abc import Callable

import pytest

from orchestrator.json_values import (
    JsonFields,
    JsonObject,
    JsonShapeError,
    array,
    flag,
    integer,
    integer_rows,
    integers,
    kind_of,
    mapping,
    number,
    numbers,
    objects,
    optional,
    parse_object,
    text,
    text_mapping,
    texts,
)

pytestmark = pytest.mark.unit

FIELDS: JsonObject = {
    "step": 7,
    "loss": 2.5,
    "name": "Zoë",
    "own": True,
    "of": {"rank": 1},
    "words": {"a": "b"},
    "sizes": [1, 2],
    "shape": (3, 4),
    "losses": [1, 2.5],
    "texts": ["a", "b"],
    "parts": [{"rank": 0}, {}],
    "rows": [[1, 2], []],
    "nothing": None,
}


@pytest.mark.parametrize(
    ("read", "key", "value"),
    [
        (integer, "step", 7),
        (number, "loss", 2.5),
        (number, "step", 7.0),
        (text, "name", "Zoë"),
        (flag, "own", True),
        (mapping, "of", {"rank": 1}),
        (text_mapping, "words", {"a": "b"}),
        (array, "sizes", [1, 2]),
        (integers, "sizes", [1, 2]),
        (integers, "shape", [3, 4]),
        (numbers, "losses", [1.0, 2.5]),
        (texts, "texts", ["a", "b"]),
        (objects, "parts", [{"rank": 0}, {}]),
        (integer_rows, "rows", [[1, 2], []]),
    ],
)
def test_a_field_of_the_expected_type_is_read(
    read: Callable[[JsonFields, str], object], key: str, value: object
) -> None:
    assert read(FIELDS, key) == value
    assert optional(read, FIELDS, key) == value
    assert optional(read, FIELDS, "nothing") is None
    assert optional(read, FIELDS, "missing") is None


@pytest.mark.parametrize(
    ("read", "key", "said"),
    [
        (integer, "loss", "the field `loss` is a number, expected a whole number"),
        (integer, "own", "the field `own` is true or false, expected a whole number"),
        (number, "own", "expected a number"),
        (number, "nothing", "the field `nothing` is null, expected a number"),
        (text, "step", "the field `step` is a number, expected a text"),
        (flag, "step", "expected true or false"),
        (mapping, "sizes", "the field `sizes` is a list, expected an object"),
        (text_mapping, "of", "the field `rank` is a number, expected a text"),
        (array, "name", "the field `name` is a text, expected a list"),
        (integers, "losses", "expected a list of whole numbers"),
        (numbers, "texts", "expected a list of numbers"),
        (texts, "sizes", "expected a list of texts"),
        (objects, "sizes", "expected a list of objects"),
        (integer_rows, "sizes", "the field `sizes` is a number, expected a list"),
        (integer, "missing", "the field `missing` is missing"),
    ],
)
def test_a_field_of_another_type_is_named(read: Callable[[JsonFields, str], object], key: str, said: str) -> None:
    with pytest.raises(JsonShapeError, match=said):
        read(FIELDS, key)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "not JSON"),
        (b"\xff\xfe\xfd", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[1]", "expected a JSON object, found a list"),
        ("3", "found a number"),
    ],
)
def test_what_is_no_object_is_refused(content: str | bytes, said: str) -> None:
    with pytest.raises(JsonShapeError, match=said):
        parse_object(content)


def test_an_object_is_parsed_and_kinds_have_names() -> None:
    assert parse_object(b'{"a": [1, null]}') == {"a": [1, None]}
    assert [kind_of(value) for value in (None, True, 1.5, "a", (), {}, b"")] == [
        "null",
        "true or false",
        "a number",
        "a text",
        "a list",
        "an object",
        "bytes",
    ]
