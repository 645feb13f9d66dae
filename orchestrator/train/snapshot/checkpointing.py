"""Save and restore a running engine. Both are collective: every rank calls them, and all succeed or all raise.

A save writes one shard and one index per rank, then rank 0 writes the manifest. If there is a separate storage for
checkpoints, every rank writes to it. Else, if the workers see the driver's file system, everything is written into a
temporary directory that is renamed at the end; otherwise each file goes through `Session.store`, the manifest last. In
each case there is no checkpoint without a manifest.

A rank that cannot write (its disk is full, the bucket does not answer) makes the save fail on all of them with one
StorageError that names it, and what was written is removed. The engine is not affected, and the loop decides whether
training continues. If a rank dies, the others' collective fails as in any other step.

Both report progress after each chunk (`Session.progress`): how long they take depends on the disk, and is no hang.
"""

import secrets
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TypedDict, TypeVar

import numpy as np
import torch.distributed as dist

from orchestrator.atomic_files import sync_path, write_bytes
from orchestrator.checkpoint.format.checkpoint_manifest import (
    MANIFEST,
    Manifest,
    ShardEntry,
    installed_versions,
)
from orchestrator.checkpoint.format.intervals import Range
from orchestrator.checkpoint.format.reader import CheckpointReader, IntervalReader
from orchestrator.checkpoint.format.shard import ShardPiece, ShardWriter, digest, lay_out, shard_stem
from orchestrator.checkpoint.memory.peers import PeerReader
from orchestrator.checkpoint.storage.checkpoint_catalog import clear_interrupted, directory_name, retain
from orchestrator.checkpoint.storage.durable import abandon, commit, require_later, write_shard
from orchestrator.checkpoint.storage.retention import Rule
from orchestrator.checkpoint.storage.storage import Storage, StorageError, StorageFault, fault_of, is_url, remove_tree
from orchestrator.domain.errors import CheckpointError, ConvoyError
from orchestrator.domain.events import WarningIssued
from orchestrator.domain.session import PeerState, Session
from orchestrator.json_values import JsonObject, flag, integer, mapping, text
from orchestrator.train.collectives.collective_timer import ticking_collectives
from orchestrator.train.collectives.exchange import exchange_json
from orchestrator.train.engine.engine_types import Engine
from orchestrator.train.zero.zero_layout import dtype_name
from orchestrator.train.zero.zero_restore import check_model, fill, publish, restore_rng
from orchestrator.train.zero.zero_state import CapturedState, capture, to_storage

T = TypeVar("T")


@dataclass(frozen=True)
class SaveProgress:
    """How far training is. `extra` holds what else the loop wants back: JSON values only."""

    step: int
    """Optimizer steps completed."""
    position: int
    """First sample of the next step in the global order."""
    extra: JsonObject = field(default_factory=dict)
    saved_world_size: int = 0
    """Workers of the gang that left this state; 0 at the beginning."""


@dataclass(frozen=True)
class SavedCheckpoint:
    """The result of a save: its place as the driver sees it, its size over all ranks, how long training was paused."""

    path: str
    size_bytes: int
    seconds: float


@dataclass(frozen=True)
class _Place:
    """Destination of this save. `work` is what this rank writes into, `tag` keeps stored files of two attempts
    apart."""

    parent: Path
    name: str
    work: Path
    shared: bool
    tag: str
    storage: Storage | None = None
    """Takes everything if there is one; `parent` and `work` are unused then."""

    @property
    def final(self) -> str:
        return self.storage.place(self.name) if self.storage is not None else str(self.parent / self.name)


