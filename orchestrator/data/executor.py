"""Who runs the tokenising: an `Executor` maps a function over items elsewhere, in order, a bounded number at a time."""

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import Protocol, Self, TypeVar, cast

from orchestrator.domain.devices.device import device_environment
from orchestrator.domain.errors import DataError

T = TypeVar("T")
R = TypeVar("R")


class StoppedError(Exception):
    """The run was stopped while an executor worked; raised out of `map`."""


class Executor(Protocol):
    """Ordered results, at most `in_flight` items outstanding, so memory is bounded however many items there are.

    `fn` is picklable and may be large (it carries the tokenizer): an implementation ships it once, not per item.
    """

    def map(self, fn: Callable[[T], R], items: Iterable[T], in_flight: int | None = None) -> Iterator[R]:
        """Yield `fn(item)` in the order of `items`. An exception of `fn` is raised here, at its item's turn."""


class LocalExecutor:
    """Processes of this machine; with `workers=0`, this very process.

    Each `map` has its own pool, which ends with the iterator, whether it is used up, closed or left by an
    exception (Ctrl-C included). Workers also end when this process is killed.
    """

    def __init__(self, workers: int) -> None:
        if workers < 0:
            raise ValueError(f"workers must not be negative: {workers}")
        self.workers = workers

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        """Nothing to release: every pool ended with its `map`."""

    def map(self, fn: Callable[[T], R], items: Iterable[T], in_flight: int | None = None) -> Iterator[R]:
        """See `Executor.map`. Default `in_flight`: two per worker, so that none waits for the reader.

        Raises DataError if a worker process dies (out of memory, killed)."""
        if self.workers == 0:
            yield from map(fn, items)
            return
        limit = in_flight or 2 * self.workers
        pool = ProcessPoolExecutor(
            max_workers=self.workers,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start_worker,
            initargs=(cast("Callable[[object], object]", fn),),
        )
        apply = cast("Callable[[T], R]", _call)  # what a worker process calls is `fn`
        pending: deque[Future[R]] = deque()
        finished = False
        try:
            for item in items:
                pending.append(pool.submit(apply, item))
                if len(pending) >= limit:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
            finished = True
        except BrokenProcessPool as error:
            raise DataError(
                "a process that prepares data died without an error (out of memory, or killed)",
                hint="use fewer workers, or free memory; finished work is kept and reused",
            ) from error
        finally:
            _end(pool, wait_for_tasks=finished)


class _Worker:
    """What a worker process holds: the function it applies, set once when it starts."""

    fn: Callable[[object], object]


def _start_worker(fn: Callable[[object], object]) -> None:
    os.environ.update(device_environment(0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole foreground group; the parent decides
    _Worker.fn = fn
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _call(item: object) -> object:
    return _Worker.fn(item)


def _end(pool: ProcessPoolExecutor, wait_for_tasks: bool) -> None:
    """Shut the pool down; end its processes if the results of running tasks are no longer needed."""
    processes = list((getattr(pool, "_processes", None) or {}).values())
    if not wait_for_tasks:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join(timeout=5)
            if process.is_alive():
                process.kill()
        if processes:
            _await_broken(pool)
    pool.shutdown(wait=True, cancel_futures=True)


def _await_broken(pool: ProcessPoolExecutor) -> None:
    """Wait until the pool has noticed that its processes are gone, 5 s at most. A pool that is shut down before waits
    for ever for its thread that writes large items to a pipe that has no reader any more."""
    deadline_s = time.monotonic() + 5.0
    while time.monotonic() < deadline_s:
        try:
            pool.submit(int).cancel()
        except BrokenProcessPool:
            return
        time.sleep(0.005)
