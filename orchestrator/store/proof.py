"""The proof of what a run consumed, from its directory."""

from dataclasses import replace
from pathlib import Path

from orchestrator.data.dataset import TokenDataset
from orchestrator.data.verify import Mismatch, Proof, verify_run
from orchestrator.domain.errors import UsageError
from orchestrator.domain.events import RunState
from orchestrator.spec.load import load_job
from orchestrator.store.history import read_steps
from orchestrator.store.runs import RunRecord
from orchestrator.store.skips import read_skips
from orchestrator.whole_files import read_json


def prove(record: RunRecord) -> Proof:
    """Replay what the run recorded. Raises UsageError or DataError where it has not what a proof needs."""
    layout = record.layout
    facts = read_json(layout.data)
    if not facts or not isinstance(facts.get("directory"), str):
        raise UsageError(f"run {record.id} has no record of its data ({layout.data})", hint="it ended before training")
    dataset = TokenDataset.open(Path(facts["directory"]))
    batch = load_job(layout.spec).spec.train.global_batch
    proof = verify_run(read_steps(layout.steps), dataset, batch, read_skips(layout))
    recorded = facts.get("fingerprint")
    if recorded not in (None, dataset.manifest.fingerprint):
        what = f"the run used data {recorded}, {facts['directory']} holds {dataset.manifest.fingerprint}"
        return replace(proof, ok=False, mismatch=Mismatch(0, what))
    if proof.ok and record.state is RunState.SUCCEEDED and record.total_steps not in (None, proof.steps):
        what = f"the run finished {record.total_steps} steps, {proof.steps} are recorded"
        return replace(proof, ok=False, mismatch=Mismatch(proof.steps, what))
    return proof
