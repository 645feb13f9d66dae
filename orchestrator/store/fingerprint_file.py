"""`fingerprints.json`: what a run was trained with, from the beginning and after each change that was accepted.

The driver alone writes it, before training begins. The files of the data are a list of their own, `contents.jsonl`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from orchestrator.atomic_files import read_json, write_json
from orchestrator.data.samples.integrity import FileState
from orchestrator.domain.errors import UsageError
from orchestrator.domain.fingerprints import CodePrint, FileContent, ModelPrint, TokenizerPrint
from orchestrator.domain.run_layout import RunLayout

FORMAT_VERSION = 1


@dataclass(frozen=True)
class PreparedPrint:
    """The prepared data of a part of a run."""

    directory: str
    fingerprint: str
    """Of the manifest: the key in the cache."""
    identity: str
    """Equal for data that gives the same samples in the same order, under whatever key."""
    tokens_digest: str | None
    files: Mapping[str, FileState]
    """States of its files when they were whole."""


@dataclass(frozen=True)
class FingerprintEntry:
    """What a part of a run is trained with."""

    time_s: float
    """Unix seconds of the record."""
    from_step: int
    """The step after which this part began; 0: the beginning."""
    first_record: int
    """Records of `steps.jsonl` before the first one of this part."""
    accepted: tuple[Mapping[str, str], ...]
    """The changes at its beginning, with `part` and `what`; none in the first entry."""
    compared: bool
    """False: an older version began the run, and this is what its first resume found."""
    data: PreparedPrint
    settings: Mapping[str, Any]
    tokenizer: TokenizerPrint
    model: ModelPrint
    code: CodePrint

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "FingerprintEntry":
        """Raises KeyError, TypeError or ValueError if it is none."""
        data, model = value["data"], value["model"]
        states = {str(name): (int(size), int(mtime_ns)) for name, (size, mtime_ns) in data["files"].items()}
        return cls(
            float(value["time_s"]),
            int(value["from_step"]),
            int(value["first_record"]),
            tuple({"part": str(each["part"]), "what": str(each["what"])} for each in value["accepted"]),
            bool(value["compared"]),
            PreparedPrint(**{**data, "files": states}),
            dict(value["settings"]),
            TokenizerPrint(**value["tokenizer"]),
            ModelPrint(tuple(_file(each) for each in model["files"]), model["revision"], tuple(model["shape"])),
            CodePrint(dict(value["code"]["versions"]), dict(value["code"]["modules"])),
        )


def _file(value: Mapping[str, Any]) -> FileContent:
    mtime_ns, ctime_ns, inode = value["stamp"]
    return FileContent(**{**value, "stamp": (int(mtime_ns), int(ctime_ns), int(inode))})


def read_history(layout: RunLayout) -> tuple[FingerprintEntry, ...]:
    """In the order of the run; none if there is no file.

    Raises UsageError if it is damaged or of another format: without it changes would not be noticed.
    """
    if not layout.fingerprints.exists():
        return ()
    value = read_json(layout.fingerprints) or {}
    hint = "move it away to continue without a comparison, as with a run of an older version"
    if value.get("format_version", FORMAT_VERSION) != FORMAT_VERSION:
        found = value["format_version"]
        raise UsageError(f"{layout.fingerprints} has format {found}, this version reads {FORMAT_VERSION}", hint)
    try:
        return tuple(FingerprintEntry.from_json(each) for each in value["history"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"{layout.fingerprints} is damaged: {type(error).__name__}: {error}", hint) from error


def write_history(layout: RunLayout, history: Sequence[FingerprintEntry]) -> None:
    """Replace the file, durably. Raises OSError."""
    write_json(layout.fingerprints, {"format_version": FORMAT_VERSION, "history": [asdict(each) for each in history]})


def find_prepared(data: PreparedPrint, cache_dir: Path) -> Path | None:
    """See `prepared_place`."""
    return prepared_place(Path(data.directory), data.fingerprint, cache_dir)


def prepared_place(recorded: Path, fingerprint: str, cache_dir: Path) -> Path | None:
    """The directory of prepared data: the recorded one, or under its key in a cache that was moved. None: it is in
    neither."""
    return next((place for place in (recorded, cache_dir / "data" / fingerprint) if place.is_dir()), None)
