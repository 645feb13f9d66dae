"""From a job's text to token files and a manifest: cached, resumable, in parallel, in bounded memory."""

import fcntl
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.data.cache_keys import tokens_fingerprint, trained_tokenizer_key, view_fingerprint
from orchestrator.data.data_manifest import MANIFEST_FILE, TOKENIZER_DIRECTORY, DataManifest
from orchestrator.data.executor import Executor, LocalExecutor
from orchestrator.data.prepare_progress import PrepareProgress
from orchestrator.data.samples import integrity
from orchestrator.data.samples.prepared_view import build_view
from orchestrator.data.sources import globs, hub
from orchestrator.data.sources.contents import CONTENTS_FILE, look, read_contents, write_contents
from orchestrator.data.sources.corpus import Corpus
from orchestrator.data.sources.source_scan import PresentSource, Source, dataset_files, scan
from orchestrator.data.tokens import tokenizer
from orchestrator.data.tokens.token_store import COMPLETE_FILE, journal_digest
from orchestrator.data.tokens.tokenise import read_counts, tokenise
from orchestrator.data.tokens.tokenizer import JobTokenizer
from orchestrator.domain.errors import DataError
from orchestrator.domain.events import DataProgress, DataReady, DataSkipped, Emit, WarningIssued
from orchestrator.domain.fingerprints import SourceContents
from orchestrator.spec.job import JobSpec
from orchestrator.weights.pretrained_location import check_rows

LOCK_POLL_S = 0.1


@dataclass(frozen=True)
class PreparedData:
    """Data ready to train on. `cached`: nothing had to be tokenised."""

    directory: Path
    manifest: DataManifest
    cached: bool
    contents: tuple[SourceContents, ...] = ()
    """What it was made from."""
    tokens_digest: str | None = None
    """See `journal_digest`."""


@dataclass(frozen=True)
class Kept:
    """What a resumed run keeps when its data must be prepared again."""

    tokenizer: JobTokenizer | None = None
    """Is used, and none is trained or loaded."""
    revisions: tuple[str | None, ...] = ()
    """Commits of the datasets of the hub, by source."""
    check_cache: bool = True
    """What is in the cache may be damaged: read it before it is used."""


def cache_directory(spec: JobSpec, home: Path) -> Path:
    """The directory of prepared data: that of the spec, or one under `home`."""
    return Path(spec.data.cache_dir).absolute() if spec.data.cache_dir else home.absolute() / "cache"


def prepare(
    spec: JobSpec, job_dir: Path, cache_dir: Path, executor: Executor, emit: Emit, kept: Kept | None = None
) -> PreparedData:
    """Make the token files and the manifest of a job, or find them in the cache. `kept`: of a resumed run.

    Under `cache_dir`: `tokens/<fingerprint>/` holds the token files of a corpus and a tokenizer, `data/<fingerprint>/`
    what one job trains on: links to those files, and its manifest. A killed preparation continues after the last block
    on disk; two that run at the same time do the work once. Raises DataError.
    """
    started = time.monotonic()
    emit(DataProgress("scan", 0, 0))
    pinned = iter(kept.revisions if kept is not None else ())
    with _writing(cache_dir):
        sources = tuple(hub.resolve(each, cache_dir / "hub", next(pinned, None)) for each in scan(spec.data, job_dir))
    corpus = Corpus.of(spec.data, sources)
    given = kept.tokenizer if kept is not None else None
    if given is None:
        given = pretrained_tokenizer(spec, job_dir)
        if given is not None:
            check_rows(spec, job_dir, given.vocab_size)
    fingerprint = _tokens_key(spec, sources, given, cache_dir)
    tokens_dir = cache_dir / "tokens" / fingerprint
    view_fp = view_fingerprint(spec, fingerprint)
    view_dir = cache_dir / "data" / view_fp
    progress = PrepareProgress(emit, corpus.total_bytes)
    _warn_of_overlap(sources, emit)
    with _writing(cache_dir), _locked(cache_dir / "locks" / f"{fingerprint}.lock", emit):
        known: integrity.Known = {} if kept is not None and kept.check_cache else None
        _discard_damaged(tokens_dir, view_dir, view_fp, given, known, emit)
        cached = (tokens_dir / COMPLETE_FILE).is_file()
        if not cached:
            chosen = given or _trained(spec, corpus, tokens_dir, progress)
            _require_mask(spec, chosen)
            chosen.save(tokens_dir / TOKENIZER_DIRECTORY)
            tokenise(corpus, chosen, tokens_dir, executor, _uses_threads(executor), progress)
        counts = read_counts(tokens_dir)
        for source in counts.sources:
            corpus.plans[0].rule.check(source.name, source.records, source.bad_records, source.skipped)
        if not (view_dir / MANIFEST_FILE).is_file():
            progress.update("index", corpus.total_bytes, last=True)
            build_view(spec, counts, fingerprint, view_fp, tokens_dir, view_dir)
        contents = _contents(tokens_dir, sources, progress)
    manifest = DataManifest.read(view_dir)
    _report(manifest, cached, time.monotonic() - started, emit)
    return PreparedData(view_dir, manifest, cached, contents, journal_digest(tokens_dir))


