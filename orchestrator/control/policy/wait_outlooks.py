"""Why runs wait, with figures: for people."""

import math
from dataclasses import dataclass
from datetime import UTC, datetime

from orchestrator.clusters.placement import amounts_text
from orchestrator.control.policy.admission_order import Waiting
from orchestrator.control.policy.capacity_holders import CapacityHolder
from orchestrator.control.policy.gang_places import RowPlaces
from orchestrator.control.policy.queue_facts import Obstacle, Outlook
from orchestrator.control.policy.tick_state import TickState
from orchestrator.control.policy.worker_shapes import fit_of

MOST_NODES = 2
"""That a message names."""
MOST_BLOCKERS = 8


@dataclass(frozen=True)
class WaitReason:
    """Why a run did not start in this tick."""

    obstacle: Obstacle
    runs: tuple[str, ...] = ()
    """That make room, or that use what the queue may use."""
    limit_workers: int | None = None
    """That the queue's limit leaves."""


def outlooks_of(state: TickState, reasons: dict[str, WaitReason]) -> dict[str, Outlook]:
    """Of every waiting run that did not start; positions count those."""
    found: dict[str, Outlook] = {}
    fits: dict[object, int] = {}
    started = state.grants
    for run, shape in state.order:
        if run.id in started:
            continue
        position = len(found) + 1
        reason = reasons.get(run.id)
        if reason is not None:
            found[run.id] = _considered(state, (run, shape), reason, position)
        elif shape.ever < run.ask.minimum:
            obstacle = Obstacle.NODES if state.facts.autoscales else Obstacle.NEVER
            found[run.id] = _considered(state, (run, shape), WaitReason(obstacle), position)
        else:
            if shape not in fits:
                fits[shape] = fit_of(state.profile.counts(shape)[:, 0], shape.placement)
            obstacle = Obstacle.RESERVED if fits[shape] >= run.ask.minimum else Obstacle.CAPACITY
            found[run.id] = Outlook(position, obstacle, f"{position - 1} runs are before it")
    return found


def _considered(state: TickState, waiting: Waiting, reason: WaitReason, position: int) -> Outlook:
    run, shape = waiting
    obstacle = reason.obstacle
    reserved = state.reserved.get(run.id)
    start_s = reserved[0] if reserved is not None and reserved[0] < math.inf else None
    needs = f"needs {_workers(run.ask.minimum, state, waiting)}"
    if obstacle in (Obstacle.NEVER, Obstacle.NODES):
        return Outlook(position, obstacle, _never(needs, waiting, reason))
    if obstacle is Obstacle.QUOTA:
        return Outlook(position, obstacle, _at_limit(needs, waiting, reason), reason.runs[:MOST_BLOCKERS])
    places = reserved[1] if reserved is not None else {}
    blockers = _blockers(state, waiting, places, start_s)
    if obstacle is Obstacle.MAKING_ROOM:
        runs = reason.runs or tuple(blockers)
        who = f"for it {_names(runs)} give{'s' if len(runs) == 1 else ''} up places" if runs else "its places come free"
        return Outlook(position, obstacle, f"{needs}; {who}", runs[:MOST_BLOCKERS], start_s)
    now = fit_of(state.profile.counts(shape)[:, 0], shape.placement)
    parts = [needs, f"{now} {'is' if now == 1 else 'are'} free"]
    if obstacle is Obstacle.RESERVED:
        parts = [needs, f"{now} are free, and runs before it have reserved them"]
    parts[-1] += _held(state, places, blockers)
    if start_s is not None:
        parts.append(f"may start at about {_clock(start_s, state.now_s)}")
    else:
        parts.append("when enough come free is not known")
    return Outlook(position, obstacle, "; ".join(parts), tuple(blockers)[:MOST_BLOCKERS], start_s)


def _workers(count: int, state: TickState, waiting: Waiting) -> str:
    run, _ = waiting
    bundle = {name: amount for name, amount in run.ask.bundle.items() if amount > 0}
    least = "at least " if run.elastic else ""
    how = {"strict_spread": f" on {count} nodes", "strict_pack": " on one node"}.get(run.ask.placement, "")
    return f"{least}{count} worker{'s' if count != 1 else ''} of {amounts_text(bundle) or 'nothing'}{how}"


def _never(needs: str, waiting: Waiting, reason: WaitReason) -> str:
    run, shape = waiting
    if reason.limit_workers is not None:
        fits = reason.limit_workers
        why = f"the limit of queue {run.queue} allows {fits}"
    else:
        fits = shape.ever
        why = f"the nodes hold {fits} if nothing else runs"
    advice = f"; ask for resources.workers: {fits}" if fits else "; make the workers smaller"
    if reason.obstacle is Obstacle.NODES:
        advice = "; it waits until nodes are added"
    return f"{needs}; {why}{advice}"


def _at_limit(needs: str, waiting: Waiting, reason: WaitReason) -> str:
    run, _ = waiting
    left = reason.limit_workers
    if left is not None and left >= run.ask.minimum:
        return f"{needs}; {reason.runs[0]} is before it and waits for the limit of queue {run.queue}"
    users = f", which {_names(reason.runs)} use{'s' if len(reason.runs) == 1 else ''}" if reason.runs else ""
    return f"{needs}; the limit of queue {run.queue}{users}, leaves {left or 0}"


def _blockers(state: TickState, waiting: Waiting, places: RowPlaces, start_s: float | None) -> dict[str, float]:
    """Runs that hold its places, with their ends; the first to end first."""
    found: dict[str, CapacityHolder] = {}
    for row in places or range(min(MOST_BLOCKERS, len(state.facts.nodes))):
        free = int(state.profile.counts(waiting[1])[row, 0])
        if free < places.get(row, 1):
            found.update({each.run.id: each for each in state.holders_on(row) if not each.started})
    latest = math.inf if start_s is None else start_s + 1.0
    ends = {run: (each.end_s if not each.leaves else state.now_s) for run, each in found.items()}
    ends = {run: end_s for run, end_s in ends.items() if end_s <= latest} or ends
    return dict(sorted(ends.items(), key=lambda each: (each[1], each[0])))


def _held(state: TickState, places: RowPlaces, blockers: dict[str, float]) -> str:
    """Which nodes are held by whom, until when."""
    parts = []
    for row in sorted(places):
        holders = [each.run.id for each in state.holders_on(row) if each.run.id in blockers]
        if holders:
            last = max(holders, key=lambda run: blockers[run])
            until = f" until about {_clock(blockers[last], state.now_s)}" if blockers[last] < math.inf else ""
            parts.append(f"{state.facts.nodes[row].address} is held by {last}{until}")
    more = f" and {len(parts) - MOST_NODES} more" if len(parts) > MOST_NODES else ""
    return "".join(f", {part}" for part in parts[:MOST_NODES]) + more


def _names(runs: tuple[str, ...]) -> str:
    more = f" and {len(runs) - MOST_NODES} more" if len(runs) > MOST_NODES else ""
    return ", ".join(runs[:MOST_NODES]) + more


def _clock(time_s: float, now_s: float) -> str:
    """Hours and minutes; with the day unless it is within twelve hours."""
    near = abs(time_s - now_s) < 12 * 3600
    return datetime.fromtimestamp(time_s, UTC).strftime("%H:%M UTC" if near else "%d %b %H:%M UTC")
