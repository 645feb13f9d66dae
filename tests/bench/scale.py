"""The driver of a run with 1,024 workers: the real loop of a gang with its real receiver, survey, metrics and records,
fed by simulated workers and vaults in another process (`simulated_workers`). Nothing of it needs Ray.

CPU is that of the driver's process, all threads. What a step costs is what the process takes beyond its idling.
"""

import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from orchestrator.checkpoint.survey.surveyor import Surveyor, VaultContact
from orchestrator.clusters.placement import request_of
from orchestrator.domain.events import RunState, StateChanged, TrainingPlanned
from orchestrator.domain.ranks.gpu_pace import reading_interval_s
from orchestrator.domain.ranks.rank_summary import every_rank_interval
from orchestrator.domain.run_layout import RunLayout
from orchestrator.domain.session import TrainPlan
from orchestrator.gang.agent.ray_session import Assignment
from orchestrator.gang.agent.worker_actor import FileAccess, Hello
from orchestrator.gang.elastic.scale_requests import ScaleRequests
from orchestrator.gang.group.gang_settings import GangSettings
from orchestrator.gang.group.report_inbox import ReportInbox
from orchestrator.gang.group.worker_group import Gang
from orchestrator.gang.group.worker_handle import WorkerHandle
from orchestrator.gang.health.hang_monitor import HangMonitor
from orchestrator.gang.vaults.checkpoint_committer import Pacer
from orchestrator.gang.vaults.vault_care import VaultCare
from orchestrator.goodput.ledger_recorder import LedgerRecorder
from orchestrator.goodput.worker_terms import WorkerTerms
from orchestrator.metrics.durability_recorder import DurabilityRecorder
from orchestrator.metrics.event_bus import EventBus
from orchestrator.metrics.exporter import MetricsObserver
from orchestrator.metrics.run_recorder import RunRecorder
from orchestrator.metrics.straggler_observer import StragglerRecorder
from orchestrator.spec.loading.load import load_job
from tests.bench.measure import Row, environment

RANKS, RANKS_PER_NODE = 1024, 8
MEASURED_S = 20.0
PACE_S = 0.2
"""From step to step: much faster than 1,024 workers are, so that steps are measured and not idling."""
STEP_CPU_S, IDLE_SHARE, STEP_BYTES, MOST_SERIES = 0.020, 0.15, 4096, 2000
"""The bars."""
JOB = Path(__file__).resolve().parents[2] / "jobs" / "quickstart.yaml"


class _Over(Exception):
    """Ends the loop of the gang."""


class _Pending:
    """Stands for the reference of a call that Ray answers only when the run ends."""

    def future(self) -> Future[None]:
        """Never done."""
        return Future()


class _Method:
    def remote(self, *_: object) -> _Pending:
        """Nobody is called."""
        return _Pending()


class _Actor:
    """Stands for Ray's handle of a worker. All that the loop calls of one while it trains is `run`."""

    run = poll = notify = _Method()


