"""`fingerprints.json`: what a run was trained with, from the beginning and after each change that was accepted.

The driver alone writes it, before training begins. The files of the data are a list of their own, `contents.jsonl`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from orchestrator.atomic_files import read_json, write_json
from orchestrator.data.samples.integrity import FileState
from orchestrator.domain.errors import UsageError
from orchestrator.domain.fingerprints import CodePrint, FileContent, ModelPrint, TokenizerPrint
from orchestrator.domain.run_layout import RunLayout
from orchestrator.json_values import (
    JsonFields,
    flag,
    integer,
    integers,
    mapping,
    number,
    objects,
    optional,
    text,
    text_mapping,
)

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

    @classmethod
    def from_json(cls, value: JsonFields) -> "PreparedPrint":
        """The reverse of `asdict`. Raises ValueError."""
        states = mapping(value, "files")
        files: dict[str, FileState] = {}
        for name in states:
            size_bytes, mtime_ns = integers(states, name)
            files[name] = (size_bytes, mtime_ns)
        return cls(
            directory=text(value, "directory"),
            fingerprint=text(value, "fingerprint"),
            identity=text(value, "identity"),
            tokens_digest=optional(text, value, "tokens_digest"),
            files=files,
        )


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
    settings: JsonFields
    tokenizer: TokenizerPrint
    model: ModelPrint
    code: CodePrint

    @classmethod
    def from_json(cls, value: JsonFields) -> "FingerprintEntry":
        """Raises ValueError if it is none."""
        model, code, tokenizer = mapping(value, "model"), mapping(value, "code"), mapping(value, "tokenizer")
        return cls(
            time_s=number(value, "time_s"),
            from_step=integer(value, "from_step"),
            first_record=integer(value, "first_record"),
            accepted=tuple(
                {"part": text(each, "part"), "what": text(each, "what")} for each in objects(value, "accepted")
            ),
            compared=flag(value, "compared"),
            data=PreparedPrint.from_json(mapping(value, "data")),
            settings=mapping(value, "settings"),
            tokenizer=TokenizerPrint(text(tokenizer, "digest"), integer(tokenizer, "vocab_size")),
            model=ModelPrint(
                files=tuple(_file(each) for each in objects(model, "files")),
                revision=optional(text, model, "revision"),
                shape=tuple(integers(model, "shape")),
            ),
            code=CodePrint(text_mapping(code, "versions"), text_mapping(code, "modules")),
        )


def _file(value: JsonFields) -> FileContent:
    mtime_ns, ctime_ns, inode = integers(value, "stamp")
    return FileContent(
        name=text(value, "name"),
        size_bytes=integer(value, "size_bytes"),
        digest=text(value, "digest"),
        kind=text(value, "kind"),
        stamp=(mtime_ns, ctime_ns, inode),
        sample=optional(text, value, "sample") or "",
    )


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
        return tuple(FingerprintEntry.from_json(each) for each in objects(value, "history"))
    except ValueError as error:
        raise UsageError(f"{layout.fingerprints} is damaged: {error}", hint) from error


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