def save_checkpoint(
    engine: Engine,
    session: Session,
    run_dir: str,
    step: int,
    progress: SaveProgress,
    rule: Rule,
    storage: Storage | None = None,
    writing: Collection[int] = (),
    lease: int = 0,
) -> SavedCheckpoint:
    """Write the checkpoint of `step` into `storage`, or under `run_dir`/checkpoints, and remove those that `rule` does
    not keep, except steps that are still being written (`writing`).

    `lease`: the token of the gang's driver; a checkpoint of that step from a later driver is not replaced.

    Collective, at an accumulation boundary. Without a storage, and if the file system is not shared, the driver removes
    old checkpoints. Raises CheckpointError on every rank if any rank failed: a StorageError if storage was the cause
    and training can continue.
    """
    started_s = time.perf_counter()
    place, problem = _attempt(lambda: _open_place(session, Path(run_dir) / "checkpoints", step, storage))
    answers = exchange_json(
        {"problem": problem, "shared": place.shared if place else None, "tag": secrets.token_hex(4)}
    )
    _raise_together(answers, f"checkpoint of step {step} failed to start")
    assert place is not None
    if len({answer["shared"] for answer in answers}) > 1:
        hint = f"the run directory is {run_dir}"
        raise CheckpointError("some workers see the run directory and others do not", hint=hint)
    place = _begin(place, text(answers[0], "tag"))
    written, problem = _attempt(lambda: _write_shard(capture(engine), session, place))
    answers = exchange_json({"problem": problem, "written": written})
    saved = False
    try:
        _raise_together(answers, f"checkpoint of step {step} cannot be written")
        manifest, problem = None, None
        if dist.get_rank() == 0:
            parts = [mapping(answer, "written") for answer in answers]
            manifest, problem = _attempt(
                lambda: _commit(_manifest(capture(engine), progress, parts, lease), session, place)
            )
        answers = exchange_json({"problem": problem, "bytes": manifest.size_bytes if manifest else 0})
        _raise_together(answers, f"checkpoint of step {step} cannot be finished")
        saved = True
    finally:
        _tidy(place, saved)
    if dist.get_rank() == 0 and (place.shared or place.storage is not None):
        _retire(session, place, rule, step, writing)
    return SavedCheckpoint(place.final, integer(answers[0], "bytes"), time.perf_counter() - started_s)


def load_checkpoint(engine: Engine, session: Session, path: str) -> SaveProgress:
    """Restore a checkpoint into an engine of any world size and stage, and return the progress of training.

    Collective. Every chunk a rank reads is checked. At the world size it was saved at, each rank gets its random state
    back too. Raises CheckpointError on every rank if the model differs or anything is missing or damaged; the engine
    must then be discarded.
    """
    return _restore(engine, session, lambda: _open(session, path), f"checkpoint {path}")


def load_peer_state(engine: Engine, session: Session, state: PeerState) -> SaveProgress:
    """As `load_checkpoint`, from the vaults."""
    return _restore(engine, session, lambda: _open_peers(session, state), f"the peers' state of step {state.step}")


def _restore(engine: Engine, session: Session, open_reader: Callable[[], IntervalReader], what: str) -> SaveProgress:
    def opened() -> IntervalReader:
        reader = open_reader()
        try:
            check_model(reader.manifest, engine)
        except CheckpointError:
            reader.close()
            raise
        return reader

    reader, problem = _attempt(opened)
    try:
        _raise_together(exchange_json({"problem": problem}), f"{what} cannot be restored")
        assert reader is not None
        _, problem = _attempt(lambda: fill(engine, reader))
        _raise_together(exchange_json({"problem": problem}), f"{what} cannot be restored")
        manifest = reader.manifest
        with ticking_collectives(session.progress):
            publish(engine, manifest)
        if manifest.world_size == dist.get_world_size():
            restore_rng(reader.rng(dist.get_rank()))
    finally:
        if reader is not None:
            reader.close()
    return SaveProgress(manifest.step, manifest.position, manifest.extra, manifest.world_size)


# Saving -------------------------------------------------------------------------------------------------------


