"""Writing down what a run is trained with, right before it is."""

import shutil
from dataclasses import replace
from pathlib import Path

from orchestrator.data.data_manifest import TOKENIZER_DIRECTORY
from orchestrator.data.prepare import PreparedData
from orchestrator.data.samples.integrity import file_states
from orchestrator.data.sources.contents import write_contents
from orchestrator.data.tokens.tokenizer import tokenizer_digest
from orchestrator.domain.errors import UsageError
from orchestrator.domain.fingerprints import TokenizerPrint
from orchestrator.domain.run_layout import RunLayout
from orchestrator.spec.job import JobSpec
from orchestrator.store.current_inputs import code_now, data_identity, model_commit, model_now, settings_now
from orchestrator.store.fingerprint_file import FingerprintEntry, PreparedPrint, write_history
from orchestrator.store.resume_check import Resumption
from orchestrator.store.run_history import read_steps


def record(
    layout: RunLayout,
    spec: JobSpec,
    job_dir: Path,
    data: PreparedData,
    resumption: Resumption | None,
    from_step: int,
    now_s: float,
) -> None:
    """Write the run's tokenizer, `contents.jsonl` and `fingerprints.json`. `spec`: as the user has it; `resumption`:
    None for a new run; `from_step`: the step after which training continues.

    Accepted changes make a new entry; without any, only the place of the prepared data is updated. Raises OSError, and
    DataError if the model's files cannot be read.
    """
    history = resumption.history if resumption is not None else ()
    directory = data.directory.absolute()
    digest = tokenizer_digest(directory / TOKENIZER_DIRECTORY) or ""
    prepared = PreparedPrint(
        str(directory),
        data.manifest.fingerprint,
        data_identity(data.manifest, data.tokens_digest),
        data.tokens_digest,
        file_states(directory),
    )
    if tokenizer_digest(layout.tokenizer) != digest:
        _copy(directory / TOKENIZER_DIRECTORY, layout.tokenizer)
    write_contents(layout.contents, data.contents)
    if history and resumption is not None and not resumption.changes:
        write_history(layout, (*history[:-1], replace(history[-1], data=prepared)))
        return
    last = history[-1] if history else None
    vocab_size = data.manifest.vocab_size
    model = model_now(spec, job_dir, vocab_size, last.model.files if last is not None else ())
    settings = settings_now(spec, job_dir)
    same_model = last is not None and all(
        last.settings.get(key) == settings.get(key) for key in ("model.pretrained", "model.revision")
    )
    commit = last.model.revision if last is not None and same_model else model_commit(spec, job_dir)
    entry = FingerprintEntry(
        now_s,
        from_step if last is not None else 0,
        sum(1 for _ in read_steps(layout.steps)) if last is not None else 0,
        tuple(change.to_json() for change in resumption.changes) if resumption is not None else (),
        last is not None or resumption is None or not resumption.trained,
        prepared,
        settings,
        TokenizerPrint(digest, vocab_size),
        replace(model, revision=commit),
        code_now(),
    )
    write_history(layout, (*history, entry))


def require_same(data: PreparedData, last: PreparedPrint, accepted: bool) -> None:
    """Raises UsageError if data that was prepared again, from text that has not changed, is not what it was, unless
    changes are `accepted`: another version of a library may tokenise in another way."""
    if not accepted and data_identity(data.manifest, data.tokens_digest) != last.identity:
        raise UsageError(
            f"the run's data had to be prepared again, and the result differs: {data.manifest.fingerprint} is not "
            f"{last.fingerprint}",
            hint="restore the cache of prepared data, or start a new run",
        )


def _copy(source: Path, target: Path) -> None:
    """Replace a directory. A kill in between leaves none, and the run's tokenizer is then read from its data."""
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(source, temporary)
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)
