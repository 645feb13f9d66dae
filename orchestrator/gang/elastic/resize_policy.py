"""Decisions about planned changes: another number of workers, nodes that are draining. Pure."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from orchestrator.domain.session import Leave
from orchestrator.gang.group.gang_policy import wants_regroup

LEAVE_BEFORE_S = 5.0
"""Workers leave a node this long before its deadline, and two steps earlier: the step boundary must be reached and its
state copied."""


def leave_before_s(step_s: float) -> float:
    """How long before the deadline of a node its workers leave training, if a step takes `step_s`."""
    return LEAVE_BEFORE_S + 2 * step_s


@dataclass(frozen=True)
class GangShape:
    """Facts that a planned change depends on."""

    members: int
    doomed: int
    """Members on nodes that are draining."""
    ready: int
    """Workers that could join now."""
    arriving: int
    """Workers that are starting."""
    waited_s: float
    """How long the ready workers have waited for them."""
    target: int
    minimum: int
    notice_s: float | None
    """Seconds to the earliest deadline of those nodes; None if there is none."""
    step_s: float
    """Duration of a recent step."""
    stepped: bool
    """This generation has finished a step."""


def planned_leave(shape: GangShape) -> Leave:
    """Whether to leave training at the next step boundary for another generation, and whether that may have to wait.

    Workers on a draining node leave at once if enough others remain. Otherwise training continues with them until
    replacements are ready, or until the deadline is near.
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
    """The composition of the next generation, as numbers of workers."""

    kept: int
    """Present workers that stay."""
    joined: int
    """Ready workers that join."""
    lent: int = 0
    """Workers on draining nodes, used only if there are too few others."""

    @property
    def size(self) -> int:
        return self.kept + self.joined + self.lent


def lineup(staying: int, ready: int, doomed: int, minimum: int, target: int) -> Lineup | None:
    """The next generation; None if there are too few workers in any case."""
    kept = min(staying, target)
    joined = min(ready, target - kept)
    lent = max(0, min(doomed, minimum - kept - joined))
    found = Lineup(kept, joined, lent)
    return found if found.size >= minimum else None


def replaced_later(staying: int, coming: int, minimum: int, target: int) -> bool:
    """Whether to defer replacing lost workers until training resumes: a starting process takes seconds of CPU time,
    which the recovery of the others needs if it starts on one of their hosts."""
    return staying >= minimum and staying + coming < target


def going(draining: Mapping[str, float | None], now_s: float, step_s: float) -> Collection[str]:
    """Nodes whose deadline is so near that nothing should be started there, if a step takes `step_s`."""
    before_s = leave_before_s(step_s)
    return {node for node, at_s in draining.items() if at_s is not None and at_s - now_s <= before_s}


@dataclass(frozen=True)
class Wait:
    """A wait for workers: how many there are, and for how long."""

    have: int
    need: int
    starting: int
    """Processes that are starting on a node, or are ready."""
    waited_s: float
    told: bool
    """The wait was reported already."""


TOLD_AFTER_S = 5.0
"""By then a worker that is replaced is back, or at least its process has started."""


def worth_telling(wait: Wait) -> bool:
    """Whether the gang waits for nodes, not only for processes to start."""
    return not wait.told and wait.waited_s >= TOLD_AFTER_S and wait.have + wait.starting < wait.need
