"""Before a resume: compares the present inputs with those that the run was trained with. Starts, writes and removes
nothing."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.atomic_files import read_json
from orchestrator.checkpoint.storage.checkpoint_catalog import list_checkpoints
from orchestrator.checkpoint.storage.storage import StorageError, open_storage
from orchestrator.data.data_manifest import TOKENIZER_DIRECTORY
from orchestrator.data.prepare import Kept, pretrained_tokenizer
from orchestrator.data.samples import integrity
from orchestrator.data.sources.contents import Watch, grown, look, read_contents
from orchestrator.data.sources.source_scan import present, scan
from orchestrator.data.tokens.tokenizer import JobTokenizer, load, tokenizer_digest
from orchestrator.domain.errors import DataError, UsageError
from orchestrator.domain.fingerprints import (
    PARTS,
    Change,
    SourceContents,
    TokenizerPrint,
    compare_code,
    compare_models,
    compare_settings,
    compare_sources,
    compare_tokenizers,
    kept_settings,
    told,
)
from orchestrator.domain.run_layout import RunLayout
from orchestrator.json_values import JsonFields, JsonObject
from orchestrator.spec.job import JobSpec
from orchestrator.store.current_inputs import code_now, embedding_rows, local_path, model_now, settings_now
from orchestrator.store.fingerprint_file import FingerprintEntry, PreparedPrint, find_prepared, read_history
from orchestrator.store.recorded_progress import read_progress


class ChangedError(UsageError):
    """What a run was trained with is not what is there now."""

    def __init__(self, message: str, hint: str, changes: Sequence[Change]) -> None:
        super().__init__(message, hint)
        self.changes = tuple(changes)

    @property
    def details(self) -> JsonObject:
        return {"changes": [change.to_json() for change in self.changes]}


@dataclass(frozen=True)
class Resumption:
    """How a run is resumed. Without `history` there is nothing to compare: it begins like a new one."""

    history: tuple[FingerprintEntry, ...] = ()
    changes: tuple[Change, ...] = ()
    """Accepted."""
    warnings: tuple[str, ...] = ()
    prepared: Path | None = None
    """The run's prepared data, whole, to be used as it is; None: it has to be made (again)."""
    contents: tuple[SourceContents, ...] = ()
    """Of `prepared`."""
    kept: Kept = field(default_factory=lambda: Kept(check_cache=False))
    """For making it."""
    new_data: bool = False
    """It is made from other text, or with another tokenizer, than before."""
    trained: bool = False
    """The run has been trained: an older version recorded nothing of it if there is no `history`."""


@dataclass(frozen=True)
class _Question:
    """What is asked about one run."""

    layout: RunLayout
    spec: JobSpec
    job_dir: Path
    cache_dir: Path
    accept: bool
    watch: Watch


def examine(layout: RunLayout, spec: JobSpec, job_dir: Path, cache_dir: Path, accept: bool, watch: Watch) -> Resumption:
    """Compare the inputs, and decide with which ones the run continues. `accept`: with the changed ones, if that is
    possible.

    Files that were touched since are read; `watch` is called with the progress. Raises ChangedError if there are
    changes that are not accepted or cannot be, UsageError or DataError if there is no data to continue with.
    """
    asked = _Question(layout, spec, job_dir, cache_dir, accept, watch)
    if not _trained(layout, spec):
        return Resumption()
    history = read_history(layout)
    return _compared(asked, history) if history else _without_record(asked)


def _trained(layout: RunLayout, spec: JobSpec) -> bool:
    """Whether any weights have seen any data. Storage that does not answer may have a checkpoint."""
    if read_progress(layout).step > 0:
        return True
    try:
        return bool(list_checkpoints(open_storage(layout.checkpoint_place(spec.checkpoint.storage))))
    except StorageError:
        return True


