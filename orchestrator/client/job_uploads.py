"""The local files that a job names, and those that travel with it.

Files below the directory of the job file that the job names with relative paths are uploaded, by the SHA-256 of their
content, unless `.convoyignore` excludes them. Everything else has to exist where the cluster reads it: absolute paths,
paths with variables, hub ids, URLs. The rules of `.convoyignore` are those of patterns in a job: one glob a line,
relative to the file, `#` begins a comment, a trailing `/` is a directory.
"""

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from orchestrator.data.sources import globs
from orchestrator.domain.errors import UsageError
from orchestrator.wire.api_version import MAX_FILES, MAX_UPLOAD_BYTES, MAX_UPLOADED_BYTES

IGNORE_FILE = ".convoyignore"
MOST_LOOKED_AT = 100_000
"""Files that one pattern may match."""
_ELSEWHERE = re.compile(r"[/~]|\$\{|[A-Za-z][A-Za-z0-9+.-]*://")


@dataclass(frozen=True)
class LocalFile:
    """A file that is uploaded."""

    name: str
    """Relative to the directory of the job file, with `/`."""
    path: Path
    size_bytes: int


@dataclass(frozen=True)
class NamedText:
    """A text in a job that names files."""

    key: str
    """As `--set` writes it: `data.sources.0.files.1`."""
    text: str
    exclude: tuple[str, ...] = ()
    is_model: bool = False
    """A directory or a hub id: it is a path only if it exists."""


@dataclass(frozen=True)
class UploadPlan:
    """What travels with a job, and what stays."""

    files: tuple[LocalFile, ...]
    in_place: Mapping[str, str]
    """Keys of texts whose files are not uploaded, and their absolute paths on this machine."""

    @property
    def size_bytes(self) -> int:
        """Of all files."""
        return sum(each.size_bytes for each in self.files)


def plan_uploads(source: str, job_dir: Path, same_machine: bool) -> UploadPlan:
    """What the files are that a job names, and which of them are uploaded.

    `same_machine`: the server reads this machine's files, so that those that are too large, or outside of the
    directory, are used in place. Raises UsageError if such files are elsewhere than the server.
    """
    ignored = read_ignored(job_dir)
    found: dict[str, LocalFile] = {}
    in_place: dict[str, str] = {}
    for named in named_texts(source):
        if _ELSEWHERE.match(named.text) or "${" in named.text:
            continue
        files = list(_files_of(named, job_dir, ignored))
        problem = _why_not(named, files, job_dir)
        if problem is None:
            found.update((each.name, each) for each in files)
        elif same_machine:
            in_place[named.key] = globs.absolute(named.text, job_dir)
        else:
            raise UsageError(
                f"`{named.key}`: {problem}", "put them on storage that the cluster reads, and give their path there"
            )
    plan = UploadPlan(tuple(found[name] for name in sorted(found)), in_place)
    if len(plan.files) > MAX_FILES or plan.size_bytes > MAX_UPLOAD_BYTES:
        raise UsageError(
            f"the job names {len(plan.files)} local files with {plan.size_bytes >> 20} MiB; "
            f"at most {MAX_FILES} files and {MAX_UPLOAD_BYTES >> 20} MiB are uploaded",
            f"put them on storage that the cluster reads, or exclude some in {job_dir / IGNORE_FILE}",
        )
    return plan


def read_content(file: LocalFile) -> tuple[str, bytes]:
    """(SHA-256, content) of a file. Raises UsageError if it cannot be read or has grown too large."""
    try:
        content = file.path.read_bytes()
    except OSError as error:
        raise UsageError(f"{file.path} cannot be read: {error.strerror}") from error
    if len(content) > MAX_UPLOADED_BYTES:
        raise UsageError(f"{file.path} has grown to {len(content) >> 20} MiB, at most {MAX_UPLOADED_BYTES >> 20} MiB")
    return hashlib.sha256(content).hexdigest(), content


