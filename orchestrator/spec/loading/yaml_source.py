"""YAML text to a tree that remembers where everything was written.

PyYAML scans and parses; the tree is built here, from its events, for four reasons: YAML 1.2 scalars (`1e-4` is a
number, `no` is text), every duplicate key reported, no recursion for hostile nesting to exhaust, and marks kept.
Nothing is ever constructed from a tag.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

import yaml

from orchestrator.json_values import JsonValue
from orchestrator.spec.loading.fast_yaml import FastLoader
from orchestrator.spec.loading.interpolate import interpolate
from orchestrator.spec.loading.syntax_errors import Mark, explain_syntax_error
from orchestrator.spec.spec_errors import Path, Place, Problem

MAX_BYTES = 1 << 20
MAX_DEPTH = 40
MAX_NODES = 50_000
MAX_PROBLEMS = 200
"""More are not reported: a file that is not a job could have a hundred thousand."""

_INT = re.compile(r"[-+]?(0|[1-9][0-9]{0,299})")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]{1,4})?")
_NON_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_PLAIN_TEXT = re.compile(r"[ -~\n]*")
"""Texts that libyaml and PyYAML's own parser read alike: most jobs. libyaml is fifteen times as fast."""
_UNUSABLE = re.compile("[\0\ud800-\udfff]")
_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}


@dataclass
class Scalar:
    """One value. `text` is as written, after interpolation; `raw` before it."""

    place: Place
    value: bool | int | float | str | None
    text: str
    quoted: bool
    raw: str
    broken: bool = False
    """A problem was already reported here: the value means nothing and is not to be complained of again."""


@dataclass
class ListNode:
    """A YAML sequence."""

    place: Place
    items: list["Node"] = field(default_factory=list)


@dataclass
class MapNode:
    """A YAML mapping; keys are text."""

    place: Place
    keys: dict[str, Place] = field(default_factory=dict)
    values: dict[str, "Node"] = field(default_factory=dict)


Node = Scalar | ListNode | MapNode


def resolve_plain(text: str) -> bool | int | float | str | None:
    """The value of an unquoted scalar by the YAML 1.2 core schema, with three deliberate differences.

    Hexadecimal, octal and numbers with leading zeros stay text (they are nearly always names); a number in exponent
    notation without a fraction (`1e9`) is an integer; one too large for a double stays text.
    """
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if _INT.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        number = float(text)
        if not math.isfinite(number):
            return text
        if ("e" in text or "E" in text) and number.is_integer() and abs(number) < 2**53:
            return int(number)
        # `007` and `0755` are names, `0.5` and `1.50` are numbers.
        return number if any(c in text for c in ".eE") else text
    return text


def to_value(node: Node) -> JsonValue:
    """Plain Python values. Never deeper than MAX_DEPTH, so recursion is safe."""
    if isinstance(node, Scalar):
        return node.value
    if isinstance(node, ListNode):
        return [to_value(item) for item in node.items]
    return {key: to_value(value) for key, value in node.values.items()}


class Missing(Enum):
    """The type of MISSING."""

    MISSING = "missing"


MISSING: Final = Missing.MISSING


def step(value: JsonValue | Missing, part: str | int) -> JsonValue | Missing:
    """The item of a plain value (dict or list) under `part`, or MISSING."""
    if isinstance(value, dict):
        found: JsonValue | Missing = value.get(part, MISSING) if isinstance(part, str) else MISSING
        return found
    if isinstance(value, list) and isinstance(part, int) and part < len(value):
        item: JsonValue = value[part]
        return item
    return MISSING


def find(node: Node, path: Path) -> Node | None:
    """The node at `path`, or None if there is none."""
    for part in path:
        if isinstance(node, MapNode) and isinstance(part, str) and part in node.values:
            node = node.values[part]
        elif isinstance(node, ListNode) and isinstance(part, int) and part < len(node.items):
            node = node.items[part]
        else:
            return None
    return node


