"""Which files of the server's machine a submitted job may name, and whether they are there."""

import glob
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestrator.domain.errors import ForbiddenError, UsageError
from orchestrator.spec.data import SourceSpec
from orchestrator.spec.job import JobSpec
from orchestrator.spec.resources import BUCKET_SCHEMES
from orchestrator.weights.pretrained_location import absolute


@dataclass(frozen=True)
class NamedPath:
    """A path in a job."""

    field: str
    """Where it is in the job, e.g. `data.sources[0].files[1]`."""
    path: Path
    """Absolute; of a pattern the directory before its first wildcard."""
    as_written: str
    read: bool
    """It has to exist."""


@dataclass(frozen=True)
class ServerPaths:
    """What the operator allows."""

    roots: tuple[Path, ...] = (Path("/"),)
    """Directories below which jobs may name files; links are followed before that is judged."""

    def check(self, spec: JobSpec, job_dir: Path, promised: tuple[Path, ...]) -> None:
        """Raises ForbiddenError if a path is outside of the roots, UsageError if it does not exist on this machine.
        `promised`: exports of runs that come before; they may not exist yet. The job's own directory is allowed."""
        allowed = [Path(os.path.realpath(root)) for root in (*self.roots, job_dir, *promised)]
        for named in paths_of(spec, job_dir):
            real = Path(os.path.realpath(named.path))
            if not any(real == root or root in real.parents for root in allowed):
                raise ForbiddenError(
                    f"`{named.field}`: jobs on this server may not use {named.as_written}",
                    hint="the server's `paths` setting lists the directories that jobs may use; small files beside the "
                    "job are uploaded with it",
                )
            late = any(named.path == path or path in named.path.parents for path in promised)
            if named.read and not late and not real.exists():
                raise UsageError(
                    f"`{named.field}`: there is no {named.path} on the server ({socket.gethostname()})",
                    hint="the path was looked for on the server's machine; name one that exists there, or a small file "
                    "beside the job, which is uploaded",
                )


def paths_of(spec: JobSpec, job_dir: Path) -> Iterator[NamedPath]:
    """Every local path that a job names. Names of a hub count as paths only if they can be nothing else."""
    sources = [("data.sources", source) for source in spec.data.sources]
    sources += [("data.validation.sources", source) for source in _validation_sources(spec)]
    for number, (where, source) in enumerate(sources):
        for index, pattern in enumerate(source.files or ()):
            yield _named(f"{where}[{number}].files[{index}]", pattern, job_dir, read=True)
        if source.hub is not None and _only_a_path(source.hub):
            yield _named(f"{where}[{number}].hub", source.hub, job_dir, read=True)
    for field, name in (
        ("model.pretrained", spec.model.pretrained),
        ("tokenizer.pretrained", spec.tokenizer.pretrained),
    ):
        if name is not None and (_only_a_path(name) or absolute(name, job_dir).exists()):
            yield _named(field, name, job_dir, read=True)
    if spec.data.cache_dir is not None:
        yield _named("data.cache_dir", spec.data.cache_dir, job_dir, read=False)
    storage = spec.checkpoint.storage
    if storage is not None and storage.partition("://")[0] not in BUCKET_SCHEMES:
        yield _named("checkpoint.storage", storage, job_dir, read=False)


def _validation_sources(spec: JobSpec) -> list[SourceSpec]:
    return list(spec.data.validation.sources or ()) if spec.data.validation is not None else []


def _named(field: str, text: str, job_dir: Path, read: bool) -> NamedPath:
    whole = str(absolute(text, job_dir))
    parts = Path(whole).parts
    plain = next((index for index, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    return NamedPath(field, Path(*parts[:plain]), text, read)


def _only_a_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") > 1
