"""The end of a run: its final state, the reason and the exit code. Reads the export; changes nothing."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from orchestrator.checkpoint.format.exported import export_problem
from orchestrator.domain.events import RunState
from orchestrator.domain.generation import GenerationOutcome
from orchestrator.domain.policy.failure_budget import Verdict
from orchestrator.domain.run_layout import RunLayout
from orchestrator.domain.session import TrainResult

INTERRUPTED = 130
"""Exit code of a run that was stopped."""


@dataclass(frozen=True)
class Ended:
    """How a run ended."""

    state: RunState
    reason: str | None
    exit_code: int


def with_hint(reason: str, hint: str | None) -> str:
    """The reason of a final state, as `run.json` has it and `convoy show` prints it."""
    return f"{reason}\nhint: {hint}" if hint else reason


def stopped() -> Ended:
    """It was stopped on request."""
    return Ended(RunState.STOPPED, "stopped on request", INTERRUPTED)


def after_last_step(layout: RunLayout, outcome: GenerationOutcome, exports: bool) -> Ended:
    """The end of a run whose last generation ended like this. `exports`: the run owes an export."""
    failure = outcome.failure
    if failure is not None:
        reason = f"worker of rank {failure.rank} failed: {failure.message}"
        return Ended(RunState.FAILED, with_hint(reason, failure.hint), 1)
    if outcome.stopped or not all(result.finished for result in outcome.results):
        return stopped()
    problem = _missing(layout, outcome.results, exports)
    if problem is not None:
        return Ended(RunState.FAILED, with_hint(problem, f"convoy run --resume {layout.run_id}"), 1)
    return Ended(RunState.SUCCEEDED, None, 0)


def gave_up(ended: Ended, verdict: Verdict) -> Ended:
    """The end of a run that does not recover from a failure that ends it like `ended`."""
    if verdict.reason is None:
        return ended
    return replace(ended, reason=with_hint(f"{verdict.reason}; the last: {ended.reason}", verdict.hint))


def _missing(layout: RunLayout, results: Sequence[TrainResult], exports: bool) -> str | None:
    """What a run that has made all its steps still owes; None if nothing."""
    step = max((result.step for result in results), default=0)
    unsaved = next((result.unsaved for result in results if result.unsaved is not None), None)
    if unsaved is not None:
        return f"all steps are done, but the state of the last one, {step}, could not be saved: {unsaved}"
    problem = export_problem(layout.export, step) if exports else None
    return f"all steps are done, but the model is not exported: {problem}" if problem is not None else None