def place_of(root: Node, path: Path, key: bool = False) -> Place:
    """Where the value (or, with `key`, the key) at `path` was written; the nearest one above it if it was not."""
    for length in range(len(path), 0, -1):
        above = find(root, path[: length - 1])
        last = path[length - 1]
        whole = length == len(path)
        if isinstance(above, MapNode) and isinstance(last, str) and last in above.keys:
            return above.keys[last] if key or not whole else above.values[last].place
        if isinstance(above, ListNode) and isinstance(last, int) and last < len(above.items):
            return above.items[last].place
    return root.place


class _Builder:
    """Builds a tree from PyYAML's events, collecting every problem that does not end the parse."""

    def __init__(self, file: str, env: Mapping[str, str], at: Place | None) -> None:
        self.file = file
        self.env = env
        self.at = at or Place(file)
        self.problems: list[Problem] = []
        self.root: Node | None = None
        self._stack: list[ListNode | MapNode] = []
        self._pending: list[tuple[str | None, Place] | None] = []
        """Per open collection: the key that waits for its value (None as key: a bad one, its value is dropped)."""
        self._nodes = 0

    def place(self, mark: Mark | None) -> Place:
        """`mark` in the user's text; a `--set` value starts in the middle of its option."""
        if mark is None:
            return Place(self.file)
        column = mark.column + (self.at.column if mark.line == 0 else 1)
        return Place(self.file, self.at.line + mark.line, column)

    def problem(self, place: Place, message: str, hint: str | None = None) -> None:
        self.problems.append(Problem(place, message, hint))

    def feed(self, event: yaml.Event) -> bool:
        """Take one event; False to stop reading."""
        if isinstance(event, yaml.DocumentStartEvent) and self.root is not None:
            self.problem(
                self.place(event.start_mark),
                "a second YAML document starts here, expected one job per file",
                "remove the `---`, or put the second job into a file of its own",
            )
            return False
        if isinstance(event, yaml.AliasEvent):
            self._refuse(event, f"the alias `*{event.anchor}` is not supported in job files")
            self._add(self._broken(event))
        elif isinstance(event, yaml.ScalarEvent):
            self._decorations(event)
            self._add_scalar(event)
        elif isinstance(event, yaml.CollectionStartEvent):
            return self._open(event)
        elif isinstance(event, yaml.CollectionEndEvent):
            self._close()
        return self._nodes <= MAX_NODES and len(self.problems) < MAX_PROBLEMS

    def _refuse(self, event: yaml.Event, message: str) -> None:
        hint = "write the value out in each place, or take it from the environment with ${NAME}"
        self.problem(self.place(event.start_mark), message, hint)

    def _decorations(self, event: yaml.ScalarEvent | yaml.CollectionStartEvent) -> None:
        if event.anchor is not None:
            self._refuse(event, f"the anchor `&{event.anchor}` is not supported in job files")
        if event.tag is not None:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            self.problem(
                self.place(event.start_mark),
                f"the tag `{tag}` is not supported in job files",
                "remove it; quote a value to make it text",
            )

    def _broken(self, event: yaml.Event) -> Scalar:
        return Scalar(self.place(event.start_mark), None, "", False, "", broken=True)

    def _open(self, event: yaml.CollectionStartEvent) -> bool:
        self._decorations(event)
        place = self.place(event.start_mark)
        if len(self._stack) >= MAX_DEPTH:
            self.problem(place, f"nesting is deeper than {MAX_DEPTH} levels", "a job needs five at most")
            return False
        node = MapNode(place) if isinstance(event, yaml.MappingStartEvent) else ListNode(place)
        if self._wants_key():
            self.problem(place, "a key is a list or mapping, expected a name", "quote text that holds [ ] or { }")
            self._pending[-1] = (None, place)
            # The key's own content still arrives: give it a collection to go to, dropped when it closes.
            self._stack.append(node)
            self._pending.append(None)
            return True
        if not self._add(node):
            return False
        self._stack.append(node)
        self._pending.append(None)
        return True

    def _close(self) -> None:
        self._stack.pop()
        self._pending.pop()

    def _wants_key(self) -> bool:
        return bool(self._stack) and isinstance(self._stack[-1], MapNode) and self._pending[-1] is None

    def _add_scalar(self, event: yaml.ScalarEvent) -> None:
        place = self.place(event.start_mark)
        quoted = bool(event.style)
        if self._wants_key():
            self._pending[-1] = self._key(event.value, quoted, place)
            return
        text, whole, wrong = interpolate(event.value, self.env)
        for message, hint in wrong:
            self.problem(place, message, hint)
        if wrong:
            self._add(self._broken(event))
            return
        plain = not quoted and (text == event.value or whole)
        value = resolve_plain(text) if plain else text
        broken = True
        if plain and _NON_FINITE.fullmatch(text):
            self.problem(place, f"`{text}` cannot be used here, expected a finite number")
        elif _UNUSABLE.search(text):
            self.problem(
                place, "the text holds a NUL or half a character, which nothing can print or open", "remove it"
            )
        else:
            broken = False
        self._add(Scalar(place, value, text, quoted, event.value, broken))

    def _key(self, text: str, quoted: bool, place: Place) -> tuple[str | None, Place]:
        node = self._stack[-1]
        assert isinstance(node, MapNode)
        if not quoted and text == "<<":
            hint = "write the keys out in each place"
            self.problem(place, "merge keys (`<<`) are not supported in job files", hint)
            return None, place
        if not quoted and text == "":
            self.problem(place, "a key is empty, expected a name before the `:`")
            return None, place
        if text in node.keys:
            self.problem(
                place,
                f"the key `{text}` is given twice, first on line {node.keys[text].line}",
                "keep one of the two",
            )
            return None, place
        return text, place

    def _add(self, node: Node) -> bool:
        self._nodes += 1
        if self._nodes == MAX_NODES + 1:
            self.problem(node.place, f"more than {MAX_NODES} values, expected a job file")
            return False
        if not self._stack:
            self.root = node
            return True
        above = self._stack[-1]
        if isinstance(above, ListNode):
            above.items.append(node)
            return True
        pending = self._pending[-1]
        if pending is None:  # an alias as a key
            self._pending[-1] = (None, node.place)
            return True
        key, place = pending
        self._pending[-1] = None
        if key is not None:
            above.keys[key] = place
            above.values[key] = node
        return True


