"""Why runs wait, with figures: for people."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from orchestrator.clusters.placement import amounts_text
from orchestrator.control.policy.admission_order import Waiting
from orchestrator.control.policy.capacity_holders import CapacityHolder
from orchestrator.control.policy.gang_places import RowPlaces
from orchestrator.control.policy.queue_facts import Obstacle, Outlook
from orchestrator.control.policy.tick_state import TickState
from orchestrator.control.policy.worker_shapes import WorkerShape, fit_of

MOST_NODES = 2
"""That a message names."""
MOST_BLOCKERS = 8
LATER_S = 300.0
"""A difference between two times that is worth two figures."""


@dataclass(frozen=True)
class WaitReason:
    """Why a run did not start in this tick."""

    obstacle: Obstacle
    runs: tuple[str, ...] = ()
    """That make room, or that use what the queue may use."""
    limit_workers: int | None = None
    """That the queue's limit leaves."""
    likely_s: float | None = None
    """When it could start if no other run starts before it: Unix seconds."""


class WaitOutlooks(Mapping[str, Outlook]):
    """Of every waiting run that did not start. Those of runs far behind are made when they are asked for: there may be
    ten thousand."""

    def __init__(self, considered: dict[str, Outlook], order: list[Waiting], fits: Mapping[WorkerShape, int]) -> None:
        """`order`: all of them. `fits`: workers of each shape that fit now."""
        self._considered, self._order, self._fits = considered, order, fits
        self._positions: dict[str, int] | None = None

    def __getitem__(self, run_id: str) -> Outlook:
        found = self._considered.get(run_id)
        if found is not None:
            return found
        if self._positions is None:
            self._positions = {run.id: position for position, (run, _) in enumerate(self._order, 1)}
        position = self._positions[run_id]
        run, shape = self._order[position - 1]
        obstacle = Obstacle.RESERVED if self._fits[shape] >= run.ask.minimum else Obstacle.CAPACITY
        return Outlook(position, obstacle, f"{position - 1} runs are before it")

    def __iter__(self) -> Iterator[str]:
        return (run.id for run, _ in self._order)

    def __len__(self) -> int:
        return len(self._order)


def outlooks_of(state: TickState, reasons: dict[str, WaitReason]) -> WaitOutlooks:
    """Positions count the runs that did not start."""
    started = state.grants
    order = [waiting for waiting in state.order if waiting[0].id not in started]
    fits = {
        shape: fit_of(state.profile.counts(shape)[:, 0], shape.placement) for shape in {shape for _, shape in order}
    }
    hopeless = WaitReason(Obstacle.NODES if state.facts.autoscales else Obstacle.NEVER)
    found: dict[str, Outlook] = {}
    for position, waiting in enumerate(order, 1):
        run, shape = waiting
        reason = reasons.get(run.id) or (hopeless if shape.ever < run.ask.minimum else None)
        if reason is not None:
            found[run.id] = _considered(state, waiting, reason, position)
    return WaitOutlooks(found, order, fits)


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
    likely_s = start_s if reason.likely_s is None else reason.likely_s
    if start_s is not None and likely_s is not None:
        parts.append(f"may start at about {_clock(likely_s, state.now_s)}")
        if start_s - likely_s > LATER_S:
            parts[-1] += f", at the latest at {_clock(start_s, state.now_s)}"
    else:
        parts.append("when enough come free is not known")
    return Outlook(position, obstacle, "; ".join(parts), tuple(blockers)[:MOST_BLOCKERS], likely_s)


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
