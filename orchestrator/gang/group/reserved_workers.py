"""Reports which workers are reserved, on which nodes, whenever that changes: the ledger counts their time."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.clusters.ray.placement_groups import placed_after_s
from orchestrator.domain.events import Emit, Event, NodeReservation, WorkersReserved
from orchestrator.domain.step_report import StepReport

if TYPE_CHECKING:
    from orchestrator.clusters.ray.handles import PlacementGroup
    from orchestrator.gang.elastic.granted_places import GrantedPlaces
    from orchestrator.gang.group.worker_group import Gang


@dataclass
class _Count:
    members: int = 0
    joining: int = 0


class ReservedWorkers:
    """An observer of the run's steps: what starts in the background is looked at after each. For the driver's
    thread."""

    def __init__(
        self,
        emit: Emit,
        monotonic_s: Callable[[], float] = time.monotonic,
        granted: "GrantedPlaces | None" = None,
    ) -> None:
        """`granted`: told to answer its server at the same times."""
        self._emit, self._monotonic_s, self._granted = emit, monotonic_s, granted
        self._gang: Gang | None = None
        self._reported: tuple[NodeReservation, ...] = ()
        self._nodes: dict[int, tuple[str, str]] = {}
        """Address and id of the node, by `id` of a reservation that is known to have one."""

    def begin(self, gang: "Gang", workers: int) -> None:
        """So many workers have been reserved; which nodes they are on is known when they have answered."""
        self._gang = gang
        if self._granted is not None:
            self._granted.answer(gang)
        self._report((NodeReservation("", "", workers, 0),), 0.0)

    def look(self) -> None:
        """Report a change, if there is one."""
        gang = self._gang
        if gang is not None and self._granted is not None:
            self._granted.answer(gang)
        if gang is None or (not gang.members and gang.places.groups):
            return
        members = {id(member.group): member for member in gang.members}
        earlier_s = self._learn(gang)
        counts: dict[tuple[str, str], _Count] = {}
        for member in sorted(gang.members, key=lambda member: member.rank):
            counts.setdefault((member.hello.node_ip, member.hello.node_id), _Count())
        for group in gang.places.groups:
            taken_by, node = members.get(id(group)), self._nodes.get(id(group))
            if taken_by is not None:
                counts[taken_by.hello.node_ip, taken_by.hello.node_id].members += 1
            elif node is not None:
                counts.setdefault(node, _Count()).joining += 1
        found = [NodeReservation(*node, count.members, count.joining) for node, count in counts.items()]
        self._report(tuple(each for each in found if each.members or each.joining), earlier_s)

    def _learn(self, gang: "Gang") -> float:
        """Note where reservations are; the worker-seconds for which new ones have had their nodes."""
        groups, now_s, earlier_s = gang.places.groups, self._monotonic_s(), 0.0
        kept = {id(group) for group in groups}
        self._nodes = {key: node for key, node in self._nodes.items() if key in kept}
        for member in gang.members:
            if id(member.group) in kept:
                self._nodes[id(member.group)] = member.hello.node_ip, member.hello.node_id
        for group, hello in gang.recruits.arrived:
            if id(group) in kept and id(group) not in self._nodes:
                earlier_s += self._placed_for_s(gang, group, now_s)
                self._nodes[id(group)] = hello.node_ip, hello.node_id
        return earlier_s

    def _placed_for_s(self, gang: "Gang", group: "PlacementGroup", now_s: float) -> float:
        """How long a reservation has had its node; 0 if that is not known."""
        asked_s, after_s = gang.places.asked_s(group), placed_after_s(group)
        return max(0.0, now_s - asked_s - after_s) if asked_s is not None and after_s is not None else 0.0

    def end(self) -> None:
        """All are released. Idempotent."""
        self._gang = None
        self._report((), 0.0)
        if self._granted is not None:
            self._granted.end()

    def _report(self, nodes: tuple[NodeReservation, ...], earlier_s: float) -> None:
        if nodes != self._reported:
            self._reported = nodes
            self._emit(WorkersReserved(nodes, earlier_s))

    def on_event(self, event: Event) -> None:
        """Nothing: see `on_step`."""

    def on_step(self, report: StepReport) -> None:
        """Look for workers that have started meanwhile."""
        self.look()
