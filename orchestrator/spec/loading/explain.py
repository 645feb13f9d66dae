"""Pydantic's findings on one job, in words: what was found, what was expected, what to write instead."""

import itertools
import re
from collections.abc import Collection

from pydantic_core import ErrorDetails

from orchestrator.json_values import JsonValue
from orchestrator.spec.job import JobSpec
from orchestrator.spec.loading.fields import describe, expectation, field_at, model_at, models_of, options_of
from orchestrator.spec.loading.hints import VALUE_SYNONYMS, hint_unknown, listing, nearest
from orchestrator.spec.loading.yaml_source import (
    MAX_PROBLEMS,
    MISSING,
    ListNode,
    MapNode,
    Node,
    Scalar,
    find,
    place_of,
    resolve_plain,
    step,
)
from orchestrator.spec.spec_errors import Path, Problem, dotted, printable

EXAMPLES: dict[Path, str] = {
    ("name",): "name: my-model",
    ("model",): "model: {architecture: gpt2, config: {n_layer: 4}}",
    ("data",): "data: {sources: [{files: ['corpus/**/*.txt']}], sequence_length: 512}",
    ("train",): "train: {steps: 1000, global_batch: 32, lr: 3e-4}",
    ("data", "sources"): "sources: [{files: ['corpus/**/*.txt']}]",
    ("data", "sequence_length"): "sequence_length: 512",
    ("train", "global_batch"): "global_batch: 32",
    ("train", "lr"): "lr: 3e-4",
}
SHORTHANDS = {
    "model": "architecture",
    "tokenizer": "pretrained",
    "sources": "files",
    "validation": "fraction",
    "optimizer": "name",
    "zero": "stage",
    "offload_optimizer": "device",
    "offload_params": "device",
    "resources": "workers",
    "checkpoint": "interval_steps",
    "cluster": "nodes",
    "metrics": "port",
    "tensorboard": "dir",
    "wandb": "project",
    "generate": "prompt",
    "schedule": "priority",
}
"""The key that was meant if one value is given in place of a section."""
_UNDERSCORES = re.compile(r"[0-9]+(_[0-9]+)+")


def clean_path(location: tuple[str | int, ...], data: JsonValue) -> Path:
    """Pydantic's location without the names of union members, which are no part of what the user wrote."""
    path: list[str | int] = []
    here = data
    for index, part in enumerate(location):
        inner = step(here, part)
        if inner is not MISSING:
            here = inner
            path.append(part)
        elif index == len(location) - 1 and isinstance(here, dict) and isinstance(part, str):
            names = model_at(JobSpec, tuple(path))
            if names is not None and part in names.model_fields:
                path.append(part)
    return tuple(path)


def explain(errors: list[ErrorDetails], data: JsonValue, root: Node) -> tuple[list[Problem], set[Path]]:
    """(problems, invalid): one problem per place, and the paths whose values cannot be relied on."""
    first: dict[Path, ErrorDetails] = {}
    for error in errors:
        first.setdefault(clean_path(error["loc"], data), error)
    invalid = set(first)
    kinds = dict(itertools.islice(first.items(), MAX_PROBLEMS))
    paths = [path for path in kinds if not _covered(path, kinds, root)]
    unknown = {path: _unknown(path) for path in paths if kinds[path]["type"] == "extra_forbidden"}
    meant = {(*path[:-1], name) for path, (_, name) in unknown.items() if name}
    problems = []
    for path in paths:
        kind = kinds[path]["type"]
        if kind == "missing" and find(root, path) is None:
            if path not in meant:
                problems.append(_missing(path, root))
        elif path in unknown:
            problems.append(_problem_unknown(path, root, unknown[path][0]))
        else:
            problems.append(_wrong(path, kind, root))
    return problems, invalid


def _covered(path: Path, kinds: Collection[Path], root: Node) -> bool:
    """Whether another problem says it already: one inside the value, or one about a broken value above."""
    for length in range(len(path) + 1):
        node = find(root, path[:length])
        if isinstance(node, Scalar) and node.broken:
            return True
    return any(len(other) > len(path) and other[: len(path)] == path for other in kinds)


