"""How far a run has come, read from the ends of its files."""

from dataclasses import dataclass
from math import isfinite

from orchestrator.atomic_files import read_json
from orchestrator.domain.events import EvalFinished, TrainingPlanned
from orchestrator.domain.lease import token_in
from orchestrator.domain.run_layout import RunLayout
from orchestrator.metrics.jsonl import last_object
from orchestrator.store.run_history import read_events


@dataclass(frozen=True)
class RecordedProgress:
    """The newest figures of a run."""

    step: int = 0
    total_steps: int | None = None
    """Known once the plan is."""
    loss: float | None = None
    """Training loss of the last step, nats."""
    validation_loss: float | None = None
    tokens_per_s: float | None = None
    workers: int | None = None
    """That took part in it."""
    time_s: float | None = None
    """Unix time of the last step."""


def read_progress(layout: RunLayout) -> RecordedProgress:
    """Read the last step and the newest plan and evaluation; what is not there yet is None."""
    total_steps: int | None = None
    validation_loss: float | None = None
    for event in read_events(layout.events):
        match event.body:
            case TrainingPlanned() as plan:
                total_steps = plan.total_steps
            case EvalFinished() as evaluation:
                validation_loss = evaluation.loss if isfinite(evaluation.loss) else None
    last = last_object(layout.steps, token_in(read_json(layout.state) or {})) or {}
    return RecordedProgress(
        step=_integer(last.get("step")) or 0,
        total_steps=total_steps,
        loss=_float(last.get("loss")),
        validation_loss=validation_loss,
        tokens_per_s=_float(last.get("tokens_per_s")),
        workers=_integer(last.get("world_size")),
        time_s=_float(last.get("time_s")),
    )


def _integer(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _float(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
