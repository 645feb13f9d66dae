"""The tick: look at drivers and cluster, decide, book, then act.

Everything is booked durably before it is done, and what is done follows from what is booked. A server that is killed at
any point leaves a database from which the next one continues: it repeats effects that may not have happened, and each
of them is harmless if it had.
"""

import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.clusters.placement import NodeCapacity
from orchestrator.control.policy.queue_facts import Decision, Outlook, QueueFacts
from orchestrator.control.ports import ClusterPort, DriverFacts, DriverPort
from orchestrator.control.queue_board import QueueBoard, TickView
from orchestrator.control.queue_store.event_table import ChangeCause
from orchestrator.control.queue_store.live_runs import LiveRuns
from orchestrator.control.queue_store.queue_store import QueueStore
from orchestrator.control.queue_store.queue_table import all_queues, all_shapes, record_shape
from orchestrator.control.queue_store.reservation_table import (
    Reservation,
    read_reservations,
    replace_reservations,
)
from orchestrator.control.queue_store.run_rows import RunRow
from orchestrator.control.queue_store.run_table import (
    StaleRunError,
    blocked_needs,
    change_run,
    record_progress,
)
from orchestrator.control.server_lease import ServerLease
from orchestrator.control.ticking.bookings import Booked, bookings
from orchestrator.control.ticking.driver_effects import (
    LAUNCHES_PER_TICK,
    Effect,
    EffectKind,
    SentEffects,
    effect_for,
)
from orchestrator.control.ticking.fact_building import FactBuilder, free_for_queue
from orchestrator.control.ticking.run_clocks import RunClocks
from orchestrator.control.ticking.run_files import RunFiles
from orchestrator.control.ticking.run_review import launch_failed, progress_of, review, unblocked
from orchestrator.control.ticking.run_sight import RunSight
from orchestrator.control.ticking.work_estimate import step_work
from orchestrator.domain.errors import ClusterError, ConvoyError
from orchestrator.domain.queue.grant import Grant
from orchestrator.domain.queue.queue_states import HOLDING, QueueState
from orchestrator.lasting_thread import LastingThread
from orchestrator.store.run_store import RunStore

TICK_S = 1.0
"""Longest time from one tick to the next."""
BUSY_S = 0.05
"""The same after a tick that has changed something."""
RECORD_S = 30.0
"""From one record of progress in the database to the next."""
KNOWN_SHAPES = 10_000
CLOSE_S = 15.0

Decide = Callable[[QueueFacts], Decision]


@dataclass(frozen=True)
class TickerPorts:
    """What the ticker needs of the world."""

    drivers: DriverPort
    cluster: ClusterPort
    decide: Decide
    clock: Callable[[], float] = time.monotonic
    """Monotonic seconds: what anything is decided by."""
    now: Callable[[], float] = time.time
    """Unix seconds: for records."""
    log: Callable[[str], None] = lambda line: None
    """A line for each change of a run."""


@dataclass(frozen=True)
class _Look:
    """What one tick has seen."""

    now_s: float
    clock_s: float
    drivers: Mapping[str, DriverFacts]
    nodes: tuple[NodeCapacity, ...] | None
    held: Mapping[str, Mapping[str, int]]
    node_ids: frozenset[str]


