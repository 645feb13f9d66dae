"""From a job's text to token files and a manifest: cached, resumable, in parallel, in bounded memory."""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from orchestrator.data import globs, hub, tokenizer
from orchestrator.data.corpus import Corpus
from orchestrator.data.executor import Executor, LocalExecutor
from orchestrator.data.fingerprint import tokens_fingerprint, trained_tokenizer_key, view_fingerprint
from orchestrator.data.manifest import MANIFEST_FILE, TOKENIZER_DIRECTORY, DataManifest
from orchestrator.data.progress import OnEvent, Progress
from orchestrator.data.sources import Source, scan
from orchestrator.data.tokenise import read_counts, tokenise
from orchestrator.data.tokenizer import JobTokenizer
from orchestrator.data.tokenstore import COMPLETE_FILE
from orchestrator.data.view import build_view
from orchestrator.domain.errors import DataError
from orchestrator.domain.events import EventKind
from orchestrator.spec.job import JobSpec
from orchestrator.weights.place import check_rows

LOCK_POLL_S = 0.1


@dataclass(frozen=True)
class PreparedData:
    """Data ready to train on. `cached`: nothing had to be tokenised."""

    directory: Path
    manifest: DataManifest
    cached: bool


def cache_directory(spec: JobSpec, home: Path) -> Path:
    """Where prepared data lies: where the spec says, or under `home`."""
    return Path(spec.data.cache_dir).absolute() if spec.data.cache_dir else home.absolute() / "cache"


def prepare(spec: JobSpec, job_dir: Path, cache_dir: Path, executor: Executor, on_event: OnEvent) -> PreparedData:
    """Make the token files and the manifest of a job, or find them in the cache.

    Under `cache_dir`: `tokens/<fingerprint>/` holds the token files of a corpus and a tokenizer, `data/<fingerprint>/`
    what one job trains on: links to those files, and its manifest. A preparation that was killed goes on after the
    last block on disk; two that run at once do the work once. Raises DataError.
    """
    started = time.monotonic()
    on_event(EventKind.DATA_PROGRESS, _scan_progress())
    with _writing(cache_dir):
        sources = tuple(hub.resolve(source, cache_dir / "hub") for source in scan(spec.data, job_dir))
    corpus = Corpus.of(spec.data, sources)
    pretrained = _pretrained(spec, job_dir)
    if pretrained is not None:
        check_rows(spec, job_dir, pretrained.vocab_size)
    key = pretrained.text.key if pretrained else trained_tokenizer_key(spec)
    fingerprint = tokens_fingerprint(spec, sources, key)
    tokens_dir = cache_dir / "tokens" / fingerprint
    view_fp = view_fingerprint(spec, fingerprint)
    view_dir = cache_dir / "data" / view_fp
    progress = Progress(on_event, corpus.total_bytes)
    _warn_of_overlap(sources, on_event)
    with _writing(cache_dir), _locked(cache_dir / "locks" / f"{fingerprint}.lock", on_event):
        cached = (tokens_dir / COMPLETE_FILE).is_file()
        if not cached:
            chosen = pretrained or _trained(spec, corpus, tokens_dir, progress)
            _require_mask(spec, chosen)
            chosen.save(tokens_dir / TOKENIZER_DIRECTORY)
            tokenise(corpus, chosen, tokens_dir, executor, _uses_threads(executor), progress)
        counts = read_counts(tokens_dir)
        for source in counts.sources:
            corpus.plans[0].rule.check(source.name, source.records, source.bad_records, source.skipped)
        if not (view_dir / MANIFEST_FILE).is_file():
            progress.update("index", corpus.total_bytes, last=True)
            build_view(spec, counts, fingerprint, view_fp, tokens_dir, view_dir)
    manifest = DataManifest.read(view_dir)
    _report(manifest, cached, time.monotonic() - started, on_event)
    return PreparedData(view_dir, manifest, cached)


def _scan_progress() -> dict[str, int | str | bool]:
    return {"phase": "scan", "done_bytes": 0, "total_bytes": 0, "documents": 0, "tokens": 0, "cached": False}


def _uses_threads(executor: Executor) -> bool:
    """In this very process the tokenizer may use all cores; elsewhere a task has one."""
    return isinstance(executor, LocalExecutor) and executor.workers == 0


def _pretrained(spec: JobSpec, job_dir: Path) -> JobTokenizer | None:
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


def _trained(spec: JobSpec, corpus: Corpus, tokens_dir: Path, progress: Progress) -> JobTokenizer:
    """The tokenizer trained before the kill, where there is one; else train it."""
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
            "BERT learns from masked tokens, and the tokenizer has no mask token",
            hint=f'add "mask_token" to its {tokenizer.CONFIG_FILE}, or train a tokenizer with `tokenizer.train`',
        )


def _warn_of_overlap(sources: tuple[Source, ...], on_event: OnEvent) -> None:
    trained = {file.path for source in sources if source.role == "train" for file in source.files}
    both = [
        file.name for source in sources if source.role == "validation" for file in source.files if file.path in trained
    ]
    if both:
        message = f"{both[0]} is trained on and validated on ({len(both)} such files): the validation loss will flatter"
        on_event(EventKind.WARNING, {"message": message})


@contextmanager
def _writing(cache_dir: Path) -> Iterator[None]:
    """Errors of reading are DataErrors already; what is left is the cache: a full disk, missing permission."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"prepared data cannot be written under {cache_dir}: {error.strerror or error}",
            hint="free space there, or name another place with `data.cache_dir`; what was done is kept",
        ) from error


@contextmanager
def _locked(path: Path, on_event: OnEvent) -> Iterator[None]:
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
                    on_event(EventKind.WARNING, {"message": "another process prepares the same data: waiting for it"})
                    said = True
                time.sleep(LOCK_POLL_S)
        yield


def _report(manifest: DataManifest, cached: bool, seconds: float, on_event: OnEvent) -> None:
    for source in manifest.sources:
        if source.documents == 0:
            on_event(EventKind.WARNING, {"message": f"there is no text in {source.name}"})
        for item in source.skipped:
            on_event(EventKind.DATA_SKIPPED, {"source": source.name, **asdict(item)})
    on_event(
        EventKind.DATA_READY,
        {
            "fingerprint": manifest.fingerprint,
            "cached": cached,
            "documents": manifest.documents,
            "bad_records": manifest.bad_records,
            "tokens": manifest.train_tokens + manifest.validation_tokens,
            "train_samples": manifest.train_samples,
            "validation_samples": manifest.validation_samples,
            "seconds": round(seconds, 3),
        },
    )
