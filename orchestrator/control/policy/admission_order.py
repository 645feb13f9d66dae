"""In which order waiting runs are considered: entitled ones first, then by priority, fair share and submission."""

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from orchestrator.clusters.placement import EPSILON
from orchestrator.control.policy.queue_facts import QueueShare, ScheduledRun
from orchestrator.control.policy.worker_shapes import Amounts, ShapeTable, WorkerShape

Waiting = tuple[ScheduledRun, WorkerShape]
Shares = NDArray[np.float64]
"""Dominant shares."""


class QuotaLedger:
    """What queues use, and what they are due. Of runs that do not leave, `floor` counts the minimum and `target` what
    they are to have; `booked` is what all may still have; `claimed` is reserved for waiting runs."""

    def __init__(self, table: ShapeTable, queues: Mapping[str, QueueShare]) -> None:
        self._zero = table.vector({})
        self._quotas = {name: table.vector(share.quota) for name, share in queues.items() if share.quota}
        self._named = {name: table.vector(dict.fromkeys(share.quota, 1.0)) > 0 for name, share in queues.items()}
        self._limits = {name: table.vector(share.limit, np.inf) for name, share in queues.items() if share.limit}
        self.floor: dict[str, Amounts] = defaultdict(self._zero.copy)
        self.target: dict[str, Amounts] = defaultdict(self._zero.copy)
        self.booked: dict[str, Amounts] = defaultdict(self._zero.copy)
        self.claimed: dict[str, Amounts] = defaultdict(self._zero.copy)

    @property
    def has_quotas(self) -> bool:
        """Some queue has a quota."""
        return bool(self._quotas)

    def entitles(self, queue: str, used: Amounts, more: Amounts) -> bool:
        """`more` is within the quota of a queue that uses `used`: every resource of it that has a quota, at least
        one."""
        quota = self._quotas.get(queue)
        if quota is None:
            return False
        counts = self._named[queue] & (more > 0)
        return bool(counts.any() and ((used + more)[counts] <= quota[counts] + EPSILON).all())

    def borrows(self, queue: str, used: Amounts) -> bool:
        """A queue that uses so much is above its quota; one without quotas borrows everything."""
        quota = self._quotas.get(queue)
        return quota is None or bool((used > quota + EPSILON)[self._named[queue]].any())

    def room(self, queue: str, used: Amounts, bundle: Amounts) -> int | None:
        """Workers until the limit of a queue that uses so much; None: it has no limit."""
        limit = self._limits.get(queue)
        if limit is None:
            return None
        asked = bundle > 0
        left = (limit - used)[asked] / bundle[asked]
        least = float(left.min()) if len(left) else np.inf
        return None if least == np.inf else max(0, int(np.floor(least + EPSILON)))

    def excess(self, queue: str, used: Amounts) -> Amounts:
        """By how much a queue that uses so much is above its limit: [resources]."""
        limit = self._limits.get(queue)
        return self._zero if limit is None else np.maximum(used - limit, 0.0)

    def limits(self, queue: str) -> bool:
        """A queue has a limit."""
        return queue in self._limits


def admission_order(
    waiting: Sequence[Waiting], holding: Sequence[Waiting], queues: Mapping[str, QueueShare], ledger: QuotaLedger
) -> tuple[list[Waiting], int]:
    """The runs in their order, and how many of them, at its beginning, are within the quotas of their queues.

    Fair share: of equal priority the queue goes first whose use divided by its weight is least, and of a queue the user
    who uses least (progressive filling by dominant shares, Ghodsi et al., NSDI 2011, algorithm 1), if each run that
    starts is added to the use. This is the order of start tags: a run's tag is what its queue or user has before it
    starts, so all runs are sorted at once. Ties go to the run that was submitted first. Elastic runs count with their
    minimum: more is returned when it is needed.
    """
    priorities = np.array([run.priority for run, _ in waiting], np.int64)
    first = np.lexsort((np.array([run.order for run, _ in waiting], np.int64), -priorities)).tolist()
    runs = [waiting[at] for at in first]
    priorities = priorities[first]
    users = [(run.queue, run.user) for run, _ in runs]
    if len(set(users)) <= 1 and not ledger.has_quotas:
        return runs, 0
    by_user: dict[Hashable, float] = defaultdict(float)
    by_queue: dict[Hashable, float] = defaultdict(float)
    for run, shape in holding:
        share = shape.share * run.ask.minimum
        by_user[run.queue, run.user] += share
        by_queue[run.queue] += share
    shares = np.array([shape.share * run.ask.minimum for run, shape in runs])
    second = np.lexsort((_start_tags(users, shares, by_user), -priorities))
    order = second.tolist()
    runs, priorities, names = [runs[at] for at in order], priorities[second], [users[at][0] for at in order]
    weights = {name: max(share.weight, EPSILON) for name, share in queues.items()}
    tags = _start_tags(names, shares[second], by_queue) / np.array([weights.get(name, 1.0) for name in names])
    due = _within_quotas(runs, ledger)
    third = np.lexsort((np.round(tags, 9), -priorities, ~due))
    return [runs[at] for at in third.tolist()], int(due.sum())


def _start_tags(streams: Sequence[Hashable], shares: Shares, used: Mapping[Hashable, float]) -> Shares:
    """What the stream of each run uses before the run starts: itself, and by the runs of the stream before it."""
    numbers: dict[Hashable, int] = {}
    at = np.array([numbers.setdefault(stream, len(numbers)) for stream in streams], np.int64)
    order = np.argsort(at, kind="stable")
    before = np.cumsum(shares[order]) - shares[order]
    starts = np.searchsorted(at[order], np.arange(len(numbers)))
    offsets = np.array([used.get(stream, 0.0) for stream in numbers]) - before[starts]
    tags = np.empty_like(shares)
    tags[order] = before + offsets[at[order]]
    rounded: Shares = np.round(tags, 9)
    return rounded


def _within_quotas(runs: Sequence[Waiting], ledger: QuotaLedger) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Of runs in order of priority. What is left of a quota after a run that exceeds it is not for runs of the queue
    with a lower priority: they would start on the places that others give up for that run, again and again."""
    due = np.zeros(len(runs), np.bool_)
    if not ledger.has_quotas:
        return due
    used = {queue: amounts.copy() for queue, amounts in ledger.floor.items()}
    least: dict[str, int] = {}
    for at, (run, shape) in enumerate(runs):
        more = shape.bundle * run.ask.minimum
        before = used.get(run.queue, np.zeros_like(more))
        if run.priority >= least.get(run.queue, run.priority) and ledger.entitles(run.queue, before, more):
            due[at] = True
            used[run.queue] = before + more
        else:
            least.setdefault(run.queue, run.priority)
    return due