def _compared(asked: _Question, history: tuple[FingerprintEntry, ...]) -> Resumption:
    last, spec = history[-1], asked.spec
    directory = find_prepared(last.data, asked.cache_dir)
    damage = _damage(last, directory)
    known, warnings = read_contents(asked.layout.contents), []
    if known is None:
        warnings.append(f"{asked.layout.contents} is gone or damaged: the files of the data cannot be compared")
    there = present(spec.data, asked.job_dir)
    now = look(there, known or (), asked.watch)
    data, gone = compare_sources(known or (), now, grown(there, known or (), now))
    settings = compare_settings(last.settings, settings_now(spec, asked.job_dir), kept_settings(spec))
    own = _own_tokenizer(asked.layout, directory, last.tokenizer.digest)
    tokenizer, chosen, warning = _tokenizer(asked, last, own)
    model = model_now(spec, asked.job_dir, last.tokenizer.vocab_size, last.model.files)
    changes = [*data, *settings, *tokenizer, *compare_models(last.model, model, _name(spec))]
    changes += compare_code(last.code, code_now())
    new_data = any(change.part in ("data", "tokenizer") for change in changes)
    changes += [Change("data", *_gone(name, damage)) for name in gone if damage or new_data]
    _refuse(asked, changes)
    if new_data:
        _readable(asked)
    if gone and not new_data:
        where = ", ".join(gone)
        warnings.append(f"all files of {where} are gone: the run continues with its prepared data in {directory}")
    return Resumption(
        history,
        tuple(changes),
        (*warnings, *([warning] if warning else [])),
        directory if not damage and not new_data else None,
        tuple(old if old.name in gone else new for old, new in zip(known or (), now, strict=False)) or now,
        Kept(chosen, _revisions(known or (), settings), check_cache=bool(damage)),
        new_data,
        trained=True,
    )


def _damage(last: FingerprintEntry, directory: Path | None) -> str:
    """What is wrong with the run's prepared data; empty: nothing."""
    if directory is None:
        return f"{last.data.directory} is gone"
    if tokenizer_digest(directory / TOKENIZER_DIRECTORY) != last.tokenizer.digest:
        return f"{directory / TOKENIZER_DIRECTORY} is no longer the run's tokenizer"
    return integrity.problem(directory, last.data.fingerprint, last.data.files) or ""


def _gone(name: str, damage: str) -> tuple[str, str]:
    """What is missing of a source, and why the run cannot do without it."""
    why = f"the prepared data cannot replace them: {damage}" if damage else "they are needed to prepare the data again"
    return f"all files of {name} are gone", f"{why}; put them back"


def _name(spec: JobSpec) -> str:
    return spec.model.pretrained or spec.model.architecture or "model"


def _refuse(asked: _Question, changes: Sequence[Change]) -> None:
    """Raises ChangedError unless there is none, or all are accepted and can be."""
    run_id = asked.layout.run_id
    blocked = [change for change in changes if change.blocked is not None]
    if not changes or (asked.accept and not blocked):
        return
    parts = [part for part in PARTS if any(change.part == part for change in changes)]
    what = f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else parts[0]
    verb = "have" if len(parts) > 1 else "has"
    lines = f"the {what} of run {run_id} {verb} changed since it was trained:\n{told(changes)}"
    hint = "restore what was changed, or start a new run; this run was left unchanged"
    if not blocked:
        hint = (
            f"restore what was changed; or continue with the changed inputs: convoy run --resume {run_id} "
            "--accept-changes (recorded, and `convoy data verify` prints a warning); or start a new run"
        )
    raise ChangedError(lines, hint, changes)


def _readable(asked: _Question) -> None:
    """Check that the data can be prepared again. Raises UsageError that says what is missing."""
    try:
        scan(asked.spec.data, asked.job_dir)
    except DataError as error:
        raise UsageError(error.message, error.hint) from error


def _own_tokenizer(layout: RunLayout, prepared: Path | None, digest: str) -> JobTokenizer | None:
    """The tokenizer that the run was trained with; None if no copy of it is left."""
    for directory in (layout.tokenizer, prepared / TOKENIZER_DIRECTORY if prepared is not None else None):
        if directory is not None and tokenizer_digest(directory) == digest:
            return load(directory, "of the run")
    return None


