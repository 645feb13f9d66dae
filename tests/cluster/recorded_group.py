"""A `WorkerGroup` that records which methods the run controller calls, and what comes back, in short."""

from collections.abc import Callable, Sequence
from typing import Any

from orchestrator.domain.generation import GenerationOutcome, Shortage
from orchestrator.domain.session import TrainPlan

PROPERTIES = ("memory_kept_s", "workers_by_node", "reserves_memory")


class RecordedGroup:
    """Passes everything on to another group."""

    def __init__(self, group: Any) -> None:
        self._group = group
        self.calls: list[tuple[str, object]] = []

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._group, name)
        if name in PROPERTIES:
            self.calls.append((name, type(found).__name__))
            return found

        def call(*arguments: Any) -> Any:
            result = found(*arguments)
            self.calls.append((name, summary(name, arguments, result)))
            return result

        return call

    def reform(self, waits: Callable[[Shortage | None], None]) -> int | None:
        said: list[object] = []

        def recorded(shortage: Shortage | None) -> None:
            said.append(shortage is None)
            waits(shortage)

        size = self._group.reform(recorded)
        self.calls.append(("reform", (size, *said)))
        return size  # type: ignore[no-any-return]


def summary(name: str, arguments: Sequence[Any], result: object) -> object:
    """What two groups that do the same have in common."""
    if isinstance(result, GenerationOutcome):
        plan: TrainPlan = arguments[1]
        failure = result.failure
        ended = (failure.rank, failure.ending, failure.details.cause) if failure is not None else None
        facts = (
            result.stopped,
            result.regroup,
            result.step,
            len(result.results),
            all(r.finished for r in result.results),
        )
        return (len(plan.shares), plan.peer_state is None, plan.resume_from is None, ended, facts)
    if isinstance(result, int):
        return result if name == "start_workers" else "int"
    if isinstance(result, tuple):
        return tuple(type(each).__name__ for each in result)
    if isinstance(result, list):
        return len(result)
    return "executor" if name == "executor" else type(result).__name__