class SimulatedGang(Gang):
    """A gang whose processes are simulated: everything but their handles is real."""

    def __init__(self, layout: RunLayout, bus: EventBus) -> None:
        spec = load_job(JOB, ("resources.workers={min: 1, max: 4}",)).spec
        request = request_of(spec.resources)
        self._settings = GangSettings(request, {}, SimpleNamespace(one_host=True, outlives_driver=False), layout.run_id)  # type: ignore[arg-type]
        self._cluster, self._on_gpus, self._step, self._step_s = self._settings.cluster, False, 0, 0.0
        self.vaults, self.saves, self.replicas, self.generation = None, None, 0, 1
        self.pacer, self.hangs, self.vault_care = Pacer(False), HangMonitor(True, None), VaultCare(self)
        self.recruits = SimpleNamespace(look=list, ready=0, arriving=0, coming=RANKS, groups=())  # type: ignore[assignment]
        self.spares = SimpleNamespace(keep=lambda node_ids: None)  # type: ignore[assignment]
        self.head = SimpleNamespace(round=lambda: False, silent=False)  # type: ignore[assignment]
        desk: Any = SimpleNamespace(newest=lambda: None, answer=lambda _: None, standing=lambda: None)
        self.planned, self.seek_more = ScaleRequests(spec, request, desk, bus.emit), lambda: None
        self._server, self._oom_kills_before = FileAccess(None, "", "", ""), 0
        self._inbox = ReportInbox()
        self._inbox.open("127.0.0.1", RANKS)
        self.members = []
        for rank in range(RANKS):
            node, local = divmod(rank, RANKS_PER_NODE)
            hello = Hello(f"node-{node}", f"10.0.{node}.1", f"host-{node}", rank + 1, "/none")
            handle = WorkerHandle(_Actor(), hello, None)
            handle.begin(Assignment(rank, RANKS, local, hello.node_ip, 1), time.monotonic())
            self.members.append(handle)

    @property
    def names(self) -> list[str]:
        """Of the workers, by rank."""
        return [member.name for member in self.members]

    def access_token(self) -> tuple[str, str]:
        """Address and token of the receiver."""
        access = self._inbox.access("")
        assert access is not None
        return access.address, access.token


class Driver:
    """Everything of a driver that does something for each step or while it waits."""

    def __init__(self, home: Path) -> None:
        self.layout = RunLayout(home / "scale-1")
        self.layout.root.mkdir(parents=True)
        self.bus = EventBus()
        self.gang = SimulatedGang(self.layout, self.bus)
        ledger = LedgerRecorder(self.layout, time.time, WorkerTerms(), lambda _: ())
        stragglers = StragglerRecorder(self.bus.emit)
        self.durability = DurabilityRecorder(self.layout, lambda: None)
        self.metrics = MetricsObserver(
            "scale-1", "scale", ledger.totals, slowness=lambda: stragglers.ratios, durability=self.durability,
            pace=self.bus.pace,
        )  # fmt: skip
        observers = {"records": RunRecorder(self.layout), "ledger": ledger, "metrics": self.metrics}
        for name, observer in {**observers, "stragglers": stragglers, "durability": self.durability}.items():
            self.bus.add(name, observer, essential=True)
        self.bus.emit(TrainingPlanned(RANKS, (8,) * RANKS, 8, 1, 10**6, 10**9))
        self.bus.emit(StateChanged(RunState.RUNNING))
        self.steps, self._ending = 0, threading.Event()
        self.bus.add("bench", self)
        self.surveyor: Surveyor | None = None
        self._thread = threading.Thread(target=self._train, name="driver")

    def on_event(self, event: object) -> None:
        """Nothing: only steps are counted."""

    def on_step(self, report: object) -> None:
        """Count."""
        self.steps += 1

    def start(self, vaults: list[str], token: str) -> None:
        """Begin the loop and the surveys."""
        contacts = [VaultContact(f"node-{number}", address, token) for number, address in enumerate(vaults)]
        self.surveyor = Surveyor(lambda: contacts, self.durability.take)
        self._thread.start()

    def close(self) -> None:
        """End both."""
        self._ending.set()
        self._thread.join(10.0)
        if self.surveyor is not None:
            self.surveyor.close()
        self.gang.hang_up()

    def series(self) -> int:
        """How many Prometheus would get."""
        return sum(len(family.samples) for family in self.metrics.registry.collect())

    def _train(self) -> None:
        plan = TrainPlan({}, str(self.layout.root), "", 10**6, (8,) * RANKS, 8, 1)
        try:
            self.gang.run("none:none", plan, (), self.bus, self._stopped)
        except _Over:
            return

    def _stopped(self) -> bool:
        if self._ending.is_set():
            raise _Over
        return False