def reopen(
    directory: Path, contents: tuple[SourceContents, ...], tokens_digest: str | None, emit: Emit
) -> PreparedData:
    """Prepared data as it is, without a look at the sources. Raises DataError."""
    manifest = DataManifest.read(directory)
    if tokens_digest is None:
        tokens_digest = journal_digest(directory)
    _report(manifest, True, 0.0, emit)
    return PreparedData(directory, manifest, True, contents, tokens_digest)


def _tokens_key(spec: JobSpec, sources: tuple[Source, ...], given: JobTokenizer | None, cache_dir: Path) -> str:
    """The key of the token files. Those of a job that trained the very tokenizer that is given will do as well."""
    trained = tokens_fingerprint(spec, sources, trained_tokenizer_key(spec))
    if given is None:
        return trained
    directory = cache_dir / "tokens" / trained
    if spec.tokenizer.train is not None and (directory / COMPLETE_FILE).is_file() and _has(directory, given):
        return trained
    return tokens_fingerprint(spec, sources, given.key)


def _has(directory: Path, given: JobTokenizer) -> bool:
    """Whether a directory has the tokenizer that is given: the same text and special ids. A damaged one is another."""
    with suppress(DataError):
        return tokenizer.load(directory / TOKENIZER_DIRECTORY, "in the cache").ids_key == given.ids_key
    return False


def _discard_damaged(
    tokens_dir: Path,
    view_dir: Path,
    view_fp: str,
    given: JobTokenizer | None,
    known: integrity.Known,
    emit: Emit,
) -> None:
    """Remove what cannot be used, so that it is prepared again. Active runs keep the files that they have open."""
    what = None
    if (tokens_dir / COMPLETE_FILE).is_file():
        what = integrity.tokens_problem(tokens_dir, known)
        if what is None and given is not None and not _has(tokens_dir, given):
            what = f"{tokens_dir / TOKENIZER_DIRECTORY} is damaged"
        if what is not None:
            shutil.rmtree(tokens_dir)
    if (view_dir / MANIFEST_FILE).is_file():
        damage = integrity.problem(view_dir, view_fp, known)
        digests = {tokenizer.tokenizer_digest(each / TOKENIZER_DIRECTORY) for each in (tokens_dir, view_dir)}
        if damage is None and tokens_dir.is_dir() and len(digests) > 1:
            damage = f"{view_dir / TOKENIZER_DIRECTORY} is damaged"
        if damage is not None:
            shutil.rmtree(view_dir)
        what = what or damage
    if what is not None:
        emit(WarningIssued(f"the cache is damaged; the damaged part is prepared again: {what}"))


def _contents(tokens_dir: Path, sources: tuple[Source, ...], progress: PrepareProgress) -> tuple[SourceContents, ...]:
    """What the token files were made from. Caches of older versions do not say: then it is what is there now, which
    has the same key."""
    found = read_contents(tokens_dir / CONTENTS_FILE)
    if found is None or len(found) != len(sources):
        present = [PresentSource(source.name, dataset_files(source)) for source in sources]
        found = look(present, (), lambda done_bytes: progress.update("compare", done_bytes))
        write_contents(tokens_dir / CONTENTS_FILE, found)
    pairs = zip(found, sources, strict=True)
    return tuple(replace(each, name=source.name, revision=source.revision) for each, source in pairs)


