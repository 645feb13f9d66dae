"""Prepares and requests the next generation of a training gang: the part of the driver's round for resizing."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from orchestrator.clusters.ray.handles import PlacementGroup
from orchestrator.domain.generation import Ending
from orchestrator.domain.session import Leave
from orchestrator.domain.step_report import StepReport
from orchestrator.gang.elastic.resize_policy import GangShape, planned_leave
from orchestrator.gang.elastic.scale_requests import ScaleRequests
from orchestrator.gang.group.worker_handle import WorkerHandle, is_broken, taken_places
from orchestrator.gang.vaults.vault_clients import raylet_refuses

if TYPE_CHECKING:
    from orchestrator.gang.group.worker_group import Gang

SEEK_S = 5.0
"""How often to try to start missing workers: a suitable node may have joined."""
FIRST_SEEK_S = 3.0
"""The first attempt comes at the latest after this time, or after the first step of the generation."""


class Regroup:
    """For one generation. `round` is called repeatedly and never waits."""

    def __init__(self, gang: "Gang", planned: ScaleRequests, seek: Callable[[], None]) -> None:
        self._gang, self._planned, self._seek = gang, planned, seek
        self._asked = Leave.NO
        self._arriving_since_s: float | None = None
        self._seek_s, self._stepped = time.monotonic() + FIRST_SEEK_S, False
        # Workers kept on draining nodes continue to train; their copies were moved before.
        self._known = set(planned.draining)

    def round(self, now_s: float, last: StepReport | None) -> None:
        """`last`: the newest report of this generation; `now_s`: on the monotonic clock."""
        gang, planned = self._gang, self._planned
        changed = planned.look(gang.members, now_s)
        if last is not None and not self._stepped:
            self._stepped, self._seek_s = True, now_s
        if changed or (self._missing and now_s >= self._seek_s and not is_broken(gang.members)):
            self._seek_s = now_s + SEEK_S
            self._seek()
        if planned.draining.keys() - self._known:
            self._known = set(planned.draining)
            gang.shield()
        node_ids = gang.recruits.look()
        if gang.vaults is not None and node_ids:
            gang.vaults.start(node_ids)
        leave = planned_leave(self._shape(now_s, last))
        if leave > self._asked:
            self._asked = leave
            gang.ask_to_leave(leave)

    @property
    def _missing(self) -> bool:
        gang = self._gang
        return bool(len(gang.staying) + gang.recruits.coming < self._planned.request.maximum)

    def _shape(self, now_s: float, last: StepReport | None) -> GangShape:
        gang, planned, recruits = self._gang, self._planned, self._gang.recruits
        if not recruits.ready:
            self._arriving_since_s = None
        elif self._arriving_since_s is None:
            self._arriving_since_s = now_s
        going = [planned.draining.get(member.hello.node_id) for member in planned.leaving(gang.members)]
        deadlines = [deadline_s for deadline_s in going if deadline_s is not None]
        return GangShape(
            members=len(gang.members),
            doomed=len(going),
            ready=recruits.ready,
            arriving=recruits.arriving,
            waited_s=now_s - self._arriving_since_s if self._arriving_since_s is not None else 0.0,
            target=planned.request.maximum,
            minimum=planned.request.minimum,
            notice_s=min(deadlines) - time.time() if deadlines else None,
            step_s=last.step_time_s if last is not None else 0.0,
            stepped=last is not None,
        )


def leave_lost_nodes(gang: "Gang") -> None:
    """Release the reservations of workers that were lost with their nodes. Ray would retry such a reservation without a
    pause, which occupies a processor of the cluster's head until there is room
    (https://github.com/ray-project/ray/pull/65007); for a new reservation it pauses between attempts."""
    free = gang.places.empty([*taken_places(gang.members), *gang.recruits.groups])
    gang.places.give_back([member.group for member in gang.members if member.group in free and _went_with_node(member)])


def _went_with_node(member: WorkerHandle) -> bool:
    if member.failure is None:
        return False
    if member.failure.ending in (Ending.NODE_DIED, Ending.NODE_SILENT):
        return True
    return member.failure.ending is Ending.PROCESS_DIED and raylet_refuses(member.hello.node_id)


def seek(gang: "Gang", target: int, new_group: Callable[[], PlacementGroup | None]) -> None:
    """Start workers for empty reservations, up to `target` workers that stay: first for those of lost members, then for
    new ones from `new_group` as long as it returns any. Reservations that are not needed are released."""
    places, recruits = gang.places, gang.recruits
    lost = places.on(gang.planned.draining.keys())
    recruits.leave(lost)
    theirs = taken_places(gang.members)
    missing = target - len(gang.staying) - recruits.coming
    recruits.send_away(max(0, -missing))
    missing = 0 if recruits.paused else missing
    empty = [group for group in places.empty([*theirs, *recruits.groups]) if group not in lost]
    for _ in range(missing):
        group = empty.pop(0) if empty else new_group()
        if group is None:
            break
        places.add(group)
        recruits.call(group)
    places.give_back(places.empty([*theirs, *recruits.groups]))
