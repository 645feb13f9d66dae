"""The places of a gang's workers: reservations of one worker each, kept where they are of use and else given back."""

from collections.abc import Collection, Sequence
from typing import Any

from orchestrator.clusters.ray.placement_groups import node_of, release

FAULTS = 2
"""Errors of its GPU after which a place is left out."""


class Reservations:
    """All reservations of a run. A place whose worker is lost is taken by another; Ray moves it where it has to."""

    def __init__(self, groups: Sequence[Any]) -> None:
        """`groups` are placement groups of one bundle."""
        self._groups = list(groups)
        self._faults: dict[int, int] = {}
        """Of places, by `id`: errors of their GPU."""

    def add(self, group: Any) -> None:
        """One more, where it is not there already."""
        if group not in self._groups:
            self._groups.append(group)

    def empty(self, taken: Collection[Any]) -> list[Any]:
        """Those that nobody has or is on the way to, without those that are left out."""
        return [group for group in self._groups if group not in taken and not self.left_out(group)]

    def blame(self, group: Any) -> bool:
        """Count an error of the GPU of a place; whether that makes it one that is left out.

        The reservation is kept: it holds that very GPU, which Ray would give to another place.
        """
        self._faults[id(group)] = self._faults.get(id(group), 0) + 1
        return self._faults[id(group)] == FAULTS

    def left_out(self, group: Any) -> bool:
        """Whether nobody is to be started there any more."""
        return self._faults.get(id(group), 0) >= FAULTS

    def on(self, node_ids: Collection[str]) -> list[Any]:
        """Those on certain nodes. Nothing can be started in a place on a node that is about to go."""
        return [group for group in self._groups if node_of(group) in node_ids] if node_ids else []

    def give_back(self, groups: Collection[Any]) -> None:
        """Others may have what was reserved."""
        release(list(groups))
        for group in groups:
            self._faults.pop(id(group), None)
        self._groups = [group for group in self._groups if group not in groups]

    def give_all_back(self) -> None:
        """The same with all of them."""
        self.give_back(list(self._groups))
