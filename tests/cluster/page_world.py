"""A server with something to look at: real queue, ticker and API over a scripted cluster, and runs that have recorded
steps, events, output, copies of their state and an account of their time."""

import math
import sqlite3
import time
from dataclasses import replace
from pathlib import Path

from orchestrator.api.access.issued_tokens import IssuedTokens
from orchestrator.api.api_app import create_app
from orchestrator.api.api_settings import ApiSettings
from orchestrator.atomic_files import write_json
from orchestrator.checkpoint.survey.durability import Durability, NodeLoss, ShardCopies
from orchestrator.control.policy.queue_facts import Decision, QueueFacts, QueueShare
from orchestrator.control.queue_store.queue_table import put_queue
from orchestrator.domain.events import (
    EvalFinished,
    Event,
    GangResized,
    RecoveryFinished,
    RecoveryReason,
    RecoveryStarted,
    RunState,
    VaultsPlanned,
    WarningIssued,
    WorkerLog,
)
from orchestrator.domain.queue.queue_states import QueueState
from orchestrator.domain.run_layout import RunLayout
from orchestrator.metrics.run_recorder import RunRecorder
from orchestrator.store.uploads.file_store import FileStore
from orchestrator.wire.request_messages import Role, TokenRequest
from tests import events
from tests.unit.control.scripted import ANN, BOB, ROOT, Server, Time, World, fifo, job
from tests.unit.run_facts.made import Rank, beginning, ledger, step

STEPS = 1200
TOTAL = 2000
HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>\u202e"
NODES = {f"{number:02x}" * 14: 3.0 for number in (10, 11, 12)}


def explained(facts: QueueFacts) -> Decision:
    """As `fifo`, with all that a waiting run may be told."""
    decision = fifo(facts)
    holding = tuple(run.id for run in facts.runs if run.places)
    outlooks = {
        run: outlook._replace(
            message=f"{outlook.message}, which {len(holding)} other holds", blockers=holding,
            may_start_s=facts.now_s + 754.0 * outlook.position,
        )
        for run, outlook in decision.outlooks.items()
    }  # fmt: skip
    return replace(decision, outlooks=outlooks)