def _unknown(path: Path) -> tuple[str | None, str | None]:
    model = model_at(JobSpec, path[:-1])
    names = list(model.model_fields) if model else []
    return hint_unknown(path[:-1], str(path[-1]), names)


def _problem_unknown(path: Path, root: Node, hint: str | None) -> Problem:
    where = f"in `{dotted(path[:-1])}`" if len(path) > 1 else "at the top level"
    return Problem(place_of(root, path, key=True), f"unknown key {quote(str(path[-1]))} {where}", hint)


def _missing(path: Path, root: Node) -> Problem:
    where = f"from `{dotted(path[:-1])}`" if len(path) > 1 else "from the job"
    message = f"the required key `{path[-1]}` is missing {where}, expected {expectation(JobSpec, path)}"
    example = EXAMPLES.get(path)
    return Problem(place_of(root, path[:-1], key=True), message, f"for example `{example}`" if example else None)


def quote(text: str) -> str:
    """Text from the user, made safe to print on one line and not too long."""
    shown = printable(text)
    return f"`{shown if len(shown) <= 60 else shown[:57] + '...'}`"


def found(node: Node | None) -> str:
    """What stands in the file, in words."""
    if isinstance(node, MapNode):
        return "a section" if node.keys else "an empty section"
    if isinstance(node, ListNode):
        count = len(node.items)
        return f"a list of {count} item{'s' if count != 1 else ''}" if count else "an empty list"
    if node is None or (node.value is None and not node.text):
        return "empty"
    origin = f" (from {quote(node.raw)})" if node.raw != node.text else ""
    if isinstance(node.value, str):
        quoted = "the text " if node.quoted or isinstance(resolve_plain(node.text), int | float) else ""
        return f"{quoted}{quote(node.text)}{origin}"
    return f"{quote(node.text)}{origin}"


def found_value(value: object) -> str:
    """A plain value in words, as `found` says it of a node."""
    if value is None:
        return "empty"
    if isinstance(value, dict | list):
        return "a section" if isinstance(value, dict) else "a list"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"the text {quote(value)}" if isinstance(value, str) else f"`{value}`"


def _wrong(path: Path, kind: str, root: Node) -> Problem:
    node = find(root, path)
    place = place_of(root, path)
    wanted = expectation(JobSpec, path)
    if not path:
        return Problem(place, f"a job file holds {found(node)}, expected {wanted}")
    name = dotted(path)
    if kind == "string_pattern_mismatch":
        shown = found(node)
        hint = _name_hint(node.text) if isinstance(node, Scalar) else None
        return Problem(
            place, f"`{name}` is {shown}, expected lower-case letters, digits and dashes, no dash at an end", hint
        )
    if kind in ("string_too_long", "string_too_short", "too_short", "too_long"):
        wanted = {
            "string_too_long": "at most 63 characters",
            "string_too_short": "some text",
            "too_short": "at least one item" if name != "train.optimizer.betas" else wanted,
        }.get(kind, wanted)
    return Problem(place, f"`{name}` is {found(node)}, expected {wanted}", _hint(path, kind, node, wanted))


def _name_hint(text: str) -> str | None:
    better = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:63].strip("-")
    return f"for example `{better}`" if better else None


def _hint(path: Path, kind: str, node: Node | None, wanted: str) -> str | None:
    key = str(next((part for part in reversed(path) if isinstance(part, str)), "value"))
    if isinstance(node, ListNode | MapNode):
        return _hint_collection(path, node)
    if node is None:
        return None
    field = field_at(JobSpec, path)
    if node.value is None:
        if models_of(field.annotation if field else None):
            return f"indent the keys of `{key}` below it, or remove the line" if "list" not in wanted else None
        return f"give `{key}` a value or remove the line"
    if "list" in wanted and not isinstance(node.value, bool) and not models_of(field.annotation if field else None):
        return f"make it a list: `{key}: [{node.text}]`" if len(node.text) < 40 and "," not in node.text else None
    return _hint_scalar(key, node, wanted)


