"""The proof of what a run consumed, from its directory."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from orchestrator.atomic_files import read_json
from orchestrator.data.prepare import cache_directory
from orchestrator.data.samples.data_verify import DataPart, Mismatch, Proof, verify_parts, verify_run
from orchestrator.data.samples.dataset import TokenDataset
from orchestrator.domain.errors import DataError, UsageError
from orchestrator.domain.events import RunState
from orchestrator.json_values import JsonFields, integer, text
from orchestrator.spec.loading.load import load_job
from orchestrator.store.fingerprint_file import FingerprintEntry, find_prepared, prepared_place, read_history
from orchestrator.store.run_history import read_steps
from orchestrator.store.run_store import RunRecord
from orchestrator.store.skip_file import read_skips


def prove(record: RunRecord) -> Proof:
    """Replay what the run recorded, each part against the data that it had. Raises UsageError or DataError if it
    has not what a proof needs."""
    layout = record.layout
    facts = read_json(layout.data)
    if not facts or not isinstance(facts.get("directory"), str):
        raise UsageError(f"run {record.id} has no record of its data ({layout.data})", hint="it ended before training")
    spec = load_job(layout.spec).spec
    history, skips = read_history(layout), read_skips(layout)
    cache_dir = cache_directory(spec, layout.root.parent)
    # The spec may have been edited since; a run's batch never changes.
    batch = integer(history[0].settings, "train.global_batch") if history else spec.train.global_batch
    parts = _parts(history, cache_dir)
    if len(parts) > 1:
        proof = verify_parts(read_steps(layout.steps), parts, batch, skips)
    else:
        proof = _whole(record, facts, cache_dir, batch)
    if proof.ok and record.state is RunState.SUCCEEDED and record.total_steps not in (None, proof.steps):
        what = f"the run finished {record.total_steps} steps, {proof.steps} are recorded"
        return replace(proof, ok=False, mismatch=Mismatch(proof.steps, what))
    return proof


def _whole(record: RunRecord, facts: JsonFields, cache_dir: Path, batch: int) -> Proof:
    """Of a run that had the same data from beginning to end."""
    place, layout, recorded = Path(text(facts, "directory")), record.layout, facts.get("fingerprint")
    directory = prepared_place(place, str(recorded), cache_dir) or place
    dataset = TokenDataset.open(directory)
    proof = verify_run(read_steps(layout.steps), dataset, batch, read_skips(layout))
    if recorded not in (None, dataset.manifest.fingerprint):
        what = f"the run used data {recorded}, {directory} holds {dataset.manifest.fingerprint}"
        return replace(proof, ok=False, mismatch=Mismatch(0, what))
    return proof


def _parts(history: Sequence[FingerprintEntry], cache_dir: Path) -> list[DataPart]:
    """The data of each part: an entry with the same samples in the same order as the one before begins none."""
    parts: list[DataPart] = []
    for before, entry in zip((None, *history), history, strict=False):
        if before is None or before.data.identity != entry.data.identity:
            parts.append(_part(entry, cache_dir))
    return parts


def _part(entry: FingerprintEntry, cache_dir: Path) -> DataPart:
    fingerprint = entry.data.fingerprint
    directory = find_prepared(entry.data, cache_dir)
    if directory is None:
        return DataPart(entry.first_record, fingerprint, None, f"their data {entry.data.directory} is gone")
    try:
        dataset = TokenDataset.open(directory)
    except DataError as error:
        return DataPart(entry.first_record, fingerprint, None, error.message)
    if dataset.manifest.fingerprint != fingerprint:
        return DataPart(entry.first_record, fingerprint, None, f"{directory} holds other data")
    return DataPart(entry.first_record, fingerprint, dataset)