def _uses_threads(executor: Executor) -> bool:
    """In this very process the tokenizer may use all cores; elsewhere a task has one."""
    return isinstance(executor, LocalExecutor) and executor.workers == 0


def pretrained_tokenizer(spec: JobSpec, job_dir: Path) -> JobTokenizer | None:
    """The tokenizer that the job names; None if it trains one. Raises DataError."""
    if spec.tokenizer.train is not None:
        return None
    name = spec.tokenizer.pretrained or spec.model.pretrained
    if name is None:
        raise DataError("the job has no tokenizer", hint="give `tokenizer.train` or `tokenizer.pretrained`")
    path = Path(globs.absolute(name, job_dir))
    if path.exists():
        return tokenizer.load(path, name)
    if name.startswith((".", "/", "~")):
        raise DataError(f"there is no tokenizer at {path}", hint="paths are relative to the job file")
    revision = spec.model.revision if spec.tokenizer.pretrained is None else None
    return tokenizer.load(hub.download_tokenizer(name, revision), name)


def _trained(spec: JobSpec, corpus: Corpus, tokens_dir: Path, progress: PrepareProgress) -> JobTokenizer:
    """The tokenizer trained before the kill, if there is one; else train it."""
    saved = tokens_dir / TOKENIZER_DIRECTORY
    if (saved / tokenizer.TOKENIZER_FILE).is_file():
        return tokenizer.load(saved, "trained before")
    if spec.tokenizer.train is None:
        raise DataError("the job has no tokenizer to train")

    def watched() -> Iterator[tuple[str, int]]:
        for text, position in corpus.training_texts():
            progress.update("tokenizer", position)
            yield text, position

    sample_bytes = spec.tokenizer.train.sample_bytes
    return tokenizer.train(
        tokenizer.spread_sample(watched(), corpus.training_bytes, sample_bytes), spec.tokenizer.train
    )


def _require_mask(spec: JobSpec, chosen: JobTokenizer) -> None:
    if spec.model.architecture == "bert" and chosen.mask_id is None:
        raise DataError(
            "BERT is trained on masked tokens, and the tokenizer has no mask token",
            hint=f'add "mask_token" to its {tokenizer.CONFIG_FILE}, or train a tokenizer with `tokenizer.train`',
        )


def _warn_of_overlap(sources: tuple[Source, ...], emit: Emit) -> None:
    trained = {file.path for source in sources if source.role == "train" for file in source.files}
    both = [
        file.name for source in sources if source.role == "validation" for file in source.files if file.path in trained
    ]
    if both:
        such = f"({len(both)} such files)" if len(both) > 1 else "(1 such file)"
        message = f"{both[0]} is used for training and validation {such}: the validation loss will be too low"
        emit(WarningIssued(message))


@contextmanager
def _writing(cache_dir: Path) -> Iterator[None]:
    """Errors of reading are DataErrors already; what is left is the cache: a full disk, missing permission."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"prepared data cannot be written under {cache_dir}: {error.strerror or error}",
            hint="free space there, or set another directory with `data.cache_dir`; finished work is kept",
        ) from error


@contextmanager
def _locked(path: Path, emit: Emit) -> Iterator[None]:
    """Hold an advisory lock; it goes with the process, however that ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        said = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not said:
                    emit(WarningIssued("another process prepares the same data: waiting for it"))
                    said = True
                time.sleep(LOCK_POLL_S)
        yield


def _report(manifest: DataManifest, cached: bool, seconds: float, emit: Emit) -> None:
    for source in manifest.sources:
        if source.documents == 0:
            emit(WarningIssued(f"there is no text in {source.name}"))
        for item in source.skipped:
            emit(DataSkipped(source.name, item.reason, item.count, item.first))
    emit(
        DataReady(
            fingerprint=manifest.fingerprint,
            cached=cached,
            documents=manifest.documents,
            bad_records=manifest.bad_records,
            tokens=manifest.train_tokens + manifest.validation_tokens,
            train_samples=manifest.train_samples,
            validation_samples=manifest.validation_samples,
            seconds=round(seconds, 3),
        )
    )
