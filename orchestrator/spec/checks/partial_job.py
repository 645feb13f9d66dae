"""A job as the cross-field checks see it: valid parts can be read even if other parts are wrong."""

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from orchestrator.json_values import JsonObject, JsonValue
from orchestrator.spec.job import JobSpec
from orchestrator.spec.loading.explain import quote
from orchestrator.spec.loading.fields import field_at, models_of
from orchestrator.spec.loading.yaml_source import MISSING, ListNode, MapNode, Missing, Scalar, find, place_of, step
from orchestrator.spec.spec_errors import Path, Problem, dotted


class Unavailable(Exception):
    """The value asked for is wrong or missing, which was reported already: the check does not apply."""


def path_of(text: str | Path) -> Path:
    """`data.sources.0.files` as a path; a path as it is."""
    if isinstance(text, tuple):
        return text
    return tuple(int(part) if part.isdigit() else part for part in text.split("."))


class View:
    """Reads values by dotted path, defaults filled in."""

    def __init__(self, data: JsonValue, root: MapNode, invalid: set[Path], broken: bool = True) -> None:
        """`broken`: the tree may have values that were reported already."""
        self._data, self._any_broken = data, broken
        self._root = root
        self._invalid = invalid

    def get(self, where: str | Path) -> JsonValue:
        """The value, or its default if it is not given. Raises Unavailable if it, something in it or something above it
        is wrong."""
        path = path_of(where)
        for bad in self._invalid:
            if path[: len(bad)] == bad or bad[: len(path)] == path:
                raise Unavailable(where)
        value: JsonValue = self._data
        for index, part in enumerate(path):
            if self._any_broken and self._broken(path[: index + 1]):
                raise Unavailable(where)
            inner = step(value, part)
            if inner is not MISSING:
                value = inner
            elif value is None and index:
                return None
            else:
                return self._default(path)
        return value

    def integer(self, where: str | Path) -> int:
        """As `get`, of a whole number. Raises Unavailable for anything else."""
        value = self.optional_integer(where)
        if value is None:
            raise Unavailable(where)
        return value

    def optional_integer(self, where: str | Path) -> int | None:
        """As `get`, of a whole number or null. Raises Unavailable for anything else."""
        value = self.get(where)
        if value is None or (isinstance(value, int) and not isinstance(value, bool)):
            return value
        raise Unavailable(where)

    def number(self, where: str | Path) -> float:
        """As `get`, of a number. Raises Unavailable for anything else."""
        value = self.optional_number(where)
        if value is None:
            raise Unavailable(where)
        return value

    def optional_number(self, where: str | Path) -> float | None:
        """As `get`, of a number or null. Raises Unavailable for anything else."""
        value = self.get(where)
        if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
            return value
        raise Unavailable(where)

    def text(self, where: str | Path) -> str:
        """As `get`, of a text. Raises Unavailable for anything else."""
        value = self.optional_text(where)
        if value is None:
            raise Unavailable(where)
        return value

    def optional_text(self, where: str | Path) -> str | None:
        """As `get`, of a text or null. Raises Unavailable for anything else."""
        value = self.get(where)
        if value is None or isinstance(value, str):
            return value
        raise Unavailable(where)

    def mapping(self, where: str | Path) -> JsonObject:
        """As `get`, of a section. Raises Unavailable for anything else."""
        value = self.get(where)
        if isinstance(value, dict):
            return value
        raise Unavailable(where)

    def section(self, where: str | Path) -> JsonValue:
        """The value as written, wrong parts and all; None where there is none."""
        value: JsonValue | Missing = self._data
        for part in path_of(where):
            value = step(value, part)
        return None if value is MISSING else value

    def given(self, where: str | Path) -> bool:
        """Whether the user wrote the key with a value other than null, right or wrong."""
        node = find(self._root, path_of(where))
        return node is not None and not (isinstance(node, Scalar) and node.value is None and not node.broken)

    def changed(self, where: str | Path) -> bool:
        """Whether the value is another than the default. Raises Unavailable."""
        value = self.get(where)
        return bool(value != self._default(path_of(where)))

    def keys(self, where: str | Path) -> list[str]:
        """The keys of a mapping that is given, whatever their values."""
        value = self.section(where)
        return list(value) if isinstance(value, dict) else []

    def items(self, where: str | Path) -> list[Path]:
        """The paths of the items of a list that is given, right or wrong."""
        path = path_of(where)
        node = find(self._root, path)
        return [(*path, index) for index in range(len(node.items))] if isinstance(node, ListNode) else []

    def problem(self, where: str | Path, message: str, hint: str | None = None, key: bool = False) -> Problem:
        """A problem at the value (or, with `key`, the key) at `where`."""
        return Problem(place_of(self._root, path_of(where), key), message, hint)

    def unknown_key(self, where: Path, why: str, hint: str | None) -> Problem:
        """A problem at an unknown key of a free mapping."""
        message = f"unknown key {quote(str(where[-1]))} in `{dotted(where[:-1])}`: {why}"
        return self.problem(where, message, hint, key=True)

    def _broken(self, path: Path) -> bool:
        node = find(self._root, path)
        return isinstance(node, Scalar) and node.broken

    def _default(self, path: Path) -> JsonValue:
        """The default of the field at `path`, through the defaults of the parts above it."""
        for length in range(1, len(path) + 1):
            field = field_at(JobSpec, path[:length])
            if field is None:
                continue
            default = field.get_default(call_default_factory=True, validated_data={})
            if length == len(path):
                if default is PydanticUndefined:
                    raise Unavailable(path)
                value: JsonValue = default.model_dump() if isinstance(default, BaseModel) else default
                return value
            if default is None and models_of(field.annotation) and not self._given_above(path[:length]):
                return None
        raise Unavailable(path)

    def _given_above(self, path: Path) -> bool:
        return find(self._root, path) is not None