def _hint_scalar(key: str, node: Scalar, wanted: str) -> str | None:
    text = node.text.strip()
    choices = re.findall(r"`([^`]+)`", wanted)
    synonym = VALUE_SYNONYMS.get(text.lower())
    close = synonym if synonym in choices else nearest(text, choices)
    if close:
        return f"did you mean `{close}`?"
    hint = None
    if text and text[0] in "“”‘’„«":
        return "replace the typographic quotes with straight ones, or remove them"
    if not node.quoted and re.fullmatch(r"\S+#.*", text) and "text" not in wanted:
        return "put a space before the `#` of a comment"
    if "a section with" in wanted and key in SHORTHANDS and "number" not in wanted and len(text) < 60:
        value = f"['{text}']" if key == "sources" else VALUE_SYNONYMS.get(text, text)
        return f"write `{key}: {{{SHORTHANDS[key]}: {value}}}`" if key != "sources" else f"write `- {{files: {value}}}`"
    if "number" in wanted:
        hint = _hint_number(key, node, text, wanted)
    elif "true or false" in wanted and text.lower() in ("yes", "on", "y", "1", "true"):
        hint = f"write `{key}: true`"
    elif "true or false" in wanted and text.lower() in ("no", "off", "n", "0", "false"):
        hint = f"write `{key}: false`"
    elif wanted == "text" and not isinstance(node.value, str):
        hint = f'put it in quotes: `{key}: "{text}"`'
    return hint


def _hint_number(key: str, node: Scalar, text: str, wanted: str) -> str | None:
    number = resolve_plain(text)
    if isinstance(node.value, str) and isinstance(number, int | float) and not isinstance(number, bool):
        return f"remove the quotes: `{key}: {text}`" if node.quoted else None
    if _UNDERSCORES.fullmatch(text):
        return f"numbers have no underscores here: `{key}: {text.replace('_', '')}`"
    if re.fullmatch(r"[0-9]{1,3}(,[0-9]{3})+", text):
        return f"numbers have no commas here: `{key}: {text.replace(',', '')}`"
    if re.fullmatch(r"0[0-9]+", text):
        return f"remove the leading zeros: `{key}: {text.lstrip('0') or '0'}`"
    if isinstance(node.value, float) and "whole" in wanted and node.value.is_integer():
        return f"write `{key}: {int(node.value)}`"
    match = re.fullmatch(r"([0-9.]+)\s*([kKmMbBgG])", text)
    if match and "whole" in wanted:
        power = {"k": 3, "m": 6, "b": 9, "g": 9}[match[2].lower()]
        return f"write the number out, e.g. `{key}: {match[1]}e{power}`"
    return None


def _hint_collection(path: Path, node: ListNode | MapNode) -> str | None:
    field = field_at(JobSpec, path)
    if field is None:
        return None
    if models_of(field.annotation) and isinstance(node, MapNode):
        if models_of(field.annotation)[0][1]:
            return f"put a dash before the section: `- {next(iter(node.keys), 'files')}: ...`"
        names = list(models_of(field.annotation)[0][0].model_fields)
        return f"`{path[-1]}` takes {listing(names)}"
    if models_of(field.annotation) and isinstance(node, ListNode):
        return "write it as `key: value` lines without dashes"
    if isinstance(node, ListNode) and "section" in describe(field.annotation):
        return "write it as `key: value` lines without dashes"
    if isinstance(node, ListNode) and len(node.items) == 1 and len(options_of(field.annotation)) <= 2:
        return "remove the brackets or the dash: one value is expected"
    return None


def in_reading_order(problems: list[Problem]) -> tuple[Problem, ...]:
    """Sorted by place, each said once."""
    unique = list(dict.fromkeys(problems))
    return tuple(sorted(unique, key=lambda problem: problem.place))
