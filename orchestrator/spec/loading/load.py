"""A job file to a `JobSpec`, or every problem in it at once."""

import hashlib
import os
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path

import yaml
from pydantic import ValidationError

from orchestrator.spec.checks.all_checks import cross_check
from orchestrator.spec.checks.partial_job import View, path_of
from orchestrator.spec.job import JobSpec
from orchestrator.spec.loading.explain import explain, found, in_reading_order
from orchestrator.spec.loading.fast_yaml import FastDumper
from orchestrator.spec.loading.interpolate import escape
from orchestrator.spec.loading.overrides import apply_override
from orchestrator.spec.loading.yaml_source import (
    MAX_BYTES,
    MapNode,
    Scalar,
    parse_yaml,
    place_of,
    resolve_plain,
    to_value,
)
from orchestrator.spec.spec_errors import Place, Problem, SpecError

__all__ = ["LoadedJob", "SpecError", "decode_source", "dump_job", "load_job", "load_text", "read_source"]


@dataclass(frozen=True)
class LoadedJob:
    """A valid job and where it came from."""

    spec: JobSpec
    path: Path
    """The job file; globs in the job are relative to its directory."""
    source: str
    """The file's text, before overrides and variables."""
    overrides: tuple[str, ...] = ()
    """`--set` options, in order."""


def load_job(path: Path, overrides: Sequence[str] = (), env: Mapping[str, str] | None = None) -> LoadedJob:
    """Read, check and resolve a job file. `env` is where `${NAME}` looks (default: the environment).

    Raises SpecError with every problem found, in reading order.
    """
    source = read_source(path)
    return LoadedJob(load_text(source, str(path), overrides, env), path, source, tuple(overrides))


def place_of_value(job: LoadedJob, where: str) -> Place:
    """The place of a value: in the file, or in the override that gave it. For mistakes that only show in what the value
    names. `where`: a dotted path, e.g. `model.pretrained`."""
    scope = default_env()
    root, _, _ = parse_yaml(job.source, str(job.path), scope)
    if not isinstance(root, MapNode):
        return Place(str(job.path))
    for option in job.overrides:
        apply_override(root, option, scope)
    return place_of(root, path_of(where))


def read_source(path: Path) -> str:
    """The text of a job file. Raises SpecError if it cannot be read."""
    try:
        # One byte more than allowed tells a file that is too large; a device or pipe cannot flood memory.
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise _unreadable(path, "there is no such file", _siblings(path)) from None
    except IsADirectoryError:
        raise _unreadable(path, "this is a directory, expected a job file", _siblings(path / "job.yaml")) from None
    except PermissionError:
        raise _unreadable(path, "the file may not be read", f"check its permissions: ls -l {path}") from None
    except (OSError, ValueError) as error:
        raise _unreadable(path, f"the file cannot be read: {error}", None) from None
    return decode_source(raw, str(path))


def decode_source(raw: bytes, file: str) -> str:
    """Bytes to text. Raises SpecError if they are too many or not UTF-8."""
    if len(raw) > MAX_BYTES:
        problem = Problem(Place(file), f"larger than {MAX_BYTES >> 20} MiB, expected a job file", "is it a data file?")
        raise SpecError((problem,))
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = raw[: error.start]
        column = len(before[before.rfind(b"\n") + 1 :].decode("utf-8", "replace")) + 1
        place = Place(file, before.count(b"\n") + 1, column)
        message = f"the byte 0x{raw[error.start]:02x} is not UTF-8 text"
        raise SpecError((Problem(place, message, "save the file as UTF-8"),)) from None


def _unreadable(path: Path, message: str, hint: str | None) -> SpecError:
    return SpecError((Problem(Place(str(path)), message, hint),))


def _siblings(path: Path) -> str | None:
    """Job files beside the one that is not there, nearest name first."""
    from orchestrator.spec.loading.hints import nearest

    try:
        names = sorted(p.name for p in path.parent.iterdir() if p.suffix in (".yaml", ".yml"))
    except OSError:
        return f"there is no directory {path.parent} either"
    near = nearest(path.name, names)
    if near:
        return f"did you mean {path.parent / near}?"
    return f"{path.parent} has {', '.join(names[:5])}" if names else None


