"""The export at the end of a run: from its last checkpoint into `export/`, which is whole or not there."""

import contextlib
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

from orchestrator.checkpoint.format.exported import export_problem
from orchestrator.domain.errors import CheckpointError, ConvoyError
from orchestrator.domain.events import ModelExported, SampleGenerated, WarningIssued
from orchestrator.domain.run_layout import RunLayout
from orchestrator.domain.session import Session, TrainPlan
from orchestrator.spec.job import JobSpec
from orchestrator.train.convert.export import check_destination, export_model
from orchestrator.train.convert.generate import generate
from orchestrator.train.snapshot.checkpointing import at_hand

SAMPLE_MEMORY_RATIO = 1.5
"""Host memory for a sample, in sizes of the exported weights: the model, one file of weights, activations."""


def export_run(session: Session, plan: TrainPlan, spec: JobSpec, checkpoint: str | None, step: int) -> None:
    """Hugging Face files of `step` from its checkpoint, and a sample of what was learned. For rank 0 alone, on the CPU.

    It is put together beside `export/` and replaces it when it is complete. Raises CheckpointError when there is no
    such checkpoint, it is damaged or of another step, and what `export_model` raises. Once the export is in its place
    nothing is raised any more: a sample that cannot be made is a warning.
    """
    if checkpoint is None:
        raise CheckpointError(f"there is no checkpoint of step {step} to export the model from")
    layout = RunLayout(Path(plan.run_dir))
    with _workplace(layout, session.shares_files) as place:
        model = place / "model"
        source, data_dir = at_hand(session, checkpoint), session.fetch(plan.data_dir)
        exported = export_model(source, spec, data_dir, model, tick=session.progress)
        problem = export_problem(model, step)
        if problem is not None:
            raise CheckpointError(f"checkpoint {checkpoint} cannot give the export of the last step: {problem}")
        finished = model
        if not session.shares_files:
            finished = layout.export_in_work(secrets.token_hex(4))
            for file in sorted(path for path in model.rglob("*") if path.is_file()):
                session.store(file, str(finished / file.relative_to(model)))
        session.move_into_place(str(finished), str(layout.export))
        size_bytes = exported.size_bytes
        session.report_event(ModelExported(str(layout.export), size_bytes, exported.parameters, exported.seconds))
        _sample(session, spec, layout.export if session.shares_files else model, size_bytes)


def _sample(session: Session, spec: JobSpec, model: Path, size_bytes: int) -> None:
    """Text of the finished model, if the spec asks for it. `size_bytes`: of its weights."""
    generation = spec.generate
    if not generation.prompt:
        return
    needed_bytes, free_bytes = int(size_bytes * SAMPLE_MEMORY_RATIO), int(psutil.virtual_memory().available)
    if needed_bytes > free_bytes:
        _no_sample(session, f"it takes {needed_bytes >> 20} MiB of host memory, {free_bytes >> 20} MiB are free")
        return
    try:
        text = generate(model, generation.prompt, generation.max_new_tokens, generation.temperature, spec.train.seed)
    except ConvoyError as error:
        _no_sample(session, error.message)
    except Exception as error:  # noqa: BLE001  # the run is complete, whatever a library raises now
        _no_sample(session, f"{type(error).__name__}: {error}")
    else:
        session.report_event(SampleGenerated(generation.prompt, text))


def _no_sample(session: Session, why: str) -> None:
    session.report_event(WarningIssued(f"no sample could be generated: {why}"))


@contextlib.contextmanager
def _workplace(layout: RunLayout, shared: bool) -> Iterator[Path]:
    """A directory to write into: beside `export/` when the driver's files are ours, else on this host."""
    if not shared:
        with tempfile.TemporaryDirectory(prefix="convoy-export-") as scratch:
            yield Path(scratch)
        return
    check_destination(layout.export, force=True)
    place = layout.export_in_work(secrets.token_hex(4))
    place.mkdir(parents=True)
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)
