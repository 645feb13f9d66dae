"""On which nodes the workers of a gang go. Nodes are rows of the profile."""

import math
from collections.abc import Mapping

import numpy as np

from orchestrator.control.policy.worker_shapes import WorkerCounts

RowPlaces = dict[int, int]
"""Workers by row."""


def places_in(counts: WorkerCounts, placement: str, workers: int, cost: WorkerCounts | None = None) -> RowPlaces:
    """Places for `workers`, which have to fit into `counts` [nodes]. Rows of lower `cost` [nodes] come first.

    Whole nodes are kept free for wide runs: what fits on one node goes to the fullest that can hold it (best fit; see
    Johnson et al., "Worst-case performance bounds for simple one-dimensional packing algorithms", 1974), and packed
    gangs take as few nodes as possible. Spread gangs take partly used nodes first.
    """
    rows = np.flatnonzero(counts > 0)
    room = counts[rows]
    price = cost[rows] if cost is not None else np.zeros(len(rows), np.int64)
    if placement == "strict_spread":
        chosen = rows[np.lexsort((rows, room, price))][:workers]
        return {int(row): 1 for row in chosen}
    if placement == "spread":
        return _level(rows, room, price, workers)
    enough = room >= workers
    if placement == "strict_pack" or enough.any():
        at = np.flatnonzero(enough)
        best = at[np.lexsort((rows[at], room[at], price[at]))][0]
        return {int(rows[best]): workers}
    return _pack(rows, room, price, workers)


def _pack(rows: WorkerCounts, room: WorkerCounts, price: WorkerCounts, workers: int) -> RowPlaces:
    """The emptiest nodes, and for the rest the fullest that can hold it."""
    order = np.lexsort((rows, -room, price))
    before = np.cumsum(room[order]) - room[order]
    filled = order[before + room[order] <= workers]
    places = {int(rows[at]): int(room[at]) for at in filled}
    rest = workers - sum(places.values())
    if not rest:
        return places
    others = [at for at in order if int(rows[at]) not in places and room[at] >= rest]
    last = min(others, key=lambda at: (price[at], room[at], rows[at])) if others else None
    if last is not None:
        places[int(rows[last])] = rest
        return places
    for at in order:
        row = int(rows[at])
        if row not in places and rest:
            places[row] = min(int(room[at]), rest)
            rest -= places[row]
    return places


def _level(rows: WorkerCounts, room: WorkerCounts, price: WorkerCounts, workers: int) -> RowPlaces:
    """Evenly: no node gets two more than another that has room."""
    order = np.lexsort((rows, room, price))
    level = 0
    while int(np.minimum(room, level + 1).sum()) < workers:
        level += 1
    taken = np.minimum(room, level)
    rest = workers - int(taken.sum())
    for at in [at for at in order if room[at] > level][:rest]:
        taken[at] += 1
    return {int(rows[at]): int(taken[at]) for at in order if taken[at]}


def part_of(places: RowPlaces, placement: str, workers: int, reserved_s: Mapping[int, float]) -> RowPlaces:
    """The places that a gang keeps if it shrinks to `workers`: those that are reserved for others latest, since what is
    promised to others must come free; of these, whole nodes are kept, except by a spread gang. `reserved_s`: by row."""
    if sum(places.values()) <= workers:
        return dict(places)
    order = sorted(places, key=lambda row: (-reserved_s.get(row, math.inf), -places[row], row))
    if placement == "spread":
        room = np.array([places[row] for row in order], np.int64)
        return _level(np.array(order, np.int64), room, np.arange(len(order)), workers)
    kept: RowPlaces = {}
    left = workers
    for row in order:
        take = min(places[row], left)
        left -= take
        if take:
            kept[row] = take
    return kept
