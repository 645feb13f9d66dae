"""`Executor` of the data package over Ray tasks."""

import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import ray

from orchestrator.clusters.ray.handles import ObjectRef
from orchestrator.clusters.ray.processes import die_with_parent
from orchestrator.data.executor import StoppedError
from orchestrator.domain.devices.device import device_environment
from orchestrator.domain.errors import DataError

T = TypeVar("T")
R = TypeVar("R")


class RayExecutor:
    """Tasks spread over the nodes, in order, a bounded number at a time.

    They request no CPUs: the gang's reservations may hold all of them already. The number of outstanding tasks bounds
    them. Workers read nothing from disk: items carry text, results carry arrays.
    """

    def __init__(self, parallel: int, stopped: Callable[[], bool]) -> None:
        """`parallel`: tasks at a time, one process each."""
        if parallel < 1:
            raise ValueError(f"parallel must be positive: {parallel}")
        self._parallel = parallel
        self._stopped = stopped

    def map(self, fn: Callable[[T], R], items: Iterable[T], in_flight: int | None = None) -> Iterator[R]:
        """See `data.executor.Executor.map`. Raises DataError if a task's process dies repeatedly, and
        `StoppedError` if the run is being stopped."""
        limit = min(in_flight or self._parallel, self._parallel) if self._parallel else 1
        shared = [ray.put(fn)]  # in a list: otherwise Ray would fetch it again for every task
        task = ray.remote(num_cpus=0, max_retries=3, scheduling_strategy="SPREAD")(_apply)
        pending: deque[ObjectRef] = deque()
        try:
            for item in items:
                pending.append(task.remote(shared, item))
                if len(pending) >= limit:
                    yield self._result(fn, pending)
            while pending:
                yield self._result(fn, pending)
        finally:
            for ref in pending:
                with contextlib.suppress(ray.exceptions.RayError, TypeError):
                    ray.cancel(ref, force=True)

    def _result(self, fn: Callable[[T], R], pending: deque[ObjectRef]) -> R:
        """The next result of `fn`, which is named for its type alone."""
        ref = pending[0]
        while not ray.wait([ref], timeout=0.2)[0]:
            if self._stopped():
                raise StoppedError("stopped while data was being prepared")
        if self._stopped():
            raise StoppedError("stopped while data was being prepared")
        pending.popleft()
        try:
            result: R = ray.get(ref)
            return result
        except ray.exceptions.RayTaskError as error:
            cause = error.cause
            raise (cause if isinstance(cause, Exception) else error) from None
        except ray.exceptions.RayError as error:
            raise DataError(
                f"a process that prepares data died: {str(error).splitlines()[0]}",
                hint="it may have run out of memory; finished work is kept and reused",
            ) from error


class _Held:
    """The function that a task process applied last, so that a tokenizer is not unpacked for every item."""

    key: str = ""
    fn: Callable[[object], object] | None = None


def _apply(shared: list[ObjectRef], item: object) -> object:
    die_with_parent()
    os.environ.update(device_environment(0))  # the process may serve a worker later, which sets its own
    key = shared[0].hex()
    if _Held.key != key or _Held.fn is None:
        _Held.fn, _Held.key = ray.get(shared[0]), key
    return _Held.fn(item)
