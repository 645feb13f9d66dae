"""`manifest.json`: written last, it makes a directory a checkpoint."""

import json
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from orchestrator.checkpoint.format.intervals import Kind
from orchestrator.checkpoint.format.shard import digest
from orchestrator.checkpoint.storage.storage import Storage, StorageError, StorageFault, locate
from orchestrator.domain.errors import CheckpointError

MANIFEST = "manifest.json"
FORMAT = "convoy.intervals"
VERSION = 1


@dataclass(frozen=True)
class TensorEntry:
    """A parameter or buffer of the model."""

    shape: tuple[int, ...]
    dtype: str
    """Its type in the model; masters and moments are stored as float32 whatever it is."""
    kind: Kind
    """MASTER for what is trained, FROZEN or BUFFER for the rest."""
    group: int | None = None
    """Index of its optimizer group."""

    @property
    def elements(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count


@dataclass(frozen=True)
class GroupEntry:
    """One optimizer group: hyperparameters, and the updates made so far (None before the first)."""

    hyperparameters: dict[str, Any]
    step: float | None


@dataclass(frozen=True)
class ShardEntry:
    """One rank's files, relative to the directory."""

    file: str
    index: str
    size_bytes: int
    index_digest: str


@dataclass(frozen=True)
class Manifest:
    """All of a checkpoint that is small."""

    step: int
    position: int
    """First sample of the next step in the global order."""
    world_size: int
    stage: int
    optimizer: str
    """Class of the optimizer that held the state; for people."""
    tensors: dict[str, TensorEntry]
    tied: dict[str, str]
    """Other names of a tensor -> the name it is stored under."""
    moments: bool
    """False when saved before the first update: Adam has no moments then."""
    groups: tuple[GroupEntry, ...]
    shards: tuple[ShardEntry, ...]
    counters: dict[str, int] = field(default_factory=dict)
    """The engine's own: global_steps, global_samples, skipped_steps."""
    loss_scaler: dict[str, float | int | bool] | None = None
    lr_scheduler: dict[str, Any] | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    """What the training loop adds."""
    spec_hash: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    saved_at_s: float = 0.0
    """Unix time."""
    lease: int = 0
    """Token of the driver whose gang saved it; 0: of an older version, or nobody's who drives a run."""

    @property
    def size_bytes(self) -> int:
        """Size of all shard files."""
        return sum(shard.size_bytes for shard in self.shards)

    def kinds(self, name: str) -> tuple[Kind, ...]:
        """The kinds of interval that tensor `name` must have."""
        kind = self.tensors[name].kind
        return (kind, Kind.EXP_AVG, Kind.EXP_AVG_SQ) if kind is Kind.MASTER and self.moments else (kind,)

    def to_bytes(self) -> bytes:
        """The file, its own checksum included."""
        body = {"format": FORMAT, "version": VERSION, **asdict(self)}
        return json.dumps({**body, "checksum": _checksum(body)}, indent=1).encode()

    @classmethod
    def from_bytes(cls, data: bytes, source: str) -> "Manifest":
        """The reverse of `to_bytes`. Raises CheckpointError naming `source` for anything else, also for a file
        that was altered."""
        try:
            body = json.loads(data)
            expected = body.pop("checksum")
            if (body["format"], body["version"]) != (FORMAT, VERSION):
                raise CheckpointError(
                    f"{source} has format {body['format']} {body['version']}, expected {FORMAT} {VERSION}",
                    hint="it was written by another version of Convoy",
                )
            if _checksum(body) != expected:
                raise CheckpointError(f"{source} is corrupt: its checksum differs")
            return cls._from_body(body)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{source} is not a manifest: {type(error).__name__}: {error}") from error

    @classmethod
    def _from_body(cls, body: dict[str, Any]) -> "Manifest":
        rest = {k: v for k, v in body.items() if k not in ("format", "version")}
        rest["tensors"] = {
            name: TensorEntry(tuple(t["shape"]), t["dtype"], Kind(t["kind"]), t["group"])
            for name, t in body["tensors"].items()
        }
        rest["groups"] = tuple(GroupEntry(**g) for g in body["groups"])
        rest["shards"] = tuple(ShardEntry(**s) for s in body["shards"])
        return cls(**rest)


def installed_versions() -> dict[str, str]:
    """Of what wrote a checkpoint, for `Manifest.versions`."""
    return {name: metadata.version(name) for name in ("convoy-train", "torch", "deepspeed", "transformers")}


def _checksum(body: dict[str, Any]) -> str:
    return digest(json.dumps(body, sort_keys=True, separators=(",", ":")).encode())


def read_manifest(place: Path | str, storage: Storage | None = None) -> Manifest:
    """The manifest of the checkpoint at `place`: a directory or URL, or a name in `storage`.

    Raises CheckpointError where there is none or it is damaged, StorageError where storage does not answer.
    """
    storage, name = (storage, str(place)) if storage is not None else locate(place)
    where = storage.place(name)
    try:
        data = storage.read(name, MANIFEST)
    except StorageError as error:
        if error.fault is not StorageFault.MISSING:
            raise
        found = name in storage.names()
        what = "was never finished: it has no manifest" if found else "does not exist"
        raise CheckpointError(f"checkpoint {where} {what}") from None
    return Manifest.from_bytes(data, f"{where}/{MANIFEST}")
