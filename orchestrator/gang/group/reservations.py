"""The reservations of a gang's workers, one for each worker: kept while they are needed, else released."""

import time
from collections.abc import Collection, Sequence

from orchestrator.clusters.ray.handles import PlacementGroup
from orchestrator.clusters.ray.placement_groups import node_of, release

FAULTS = 2
"""Errors of its GPU after which a reservation is no longer used."""


class Reservations:
    """All reservations of a run. That of a lost worker is reused; Ray moves it to another node if necessary."""

    def __init__(self, groups: Sequence[PlacementGroup]) -> None:
        """`groups` are placement groups of one bundle."""
        self._groups = list(groups)
        self._faults: dict[int, int] = {}
        """By `id` of a reservation: errors of its GPU."""
        self._asked_s: dict[int, float] = {}
        """By `id` of a reservation that was added: when, on the monotonic clock."""

    @property
    def groups(self) -> Sequence[PlacementGroup]:
        """All of them."""
        return self._groups

    def add(self, group: PlacementGroup) -> None:
        """Add one that has just been requested, unless it is known."""
        if group not in self._groups:
            self._groups.append(group)
            self._asked_s[id(group)] = time.monotonic()

    def asked_s(self, group: PlacementGroup) -> float | None:
        """When one was added, on the monotonic clock; None: it was there from the beginning."""
        return self._asked_s.get(id(group))

    def empty(self, taken: Collection[PlacementGroup]) -> list[PlacementGroup]:
        """Those that are not `taken` and not excluded."""
        return [group for group in self._groups if group not in taken and not self.left_out(group)]

    def blame(self, group: PlacementGroup) -> bool:
        """Count an error of the GPU of a reservation; return whether that excludes it.

        The reservation is kept: it holds that GPU, which Ray would otherwise give to another reservation.
        """
        self._faults[id(group)] = self._faults.get(id(group), 0) + 1
        return self._faults[id(group)] == FAULTS

    def left_out(self, group: PlacementGroup) -> bool:
        """Whether the reservation is excluded."""
        return self._faults.get(id(group), 0) >= FAULTS

    def on(self, node_ids: Collection[str]) -> list[PlacementGroup]:
        """Those on certain nodes. Nothing can be started on a node that is draining."""
        return [group for group in self._groups if node_of(group) in node_ids] if node_ids else []

    def give_back(self, groups: Collection[PlacementGroup]) -> None:
        """Release reservations."""
        release(list(groups))
        for group in groups:
            self._faults.pop(id(group), None)
            self._asked_s.pop(id(group), None)
        self._groups = [group for group in self._groups if group not in groups]

    def give_all_back(self) -> None:
        """Release all of them."""
        self.give_back(list(self._groups))