class Ticker:
    """Acts for the server that holds the lease. `tick` is called by one thread."""

    def __init__(
        self, store: QueueStore, lease: ServerLease, runs: RunStore, ports: TickerPorts, board: QueueBoard
    ) -> None:
        self._store, self._lease, self._ports, self._board = store, lease, ports, board
        self._files = RunFiles(store, runs)
        self._live, self._clocks, self._facts = LiveRuns(store), RunClocks(), FactBuilder()
        self._sent = SentEffects()
        self._split: tuple[Mapping[str, RunRow], list[RunRow]] = ({}, [])
        """Runs, and those of them that are watched."""
        self._shapes: dict[str, float] | None = None
        self._reserved: Mapping[str, Reservation] = {}
        """What waiting runs are promised."""
        self._reserved_by: int | None = None
        """Token of the lease under which `_reserved` was read: another server may have promised other things since."""
        self._recorded_s = ports.clock()
        self._wake = threading.Event()
        self._closing = False
        self._thread: LastingThread | None = None

    def start(self) -> None:
        """Tick in the background until `close`."""
        self._thread = LastingThread("queue ticker", self._turn)

    def wake(self) -> None:
        """Something has changed: let the next tick come at once. Any thread may call it."""
        self._wake.set()

    def close(self) -> None:
        """End after the tick in progress. Drivers and their gangs stay."""
        self._closing = True
        self._wake.set()
        if self._thread is not None:
            self._thread.stop()
            self._thread.join(CLOSE_S)

    def tick(self) -> bool:
        """One tick; whether it has changed something. What keeps it from deciding is on the board."""
        now_s = self._ports.now()
        try:
            if not self._lease.held():
                self._board.publish(TickView(now_s, False, None))
                return False
            return self._acting_tick(now_s)
        except ConvoyError as error:
            self._board.publish(TickView(now_s, self._lease.token is not None, None, problem=error.message))
            return False

    def _turn(self) -> bool:
        busy = self.tick()
        self._wake.wait(BUSY_S if busy else TICK_S)
        self._wake.clear()
        return not self._closing

    def _acting_tick(self, now_s: float) -> bool:
        rows = self._live.refresh()
        first = rows
        look = self._look(rows, now_s)
        self._clocks.advance(self._watched(rows), look.drivers, look.clock_s, now_s)
        rows = self._apply(self._reviews(rows, look), rows, now_s)
        outlooks: Mapping[str, Outlook] = {}
        if look.nodes is not None:
            decision = self._ports.decide(self._facts_of(rows, look, look.nodes))
            rows = self._apply(bookings(decision, rows, now_s), rows, now_s)
            self._promise(decision.reservations)
            outlooks = decision.outlooks
        if not self._lease.held():
            return False
        rows = self._act(rows, look)
        rows = self._apply(self._files.settled(self._watched(rows)), rows, now_s)
        self._record(rows, look)
        self._sent.keep(rows)
        self._board.publish(TickView(now_s, True, look.nodes, look.drivers, outlooks))
        return rows is not first

    def _look(self, rows: Mapping[str, RunRow], now_s: float) -> _Look:
        """Ask drivers and cluster. A cluster that does not answer is one of the answers."""
        asked = {row.id: Path(row.directory) for row in self._watched(rows) if row.booked or row.state in HOLDING}
        drivers = self._ports.drivers.look(asked) if asked else {}
        held: Mapping[str, Mapping[str, int]] = {}
        try:
            nodes = self._ports.cluster.nodes()
            if nodes is not None:
                held = self._ports.cluster.held(asked)
        except ClusterError:
            nodes = None
        return _Look(now_s, self._ports.clock(), drivers, nodes, held, frozenset(node.node_id for node in nodes or ()))

    def _watched(self, rows: Mapping[str, RunRow]) -> list[RunRow]:
        """All but the runs that only wait for capacity, of which there may be ten thousand."""
        if rows is not self._split[0]:
            self._split = rows, [row for row in rows.values() if row.booked or not _only_waits(row.state)]
        return self._split[1]

    def _sight(self, row: RunRow, look: _Look) -> RunSight:
        facts = look.drivers.get(row.id)
        return RunSight(
            now_s=look.now_s,
            facts=facts,
            gone=self._clocks.gone(row.id, facts),
            held=look.held.get(row.id, {}) if look.nodes is not None else None,
            cluster_lost=bool(row.booked) and look.node_ids.isdisjoint(row.booked),
            in_state_s=self._clocks.in_state_s(row.id),
            pause_over=self._clocks.pause_over(row.id),
            active_s=self._clocks.active_s(row),
        )

    def _reviews(self, rows: Mapping[str, RunRow], look: _Look) -> list[Booked]:
        found: list[Booked] = []
        watched = self._watched(rows)
        blocked = any(row.state is QueueState.BLOCKED for row in watched)
        needs = self._store.read(blocked_needs) if blocked else {}
        for row in watched:
            if row.state is QueueState.BLOCKED:
                changed = unblocked(row, needs.get(row.seq, []), look.now_s)
            else:
                changed = review(row, self._sight(row, look))
            if changed is not None:
                found.append((row, *changed))
        return found

    def _facts_of(self, rows: Mapping[str, RunRow], look: _Look, nodes: tuple[NodeCapacity, ...]) -> QueueFacts:
        if self._shapes is None:
            self._shapes = self._store.read(lambda connection: all_shapes(connection, KNOWN_SHAPES))
        if self._reserved_by != self._lease.token:
            self._reserved, self._reserved_by = self._store.read(read_reservations), self._lease.token
        return QueueFacts(
            now_s=look.now_s,
            nodes=free_for_queue(nodes, look.held, rows),
            runs=self._facts.run_facts(rows.values(), look.drivers, self._shapes, self._clocks, self._reserved),
            queues=self._store.read(all_queues),
            autoscales=self._ports.cluster.autoscales,
        )

    def _promise(self, reservations: Mapping[str, Reservation]) -> None:
        """Keep what waiting runs are promised, if it has changed."""
        if reservations != self._reserved:
            self._lease.write(lambda connection: replace_reservations(connection, reservations))
            self._reserved = reservations

    def _apply(self, changes: Iterable[Booked], rows: Mapping[str, RunRow], now_s: float) -> Mapping[str, RunRow]:
        """Write changes in one transaction of the lease's holder; the rows afterwards."""
        wanted = list(changes)
        if not wanted:
            return rows
        for before, after, cause in self._lease.write(lambda connection: _change_all(connection, wanted, now_s)):
            states = before.state if before.state is after.state else f"{before.state} -> {after.state}"
            self._ports.log(f"{before.id} {states}: {cause.message}")
        return self._live.refresh()

    def _act(self, rows: Mapping[str, RunRow], look: _Look) -> Mapping[str, RunRow]:
        """Launch, stop and end drivers, and send them their grants."""
        launches, now = 0, rows
        for row in self._watched(rows):
            if row.state not in HOLDING:
                continue
            effect = effect_for(row, self._sight_now(row, look), self._clocks.hung(row.id))
            if effect is None:
                continue
            if effect.kind is EffectKind.LAUNCH:
                launches += 1
                if launches <= LAUNCHES_PER_TICK:
                    now = self._apply([self._launch(row)], now, look.now_s)
            elif self._sent.due(effect, look.clock_s) and self._tell(effect):
                self._sent.sent(effect, look.clock_s)
        return now

    def _sight_now(self, row: RunRow, look: _Look) -> RunSight:
        """As `_sight`; a run that this tick has started was not asked about: it has no driver unless one is found."""
        if row.id in look.drivers or row.launched:
            return self._sight(row, look)
        facts = self._ports.drivers.look({row.id: Path(row.directory)}).get(row.id)
        gone = facts is None or (facts.alive is False and not facts.lease_moved)
        return replace(self._sight(row, look), facts=facts, gone=gone)

    def _launch(self, row: RunRow) -> Booked:
        """Start a driver; the change of the row that says so, or that it cannot be started."""
        directory = Path(row.directory)
        try:
            self._files.prepare(row)
            grant = Grant(row.grant_number, row.granted)
            self._ports.drivers.launch(row.id, directory, grant, row.begun, self._ports.cluster.address)
        except (ConvoyError, OSError) as error:
            failed = launch_failed(row, str(error), getattr(error, "exit_code", 1), self._ports.now())
            return row, *failed
        message = "its driver is started" if not row.begun else "a driver is started that resumes it"
        cause = ChangeCause("launched", message, {"grant": row.grant_number})
        return row, replace(row, launched=row.grant_number), cause

    def _tell(self, effect: Effect) -> bool:
        """False if it did not arrive: the next tick tries it again."""
        row, directory = effect.row, Path(effect.row.directory)
        try:
            match effect.kind:
                case EffectKind.GRANT:
                    self._ports.drivers.grant(row.id, directory, Grant(row.grant_number, row.granted))
                case EffectKind.STOP:
                    self._ports.drivers.stop(row.id, directory)
                case EffectKind.KILL:
                    self._ports.drivers.kill(row.id, directory)
        except (ConvoyError, OSError):
            return False
        return True

    def _record(self, rows: Mapping[str, RunRow], look: _Look) -> None:
        """Now and then, how far active runs have come, and what a step of their shapes takes."""
        if look.clock_s - self._recorded_s < RECORD_S:
            return
        self._recorded_s = look.clock_s
        active = [row for row in self._watched(rows) if row.state is QueueState.ACTIVE and row.id in look.drivers]
        progressed = [progress_of(row, self._sight(row, look)) for row in active]
        measured = {row.shape: work for row in active if (work := step_work(look.drivers[row.id])) is not None}
        self._shapes = {**(self._shapes or {}), **measured}

        def record(connection: sqlite3.Connection) -> None:
            for row in progressed:
                record_progress(connection, row)
            for shape, work in measured.items():
                record_shape(connection, shape, work, look.now_s)

        if active:
            self._lease.write(record)


def _only_waits(state: QueueState) -> bool:
    return state is QueueState.QUEUED or state is QueueState.SUSPENDED


def _change_all(connection: sqlite3.Connection, changes: Sequence[Booked], now_s: float) -> list[Booked]:
    """Each change whose run is still as it was read; a person may have changed some meanwhile. Those that were made."""
    made = []
    for change in changes:
        with contextlib.suppress(StaleRunError):
            change_run(connection, *change, now_s)
            made.append(change)
    return made
