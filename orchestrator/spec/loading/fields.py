"""The spec's types, looked at: which field is at a path, what it expects, in words."""

import types
from typing import Annotated, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from orchestrator.spec.spec_errors import Path


def options_of(annotation: object) -> tuple[object, ...]:
    """The members of a union, or the annotation alone."""
    if get_origin(annotation) in (Union, types.UnionType):
        return get_args(annotation)
    return (annotation,)


def bare(annotation: object) -> tuple[object, tuple[object, ...]]:
    """(type, metadata) of an `Annotated` type, flattened."""
    if get_origin(annotation) is Annotated:
        inner, *metadata = get_args(annotation)
        flat: list[object] = []
        for item in metadata:
            flat.extend(item.metadata if isinstance(item, FieldInfo) else (item,))
        return inner, tuple(flat)
    return annotation, ()


def models_of(annotation: object) -> list[tuple[type[BaseModel], bool]]:
    """Spec parts an annotation can hold, each with whether it stands in a list."""
    found = []
    for option in options_of(annotation):
        kind, _ = bare(option)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found.append((kind, False))
        elif get_origin(kind) is list:
            found.extend((model, True) for model, _ in models_of(get_args(kind)[0]))
    return found


def model_at(root: type[BaseModel], path: Path) -> type[BaseModel] | None:
    """The spec part at `path`, or None if a plain value is."""
    model: type[BaseModel] | None = root
    for part in path:
        if isinstance(part, int):
            continue
        if model is None or part not in model.model_fields:
            return None
        inner = models_of(model.model_fields[part].annotation)
        model = inner[0][0] if inner else None
    return model


def field_at(root: type[BaseModel], path: Path) -> FieldInfo | None:
    """The field at `path`, or None if there is none: an unknown key, or a key inside a free mapping."""
    if not path or not isinstance(path[-1], str):
        return None
    model = model_at(root, path[:-1])
    return model.model_fields.get(path[-1]) if model else None


def expectation(root: type[BaseModel], path: Path) -> str:
    """What the value at `path` should be, in words that follow `expected`."""
    field = field_at(root, path)
    if field is not None:
        return describe(field.annotation, tuple(field.metadata))
    model = model_at(root, path)
    if model is not None:
        return _section(model)
    for length in range(len(path) - 1, 0, -1):
        field = field_at(root, path[:length])
        if field is not None:
            for option in options_of(field.annotation):
                kind, _ = bare(option)
                if get_origin(kind) in (list, tuple, dict):
                    return describe(get_args(kind)[-1])
    return "another value"


def describe(annotation: object, metadata: tuple[object, ...] = ()) -> str:
    """A type in words: `a whole number of at least 1 or one of `auto``."""
    words = []
    for option in options_of(annotation):
        kind, own = bare(option)
        if kind is type(None):
            continue
        words.append(_describe_one(kind, (*metadata, *own)))
    return " or ".join(dict.fromkeys(words))


def _describe_one(kind: object, metadata: tuple[object, ...]) -> str:
    if get_origin(kind) is Literal:
        values = [f"`{value}`" for value in get_args(kind)]
        return values[0] if len(values) == 1 else "one of " + ", ".join(values)
    if kind is bool:
        return "true or false"
    if kind is int:
        return "a whole number" + _range(metadata)
    if kind is float:
        return "a number" + _range(metadata)
    if kind is str:
        return "text"
    if get_origin(kind) is list:
        return f"a list ({describe(get_args(kind)[0])} each)" if not models_of(kind) else "a list of sections"
    if get_origin(kind) is tuple:
        return f"a list of {len(get_args(kind))} values, {describe(get_args(kind)[0])} each"
    if get_origin(kind) is dict:
        return "a section of `key: value` lines"
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return _section(kind)
    return "a plain value"


def _section(model: type[BaseModel]) -> str:
    names = list(model.model_fields)
    shown = ", ".join(f"`{name}`" for name in names[:4])
    return f"a section with {shown}" + (", ..." if len(names) > 4 else "")


_BOUNDS: tuple[tuple[str, type], ...] = (("ge", Ge), ("le", Le))


def _range(metadata: tuple[object, ...]) -> str:
    ge, le = (next((getattr(m, name) for m in metadata if isinstance(m, kind)), None) for name, kind in _BOUNDS)
    if ge is not None and le is not None:
        return f" from {ge} to {le}"
    low = next((f"at least {m.ge}" for m in metadata if isinstance(m, Ge)), None) or next(
        (f"greater than {m.gt}" for m in metadata if isinstance(m, Gt)), None
    )
    high = next((f"at most {m.le}" for m in metadata if isinstance(m, Le)), None) or next(
        (f"less than {m.lt}" for m in metadata if isinstance(m, Lt)), None
    )
    both = " and ".join(word for word in (low, high) if word)
    return f" {'of ' if both.startswith('at') else ''}{both}" if both else ""
