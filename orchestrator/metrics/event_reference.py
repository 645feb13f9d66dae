"""The events in `docs/files.md`: `python -m orchestrator.metrics.event_reference` makes them from their classes."""

import re
import sys
from dataclasses import is_dataclass
from enum import StrEnum
from pathlib import Path
from types import NoneType, UnionType
from typing import Union, get_args, get_origin

from orchestrator.domain.events import EVENT_TYPES
from orchestrator.domain.events.event_codec import fields_of
from orchestrator.spec.describe.docstrings import class_doc, field_docs

DOCUMENT = Path("docs") / "files.md"
_PLACE = re.compile(r"(<!-- events: .*?-->\n).*?(<!-- end of events -->\n)", re.DOTALL)
_NAMES = {int: "integer", float: "number", str: "text", bool: "true or false", NoneType: "null"}


def events_markdown() -> str:
    """A section for each kind of event, with a table of its fields."""
    lines: list[str] = []
    for body_type in EVENT_TYPES:
        lines += ["", f"### `{body_type.KIND}`", "", class_doc(body_type), "", *_table(body_type)]
    return "\n".join(lines) + "\n\n"


def _table(value_type: type, prefix: str = "") -> list[str]:
    header = ["| Field | Value | What it is |", "| --- | --- | --- |"] if not prefix else []
    docs, rows = field_docs(value_type), []
    for field in fields_of(value_type):
        text = docs[field.name].replace("|", "\\|")
        rows.append(f"| `{prefix}{field.name}` | {_kind(field.annotation)} | {text} |")
        for inner in get_args(field.annotation):
            if isinstance(inner, type) and is_dataclass(inner):
                rows += _table(inner, f"{prefix}{field.name}[].")
    return [*header, *rows]


def _kind(annotation: object) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return " or ".join(_kind(option) for option in arguments)
    if origin is tuple:
        return "list" if is_dataclass(arguments[0]) else f"list of {_kind(arguments[0])}"
    if origin is dict:
        return f"object of {_kind(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, StrEnum):
        return ", ".join(member.value for member in annotation)
    assert isinstance(annotation, type)
    return _NAMES[annotation]


def with_events(document: str) -> str:
    """The document with the events between its two markers. Raises ValueError if it lacks them."""
    found, count = _PLACE.subn(lambda place: f"{place[1]}{events_markdown()}{place[2]}", document)
    if count != 1:
        raise ValueError(f"{DOCUMENT} must have the two markers of the events once, found them {count} times")
    return found


def main() -> None:
    """Write `docs/files.md` of this checkout."""
    path = Path(__file__).parents[2] / DOCUMENT
    path.write_text(with_events(path.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"wrote the events in {DOCUMENT}", file=sys.stderr)


if __name__ == "__main__":
    main()