def _tokenizer(
    asked: _Question, last: FingerprintEntry, own: JobTokenizer | None
) -> tuple[list[Change], JobTokenizer | None, str | None]:
    """Changes of the tokenizer, the tokenizer to continue with, and a warning. One that the run trained, or that came
    from the Hub under the same id, is the run's own and cannot change."""
    spec, name = asked.spec, asked.spec.tokenizer.pretrained or asked.spec.model.pretrained
    if spec.tokenizer.train is not None or name is None:
        lost = Change("tokenizer", "the run's own copy of its tokenizer is gone", f"put {asked.layout.tokenizer} back")
        return ([] if own is not None else [lost]), own, None
    path = local_path(name, asked.job_dir)
    if own is not None and (path is None or not path.exists()):
        on_hub = last.settings.get("tokenizer.pretrained")
        if spec.tokenizer.pretrained == on_hub:  # the same id; or none, and it is the model's: that is compared itself
            return [], own, None
        if on_hub is None:
            return [], own, f"the tokenizer {name} is gone: the run continues with its own copy"
    try:
        found = pretrained_tokenizer(spec, asked.job_dir)
    except DataError as error:
        return [Change("tokenizer", error.message, "it cannot be read")], own, None
    if own is None or found is None:
        return [], found, f"the run's own copy of its tokenizer is gone: {name} cannot be compared with it"
    # Both are read by the same version of the library, so that another version is no change by itself.
    before, now = TokenizerPrint(own.key, own.vocab_size), TokenizerPrint(found.key, found.vocab_size)
    changes = compare_tokenizers(
        before, now, name, embedding_rows(spec, asked.job_dir), own_vocabulary=spec.model.pretrained is None
    )
    return changes, found if changes else own, None


def _revisions(known: Sequence[SourceContents], settings: Sequence[Change]) -> tuple[str | None, ...]:
    """Datasets of the Hub stay at the commit that the run began with, unless the spec names others now."""
    other = any(".hub:" in change.what for change in settings)
    return () if other else tuple(source.revision for source in known)


def _without_record(asked: _Question) -> Resumption:
    """A run of an older version: nothing can be compared. Its prepared data is used if it is whole: that is certain
    to be what it was trained on."""
    run_id, facts = asked.layout.run_id, read_json(asked.layout.data) or {}
    warning = (
        f"the run {run_id} was started by a version of Convoy that recorded no fingerprints: changes of data, "
        "tokenizer, model and code since then cannot be detected; they are recorded from now on"
    )
    directory = _prepared_of(facts, asked.cache_dir)
    if directory is None:
        lost = "its prepared data is incomplete and is prepared again: if texts have changed, it is different data"
        return Resumption(warnings=(warning, lost), kept=Kept(check_cache=True), trained=True)
    there = present(asked.spec.data, asked.job_dir)
    return Resumption(warnings=(warning,), prepared=directory, contents=look(there, (), asked.watch), trained=True)


def _prepared_of(facts: JsonFields, cache_dir: Path) -> Path | None:
    """The prepared data that `data.json` names, if it is whole; its files are read for that."""
    place, fingerprint = facts.get("directory"), facts.get("fingerprint")
    if not isinstance(place, str) or not isinstance(fingerprint, str):
        return None
    directory = find_prepared(PreparedPrint(place, fingerprint, fingerprint, None, {}), cache_dir)
    return directory if directory is not None and integrity.problem(directory, fingerprint, {}) is None else None


def pinned(spec: JobSpec, history: Sequence[FingerprintEntry]) -> JobSpec:
    """The spec with the model of the Hub at the commit that the run began with, if the spec names no other now."""
    revision = history[-1].model.revision if history else None
    if revision is None or any(
        history[-1].settings.get(f"model.{key}") != getattr(spec.model, key) for key in ("pretrained", "revision")
    ):
        return spec
    return spec.model_copy(update={"model": spec.model.model_copy(update={"revision": revision})})