class PageWorld:
    """One run that trains and has had everything, one that is done, one that failed, some that wait, one paused."""

    def __init__(self, home: Path) -> None:
        now = Time()
        now.unix_s = self.now_s = time.time()
        self.server = Server(home, World(nodes_up=dict(NODES)), explained, now, ttl_s=1e6)
        store = self.server.store
        store.write(lambda connection: put_queue(connection, QueueShare("research", 2.0, {"CPU": 4.0}, {"CPU": 10.0})))
        self.tokens, self.files = IssuedTokens(store, time.time), FileStore(home / "files")
        self.log: list[str] = []
        self.url = ""
        """Set while it listens."""
        settings = ApiSettings(home / "runs", stream_look_s=0.05)
        self.app = create_app(self.server.queue, self.tokens, self.files, settings, self.log.append)
        self._fill()

    def _fill(self) -> None:
        server = self.server
        self.done = server.submit(job("warm-up"), BOB)
        server.until(self.done, QueueState.SUCCEEDED)
        self.broken = server.submit(job("broken", more="schedule: {retries: 0}\n"))
        server.second(2)
        server.world.end(self.broken, RunState.FAILED, 1, f"the loss is not finite {HOSTILE}")
        server.until(self.broken, QueueState.FAILED)
        self.main = server.submit(job("pretrain", "{min: 4, max: 8}", TOTAL, "schedule: {queue: research}\n"), ANN)
        server.until(self.main, QueueState.ACTIVE)
        driver = server.world.drivers[self.main]
        driver.total_steps, driver.step, driver.step_time_s = TOTAL, STEPS, 1.25
        self.waiting = server.submit(job("wide", "8", more="schedule: {priority: high}\n"), BOB)
        self.second = server.submit(job("second", "6"), BOB)
        self.after = server.submit(job("evaluate").model_copy(update={"after": [self.main]}), ANN)
        self.paused = server.submit(job("paused"), ANN)
        server.queue.pause(self.paused, ROOT)
        server.second()
        server.store.write(self._hostile_name)
        self.layout = RunLayout(Path(server.row(self.main).directory))
        self.recorder = RunRecorder(self.layout)
        self._record()

    def _hostile_name(self, connection: sqlite3.Connection) -> None:
        """No name of a job can be like this: the page does not rely on that."""
        connection.execute("UPDATE runs SET name = ? WHERE id = ?", (f"warm{HOSTILE}", self.done))

    def _record(self) -> None:
        """What the driver of the run that trains has written."""
        self.server.runs.claim(self.layout, 1, self.now_s - STEPS)
        self.server.runs.set_state(self.layout, RunState.RUNNING, None, self.now_s - STEPS + 5)
        ranks = [Rank(0.05, 0.3, 0.6, 0.1, 0.02)] * 4
        for number in range(1, STEPS + 1):
            wave = 1.0 + 0.04 * math.sin(number / 3) + (0.5 if number in (400, 401) else 0.0)
            loss = (2.1 + 6.0 / (1 + number / 60)) * (1 + 0.01 * math.sin(number))
            self.recorder.on_step(step(number, *ranks, time_s=self._at_s(number), step_time_s=wave, loss=loss))
        past = [replace(each, time_s=self._at_s(0)) for each in beginning(4)]
        for event in (*past, *self._happenings()):
            self.recorder.on_event(event)
        for number in range(1, 300):
            self.say(number % 4, f"step {number * 4}: loss {8 / number:.4f}")
        self.say(1, f"\x1b[31mred\x1b[0m {HOSTILE}")
        write_json(self.layout.durability, self._durability().to_json())
        write_json(self.layout.ledger, ledger(
            STEPS + 30.0, workers=4, productive=4200.0, startup=60.0, recovery_detection=8.0, recovery_rebuild=30.0,
            recomputed=24.0, communication_wait=340.0, data_wait=120.0, snapshot_stall=18.0,
        ).to_json())  # fmt: skip

    def _at_s(self, number: int) -> float:
        """When a step ended, Unix seconds."""
        return self.now_s - STEPS + number

    def _happenings(self) -> list[Event]:
        at_s = self._at_s
        return [
            events.event(VaultsPlanned, at_s(1)),
            events.event(EvalFinished, at_s(300), step=300, loss=3.4, seconds=1.0),
            events.event(RecoveryStarted, at_s(400), incident=1, rank=2, cause=f"exit code -9 {HOSTILE}",
                         detected_s=at_s(400), step=400, from_step=398, source="vaults",
                         reason=RecoveryReason.WORKER_DIED),
            events.event(RecoveryFinished, at_s(408), incident=1, step=399, world_size=4, seconds=8.2,
                         steps_recomputed=2),
            events.event(GangResized, at_s(700), step=700, before=4, world_size=6),
            events.event(EvalFinished, at_s(900), step=900, loss=2.6, seconds=1.0),
            events.event(WarningIssued, at_s(1000), message=f"the disk is nearly full {HOSTILE}"),
        ]  # fmt: skip

    def _durability(self) -> Durability:
        nodes = tuple(
            NodeLoss(node, f"10.0.0.{index}{HOSTILE}", True, 3 << 30, (index,), STEPS - 2, STEPS - 2, "")
            for index, node in enumerate(NODES)
        )
        shards = tuple(ShardCopies(rank, ("a",), ("b",)) for rank in range(4))
        safe = STEPS - 2
        return Durability(
            self.now_s, STEPS, STEPS - 1, safe, 1000, safe, safe, 2, shards, nodes, planned_bytes=4 << 30,
            memory_kept_s=0.0,
        )  # fmt: skip

    def say(self, rank: int, line: str) -> None:
        """A worker writes a line."""
        self.recorder.on_event(events.event(WorkerLog, self.now_s, rank=rank, line=line))

    def secret(self, role: Role = "admin", user: str = "root", team: str = "ops") -> str:
        """A new token."""
        name = f"t{time.monotonic_ns()}"
        return self.tokens.create(TokenRequest(name=name, user=user, team=team, role=role)).secret

    def close(self) -> None:
        """End it."""
        self.recorder.close()
        self.server.store.close()
