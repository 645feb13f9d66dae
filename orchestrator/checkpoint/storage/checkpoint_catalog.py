"""The checkpoints of a run: lists them, finds the newest valid one, and removes old ones."""

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from orchestrator.checkpoint.format.checkpoint_manifest import MANIFEST, Manifest, read_manifest
from orchestrator.checkpoint.format.reader import CheckpointReader
from orchestrator.checkpoint.storage.retention import Candidate, Rule, which_to_remove
from orchestrator.checkpoint.storage.storage import LocalStorage, Storage, StorageError, StorageFault, remove_tree
from orchestrator.domain.errors import CheckpointError
from orchestrator.domain.tick import Tick, no_tick

_NAME = re.compile(r"step-(\d{8,})")
_LEFTOVER = re.compile(r"\.(step-\d{8,})\.(tmp|old)")


@dataclass(frozen=True)
class FoundCheckpoint:
    """A checkpoint directory. `problem`: why it is invalid, judged by the manifest and the file sizes; None if it looks
    complete."""

    step: int
    place: str
    """Directory or URL."""
    manifest: Manifest | None
    problem: str | None
    finished: bool = True
    """It has a manifest, readable or not: it was a checkpoint once. Else its writing came to no end."""

    @property
    def name(self) -> str:
        return self.place.rpartition("/")[2]

    @property
    def path(self) -> Path:
        """The directory, if it is in one."""
        return Path(self.place)


def directory_name(step: int) -> str:
    """Name of the checkpoint of `step` (optimizer steps completed)."""
    return f"step-{step:08d}"


def list_checkpoints(where: Path | Storage, tick: Tick = no_tick) -> list[FoundCheckpoint]:
    """All checkpoints there, newest first. Reads manifests and sizes, not the data. Raises StorageError."""
    storage = _storage(where)
    named = [(int(match[1]), name) for name in storage.names() if (match := _NAME.fullmatch(name))]
    return [_look(storage, step, name, tick) for step, name in sorted(named, reverse=True)]


def _look(storage: Storage, step: int, name: str, tick: Tick) -> FoundCheckpoint:
    tick()
    place = storage.place(name)
    try:
        manifest = read_manifest(name, storage)
        sizes = storage.sizes(name)
    except CheckpointError as error:
        if silent(error):
            raise
        return FoundCheckpoint(step, place, None, error.message, MANIFEST in storage.sizes(name))
    for shard in manifest.shards:
        size = sizes.get(shard.file)
        if size != shard.size_bytes:
            found = "is missing" if size is None else f"has {size} bytes, expected {shard.size_bytes}"
            return FoundCheckpoint(step, place, manifest, f"{shard.file} {found}")
    return FoundCheckpoint(step, place, manifest, None)


def silent(error: CheckpointError) -> bool:
    """Whether storage does not answer or denies access, which says nothing about the checkpoint."""
    return isinstance(error, StorageError) and error.fault in (StorageFault.UNREACHABLE, StorageFault.DENIED)


def verify_checkpoint(place: Path | str, storage: Storage | None = None, tick: Tick = no_tick) -> Manifest:
    """Read a checkpoint completely and check every checksum: the one at a directory or URL, or of a name in `storage`.
    `tick`: called after each chunk.

    Raises CheckpointError saying what is wrong and where.
    """
    with CheckpointReader(place, storage, tick) as reader:
        reader.verify()
        return reader.manifest


def newest_valid(
    where: Path | Storage,
    on_rejected: Callable[[str, str], None] | None = None,
    objection: Callable[[Manifest], str | None] | None = None,
) -> FoundCheckpoint | None:
    """The newest checkpoint whose every checksum holds; None if there is none.

    `on_rejected` is called for each newer one that was skipped, with the reason. `objection` may return a reason
    against a complete one. Raises StorageError if storage does not answer: falling back to an older checkpoint would be
    wrong then.
    """
    storage = _storage(where)
    for found in list_checkpoints(storage):
        problem = found.problem
        if problem is None and objection is not None and found.manifest is not None:
            problem = objection(found.manifest)
        problem = problem or _deep_problem(found, storage)
        if problem is None:
            return found
        if on_rejected is not None:
            on_rejected(found.place, problem)
    return None


def retain(
    where: Path | Storage,
    rule: Rule,
    trusted: Collection[int] = (),
    writing: Collection[int] = (),
    tick: Tick = no_tick,
) -> list[str]:
    """Remove the checkpoints that `rule` does not keep, and return their places. `tick`: called after each file removed
    and each chunk read.

    The newest valid one is never removed: if none of those kept is valid, the newest valid older one is kept too.
    `trusted` are steps known to be valid, e.g. the one just written; they are not read again. Unfinished ones older
    than the newest finished one are removed too, except steps that are still being written (`writing`). Raises
    StorageError.
    """
    storage = _storage(where)
    found = list_checkpoints(storage, tick)
    valid = next((entry.step for entry in found if _holds(entry, trusted, storage, tick)), None)
    going = which_to_remove([Candidate.of(entry.step, entry.manifest) for entry in found], rule, valid)
    gone = [entry for entry in found if entry.step in going and not (entry.manifest is None and entry.step in writing)]
    for entry in gone:
        storage.remove(entry.name, MANIFEST, tick)
    return [entry.place for entry in gone]


def _holds(entry: FoundCheckpoint, trusted: Collection[int], storage: Storage, tick: Tick) -> bool:
    if entry.manifest is None:
        return False
    return entry.step in trusted or (entry.problem is None and _deep_problem(entry, storage, tick) is None)


def clear_interrupted(directory: Path, tick: Tick = no_tick) -> None:
    """Clean up after a save that was killed. Only for a writer: no save may be in progress.

    Temporary directories are removed; a checkpoint that was moved aside is restored if its replacement was never
    finished.
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
            remove_tree(path, tick)


def _deep_problem(entry: FoundCheckpoint, storage: Storage, tick: Tick = no_tick) -> str | None:
    try:
        verify_checkpoint(entry.name, storage, tick)
    except CheckpointError as error:
        if silent(error):
            raise
        return error.message
    return None


def _storage(where: Path | Storage) -> Storage:
    return LocalStorage(where) if isinstance(where, Path) else where
