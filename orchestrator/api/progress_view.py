"""The read model of a run as messages. Pure."""

from collections.abc import Mapping, Sequence
from math import isfinite

from orchestrator.domain.events import RecoveryFinished
from orchestrator.run_facts.curve import CurvePoint
from orchestrator.run_facts.live_run import LiveFacts
from orchestrator.run_facts.step_point import PHASES
from orchestrator.wire.record_messages import CurveSample, CurvesView, PhaseShare, ProgressView

SHOWN_INCIDENTS = 5


def progress_view(run_id: str, facts: LiveFacts) -> ProgressView:
    """What is known of a run now."""
    record, pace, events = facts.record, facts.pace, facts.events
    phases = [
        PhaseShare(phase=phase, share=share) for phase, share in zip(PHASES, pace.phase_shares, strict=True)
    ] if pace is not None else []  # fmt: skip
    return ProgressView(
        run=run_id,
        status=record.status,
        step=record.step,
        total_steps=record.total_steps,
        loss=_number(record.loss),
        validation_loss=_number(record.validation_loss),
        tokens_per_s=_number(record.progress.tokens_per_s),
        step_time_s=_number(pace.step_time_s) if pace is not None else None,
        eta_s=_number(facts.eta_s),
        workers=record.progress.workers,
        updated_s=record.updated_s,
        phases=phases,
        recoveries=events.totals.recoveries,
        incidents=[_incident(each) for each in list(events.recoveries)[-SHOWN_INCIDENTS:]],
        summary=list(events.warnings)[-SHOWN_INCIDENTS:],
    )


def curve_view(run_id: str, curves: Mapping[str, Sequence[CurvePoint]]) -> CurvesView:
    """Curves as they are sent."""
    samples = {
        name: [CurveSample(step=each.last_step, mean=each.mean, low=each.low, high=each.high) for each in points]
        for name, points in curves.items()
    }
    steps = [(points[0].first_step, points[-1].last_step) for points in curves.values() if points]
    return CurvesView(
        run=run_id,
        first_step=min((first for first, _ in steps), default=None),
        last_step=max((last for _, last in steps), default=None),
        curves=samples,
    )


def _incident(recovery: RecoveryFinished) -> str:
    steps = recovery.steps_recomputed
    recomputed = f"{steps} step{'' if steps == 1 else 's'} recomputed"
    return (
        f"incident {recovery.incident}: recovered in {recovery.seconds:.1f} s at step {recovery.step}, {recomputed}, "
        f"{recovery.world_size} worker{'' if recovery.world_size == 1 else 's'}"
    )


def _number(value: float | None) -> float | None:
    return value if value is not None and isfinite(value) else None