def _open_place(session: Session, parent: Path, step: int, storage: Storage | None) -> _Place:
    """Choose where to write: into a storage if there is one, in place if the driver's files are visible, else into a
    directory to send from."""
    name = directory_name(step)
    if storage is not None:
        return _Place(parent, name, parent, False, "", storage)
    shared = session.shares_files
    if not shared:
        return _Place(parent, name, Path(tempfile.mkdtemp(prefix="convoy-save-")), shared, "")
    work = parent / f".{name}.tmp"
    if dist.get_rank() == 0:
        clear_interrupted(parent, session.progress)
        work.mkdir(parents=True)
    return _Place(parent, name, work, shared, "")


def _begin(place: _Place, tag: str) -> _Place:
    return place if place.shared else replace(place, tag=f"-{tag}")


def _write_shard(state: CapturedState, session: Session, place: _Place) -> JsonObject:
    """Write this rank's shard and index, and return what the manifest needs to know of them."""
    if place.storage is not None:
        return _stream_shard(state, session, place.storage, place)
    stem = shard_stem(state.rank, place.tag)
    elements: Counter[str] = Counter()
    with ShardWriter(place.work / f"{stem}.bin", state.rank, tick=session.progress) as writer:
        for flat in state.flats:
            for f in flat.fragments:
                data = to_storage(flat.tensor[f.offset : f.offset + f.length])
                writer.write(ShardPiece(f.name, flat.kind, f.start, dtype_name(flat.tensor.dtype), data))
                elements[flat.kind.value] += f.length
        index = writer.finish(state.rng)
    data_bytes = index.to_bytes()
    write_bytes(place.work / f"{stem}.json", data_bytes)
    if not place.shared:
        for file in (f"{stem}.bin", f"{stem}.json"):
            session.store(place.work / file, f"{place.final}/{file}")
    return {
        "file": f"{stem}.bin",
        "index": f"{stem}.json",
        "size_bytes": index.size_bytes,
        "index_digest": digest(data_bytes),
        "elements": dict(elements),
        "moments": state.moments,
    }


def _stream_shard(state: CapturedState, session: Session, storage: Storage, place: _Place) -> JsonObject:
    """Like `_write_shard`, into storage: nothing is written on this machine on the way."""
    fragments = [(flat, f) for flat in state.flats for f in flat.fragments]
    intervals = lay_out(
        (f.name, flat.kind, Range(f.start, f.start + f.length), dtype_name(flat.tensor.dtype)) for flat, f in fragments
    )
    contents = (
        np.ascontiguousarray(to_storage(flat.tensor[f.offset : f.offset + f.length])).data.cast("B")
        for flat, f in fragments
    )
    entry = write_shard(
        storage, place.name, state.rank, intervals, contents, state.rng, tag=place.tag, tick=session.progress
    )
    elements: Counter[str] = Counter()
    for interval in intervals:
        elements[interval.kind.value] += len(interval.range)
    return {**asdict(entry), "elements": dict(elements), "moments": state.moments}


def _manifest(state: CapturedState, progress: SaveProgress, parts: list[JsonObject], lease: int) -> Manifest:
    """The manifest over all ranks' parts. Raises CheckpointError if they do not add up to the whole model."""
    elements: Counter[str] = Counter()
    moments = False
    for part in parts:
        counts = mapping(part, "elements")
        elements.update({kind: integer(counts, kind) for kind in counts})
        moments |= flag(part, "moments")
    manifest = Manifest(
        step=progress.step,
        position=progress.position,
        world_size=state.world_size,
        stage=state.stage,
        optimizer=state.optimizer,
        tensors=state.tensors,
        tied=state.tied,
        moments=moments,
        groups=state.groups,
        shards=tuple(ShardEntry.from_json(part) for part in parts),
        counters=state.counters,
        loss_scaler=state.loss_scaler,
        lr_scheduler=state.lr_scheduler,
        extra=progress.extra,
        lease=lease,
        versions=installed_versions(),
        saved_at_s=time.time(),
    )
    expected: Counter[str] = Counter()
    for name, entry in manifest.tensors.items():
        for kind in manifest.kinds(name):
            expected[kind.value] += entry.elements
    if +expected != +elements:
        raise CheckpointError(f"the shards hold {dict(elements)} elements by kind, the model has {dict(expected)}")
    return manifest


