"""Seconds that a GPU's streams spend in collectives, of sampled steps: pairs of CUDA events around each collective.

A collective that its caller waits for counts from its launch until the stream may go on. One that runs in the
background (`async_op`) counts from the moment a stream has to wait for it, so what overlaps computation is left out; on
a stream of its own (`overlap_comm`) it counts in full.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Protocol, Self

from torch.distributed import ProcessGroup, Work

SAMPLE_STEPS = 20
"""The collectives of one in so many steps are measured. A pair of events costs the host a few microseconds."""
MAX_SPANS = 4096
"""Collectives of one step. A step with more is not sampled: a part of it would pass for all of it."""

LAUNCHES = (
    "allreduce", "allreduce_coalesced", "broadcast", "reduce",
    "allgather", "allgather_coalesced", "allgather_into_tensor_coalesced", "_allgather_base", "all_gather_single",
    "all_gather_single_coalesced", "reduce_scatter", "reduce_scatter_tensor_coalesced", "_reduce_scatter_base",
    "reduce_scatter_single", "reduce_scatter_single_coalesced", "alltoall", "alltoall_base", "all_to_all_single",
)  # fmt: skip
"""Methods of `ProcessGroup` that begin a collective, under the names of several versions of torch."""


class DeviceMark(Protocol):
    """A point in the work of a stream: `torch.cuda.Event(enable_timing=True)`."""

    def record(self) -> None:
        """In the calling thread's current stream, which need not have reached it."""

    def elapsed_time(self, end: Self, /) -> float:
        """Milliseconds. Raises RuntimeError if the device has not reached one of the two."""


class CollectiveLaunch(Protocol):
    """A method of `ProcessGroup` that begins a collective."""

    def __call__(self, *args: object) -> Work | None: ...


class WorkWait(Protocol):
    """`Work.wait`."""

    def __call__(self, work: Work, /, timeout: timedelta = ...) -> bool: ...


class CollectiveSampler:
    """Measures the collectives between `begin` and `seconds` of a sampled step; of any thread, since autograd runs
    backward hooks in its own."""

    def __init__(self, mark: Callable[[], DeviceMark], interval_steps: int = SAMPLE_STEPS) -> None:
        self._mark, self._interval_steps = mark, interval_steps
        self._spans: list[tuple[str, DeviceMark, DeviceMark]] = []
        self._launched: dict[Work, DeviceMark] = {}
        self._sampled = False
        self._full = False
        self.phase = ""
        """What the collectives that begin now belong to."""

    def begin(self, step: int) -> None:
        """The next optimizer step begins."""
        self._sampled, self._full = step % self._interval_steps == 0, False
        self._spans, self._launched = [], {}

    def seconds(self) -> dict[str, float] | None:
        """By phase, when the device has done the step, once; None if the step was not sampled, had no collectives, or
        cannot be read."""
        spans, self._spans = self._spans, []
        sampled, self._sampled = self._sampled and not self._full, False
        if not sampled or not spans:
            return None
        result: dict[str, float] = {}
        try:
            for phase, begin, end in spans:
                result[phase] = result.get(phase, 0.0) + begin.elapsed_time(end) / 1000.0
        except RuntimeError:  # the device still runs one that nobody has waited for
            return None
        return result

    @contextmanager
    def running(self) -> Iterator[None]:
        """Context in which collectives are seen."""
        before: dict[str, CollectiveLaunch] = {
            name: getattr(ProcessGroup, name) for name in LAUNCHES if hasattr(ProcessGroup, name)
        }
        wait = Work.wait

        def waited(work: Work, *args: timedelta) -> bool:
            return self._wait(wait, work, args)

        for name, launch in before.items():
            setattr(ProcessGroup, name, self._launching(launch))
        Work.wait = waited  # type: ignore[method-assign,assignment]
        try:
            yield
        finally:
            Work.wait = wait  # type: ignore[method-assign]
            for name, launch in before.items():
                setattr(ProcessGroup, name, launch)

    def _launching(self, launch: CollectiveLaunch) -> CollectiveLaunch:
        """`launch`, with a mark before it if its caller waits for it."""

        def launched(*args: object) -> Work | None:
            options = next((each for each in args if hasattr(each, "asyncOp")), None)
            if not self._sampled or getattr(options, "asyncOp", True):
                return launch(*args)
            begin = self._mark()
            begin.record()
            work = launch(*args)
            if work is not None:
                self._launched[work] = begin
            return work

        return launched

    def _wait(self, wait: WorkWait, work: Work, args: tuple[timedelta, ...]) -> bool:
        """`wait`, between two marks of the stream that waits."""
        if not self._sampled:
            return wait(work, *args)
        begin = self._launched.pop(work, None)
        if begin is None:
            begin = self._mark()
            begin.record()
        phase, end = self.phase, self._mark()
        result = wait(work, *args)
        end.record()
        if len(self._spans) < MAX_SPANS:
            self._spans.append((phase, begin, end))
        else:
            self._full = True
        return result