def parse_yaml(
    text: str, file: str, env: Mapping[str, str], at: Place | None = None
) -> tuple[Node | None, list[Problem], bool]:
    """(tree, problems, whole): the tree, every problem on the way, and whether the text was read to its end.

    `at` is where `text` starts in what the user wrote, for a part of a longer line. Never raises for any text.
    """
    if _PLAIN_TEXT.fullmatch(text):
        try:
            builder = _Builder(file, env, at)
            whole = _feed(builder, FastLoader(text))
            return builder.root, builder.problems, whole
        except yaml.YAMLError:
            pass  # parsed again below: the messages are those of the Python parser
    builder, whole = _Builder(file, env, at), False
    try:
        whole = _feed(builder, yaml.SafeLoader(text))
    except yaml.YAMLError as error:
        builder.problems.append(explain_syntax_error(error, text, builder.place))
    except (ValueError, OverflowError, RecursionError) as error:
        # PyYAML converts escapes such as "\UFFFFFFFF" and huge version directives without guarding them.
        builder.problem(Place(file), f"this is not YAML that can be read: {error}")
    return builder.root, builder.problems, whole


def _feed(builder: _Builder, loader: "yaml.SafeLoader | FastLoader") -> bool:
    """Give the builder all events; whether it has taken them to the end. Raises yaml.YAMLError and what PyYAML does not
    guard."""
    try:
        while loader.check_event():
            event = loader.get_event()
            if event is not None and not builder.feed(event):
                return False
        return True
    finally:
        loader.dispose()