def _commit(manifest: Manifest, session: Session, place: _Place) -> Manifest:
    """Commit the checkpoint. Rank 0, when every shard is in place."""
    if place.storage is not None:
        commit(place.storage, place.name, manifest, session.progress)
        return manifest
    write_bytes(place.work / MANIFEST, manifest.to_bytes())
    if not place.shared:
        session.store(place.work / MANIFEST, f"{place.final}/{MANIFEST}")
        return manifest
    for shard in manifest.shards:  # a run directory that only looks shared would show here
        file = place.work / shard.file
        if not file.is_file() or file.stat().st_size != shard.size_bytes:
            raise CheckpointError(f"{file} was written by another rank, and rank 0 cannot see it")
    before = Path(place.final) / MANIFEST
    if before.is_file():
        require_later(before.read_bytes(), manifest, str(before))
    sync_path(place.work)
    aside, final = place.parent / f".{place.name}.old", Path(place.final)
    if final.exists():
        final.rename(aside)
    place.work.rename(final)
    sync_path(place.parent)
    remove_tree(aside, session.progress)
    return manifest


def _tidy(place: _Place, saved: bool) -> None:
    """Remove what this save leaves behind: everything if it failed, the local copies if it succeeded."""
    if place.storage is not None:
        if not saved:
            abandon(place.storage, place.name, dist.get_rank(), place.tag)
    elif not place.shared or dist.get_rank() == 0:
        shutil.rmtree(place.work, ignore_errors=True)


def _retire(session: Session, place: _Place, rule: Rule, step: int, writing: Collection[int]) -> None:
    try:
        retain(place.storage or place.parent, rule, (step,), writing, session.progress)
    except CheckpointError as error:
        session.report_event(WarningIssued(f"old checkpoints could not be removed: {error.message}"))


# Restoring ----------------------------------------------------------------------------------------------------


def at_hand(session: Session, path: str) -> str | Path:
    """A checkpoint that this worker can read: a URL as it is, or a copy if only the driver sees it.

    Raises CheckpointError if it does not exist.
    """
    if is_url(path):
        return path
    try:
        return session.fetch(path)
    except FileNotFoundError:
        raise CheckpointError(f"checkpoint {path} does not exist") from None


def _open(session: Session, path: str) -> IntervalReader:
    return CheckpointReader(at_hand(session, path), tick=session.progress)


def _open_peers(session: Session, state: PeerState) -> IntervalReader:
    vault = session.vault
    if vault is None:
        raise CheckpointError("this worker has no vault and cannot reach its peers' vaults")
    return PeerReader(state, vault.token, vault.address, vault.pid, session.progress)


# Agreement ----------------------------------------------------------------------------------------------------


class _Problem(TypedDict):
    """Why a rank failed. `fault`: of storage, if storage failed."""

    text: str
    fault: StorageFault | None


def _attempt(action: Callable[[], T]) -> tuple[T | None, _Problem | None]:
    """Do it, or say in one line why not: the failures that one rank can have without the others."""
    try:
        return action(), None
    except StorageError as error:
        return None, {"text": error.message, "fault": error.fault}
    except ConvoyError as error:
        return None, {"text": error.message, "fault": None}
    except OSError as error:
        return None, {"text": f"{type(error).__name__}: {error}", "fault": fault_of(error)}
    except MemoryError as error:
        return None, {"text": f"{type(error).__name__}: {error}", "fault": None}


def _raise_together(answers: list[JsonObject], what: str) -> None:
    problems = {rank: mapping(answer, "problem") for rank, answer in enumerate(answers) if answer["problem"]}
    if not problems:
        return
    rank, first = next(iter(problems.items()))
    others = f" (and on {len(problems) - 1} more ranks)" if len(problems) > 1 else ""
    message = f"{what}: rank {rank}: {text(first, 'text')}{others}"
    if all(problem["fault"] for problem in problems.values()):
        raise StorageError(message, StorageFault(text(first, "fault")))
    raise CheckpointError(message)
