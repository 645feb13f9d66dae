"""How much work a run has left: what backfill plans with. Pure.

Work is measured in worker-seconds: remaining steps times the seconds of a step times the workers that made it. It is
taken to be the same with more or fewer workers, because the global batch of a step does not change.
"""

from collections.abc import Mapping

from orchestrator.control.ports import DriverFacts
from orchestrator.control.queue_store.run_rows import RunRow


def step_work(facts: DriverFacts) -> float | None:
    """Worker-seconds of a step, as a driver measures it; None if it has not."""
    workers = sum(facts.holding.values())
    return facts.step_time_s * workers if facts.step_time_s and workers else None


def work_left(row: RunRow, facts: DriverFacts | None, shapes: Mapping[str, float]) -> float | None:
    """Worker-seconds until the run's end: by its own steps, else by an earlier run of its shape (`shapes`:
    worker-seconds of a step). None if neither is known, or the number of its steps is not."""
    total = (facts.total_steps if facts is not None else None) or row.total_steps
    each = (step_work(facts) if facts is not None else None) or shapes.get(row.shape)
    if total is None or each is None:
        return None
    step = max(row.step, facts.step if facts is not None else 0)
    return max(0, total - step) * each


def time_left(row: RunRow, active_s: float) -> float | None:
    """Seconds that the run may still be active; None: no limit."""
    return max(0.0, row.limit_s - active_s) if row.limit_s is not None else None
