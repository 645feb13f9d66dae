"""Everything that one decision works on: the profile, who has what, and what has been decided so far."""

from collections import defaultdict
from collections.abc import Mapping

import numpy as np

from orchestrator.control.policy.admission_order import QuotaLedger, Waiting, admission_order
from orchestrator.control.policy.capacity_holders import CapacityHolder, holder_of
from orchestrator.control.policy.capacity_profile import CapacityProfile, Holding
from orchestrator.control.policy.gang_places import RowPlaces
from orchestrator.control.policy.queue_facts import Places, QueueFacts, ScheduledRun
from orchestrator.control.policy.worker_shapes import ShapeTable, WorkerCounts, WorkerShape, workers_that_fit


class TickState:
    """Made from facts, changed while deciding, and read at the end."""

    def __init__(self, facts: QueueFacts) -> None:
        self.facts = facts
        self.now_s = facts.now_s
        self.table = ShapeTable(facts.nodes, facts.runs)
        self.rows = rows = {node.node_id: row for row, node in enumerate(facts.nodes)}
        pairs = list(zip(facts.runs, self.table.of_runs, strict=True))
        self.holders = {
            run.id: holder_of(run, shape, rows, self.now_s) for run, shape in pairs if run.places or run.granted
        }
        self.ledger = QuotaLedger(self.table, facts.queues)
        holding: list[Waiting] = []
        for holder in self.holders.values():
            run, bundle = holder.run, holder.shape.bundle
            self.ledger.booked[run.queue] += bundle * holder.everywhere
            if not holder.leaves:
                self.ledger.floor[run.queue] += bundle * run.ask.minimum
                self.ledger.target[run.queue] += bundle * holder.workers
                holding.append((run, holder.shape))
        waiting = [(run, shape) for run, shape in pairs if run.waits and run.id not in self.holders]
        self.order, self.entitled = admission_order(waiting, holding, facts.queues, self.ledger)
        self.profile = CapacityProfile(self.table, self.now_s, (each.end_s for each in self.holders.values()))
        self.soft = np.zeros(self.table.total.shape)
        """Extras that are in use, and counted as free in the profile from its second column on: [resources, nodes]."""
        stretched = [each for each in self.holders.values() if each.extras and not each.leaves]
        apart = set(map(id, stretched))
        self.profile.hold_all(
            [each for holder in self.holders.values() for each in self._holdings(holder, id(holder) in apart)]
        )
        self._divide(stretched)
        self.grants: dict[str, RowPlaces] = {}
        self.reserved: dict[str, tuple[float, RowPlaces]] = {}
        self.reserved_priority: dict[int, int] = {}
        """The least priority of the reservations on a row."""
        self._by_row: dict[int, list[CapacityHolder]] | None = None
        self._by_harm: list[CapacityHolder] | None = None

    def _holdings(self, holder: CapacityHolder, only_now: bool) -> list[Holding]:
        now: Holding = (holder.booked, holder.shape, 0, 1)
        if holder.run.leaving or only_now:
            return [now]
        return [now, (holder.hard, holder.shape, 1, self.end_column(holder))]

    def _divide(self, stretched: list[CapacityHolder]) -> None:
        """Choose which workers of elastic runs are extra: those on places that are promised to waiting runs."""
        if not stretched:
            return
        free = self.profile.free.copy()
        for run, shape in self.order:
            if run.reserved is not None and run.reserved[0] < np.inf:
                start = max(1, self.profile.column(run.reserved[0]))
                end = self.profile.end_of(min(start, self.profile.unknown), run.remaining_s(run.ask.minimum))
                for node, workers in run.reserved[1].items():
                    if node in self.rows:
                        free[:, self.rows[node], start:end] -= (workers * shape.bundle)[:, None]
        for holder in sorted(stretched, key=lambda each: (-each.run.priority, each.run.order)):
            end = self.end_column(holder)
            safe = workers_that_fit(free[:, list(holder.kept), 1 : max(end, 2)].min(axis=2), holder.shape.bundle)
            holder.divide(dict(zip(holder.kept, safe.tolist(), strict=True)))
            for row, workers in holder.hard.items():
                free[:, row, 1:end] -= (workers * holder.shape.bundle)[:, None]
            self.profile.hold(holder.hard, holder.shape, 1, end)
            holder.soft = True
            self.count_soft(holder, holder.extras)

    def end_column(self, holder: CapacityHolder) -> int:
        """The column before which its hard places are held."""
        return max(1, self.profile.column(holder.end_s))

    def count_soft(self, holder: CapacityHolder, places: RowPlaces, sign: float = 1.0) -> None:
        """Add to the soft amounts, or with `sign` -1 subtract."""
        for row, workers in places.items():
            self.soft[:, row] += sign * workers * holder.shape.bundle

    def harden(self, holder: CapacityHolder) -> None:
        """From here on its extras are not for others: they are held until it ends."""
        if holder.soft:
            holder.soft = False
            self.count_soft(holder, holder.extras, -1.0)
            self.profile.hold(holder.extras, holder.shape, 1, self.end_column(holder))

    def start(self, run: ScheduledRun, shape: WorkerShape, places: RowPlaces) -> None:
        """A waiting run gets its minimum of workers now."""
        left_s = run.remaining_s(run.ask.minimum)
        if left_s is not None:
            self.profile.split(self.now_s + left_s)
        end_s = np.inf if left_s is None else self.now_s + left_s
        self.profile.hold(places, shape, 0, self.profile.end_of(0, left_s))
        holder = CapacityHolder(run, shape, dict(places), dict(places), 0, float(end_s), changed=True, started=True)
        self.holders[run.id] = holder
        self.grants[run.id] = holder.kept
        self.count_use(holder, 1.0)

    def count_use(self, holder: CapacityHolder, sign: float) -> None:
        """Its minimum counts as used by its queue, or with `sign` -1 no more."""
        amount = sign * holder.shape.bundle * holder.run.ask.minimum
        self.ledger.floor[holder.run.queue] += amount
        self.ledger.target[holder.run.queue] += amount
        if sign > 0:
            self.ledger.booked[holder.run.queue] += amount

    def reserve(self, run: ScheduledRun, shape: WorkerShape, start: int, places: RowPlaces) -> None:
        """Hold places for a waiting run from a column on."""
        profile, left_s = self.profile, run.remaining_s(run.ask.minimum)
        start_s = profile.times_s[start]
        if left_s is not None and start_s < np.inf:
            profile.split(start_s + left_s)
        profile.hold(places, shape, start, profile.end_of(start, left_s))
        self.reserved[run.id] = (float(start_s), places)
        self.ledger.claimed[run.queue] += shape.bundle * run.ask.minimum
        for row in places:
            self.reserved_priority[row] = min(run.priority, self.reserved_priority.get(row, run.priority))

    def take_extra(self, holder: CapacityHolder, row: int, workers: int) -> None:
        """An elastic run returns extras on a node."""
        taken = {row: workers}
        if holder.soft:
            self.count_soft(holder, taken, -1.0)
        else:
            self.profile.hold(taken, holder.shape, 1, self.end_column(holder), 1.0)
        self.ledger.target[holder.run.queue] -= workers * holder.shape.bundle
        for places in (holder.kept, holder.extras):
            places[row] -= workers
            if not places[row]:
                del places[row]
        holder.changed = True
        self.grants[holder.run.id] = holder.kept

    def suspend(self, holder: CapacityHolder, beneficiary: str) -> None:
        """A run gives up its places, which come free with the second column."""
        for row, workers in list(holder.extras.items()):
            self.take_extra(holder, row, workers)
        self.profile.hold(holder.hard, holder.shape, 1, self.end_column(holder), 1.0)
        self.count_use(holder, -1.0)
        holder.suspended_for = beneficiary
        self.grants.pop(holder.run.id, None)

    def room_now(self, shape: WorkerShape, until: int) -> WorkerCounts:
        """Workers that fit on each node from now to a column beside all extras: [nodes]."""
        free = self.profile.free[:, :, 0]
        if until > 1:
            free = np.minimum(free, self.profile.free[:, :, 1:until].min(axis=2) - self.soft)
        return workers_that_fit(free, shape.bundle)

    def by_harm(self) -> list[CapacityHolder]:
        """Runs that had capacity before this decision. Least priority first; of equal priority the youngest, which has
        the least to lose."""
        if self._by_harm is None:
            old = [each for each in self.holders.values() if not each.started]
            self._by_harm = sorted(old, key=lambda each: (each.run.priority, -each.run.since_s, -each.run.order))
        return self._by_harm

    def holders_on(self, row: int) -> list[CapacityHolder]:
        """Runs that have workers on a node."""
        if self._by_row is None:
            found: dict[int, list[CapacityHolder]] = defaultdict(list)
            for holder in self.holders.values():
                for at in holder.booked:
                    found[at].append(holder)
            self._by_row = found
        return self._by_row.get(row, [])

    def by_node(self, places: RowPlaces) -> Places:
        """By the id of the node, in the order of nodes."""
        return {self.facts.nodes[row].node_id: places[row] for row in sorted(places)}

    def grow(self, holder: CapacityHolder, places: RowPlaces) -> None:
        """An elastic run gets extras."""
        self.profile.hold(places, holder.shape, 0, 1)
        if not holder.soft and not holder.extras:
            holder.soft = True
        if holder.soft:
            self.count_soft(holder, places)
        else:
            self.profile.hold(places, holder.shape, 1, self.end_column(holder))
        for row, workers in places.items():
            holder.kept[row] = holder.kept.get(row, 0) + workers
            holder.extras[row] = holder.extras.get(row, 0) + workers
        amount = holder.shape.bundle * sum(places.values())
        self.ledger.target[holder.run.queue] += amount
        self.ledger.booked[holder.run.queue] += amount
        holder.changed = True
        self.grants[holder.run.id] = holder.kept

    def grants_by_node(self) -> Mapping[str, Places]:
        """What is decided."""
        return {run: self.by_node(places) for run, places in self.grants.items()}