def named_texts(source: str) -> Iterator[NamedText]:
    """The texts of a job that may name local files. Nothing if the job cannot be read: the server says what is wrong
    with it."""
    try:
        job: object = yaml.load(source, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError, ValueError):
        return
    data = _at(job, "data")
    for where, sources in (("data.sources", _at(data, "sources")), (
        "data.validation.sources", _at(_at(data, "validation"), "sources"))):  # fmt: skip
        for number, each in enumerate(sources if isinstance(sources, list) else []):
            exclude = tuple(_texts(_at(each, "exclude")))
            for index, text in enumerate(_texts(_at(each, "files"))):
                yield NamedText(f"{where}.{number}.files.{index}", text, exclude)
    for section in ("model", "tokenizer"):
        name = _at(_at(job, section), "pretrained")
        if isinstance(name, str):
            yield NamedText(f"{section}.pretrained", name, is_model=True)


def read_ignored(job_dir: Path) -> tuple[str, ...]:
    """The patterns of `.convoyignore`. Raises UsageError if it cannot be read."""
    path = job_dir / IGNORE_FILE
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return ()
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    stripped = [line.strip() for line in lines]
    return tuple(line for line in stripped if line and not line.startswith("#"))


def _files_of(named: NamedText, job_dir: Path, ignored: Sequence[str]) -> Iterator[LocalFile]:
    pattern = globs.absolute(named.text, job_dir)
    exclude = [_translated(each, job_dir) for each in (*named.exclude, *ignored)]
    try:
        for number, path in enumerate(_matching(pattern, exclude)):
            if number >= MOST_LOOKED_AT:
                raise UsageError(f"`{named.key}`: {named.text} matches more than {MOST_LOOKED_AT} files")
            if any(each.fullmatch(path) for each in exclude):
                continue
            name = os.path.relpath(path, job_dir.absolute())
            yield LocalFile(name, Path(path), Path(path).stat().st_size)
    except OSError as error:
        raise UsageError(f"`{named.key}`: {error.filename} cannot be read: {error.strerror}") from error


def _matching(pattern: str, exclude: Sequence[re.Pattern[str]]) -> Iterator[str]:
    """The pattern may also be the name of a file or directory."""
    path = Path(pattern)
    if path.is_dir():
        yield from globs.walk(f"{pattern}/**", exclude)
    elif path.is_file():
        yield pattern
    elif globs.is_pattern(pattern) and Path(globs.wildcard_root(pattern)).is_dir():
        yield from globs.walk(pattern, exclude)


def _why_not(named: NamedText, files: Sequence[LocalFile], job_dir: Path) -> str | None:
    """Why files cannot be uploaded; None if they can, or if there are none."""
    outside = next((each for each in files if each.name.startswith("../")), None)
    if outside is not None:
        return f"{outside.path} is outside of the directory of the job file ({job_dir.absolute()}), and is not uploaded"
    large = next((each for each in files if each.size_bytes > MAX_UPLOADED_BYTES), None)
    if large is not None:
        return f"{large.path} has {large.size_bytes >> 20} MiB, at most {MAX_UPLOADED_BYTES >> 20} MiB are uploaded"
    total_bytes = sum(each.size_bytes for each in files)
    if len(files) > MAX_FILES or total_bytes > MAX_UPLOAD_BYTES:
        return (
            f"{named.text} is {len(files)} files with {total_bytes >> 20} MiB, at most {MAX_FILES} files and "
            f"{MAX_UPLOAD_BYTES >> 20} MiB are uploaded"
        )
    return None


def _translated(pattern: str, job_dir: Path) -> re.Pattern[str]:
    whole = globs.absolute(pattern.rstrip("/"), job_dir)
    return globs.translate(f"{whole}/**" if pattern.endswith("/") else whole)


def _at(value: object, key: str) -> object:
    return value.get(key) if isinstance(value, dict) else None


def _texts(value: object) -> list[str]:
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []
