"""The places that a server grants to a run: reserved at the start, kept to at every step boundary, and reported."""

import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from orchestrator.clusters.placement import NodeCapacity, Resources
from orchestrator.clusters.ray.placement_groups import all_placed, group_bound_to, release
from orchestrator.domain.errors import ClusterError
from orchestrator.domain.queue.grant import Grant, GrantAnswer, GrantDesk, surplus, vacant
from orchestrator.gang.group.worker_handle import taken_places

if TYPE_CHECKING:
    from orchestrator.clusters.ray.handles import PlacementGroup
    from orchestrator.gang.group.worker_group import Gang
    from orchestrator.gang.group.worker_handle import WorkerHandle

RETRY_S = 5.0
"""How often to look whether a granted place that nobody has can be had now."""
START_LOOK_S = 0.2
"""From one attempt to reserve all places to the next."""


class GrantedPlaces:
    """The newest grant, and which reservations follow from it. For the driver's thread only."""

    def __init__(self, desk: GrantDesk) -> None:
        self._desk = desk
        self.grant = desk.newest() or Grant(0, {})
        """The newest; the first one may be missing still."""
        self._said: GrantAnswer | None = None
        self._nodes: dict[int, str] = {}
        """The node of each reservation, by `id`."""
        self._retry_s = 0.0
        self._complete = False
        """Every granted place has a worker that trains, and there are no others."""

    def look(self, now_s: float) -> bool:
        """Read the newest grant; whether there is something to do: it has changed, or it is time to try again what was
        not possible. `now_s`: on the monotonic clock."""
        newest = self._desk.newest()
        changed = newest is not None and newest != self.grant
        if newest is not None and changed:
            self.grant = newest
        due = not self._complete and now_s >= self._retry_s
        if changed or due:
            self._retry_s = now_s + RETRY_S
        return changed or due

    def surplus(self, members: Sequence["WorkerHandle"]) -> list["WorkerHandle"]:
        """The members that have to leave: the grant has no place for them."""
        return [members[index] for index in surplus(self.grant.places, [each.hello.node_id for each in members])]

    def reserve(
        self,
        bundle: Resources,
        read_nodes: Callable[[], Sequence[NodeCapacity]],
        timeout_s: float,
        stopped: Callable[[], bool],
        run_id: str,
    ) -> "list[PlacementGroup] | None":
        """A reservation for every granted place, all of them or none; None if `stopped`. A new grant replaces the one
        that was waited for. Raises ClusterError if they cannot be had within `timeout_s`."""
        began_s = time.monotonic()
        while not stopped():
            grant = self.grant
            groups = self._all_or_none(grant, bundle, read_nodes, began_s + timeout_s, stopped, run_id)
            if groups is not None:
                return groups
            self.look(time.monotonic())
            if self.grant is not grant:
                began_s = time.monotonic()
            elif time.monotonic() - began_s >= timeout_s:
                raise _unavailable(grant, read_nodes(), timeout_s)
            time.sleep(START_LOOK_S)
        return None

    def _all_or_none(
        self,
        grant: Grant,
        bundle: Resources,
        read_nodes: Callable[[], Sequence[NodeCapacity]],
        deadline_s: float,
        stopped: Callable[[], bool],
        run_id: str,
    ) -> "list[PlacementGroup] | None":
        live = {node.node_id for node in read_nodes()}
        if not grant.workers or not grant.places.keys() <= live:
            return None
        groups = [self.bind(node, bundle, run_id) for node, count in grant.places.items() for _ in range(count)]

        def possible() -> bool:
            self.look(time.monotonic())
            return self.grant is grant

        if all_placed(groups, deadline_s - time.monotonic(), stopped, possible):
            return groups
        release(groups)
        return None

    def bind(self, node_id: str, bundle: Resources, run_id: str) -> "PlacementGroup":
        """Ask for a reservation on a node and nowhere else."""
        group = group_bound_to(node_id, bundle, run_id)
        self._nodes[id(group)] = node_id
        return group

    def node_of(self, group: "PlacementGroup") -> str:
        """The node that a reservation is for."""
        return self._nodes[id(group)]

    def answer(self, gang: "Gang") -> None:
        """Tell the server which places are reserved, and which grant is carried out, if that has changed."""
        groups = gang.places.groups
        kept = {id(group) for group in groups}
        self._nodes = {key: node for key, node in self._nodes.items() if key in kept}
        places = dict(Counter(self.node_of(group) for group in groups))
        # Before the workers have answered there are no members: the reservations are what was granted.
        training = dict(Counter(member.hello.node_id for member in gang.members)) if gang.members else places
        self._complete = places == training == dict(self.grant.places)
        answer = GrantAnswer(self.grant.number if self._complete else self._carried_out, places)
        if answer != self._said:
            self._said = answer
            self._desk.answer(answer)

    def end(self) -> None:
        """Nothing is reserved any more. Idempotent."""
        answer = GrantAnswer(self._carried_out, {})
        if self._said is not None and answer != self._said:
            self._said = answer
            self._desk.answer(answer)

    @property
    def _carried_out(self) -> int:
        return self._said.number if self._said is not None else 0


def seek_granted(
    gang: "Gang", granted: GrantedPlaces, live: Collection[str], bind: Callable[[str], "PlacementGroup"]
) -> None:
    """Start workers for the granted places that nobody has, on nodes that are `live`; they join when they are ready.
    Workers that start for places that are no longer granted are sent away, and reservations that are not needed are
    released."""
    places, recruits = gang.places, gang.recruits
    have = [member.hello.node_id for member in gang.staying]
    have += [granted.node_of(group) for group in places.groups if places.left_out(group)]
    coming = recruits.groups
    excess = surplus(granted.grant.places, [*have, *(granted.node_of(group) for group in coming)])
    unwanted = {index - len(have) for index in excess}
    recruits.leave([
        group for index, group in enumerate(coming) if index in unwanted or granted.node_of(group) not in live
    ])  # fmt: skip
    theirs = taken_places(gang.members)
    empty: dict[str, list[PlacementGroup]] = {}
    for group in places.empty([*theirs, *recruits.groups]):
        empty.setdefault(granted.node_of(group), []).append(group)
    have += [granted.node_of(group) for group in recruits.groups]
    for node in [] if recruits.paused else vacant(granted.grant.places, have, live):
        group = empty[node].pop() if empty.get(node) else bind(node)
        places.add(group)
        recruits.call(group)
    places.give_back(places.empty([*theirs, *recruits.groups]))
    granted.answer(gang)


def _unavailable(grant: Grant, nodes: Sequence[NodeCapacity], timeout_s: float) -> ClusterError:
    live = {node.node_id for node in nodes}
    gone = [node for node in grant.places if node not in live]
    what = f"nodes {', '.join(gone)} are gone" if gone else "others hold what was granted"
    if not grant.workers:
        what = "there is no grant"
    return ClusterError(
        f"the {_shown(grant.places)} that the server granted could not be reserved within {timeout_s:g} s: {what}",
        hint="the server grants other places when it tries again",
    )


def _shown(places: Mapping[str, int]) -> str:
    count = sum(places.values())
    return f"{count} place{'s' if count != 1 else ''}"