@cache
def _stdlib() -> str:
    """Where this Python's standard library is; asking takes as long as parsing a job."""
    return sysconfig.get_paths()["stdlib"]


def default_env() -> dict[str, str]:
    """The environment, with `PYTHON_STDLIB` (this Python's standard library) if it is not set."""
    return {"PYTHON_STDLIB": _stdlib(), **os.environ}


def load_text(source: str, file: str, overrides: Sequence[str] = (), env: Mapping[str, str] | None = None) -> JobSpec:
    """As `load_job`, from text. `file` is the name used in positions."""
    return load_tree(parse_job(source, file, overrides, env))


@dataclass
class JobTree(MapNode):
    """A job's tree with its overrides, and the problems found so far."""

    problems: list[Problem] = field(default_factory=list)


def parse_job(source: str, file: str, overrides: Sequence[str] = (), env: Mapping[str, str] | None = None) -> JobTree:
    """The tree of a job, with the overrides applied. Raises SpecError if the text is no mapping that can be read to its
    end; other problems are kept for `load_tree`."""
    scope = default_env() if env is None else {"PYTHON_STDLIB": _stdlib(), **env}
    root, problems, whole = parse_yaml(source, file, scope)
    if not whole:
        raise SpecError(in_reading_order(problems))
    if root is None or (isinstance(root, Scalar) and root.value is None and not root.broken):
        hint = "a job begins with `name: my-model`"
        problems.append(Problem(Place(file), "the file is empty, expected a job", hint))
        raise SpecError(in_reading_order(problems))
    if not isinstance(root, MapNode):
        if not (isinstance(root, Scalar) and root.broken):
            hint = "a job begins with `name: my-model`"
            problems.append(Problem(root.place, f"the file holds {found(root)}, expected `key: value` lines", hint))
        raise SpecError(in_reading_order(problems))
    for option in overrides:
        problems += apply_override(root, option, scope)
    return JobTree(root.place, root.keys, root.values, problems)


def load_tree(root: JobTree) -> JobSpec:
    """The job of a tree. Raises SpecError with every problem found."""
    spec, more = _validate(root)
    if spec is None or root.problems or more:
        raise SpecError(in_reading_order(root.problems + more))
    return spec


def _validate(root: JobTree) -> tuple[JobSpec | None, list[Problem]]:
    """(spec, problems): spec None if a field is wrong; the cross-field checks run either way."""
    data = to_value(root)
    try:
        spec = JobSpec.model_validate(data)
    except ValidationError as error:
        problems, invalid = explain(error.errors(include_url=False, include_context=False), data, root)
        return None, problems + cross_check(View(data, root, invalid))
    return spec, cross_check(View(data, root, set(), broken=bool(root.problems)))


class _Dumper(FastDumper):
    """Block style, no aliases, and every text quoted that our own reader would take for something else."""

    def ignore_aliases(self, data: object) -> bool:
        return True


@lru_cache(maxsize=4096)
def _written(value: str) -> tuple[str, bool]:
    """(the text as it is written, whether without quotes). Most texts of a job are keys, the same in every job."""
    escaped = escape(value)
    # Line separators of Unicode would be folded into blanks where they are not written as escapes.
    return escaped, isinstance(resolve_plain(escaped), str) and escaped.isprintable()


def _text(dumper: _Dumper, value: str) -> yaml.ScalarNode:
    escaped, plain = _written(value)
    return dumper.represent_scalar("tag:yaml.org,2002:str", escaped, style=None if plain else '"')


_Dumper.add_representer(str, _text)


def dump_job(spec: JobSpec) -> str:
    """The job as YAML with every field written out; `load_job` reads it back equal."""
    data = spec.model_dump(mode="json")
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def spec_hash(spec: JobSpec) -> str:
    """Sixteen hexadecimal digits that identify a spec."""
    return hashlib.sha256(spec.model_dump_json().encode()).hexdigest()[:16]
