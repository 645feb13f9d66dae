"""A scripted world for the queue: drivers and a cluster that do what a test says, and a real database.

Nothing here replaces our own code: the store, the service and the ticker are real.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.clusters.placement import NodeCapacity
from orchestrator.control.live_queue import LiveQueue
from orchestrator.control.policy.queue_facts import Decision, Obstacle, Outlook, QueueFacts
from orchestrator.control.ports import DriverFacts
from orchestrator.control.queue_board import QueueBoard
from orchestrator.control.queue_service import Caller
from orchestrator.control.queue_store.queue_store import QueueStore
from orchestrator.control.queue_store.run_rows import RunRow
from orchestrator.control.queue_store.run_table import run_by_id
from orchestrator.control.server_lease import ServerLease
from orchestrator.control.ticker import Ticker, TickerPorts
from orchestrator.domain.events import RunState
from orchestrator.domain.queue.grant import Grant
from orchestrator.domain.queue.queue_states import QueueState
from orchestrator.store.run_store import RunStore
from orchestrator.wire.run_messages import Submission

ANN, BOB, EVE, ROOT = (
    Caller("ann", "ml", "submitter"),
    Caller("bob", "vision", "submitter"),
    Caller("eve", "ml", "viewer"),
    Caller("root", "ops", "admin"),
)
JOB = """\
name: {name}
model: {{architecture: gpt2, config: {{n_layer: 1, n_head: 1, n_embd: 8}}}}
tokenizer: {{train: {{vocab_size: 300}}}}
data: {{sources: [{{files: ["*.txt"]}}], sequence_length: 16}}
train: {{steps: {steps}, global_batch: 8, lr: 1e-3}}
resources: {{workers: {workers}}}
"""


def job(name: str = "tiny", workers: str = "1", steps: int = 10, more: str = "") -> Submission:
    """A submission of a valid job."""
    return Submission(spec=JOB.format(name=name, workers=workers, steps=steps) + more)


@dataclass
class ScriptedDriver:
    """One driver process."""

    grant: Grant
    total_steps: int = 10
    alive: bool | None = True
    lease_moved: bool = False
    state: RunState | None = None
    reason: str | None = None
    exit_code: int | None = None
    answered: int = 0
    step: int = 0
    stopping: bool = False
    deaf: bool = False
    """It does not follow `stop`."""
    step_time_s: float | None = 2.0
    cluster_lost: bool = False


@dataclass
class World:
    """Drivers and cluster. `advance` lets a second pass."""

    nodes_up: dict[str, float] = field(default_factory=lambda: {"a": 4.0, "b": 4.0})
    """CPUs by node."""
    drivers: dict[str, ScriptedDriver] = field(default_factory=dict)
    held_now: dict[str, dict[str, int]] = field(default_factory=dict)
    launches: list[str] = field(default_factory=list)
    killed: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    """Runs of which a second driver was started beside a living one."""
    answers: bool = True
    autoscales: bool = False
    address: str = "127.0.0.1:6379"
    drained: list[str] = field(default_factory=list)
    fail_launch: Exception | None = None
    keeps_places: bool = False
    """Reservations stay after a driver has ended."""

    def launch(self, run_id: str, directory: Path, grant: Grant, resume: bool, cluster_address: str) -> None:
        assert (directory / "spec.yaml").is_file()
        if self.fail_launch is not None:
            raise self.fail_launch
        before = self.drivers.get(run_id)
        if before is not None and before.alive:
            self.twice.append(run_id)
        step = before.step if before is not None and resume else 0
        total_steps = before.total_steps if before is not None else 10
        self.drivers[run_id] = ScriptedDriver(grant, total_steps, step=step)
        self.launches.append(run_id)

    def grant(self, run_id: str, directory: Path, grant: Grant) -> None:
        driver = self.drivers.get(run_id)
        if driver is not None and driver.alive and grant.number > driver.grant.number:
            driver.grant = grant

    def stop(self, run_id: str, directory: Path) -> None:
        if run_id in self.drivers and not self.drivers[run_id].deaf:
            self.drivers[run_id].stopping = True

    def kill(self, run_id: str, directory: Path) -> None:
        self.killed.append(run_id)
        self.end(run_id, None)

    def look(self, runs: Mapping[str, Path]) -> Mapping[str, DriverFacts]:
        return {run_id: self._facts(self.drivers.get(run_id), run_id) for run_id in runs}

    def _facts(self, driver: ScriptedDriver | None, run_id: str) -> DriverFacts:
        if driver is None:
            return DriverFacts(False, False, None, None, None, 0)
        return DriverFacts(
            driver.alive, driver.lease_moved, driver.state, driver.reason, driver.exit_code, driver.answered,
            self.held_now.get(run_id, {}), driver.step, driver.total_steps, driver.step_time_s, 1.0,
            driver.cluster_lost,
        )  # fmt: skip

    def nodes(self) -> tuple[NodeCapacity, ...] | None:
        if not self.answers:
            return None
        used: dict[str, float] = {}
        for places in self.held_now.values():
            for node, count in places.items():
                used[node] = used.get(node, 0.0) + count
        return tuple(
            NodeCapacity(node, node, {"CPU": cpus}, {"CPU": cpus - used.get(node, 0.0)})
            for node, cpus in self.nodes_up.items()
        )

    def held(self, run_ids: Collection[str]) -> Mapping[str, Mapping[str, int]]:
        return {run_id: self.held_now[run_id] for run_id in run_ids if run_id in self.held_now}

    def drain(self, node_id: str, reason: str, deadline_s: float | None) -> None:
        self.drained.append(node_id)

    def end(self, run_id: str, state: RunState | None, exit_code: int | None = None, reason: str | None = None) -> None:
        """A driver ends; without a state it was killed."""
        driver = self.drivers[run_id]
        driver.alive, driver.lease_moved, driver.exit_code, driver.reason = False, False, exit_code, reason
        driver.state = state or driver.state
        if not self.keeps_places:
            self.held_now.pop(run_id, None)

    def advance(self) -> None:
        """Drivers take their leases, reserve what they were granted, make a step, and end when they are done."""
        for run_id, driver in self.drivers.items():
            if not driver.alive:
                continue
            if driver.stopping:
                self.end(run_id, RunState.STOPPED, 130)
            elif driver.step >= driver.total_steps:
                self.end(run_id, RunState.SUCCEEDED, 0)
            else:
                driver.lease_moved, driver.state = True, RunState.RUNNING
                driver.answered = driver.grant.number
                self.held_now[run_id] = dict(driver.grant.places)
                driver.step += 1

    def overbooked(self) -> list[str]:
        """Nodes on which more is reserved than there is."""
        return [node.node_id for node in self.nodes() or () if node.free["CPU"] < 0]


def fifo(facts: QueueFacts) -> Decision:
    """The smallest decision: the minimum of workers in order of priority and submission, wherever there is room."""
    free = {node.node_id: node.free.get("CPU", 0.0) for node in facts.nodes}
    for run in facts.runs:
        for node, count in run.places.items():
            if node in free:
                free[node] -= count * run.ask.bundle["CPU"]
    grants: dict[str, dict[str, int]] = {}
    outlooks = {}
    waiting = sorted((run for run in facts.runs if run.waits), key=lambda run: (-run.priority, run.order))
    for position, run in enumerate(waiting, 1):
        places: dict[str, int] = {}
        left = run.ask.minimum
        for node, room in free.items():
            count = min(left, int(room // run.ask.bundle["CPU"]))
            if count > 0:
                places[node], left = count, left - count
        if left:
            outlooks[run.id] = Outlook(position, Obstacle.CAPACITY, f"needs {run.ask.minimum} workers")
            continue
        for node, count in places.items():
            free[node] -= count * run.ask.bundle["CPU"]
        grants[run.id] = places
    return Decision(grants, {}, outlooks)


class Time:
    """Two clocks of one process."""

    def __init__(self) -> None:
        self.monotonic_s, self.unix_s = 1000.0, 1_800_000_000.0

    def clock(self) -> float:
        return self.monotonic_s

    def now(self) -> float:
        return self.unix_s

    def pass_s(self, seconds: float) -> None:
        self.monotonic_s += seconds
        self.unix_s += seconds


@dataclass
class Server:
    """Store, lease, service and ticker of one server over a world."""

    home: Path
    world: World = field(default_factory=World)
    decide: Callable[[QueueFacts], Decision] = fifo
    time: Time = field(default_factory=Time)
    ttl_s: float = 1.0

    def __post_init__(self) -> None:
        self.runs = RunStore(self.home / "runs")
        self.boot()

    def boot(self, lease: Callable[..., ServerLease] = ServerLease) -> None:
        """Start on the database that is there."""
        self.store = QueueStore(self.home / "queue.db", self.time.now())
        self.lease = lease(self.store, self.time.clock, self.ttl_s, False)
        self.board = QueueBoard()
        ports = TickerPorts(self.world, self.world, self._decided, self.time.clock, self.time.now)
        self.ticker = Ticker(self.store, self.lease, self.runs, ports, self.board)
        self.queue = LiveQueue(self.store, self.runs, self.board, self.world, now=self.time.now)
        while not self.lease.held():
            self.lease.turn()
            self.time.pass_s(0.5)

    def _decided(self, facts: QueueFacts) -> Decision:
        return self.decide(facts)

    def crash(self) -> None:
        """End without giving anything back."""
        self.store.close()

    def submit(self, submission: Submission, caller: Caller = ANN, key: str | None = None) -> str:
        """The id of the submitted run."""
        return self.queue.submit(submission, caller, key).runs[0].id

    def second(self, ticks: int = 1) -> None:
        """Seconds pass: a tick and an advance of the world for each."""
        for _ in range(ticks):
            self.ticker.tick()
            self.world.advance()
            self.time.pass_s(1.0)
            assert self.world.overbooked() == []
            assert self.world.twice == []

    def row(self, run_id: str) -> RunRow:
        """As the database has it."""
        found = self.store.read(lambda connection: run_by_id(connection, run_id))
        assert found is not None
        return found

    def state(self, run_id: str) -> QueueState:
        """Of a run."""
        return self.row(run_id).state

    def until(self, run_id: str, *states: QueueState, limit: int = 60) -> RunRow:
        """Let seconds pass until a run is in one of the states."""
        for _ in range(limit):
            if self.state(run_id) in states:
                return self.row(run_id)
            self.second()
        raise AssertionError(f"{run_id} is {self.state(run_id)}: {self.row(run_id).reason}")


def endless(server: Server, run: str) -> None:
    """It does not reach its last step during the test."""
    server.world.drivers[run].total_steps = 100_000


def active(server: Server, name: str = "tiny", workers: str = "1") -> str:
    """A run that trains."""
    run = server.submit(job(name, workers=workers))
    server.until(run, QueueState.STARTING)
    endless(server, run)
    server.until(run, QueueState.ACTIVE)
    return run
