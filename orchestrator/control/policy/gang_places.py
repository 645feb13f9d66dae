"""On which nodes the workers of a gang go. Nodes are rows of the profile."""

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


def part_of(places: RowPlaces, placement: str, workers: int, safe: RowPlaces) -> RowPlaces:
    """The places that a gang keeps if it shrinks to `workers`: first those that are `safe`, since they are reserved for
    no other run; of these, whole nodes are kept, except by a spread gang."""
    if sum(places.values()) <= workers:
        return dict(places)
    able = {row: min(count, safe.get(row, 0)) for row, count in places.items()}
    if placement == "spread":
        room = able if sum(able.values()) >= workers else places
        rows = np.array(sorted(room), np.int64)
        counts = np.array([room[int(row)] for row in rows], np.int64)
        return _level(rows, counts, np.zeros_like(counts), workers)
    kept = dict.fromkeys(places, 0)
    left = workers
    for room in (able, places):
        for _, _, row in sorted((-room[row], -places[row], row) for row in places):
            take = min(room[row] - kept[row], left)
            if take > 0:
                kept[row] += take
                left -= take
    return {row: count for row, count in kept.items() if count}
