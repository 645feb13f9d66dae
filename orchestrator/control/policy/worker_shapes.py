"""Shapes of workers: equal bundles with equal placement, as vectors over the resources that somebody asks for."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestrator.clusters.placement import EPSILON, NodeCapacity, Resources
from orchestrator.control.policy.queue_facts import ScheduledRun

Amounts = NDArray[np.float64]
"""The first axis is the resource."""
WorkerCounts = NDArray[np.int64]


def workers_that_fit(free: Amounts, bundle: Amounts) -> WorkerCounts:
    """Workers of `bundle` [resources] in each cell of `free` [resources, ...]. Zero if nothing is asked for."""
    asked = np.flatnonzero(bundle > 0)
    if not len(asked):
        return np.zeros(free.shape[1:], np.int64)
    fit = free[asked[0]] / bundle[asked[0]]
    for resource in asked[1:]:
        fit = np.minimum(fit, free[resource] / bundle[resource])
    counts: WorkerCounts = np.maximum(np.floor(fit + EPSILON), 0.0).astype(np.int64)
    return counts


def fit_of(counts: WorkerCounts, placement: str) -> int:
    """How many workers a placement gets out of the counts by node."""
    if not len(counts):
        return 0
    if placement == "strict_spread":
        return int((counts > 0).sum())
    return int(counts.max() if placement == "strict_pack" else counts.sum())


@dataclass(frozen=True, eq=False)
class WorkerShape:
    """One kind of worker."""

    number: int
    """Of the bundle; shapes that differ in placement only share it."""
    placement: str
    bundle: Amounts
    """[resources]"""
    share: float
    """Of the cluster's resource that one worker uses most of (dominant share: Ghodsi et al., "Dominant Resource
    Fairness", NSDI 2011, section 4)."""
    ever: int
    """Workers that fit if nothing else ran."""


class ShapeTable:
    """The shapes of all runs, and the nodes as arrays."""

    def __init__(self, nodes: tuple[NodeCapacity, ...], runs: Iterable[ScheduledRun]) -> None:
        keys: dict[tuple[tuple[tuple[str, float], ...], str], int] = {}
        numbers = []
        for run in runs:
            ask = run.ask
            numbers.append(keys.setdefault((tuple(ask.bundle.items()), ask.placement), len(keys)))
        self.names = sorted({name for bundle, _ in keys for name, amount in bundle if amount > 0})
        self.total = self._by_node([node.total for node in nodes])
        self.free = self._by_node([node.free for node in nodes])
        bundles: dict[tuple[float, ...], int] = {}
        shapes = []
        for items, placement in keys:
            vector = self.vector(dict(items))
            number = bundles.setdefault(tuple(vector.tolist()), len(bundles))
            shapes.append(self._shape(number, placement, vector))
        self.of_runs = [shapes[number] for number in numbers]
        """In the order of the runs."""

    def vector(self, resources: Resources, absent: float = 0.0) -> Amounts:
        """[resources]"""
        return np.array([resources.get(name, absent) for name in self.names], np.float64)

    def amounts(self, vector: Amounts) -> Mapping[str, float]:
        """The opposite of `vector`, without zeros."""
        return {name: float(amount) for name, amount in zip(self.names, vector, strict=True) if amount > EPSILON}

    def _by_node(self, amounts: list[Resources]) -> Amounts:
        rows = [[each.get(name, 0.0) for each in amounts] for name in self.names]
        return np.array(rows, np.float64).reshape(len(self.names), len(amounts))

    def _shape(self, number: int, placement: str, bundle: Amounts) -> WorkerShape:
        whole = self.total.sum(axis=1)
        shares = np.divide(bundle, whole, out=np.zeros_like(bundle), where=whole > 0)
        counts = workers_that_fit(self.total, bundle)
        share = float(shares.max()) if len(shares) else 0.0
        return WorkerShape(number, placement, bundle, share, fit_of(counts, placement))
