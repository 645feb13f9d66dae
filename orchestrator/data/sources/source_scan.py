"""The scan: which files a job reads, in which order, and what identifies their content."""

import difflib
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from orchestrator.data.sources import globs
from orchestrator.domain.errors import DataError
from orchestrator.spec.data import DataSpec, SourceSpec

Format = Literal["text", "lines", "jsonl", "csv", "tsv", "parquet"]

_ENDINGS: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}

IDENTITY_SAMPLE_BYTES = 4096
"""Read at the start, the middle and the end of a file for its identity."""


@dataclass(frozen=True)
class SourceFile:
    """One file, as the scan saw it."""

    path: Path
    name: str
    """The name for messages: relative to the job file if it was given so."""
    size_bytes: int
    mtime_ns: int
    format: Format
    compressed: bool
    identity: str
    """Hash of name, size, modification time and three samples of the content. A change that keeps the size, the
    time in nanoseconds and all three samples is not seen; reading the whole corpus to start a job would be worse."""


@dataclass(frozen=True)
class Source:
    """One entry of `data.sources` (`train`) or `data.validation.sources` (`validation`)."""

    index: int
    """Place among all sources of the job, those of validation last."""
    role: Literal["train", "validation"]
    spec: SourceSpec
    files: tuple[SourceFile, ...]
    """Empty for a hub dataset."""
    revision: str | None = None
    """Commit of a hub dataset."""
    directory: Path | None = None
    """A hub dataset that is a directory of this machine."""

    @property
    def name(self) -> str:
        """For people."""
        if self.spec.hub is not None:
            return ":".join(part for part in (self.spec.hub, self.spec.config, self.spec.split) if part)
        files = self.spec.files or []
        return files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1} more" if files else "?"

    @property
    def size_bytes(self) -> int:
        """Bytes on disk; 0 if unknown."""
        return sum(file.size_bytes for file in self.files)


@dataclass(frozen=True)
class PresentFile:
    """A file that a source reads, found without opening it."""

    path: Path
    name: str
    kind: str
    """Its format, with `.gz` if it is compressed."""


@dataclass(frozen=True)
class PresentSource:
    """What there is of one source."""

    name: str
    files: tuple[PresentFile, ...]


def scan(data: DataSpec, job_dir: Path) -> tuple[Source, ...]:
    """Find the files of all sources. Raises DataError if one is missing, unreadable or a glob matches nothing."""
    sources = []
    for index, (role, spec) in enumerate(_entries(data)):
        files = () if spec.hub is not None else _find(spec, job_dir)
        directory = _local_dataset(spec, job_dir)
        sources.append(Source(index, role, spec, files, None, directory))
    return tuple(sources)


def present(data: DataSpec, job_dir: Path) -> tuple[PresentSource, ...]:
    """As `scan`, but what is missing is left out. Datasets of the Hub have no files. Raises DataError if a directory
    may not be listed."""
    found = []
    for index, (role, spec) in enumerate(_entries(data)):
        source = Source(index, role, spec, ())
        found.append(PresentSource(source.name, _present_files(spec, job_dir)))
    return tuple(found)


def dataset_files(source: Source) -> tuple[PresentFile, ...]:
    """All that a scanned source reads: its files, or those of a dataset in a directory."""
    if source.directory is not None:
        return _directory_files(source.directory)
    return tuple(PresentFile(file.path, file.name, kind_of(file)) for file in source.files)


def kind_of(file: SourceFile) -> str:
    """See `PresentFile.kind`."""
    return _kind(file.format, file.compressed)


def _entries(data: DataSpec) -> list[tuple[Literal["train", "validation"], SourceSpec]]:
    validation = data.validation.sources or [] if data.validation else []
    trained: list[tuple[Literal["train", "validation"], SourceSpec]] = [("train", spec) for spec in data.sources]
    return trained + [("validation", spec) for spec in validation]


def _present_files(spec: SourceSpec, job_dir: Path) -> tuple[PresentFile, ...]:
    if spec.hub is not None:
        directory = Path(globs.absolute(spec.hub, job_dir))
        return _directory_files(directory) if directory.is_dir() else ()
    names = _names(spec, job_dir, strict=False)
    found = []
    for path in sorted(names, key=lambda path: names[path]):
        ending, compressed = _ending(Path(path))
        found.append(PresentFile(Path(path), names[path], _kind(_format(spec.format, ending), compressed)))
    return tuple(found)


def _directory_files(directory: Path) -> tuple[PresentFile, ...]:
    """Without hidden files and those in which `datasets` keeps results of its own."""
    found = {str(path.relative_to(directory)): path for path in directory.rglob("*") if path.is_file()}
    names = [name for name in found if not any(part.startswith(".") for part in Path(name).parts)]
    return tuple(PresentFile(found[name], name, "") for name in sorted(names) if not found[name].match("cache-*.arrow"))


def _kind(kind: Format, compressed: bool) -> str:
    return f"{kind}.gz" if compressed else kind


def _local_dataset(spec: SourceSpec, job_dir: Path) -> Path | None:
    if spec.hub is None:
        return None
    candidate = Path(globs.absolute(spec.hub, job_dir))
    if candidate.is_dir():
        return candidate
    if spec.hub.startswith((".", "/", "~")):
        raise DataError(
            f"there is no directory {candidate}", hint="`hub` takes a hub id such as `wikitext`, or a directory"
        )
    return None


