"""Prepares the samples of a rank in advance: a background thread builds the micro batches of coming steps."""

import contextlib
import queue
import threading
from collections.abc import Iterable
from dataclasses import dataclass

from orchestrator.data.samples.dataset import Samples, TokenDataset
from orchestrator.planner.batch_shape import BatchShape
from orchestrator.train.models.tasks import Batch, Task

# Steps built ahead: one would do for a steady producer, two ride out a slow read.
DEPTH = 2


@dataclass(frozen=True)
class StepBatch:
    """What one rank feeds in one optimizer step."""

    step: int
    first_position: int
    """Position of the step's first sample in the global order, all ranks' samples together."""
    micro_batches: tuple[Batch, ...]
    """`accumulation` of them; the last ones are empty if the rank's share is used up."""
    digest: int
    """Order-free digest of this rank's samples."""

    @property
    def targets(self) -> int:
        return sum(b.targets for b in self.micro_batches)

    @property
    def tokens(self) -> int:
        return sum(b.tokens for b in self.micro_batches)

    @property
    def samples(self) -> int:
        return sum(b.samples for b in self.micro_batches)

    @property
    def positions(self) -> int:
        """Positions that are computed: the real tokens and the padding."""
        return sum(b.labels.numel() for b in self.micro_batches)


def build_step(dataset: TokenDataset, task: Task, shape: BatchShape, rank: int, step: int, position: int) -> StepBatch:
    """The rank's part of the global batch that starts at `position`."""
    share = shape.shares[rank]
    samples = dataset.train(position + shape.first(rank), share)
    micro = shape.micro_batch
    batches = []
    for index in range(shape.accumulation):
        first, last = index * micro, min((index + 1) * micro, share)
        batches.append(task.batch(rows(samples, first, last)) if first < last else task.empty())
    return StepBatch(step, position, tuple(batches), samples.digest())


def rows(samples: Samples, first: int, last: int) -> Samples:
    """Samples [first, last) of some samples; views, nothing is copied."""
    return Samples(
        ids=samples.ids[first:last],
        epochs=samples.epochs[first:last],
        tokens=samples.tokens[first:last],
        lengths=samples.lengths[first:last],
    )


class Feed:
    """The batches of the coming steps, made in a daemon thread.

    An error of the thread is raised by `take` in the training thread. `close` ends the thread.
    """

    def __init__(
        self,
        dataset: TokenDataset,
        task: Task,
        shape: BatchShape,
        rank: int,
        begins: Iterable[tuple[int, int]],
        pin: bool,
    ) -> None:
        """`begins`: the optimizer steps to build, counted from 1, each with the position of its first sample."""
        self._dataset, self._task, self._shape, self._rank = dataset, task, shape, rank
        self._begins, self._pin = begins, pin
        self._queue: queue.Queue[StepBatch | BaseException] = queue.Queue(maxsize=DEPTH)
        self._closed = threading.Event()
        self._next: StepBatch | BaseException | None = None
        self._thread = threading.Thread(target=self._produce, name="convoy-feed", daemon=True)
        self._thread.start()

    def take(self) -> StepBatch:
        """The next step's batch; waits for it."""
        item, self._next = self._next if self._next is not None else self._queue.get(), None
        if isinstance(item, BaseException):
            raise item
        return item

    def targets_ahead(self) -> int | None:
        """Targets of the batch that `take` gives next; None: it is not ready, or there is none. Does not wait."""
        if self._next is None:
            with contextlib.suppress(queue.Empty):
                self._next = self._queue.get_nowait()
        return self._next.targets if isinstance(self._next, StepBatch) else None

    def close(self) -> None:
        """Stop building and wait for the thread. May be called twice."""
        self._closed.set()
        self._thread.join()

    def _produce(self) -> None:
        try:
            for step, position in self._begins:
                built = build_step(self._dataset, self._task, self._shape, self._rank, step, position)
                if self._pin:
                    pinned = tuple(b.pinned() for b in built.micro_batches)
                    built = StepBatch(step, position, pinned, built.digest)
                if not self._put(built):
                    return
        except BaseException as error:  # noqa: BLE001 - raised again in the training thread
            self._put(error)

    def _put(self, item: StepBatch | BaseException) -> bool:
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False
