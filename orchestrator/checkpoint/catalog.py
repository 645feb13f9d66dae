"""The checkpoints of a run: which there are, which is the newest that can be trusted, which may go."""

import re
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from orchestrator.checkpoint.manifest import MANIFEST, Manifest, read_manifest
from orchestrator.checkpoint.reader import CheckpointReader
from orchestrator.domain.errors import CheckpointError

_NAME = re.compile(r"step-(\d{8,})")
_LEFTOVER = re.compile(r"\.(step-\d{8,})\.(tmp|old)")


@dataclass(frozen=True)
class Found:
    """A directory that should be a checkpoint. `problem` says why it is none, as far as a look at the manifest
    and the file sizes tells; None where it looks whole."""

    step: int
    path: Path
    manifest: Manifest | None
    problem: str | None


def directory_name(step: int) -> str:
    """Name of the checkpoint of `step` (optimizer steps completed)."""
    return f"step-{step:08d}"


def list_checkpoints(directory: Path) -> list[Found]:
    """All checkpoints under `directory`, newest first. Reads manifests and sizes, not the data."""
    if not directory.is_dir():
        return []
    named = [(int(match[1]), path) for path in directory.iterdir() if (match := _NAME.fullmatch(path.name))]
    return [_look(step, path) for step, path in sorted(named, reverse=True)]


def _look(step: int, path: Path) -> Found:
    try:
        manifest = read_manifest(path)
    except CheckpointError as error:
        return Found(step, path, None, error.message)
    for shard in manifest.shards:
        file = path / shard.file
        size = file.stat().st_size if file.is_file() else None
        if size != shard.size_bytes:
            found = "is missing" if size is None else f"has {size} bytes, expected {shard.size_bytes}"
            return Found(step, path, manifest, f"{shard.file} {found}")
    return Found(step, path, manifest, None)


def verify_checkpoint(path: Path) -> Manifest:
    """Read a checkpoint whole and check every checksum. Raises CheckpointError saying what is wrong and where."""
    with CheckpointReader(path) as reader:
        reader.verify()
        return reader.manifest


def newest_valid(
    directory: Path,
    on_rejected: Callable[[Path, str], None] | None = None,
    objection: Callable[[Manifest], str | None] | None = None,
) -> Path | None:
    """The newest checkpoint whose every checksum holds; None where there is none.

    `on_rejected` is told of each newer one that was passed over, and why. `objection` may name a reason against one
    that is whole.
    """
    for found in list_checkpoints(directory):
        problem = found.problem
        if problem is None and objection is not None and found.manifest is not None:
            problem = objection(found.manifest)
        problem = problem or _deep_problem(found.path)
        if problem is None:
            return found.path
        if on_rejected is not None:
            on_rejected(found.path, problem)
    return None


def retain(directory: Path, keep_last: int, trusted: Collection[int] = (), keep_every: int | None = None) -> list[Path]:
    """Remove all but the newest `keep_last` checkpoints and those of steps that are multiples of `keep_every`, and
    return what went.

    The newest valid one is never removed: where none of those kept is valid, the newest older one that is stays
    too. `trusted` are steps known to be valid, e.g. the one just written; they are not read again. Unfinished
    directories older than the newest finished one go as well. Raises OSError.
    """
    if keep_last < 1:
        raise ValueError(f"at least one checkpoint must be kept, not {keep_last}")
    found = list_checkpoints(directory)
    finished = [entry for entry in found if entry.manifest is not None]
    keep = {entry.path for entry in finished[:keep_last]}
    keep |= {entry.path for entry in finished if keep_every is not None and entry.step % keep_every == 0}
    for entry in finished:
        if entry.step in trusted or (entry.problem is None and _deep_problem(entry.path) is None):
            keep.add(entry.path)
            break
    newest = max((entry.step for entry in finished), default=-1)
    gone = [entry.path for entry in found if entry.path not in keep and entry.step <= newest]
    for path in gone:
        remove_checkpoint(path)
    return gone


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint, manifest first: cut short, it leaves no directory that looks valid. Raises OSError."""
    (path / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(path)


def clear_interrupted(directory: Path) -> None:
    """Tidy up after a save that was killed. Only for whoever may write: no save may be going on.

    Temporary directories go; a checkpoint that was moved aside to be replaced comes back where its replacement
    never arrived.
    """
    if not directory.is_dir():
        return
    for path in list(directory.iterdir()):
        match = _LEFTOVER.fullmatch(path.name)
        if match is None:
            continue
        final = directory / match[1]
        if match[2] == "old" and not final.exists():
            path.rename(final)
        else:
            shutil.rmtree(path)


def _deep_problem(path: Path) -> str | None:
    try:
        verify_checkpoint(path)
    except CheckpointError as error:
        return error.message
    return None