@contextmanager
def simulated(driver: Driver) -> Iterator[subprocess.Popen[str]]:
    """The process of the workers and vaults, connected to a driver that has begun."""
    command = [sys.executable, "-m", "tests.bench.simulated_workers"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
    ) as process:
        address, token = driver.gang.access_token()
        asked = {"address": address, "token": token, "names": driver.gang.names, "ranks": RANKS}
        try:
            ready = _ask(process, json.dumps({**asked, "nodes": RANKS // RANKS_PER_NODE}), answers=True)
            driver.start(ready["vaults"], token)
            yield process
        finally:
            driver.close()
            process.stdin.close()  # type: ignore[union-attr]


def _ask(process: subprocess.Popen[str], line: str, answers: bool = False) -> Any:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline()) if answers else None


@dataclass(frozen=True)
class Spent:
    """A measured time."""

    seconds: float
    cpu_s: float
    steps: int

    @property
    def share(self) -> float:
        """Of one processor."""
        return self.cpu_s / self.seconds


def spend(driver: Driver, seconds: float) -> Spent:
    """What the driver's process takes in that time."""
    wall_s, cpu_s, steps = time.monotonic(), time.process_time(), driver.steps
    time.sleep(seconds)
    return Spent(time.monotonic() - wall_s, time.process_time() - cpu_s, driver.steps - steps)


def step_bytes(layout: RunLayout, steps: int) -> float:
    """Bytes on disk for each step, in the mean of many."""
    ranks = [len(line) for line in layout.ranks.read_bytes().splitlines(keepends=True)]
    return layout.steps.stat().st_size / steps + statistics.mean(ranks) / every_rank_interval(RANKS)


def measure(scratch: Path) -> list[Row]:
    """Idle, then with steps."""
    driver = Driver(scratch)
    print(f"{RANKS} workers on {RANKS // RANKS_PER_NODE} nodes connect", flush=True)
    with simulated(driver) as process:
        deadline_s = time.monotonic() + 60.0
        while driver.durability.last is None or not all(map(driver.gang._inbox.connected, driver.gang.names)):
            assert time.monotonic() < deadline_s, "the workers did not connect"
            time.sleep(0.1)
        time.sleep(2.0)
        idle = spend(driver, MEASURED_S)
        print(f"idle: {idle.share:.1%} of a processor over {idle.seconds:.0f} s", flush=True)
        _ask(process, f"pace {PACE_S}")
        time.sleep(2.0)
        busy = spend(driver, MEASURED_S)
        latencies_s = _ask(process, "steps", answers=True)["latencies_s"]
        step_s = (busy.cpu_s - idle.share * busy.seconds) / busy.steps
        print(f"{busy.steps} steps: {busy.share:.1%} of a processor, {step_s * 1e3:.1f} ms each", flush=True)
        series, size = driver.series(), step_bytes(driver.layout, driver.steps)
    delay_s = statistics.median(latencies_s)
    at = f"{RANKS} workers"
    return [
        Row(f"driver CPU for a step, {at}", f"{step_s * 1e3:.1f} ms", "", None, "<= 20 ms", step_s <= STEP_CPU_S,
            f"at a step every {PACE_S:g} s; pushed, recorded and confirmed after {delay_s * 1e3:.0f} ms in the median"),
        Row(f"driver CPU while idle, {at}", f"{idle.share:.1%} of a core", "", None, "<= 15%", idle.share <= IDLE_SHARE,
            f"two heartbeats a second from each worker, figures of its GPU every {reading_interval_s(RANKS):.0f} s, a "
            f"survey of {RANKS // RANKS_PER_NODE} vaults every 2 s"),
        Row(f"files for a step, {at}", f"{size:.0f} bytes", "", None, "<= 4 KB", size <= STEP_BYTES,
            "steps.jsonl and ranks.jsonl"),
        Row(f"series for Prometheus, {at}", f"{series}", "", None, "<= 2000", series <= MOST_SERIES),
    ]  # fmt: skip