def _find(spec: SourceSpec, job_dir: Path) -> tuple[SourceFile, ...]:
    found = _names(spec, job_dir, strict=True)
    return tuple(_inspect(path, found[path], spec) for path in sorted(found, key=lambda path: found[path]))


def _names(spec: SourceSpec, job_dir: Path, strict: bool) -> dict[str, str]:
    """Path to name of the files that a source reads. Raises DataError if `strict` and a pattern matches nothing."""
    exclude = [globs.translate(globs.absolute(pattern, job_dir)) for pattern in spec.exclude]
    exclude += [globs.translate(pattern) for pattern in spec.exclude if pattern.startswith("**/")]
    found: dict[str, str] = {}
    for pattern in spec.files or []:
        matched = list(_matches(pattern, exclude, job_dir)) if strict else _existing(pattern, exclude, job_dir)
        if strict and not matched:
            _nothing_matches(pattern, spec.exclude, job_dir)
        for path in matched:
            found.setdefault(path, _display(path, pattern, job_dir))
    return found


def _existing(pattern: str, exclude: Sequence[re.Pattern[str]], job_dir: Path) -> list[str]:
    wanted = globs.absolute(pattern, job_dir)
    if globs.is_pattern(wanted) and not Path(globs.wildcard_root(wanted)).is_dir():
        return []
    return [path for path in _matches(pattern, exclude, job_dir) if Path(path).is_file()]


def _display(path: str, pattern: str, job_dir: Path) -> str:
    return path if Path(pattern).expanduser().is_absolute() else os.path.relpath(path, os.path.abspath(job_dir))  # noqa: PTH100


def _matches(pattern: str, exclude: Sequence[re.Pattern[str]], job_dir: Path) -> Iterator[str]:
    wanted = globs.absolute(pattern, job_dir)
    if not globs.is_pattern(wanted) or Path(wanted).is_file():
        paths: Iterator[str] = iter([wanted])
    else:
        root = globs.wildcard_root(wanted)
        if not Path(root).is_dir():
            raise DataError(
                f"the glob {pattern!r} matches no file: there is no directory {root}",
                hint="paths are relative to the job file",
            )
        paths = globs.walk(wanted, exclude)
    try:
        for path in paths:
            if not any(regex.fullmatch(path) for regex in exclude):
                yield path
    except PermissionError as error:
        raise DataError(
            f"{error.filename} cannot be listed: permission denied", hint="check its permissions"
        ) from error


def _nothing_matches(pattern: str, exclude: Sequence[str], job_dir: Path) -> None:
    wanted = globs.absolute(pattern, job_dir)
    root = globs.wildcard_root(wanted) if globs.is_pattern(wanted) else str(Path(wanted).parent)
    without = next(globs.walk(wanted, ()), None) if globs.is_pattern(wanted) else wanted
    if without is not None and exclude:
        raise DataError(f"the glob {pattern!r} matches files in {root}, but `exclude` leaves none of them")
    raise DataError(
        f"the glob {pattern!r} matches no file in {root}",
        hint="`**` recurses into directories, `*` does not; paths are relative to the job file",
    )


def _inspect(path: str, name: str, spec: SourceSpec) -> SourceFile:
    file = Path(path)
    try:
        if file.is_dir():
            raise DataError(f"{name} is a directory", hint=f"give its files: {name.rstrip('/')}/**/*.txt")
        with file.open("rb") as stream:
            status = os.fstat(stream.fileno())
            digest = hashlib.blake2b(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\0".encode(), digest_size=16)
            last = max(0, status.st_size - IDENTITY_SAMPLE_BYTES)
            for offset in sorted({0, last // 2, last}):
                stream.seek(offset)
                digest.update(stream.read(IDENTITY_SAMPLE_BYTES))
    except FileNotFoundError:
        raise DataError(f"there is no file {name} ({path})", hint=_missing_hint(file)) from None
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror} ({path})", hint="check its permissions") from error
    ending, compressed = _ending(file)
    kind = _format(spec.format, ending)
    if compressed and kind == "parquet":
        raise DataError(f"{name}: Parquet compresses itself, a .gz around it is not read", hint="gunzip it")
    return SourceFile(file, name, status.st_size, status.st_mtime_ns, kind, compressed, digest.hexdigest())


def _missing_hint(file: Path) -> str:
    try:
        near = difflib.get_close_matches(file.name, [path.name for path in file.parent.iterdir()], n=1)
    except OSError:
        return f"there is no directory {file.parent} either; paths are relative to the job file"
    return f"did you mean {near[0]}?" if near else "paths are relative to the job file"


def _ending(file: Path) -> tuple[str, bool]:
    suffixes = [suffix.lower() for suffix in file.suffixes]
    compressed = bool(suffixes) and suffixes[-1] == ".gz"
    if compressed:
        suffixes.pop()
    return (suffixes[-1] if suffixes else ""), compressed


def _format(asked: str, ending: str) -> Format:
    by_ending = _ENDINGS.get(ending, "text")
    if asked == "auto":
        return by_ending
    if asked == "csv" and by_ending == "tsv":
        return "tsv"
    formats: dict[str, Format] = {
        "text": "text",
        "lines": "lines",
        "jsonl": "jsonl",
        "csv": "csv",
        "parquet": "parquet",
    }
    return formats[asked]
