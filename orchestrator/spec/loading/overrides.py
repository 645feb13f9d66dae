"""`--set a.b.c=value`: changes to a job from the command line, with positions in the option."""

import re
from collections.abc import Mapping

from orchestrator.spec.loading.yaml_source import MAX_DEPTH, ListNode, MapNode, Node, Scalar, parse_yaml
from orchestrator.spec.spec_errors import Path, Place, Problem, dotted

_SEGMENT = re.compile(r'"([^"]*)"|([^.\[\]"]+)|\[([0-9]+)\]')


def apply_override(root: MapNode, option: str, env: Mapping[str, str]) -> list[Problem]:
    """Change `root` in place as `option` says; every problem, none of which leaves `root` half changed."""
    file = f"--set {option}".replace("\n", " ")
    start = Place(file, 1, len("--set ") + 1)
    name, equals, text = option.partition("=")
    parsed = segments_of(name, start)
    if not equals or parsed is None:
        return [Problem(start, "this is not an override, expected KEY=VALUE", "for example `--set train.lr=1e-3`")]
    at = Place(file, 1, start.column + len(name) + 1)
    value, problems, whole = parse_yaml(text, file, env, at)
    if problems or not whole:
        return problems
    if value is None:
        value = Scalar(at, None, "", False, "")
    if isinstance(value, MapNode) and not text.lstrip().startswith("{"):
        hint = "quote the value, or set the inner key: `--set a.b=value`"
        return [Problem(at, "the value holds `key: value`, expected one value, `[a, b]` or `{key: value}`", hint)]
    return put_value(root, parsed, value)


def segments_of(name: str, start: Place) -> list[tuple[str | int, Place]] | None:
    """Keys and indexes with their places; None if `name` is not a dotted path."""
    found: list[tuple[str | int, Place]] = []
    position = 0
    while position < len(name):
        match = _SEGMENT.match(name, position)
        if match is None:
            return None
        place = Place(start.file, start.line, start.column + position)
        if match[3] is not None:
            if len(match[3]) > 9:
                return None
            found.append((int(match[3]), place))
        else:
            found.append((match[1] if match[1] is not None else match[2].strip(), place))
        position = match.end()
        if position < len(name) and name[position] == ".":
            position += 1
            if position == len(name):
                return None
        elif position < len(name) and name[position] != "[":
            return None
    return found if 0 < len(found) <= MAX_DEPTH - 5 else None


def put_value(root: MapNode, segments: list[tuple[str | int, Place]], value: Node) -> list[Problem]:
    """Set the value at a path of keys and indexes, with new sections if needed; every problem."""
    node: Node = root
    path: Path = ()
    for index, (key, place) in enumerate(segments):
        last = index == len(segments) - 1
        if isinstance(node, ListNode):
            number = _index(key)
            if number is None or number >= len(node.items):
                return [_bad_index(node, path, key, place)]
            if last:
                node.items[number] = value
            else:
                opened = _opened(node.items[number], place)
                node.items[number] = opened
                node = opened
            path = (*path, number)
            continue
        if not isinstance(node, MapNode):
            return [_not_a_section(path, key, place)]
        name = str(key)
        path = (*path, name)
        if last:
            node.keys[name] = place
            node.values[name] = value
        else:
            node.keys.setdefault(name, place)
            node.values[name] = _opened(node.values.get(name), place)
            node = node.values[name]
    return []


def _opened(node: Node | None, place: Place) -> Node:
    """`node`, or a new section if there is nothing yet."""
    if node is None or (isinstance(node, Scalar) and node.value is None and not node.broken):
        return MapNode(place)
    return node


def _index(key: str | int) -> int | None:
    if isinstance(key, int):
        return key
    return int(key) if re.fullmatch(r"[0-9]{1,9}", key) else None


def _bad_index(node: ListNode, path: Path, key: str | int, place: Place) -> Problem:
    count = len(node.items)
    have = f"has {count} item{'s' if count != 1 else ''}"
    hint = f"items are numbered from 0 to {count - 1}" if count else f"set the whole list: `--set {dotted(path)}=[...]`"
    return Problem(place, f"`{dotted(path)}` is a list and {have}, there is no item `{key}`", hint)


def _not_a_section(path: Path, key: str | int, place: Place) -> Problem:
    message = f"`{dotted(path)}` is a single value, there is no `{key}` in it"
    return Problem(place, message, f"set `{dotted(path)}` itself, e.g. to `{{{key}: ...}}`")
