"""What a vault has taken and sent since it started: counted by it, added up by the driver over all vaults."""

import threading
from bisect import bisect_left
from dataclasses import dataclass

from orchestrator.json_values import JsonFields, JsonObject, integer, integers, number

REPLICATION_BOUNDS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds of the histogram of durations, in seconds."""


@dataclass(frozen=True)
class CopyFigures:
    """The totals of one vault."""

    snapshots: int
    """States that its workers have put into it."""
    snapshot_bytes: int
    replicated_bytes: int
    """That peers have received, once for each peer; on one machine they share the memory instead."""
    replicated_counts: tuple[int, ...]
    """Replications by duration: in each bucket of `REPLICATION_BOUNDS_S`, and last those above all."""
    replicated_s: float
    """Their seconds together."""
    queued_bytes: int
    """States in it now that its peers do not have yet."""

    def to_json(self) -> JsonObject:
        return {**vars(self), "replicated_counts": list(self.replicated_counts)}

    @classmethod
    def from_json(cls, value: JsonFields) -> "CopyFigures":
        """Raises JsonShapeError, ValueError if the buckets are others."""
        counts = integers(value, "replicated_counts")
        if len(counts) != len(REPLICATION_BOUNDS_S) + 1:
            raise ValueError(f"{len(counts)} buckets of durations instead of {len(REPLICATION_BOUNDS_S) + 1}")
        return cls(
            snapshots=integer(value, "snapshots"),
            snapshot_bytes=integer(value, "snapshot_bytes"),
            replicated_bytes=integer(value, "replicated_bytes"),
            replicated_counts=tuple(counts),
            replicated_s=number(value, "replicated_s"),
            queued_bytes=integer(value, "queued_bytes"),
        )


class CopyTotals:
    """Counts. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._snapshots, self._snapshot_bytes, self._replicated_bytes, self._replicated_s = 0, 0, 0, 0.0
        self._counts = [0] * (len(REPLICATION_BOUNDS_S) + 1)

    def snapshot(self, size_bytes: int) -> None:
        """A worker has put a state into the vault."""
        with self._lock:
            self._snapshots += 1
            self._snapshot_bytes += size_bytes

    def replicated(self, size_bytes: int, peers: int, seconds: float) -> None:
        """All peers have a state, `seconds` after it was put here. Without peers there is nothing to count."""
        if not peers:
            return
        with self._lock:
            self._replicated_bytes += size_bytes * peers
            self._replicated_s += seconds
            self._counts[bisect_left(REPLICATION_BOUNDS_S, seconds)] += 1

    def figures(self, queued_bytes: int) -> CopyFigures:
        """All of it now."""
        with self._lock:
            return CopyFigures(
                self._snapshots,
                self._snapshot_bytes,
                self._replicated_bytes,
                tuple(self._counts),
                self._replicated_s,
                queued_bytes,
            )
