"""`manifest.json`: written last, it makes a directory a checkpoint."""

import json
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path

from orchestrator.checkpoint.format.intervals import Kind
from orchestrator.checkpoint.format.shard import digest
from orchestrator.checkpoint.storage.storage import Storage, StorageError, StorageFault, locate
from orchestrator.domain.errors import CheckpointError
from orchestrator.json_values import (
    JsonFields,
    JsonObject,
    JsonShapeError,
    flag,
    integer,
    integers,
    mapping,
    number,
    objects,
    optional,
    parse_object,
    text,
    text_mapping,
)

MANIFEST = "manifest.json"
FORMAT = "convoy.intervals"
VERSION = 1


@dataclass(frozen=True)
class TensorEntry:
    """A parameter or buffer of the model."""

    shape: tuple[int, ...]
    dtype: str
    """Its type in the model; masters and moments are always stored as float32."""
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

    @classmethod
    def from_json(cls, value: JsonFields) -> "TensorEntry":
        """The reverse of `asdict`. Raises ValueError."""
        return cls(
            shape=tuple(integers(value, "shape")),
            dtype=text(value, "dtype"),
            kind=Kind(text(value, "kind")),
            group=optional(integer, value, "group"),
        )


@dataclass(frozen=True)
class GroupEntry:
    """One optimizer group: hyperparameters, and the updates made so far (None before the first)."""

    hyperparameters: JsonObject
    step: float | None

    @classmethod
    def from_json(cls, value: JsonFields) -> "GroupEntry":
        """The reverse of `asdict`. Raises JsonShapeError."""
        return cls(mapping(value, "hyperparameters"), optional(number, value, "step"))


@dataclass(frozen=True)
class ShardEntry:
    """One rank's files, relative to the directory."""

    file: str
    index: str
    size_bytes: int
    index_digest: str

    @classmethod
    def from_json(cls, value: JsonFields) -> "ShardEntry":
        """The reverse of `asdict`. Raises JsonShapeError."""
        return cls(
            file=text(value, "file"),
            index=text(value, "index"),
            size_bytes=integer(value, "size_bytes"),
            index_digest=text(value, "index_digest"),
        )


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
    lr_scheduler: JsonObject | None = None
    extra: JsonObject = field(default_factory=dict)
    """What the training loop adds."""
    versions: dict[str, str] = field(default_factory=dict)
    saved_at_s: float = 0.0
    """Unix time."""
    lease: int = 0
    """Token of the driver whose gang saved it; 0 if an older version saved it, or no driver of a run."""

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
            body = parse_object(data)
            found = f"{text(body, 'format')} {integer(body, 'version')}"
            if found != f"{FORMAT} {VERSION}":
                raise CheckpointError(
                    f"{source} has format {found}, expected {FORMAT} {VERSION}",
                    hint="it was written by another version of Convoy",
                )
            expected = text(body, "checksum")
            del body["checksum"]
            if _checksum(body) != expected:
                raise CheckpointError(f"{source} is corrupt: its checksum differs")
            return cls._from_body(body)
        except ValueError as error:
            raise CheckpointError(f"{source} is not a manifest: {type(error).__name__}: {error}") from error

    @classmethod
    def of_state(cls, body: JsonFields, tensors: dict[str, TensorEntry], tied: dict[str, str]) -> "Manifest":
        """Of the fields that change from step to step, without shards. Raises ValueError if one is missing or wrong."""
        counters = optional(mapping, body, "counters") or {}
        return cls(
            step=integer(body, "step"),
            position=integer(body, "position"),
            world_size=integer(body, "world_size"),
            stage=integer(body, "stage"),
            optimizer=text(body, "optimizer"),
            tensors=tensors,
            tied=tied,
            moments=flag(body, "moments"),
            groups=tuple(GroupEntry.from_json(group) for group in objects(body, "groups")),
            shards=(),
            counters={name: integer(counters, name) for name in counters},
            loss_scaler=optional(_loss_scaler, body, "loss_scaler"),
            lr_scheduler=optional(mapping, body, "lr_scheduler"),
            extra=optional(mapping, body, "extra") or {},
        )

    @classmethod
    def _from_body(cls, body: JsonFields) -> "Manifest":
        """Fields of older versions that are unknown, such as `spec_hash`, are ignored."""
        entries = mapping(body, "tensors")
        tensors = {name: TensorEntry.from_json(mapping(entries, name)) for name in entries}
        return replace(
            cls.of_state(body, tensors, text_mapping(body, "tied")),
            shards=tuple(ShardEntry.from_json(shard) for shard in objects(body, "shards")),
            versions=optional(text_mapping, body, "versions") or {},
            saved_at_s=optional(number, body, "saved_at_s") or 0.0,
            lease=optional(integer, body, "lease") or 0,
        )


def _loss_scaler(body: JsonFields, key: str) -> dict[str, float | int | bool]:
    value = mapping(body, key)
    found = {name: each for name, each in value.items() if isinstance(each, int | float)}
    if len(found) < len(value):
        raise JsonShapeError(f"the field `{key}` is an object of other values than numbers")
    return found


def installed_versions() -> dict[str, str]:
    """Of what wrote a checkpoint, for `Manifest.versions`."""
    return {name: metadata.version(name) for name in ("convoy-train", "torch", "deepspeed", "transformers")}


def _checksum(body: JsonFields) -> str:
    return digest(json.dumps(body, sort_keys=True, separators=(",", ":")).encode())


def read_manifest(place: Path | str, storage: Storage | None = None) -> Manifest:
    """The manifest of the checkpoint at `place`: a directory or URL, or a name in `storage`.

    Raises CheckpointError if there is none or it is damaged, StorageError if storage does not answer.
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
