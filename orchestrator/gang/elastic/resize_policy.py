"""What to do about changes that are known before they happen: another number of workers, nodes that will go. Pure."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from orchestrator.domain.session import Leave
from orchestrator.gang.group.gang_policy import wants_regroup

LEAVE_BEFORE_S = 5.0
"""Workers are off a node this long before it goes, and two steps more: the boundary has to be reached, and the state
of it has to be copied."""


def leave_before_s(step_s: float) -> float:
    """How long before a node goes its workers leave training, where a step takes `step_s`."""
    return LEAVE_BEFORE_S + 2 * step_s


@dataclass(frozen=True)
class GangShape:
    """What a planned change depends on."""

    members: int
    doomed: int
    """Of the members, those on nodes that are about to go."""
    ready: int
    """Workers that could join now."""
    arriving: int
    """Workers that are about to be ready."""
    waited_s: float
    """How long the ready ones have waited for them."""
    target: int
    minimum: int
    notice_s: float | None
    """Until the first of those nodes goes; None where nobody says, or there is none."""
    step_s: float
    """Of a step, lately."""
    stepped: bool
    """This generation has made a step."""


def planned_leave(shape: GangShape) -> Leave:
    """Whether to leave training at the next step boundary, to form the gang anew, and whether it may have to wait then.

    Those on a node that is about to go are left out at once where enough others remain. Where they do not, training
    goes on with them until replacements are ready, or until the notice is over.
    """
    if shape.doomed:
        if shape.members - shape.doomed + shape.ready >= shape.minimum:
            return Leave.REGROUP
        over = shape.notice_s is not None and shape.notice_s <= leave_before_s(shape.step_s)
        return Leave.PARK if over else Leave.NO
    if shape.members > shape.target:
        return Leave.REGROUP
    grows = shape.members < shape.target and shape.stepped
    return Leave.REGROUP if grows and wants_regroup(shape.ready, shape.arriving, shape.waited_s) else Leave.NO


@dataclass(frozen=True)
class Lineup:
    """Who the next gang is made of, by number."""

    kept: int
    """Of those who are there and stay."""
    joined: int
    """Of those who are ready to join."""
    lent: int = 0
    """Of those on nodes that are about to go, where there are too few others."""

    @property
    def size(self) -> int:
        return self.kept + self.joined + self.lent


def lineup(staying: int, ready: int, doomed: int, minimum: int, target: int) -> Lineup | None:
    """The next gang; None where there are too few, whoever is taken."""
    kept = min(staying, target)
    joined = min(ready, target - kept)
    lent = max(0, min(doomed, minimum - kept - joined))
    found = Lineup(kept, joined, lent)
    return found if found.size >= minimum else None


def replaced_later(staying: int, coming: int, minimum: int, target: int) -> bool:
    """Whether whoever is missing is to be replaced only when training goes on without them: a process that starts
    takes seconds of CPU time, which the others' recovery would miss where it starts on a host of theirs."""
    return staying >= minimum and staying + coming < target


def going(draining: Mapping[str, float | None], now_s: float, step_s: float) -> Collection[str]:
    """Nodes whose notice is as good as over, where a step takes `step_s`: nobody is to begin anything there."""
    before_s = leave_before_s(step_s)
    return {node for node, at_s in draining.items() if at_s is not None and at_s - now_s <= before_s}


@dataclass(frozen=True)
class Wait:
    """Too few workers, since when, and whether more are on their way."""

    have: int
    need: int
    starting: int
    """Processes that have a node and are starting, or are ready."""
    waited_s: float
    told: bool
    """It was said already."""


TOLD_AFTER_S = 5.0
"""A worker that is replaced is back by then, or at least its process is there."""


def worth_telling(wait: Wait) -> bool:
    """Whether a gang waits for want of nodes, not just for processes to start."""
    return not wait.told and wait.waited_s >= TOLD_AFTER_S and wait.have + wait.starting < wait.need
