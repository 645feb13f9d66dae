"""What the driver makes of heartbeats: beats, progress, storage that does not answer, measured checkpoints."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from orchestrator.domain.events import CheckpointSaved, Event, WarningIssued
from orchestrator.domain.policy.hang import (
    CHECKPOINT_FLOOR_S,
    FIRST_CHECKPOINT_S,
    OUTSIDE_S,
    Finding,
    Pace,
    Phase,
    Pulse,
    State,
    bound_s,
    judge_pulses,
)
from orchestrator.gang.agent.process_activity import BLOCKED_S
from orchestrator.gang.agent.ray_session import Assignment
from orchestrator.gang.agent.report_queue import Heartbeat
from orchestrator.gang.agent.worker_actor import Hello
from orchestrator.gang.group.worker_handle import WorkerHandle
from orchestrator.gang.health import hang_monitor as module
from orchestrator.gang.health.hang_monitor import HangMonitor
from orchestrator.metrics.event_bus import EventBus

pytestmark = pytest.mark.unit

HOUR_S = 3600.0


class Watched:
    """Two workers in one phase, whose heartbeats a test changes, and a watch whose verdicts it reads."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, phase: Phase) -> None:
        self.events: list[Event] = []
        self.findings: list[Finding] = []
        self.paces: list[Pace] = []
        self.now_s = 1000.0
        self.members = [
            WorkerHandle(
                None, Hello("node", "127.0.0.1", "host", 1, "/none"), None, Assignment(rank, 2, rank, "127.0.0.1")
            )
            for rank in range(2)
        ]
        for member in self.members:
            member.run_ref = object()
            member.heartbeat = Heartbeat(member.rank, 7, phase, 3)
        monkeypatch.setattr(module, "judge_pulses", self._judge)
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now_s)
        self.watch = HangMonitor(one_host=True, vaults=None)
        bus = EventBus()
        bus.add("the test", self)
        self.watch.begin(self.members, "/none", bus)

    def on_event(self, event: Event) -> None:
        self.events.append(event)

    def on_step(self, report: Any) -> None: ...

    def _judge(self, pulses: Sequence[Pulse], since_s: float, pace: Pace, asked_s: float | None) -> Finding:
        self.findings.append(judge_pulses(pulses, since_s, pace, asked_s))
        self.paces.append(pace)
        return replace(self.findings[-1], state=State.FINE)  # nobody takes stacks, nobody is ended

    def round(self, after_s: float = 1.0) -> Finding:
        self.now_s += after_s
        for member in self.members:
            member.renewed_s = self.now_s
        self.watch.round(self.now_s, 0.1, None)
        return self.findings[-1]

    def says(self, rank: int, **changes: Any) -> None:
        heartbeat = self.members[rank].heartbeat
        assert heartbeat is not None
        self.members[rank].heartbeat = replace(heartbeat, **changes)


@pytest.mark.parametrize("phase", list(Phase))
def test_progress_of_one_rank_keeps_a_gang_alive_for_hours(monkeypatch: pytest.MonkeyPatch, phase: Phase) -> None:
    watched = Watched(monkeypatch, phase)
    for part in range(int(HOUR_S / 4)):
        watched.says(1, progress=part)
        assert watched.round(4.0).state is State.FINE
    assert len(watched.findings) == HOUR_S / 4


@pytest.mark.parametrize(
    ("phase", "bound"), [(Phase.CHECKPOINT, FIRST_CHECKPOINT_S), (Phase.RESTORE, OUTSIDE_S), (Phase.BUILD, OUTSIDE_S)]
)
def test_without_progress_it_is_hung_in_time(monkeypatch: pytest.MonkeyPatch, phase: Phase, bound: float) -> None:
    watched = Watched(monkeypatch, phase)
    watched.round()
    watched.says(0, progress=1)
    watched.round()
    assert watched.round(bound - 1).state is State.SUSPICIOUS
    assert watched.round(1).state is State.HUNG


def test_progress_does_not_say_who_is_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch, Phase.CHECKPOINT)
    watched.says(0, progress=1000)
    watched.says(1, progress=3)
    finding = watched.round(FIRST_CHECKPOINT_S)
    assert (finding.state, finding.culprits, finding.reason) == (State.HUNG, (), "all workers are in checkpoint")


def test_only_checkpoints_that_training_waits_for_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch, Phase.CHECKPOINT)
    in_background = CheckpointSaved(8, "place", 1, 0.05, 168.0)
    for _ in range(10):
        watched.watch.take_checkpoint(in_background)
    watched.round()
    assert watched.paces[-1].checkpoints_s == ()
    assert bound_s(Phase.CHECKPOINT, watched.paces[-1], None) == FIRST_CHECKPOINT_S
    watched.watch.take_checkpoint(CheckpointSaved(8, "place", 1, 168.0))
    watched.round()
    assert bound_s(Phase.CHECKPOINT, watched.paces[-1], None) == 1680.0 > CHECKPOINT_FLOOR_S


def test_the_time_that_storage_took_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """When it answers again the worker is not ended at once, though it has made no beat for longer than the bound."""
    watched = Watched(monkeypatch, Phase.DATA)
    watched.watch.asked_s = 10.0
    watched.watch._last = object()  # type: ignore[assignment]  # a step was made
    watched.says(1, beat=4)
    watched.round(3.0)
    watched.says(0, blocked=True)
    watched.round(BLOCKED_S)
    finding = watched.round(30.0)
    assert (finding.state, finding.excused) == (State.FINE, (0,))
    watched.says(0, blocked=False)
    assert watched.round(0.1).still_s == pytest.approx(3.0)
    assert watched.round(6.8).state is State.SUSPICIOUS
    assert watched.round(0.3).state is State.HUNG


def test_a_hang_beside_a_slow_disk_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread of a hung worker is blocked for moments, again and again: its log lies on that disk."""
    watched = Watched(monkeypatch, Phase.DATA)
    watched.watch.asked_s = 10.0
    watched.watch._last = object()  # type: ignore[assignment]
    for _ in range(20):
        watched.says(0, blocked=True)
        watched.round(BLOCKED_S)
        watched.says(0, blocked=False)
        watched.round(BLOCKED_S)
        if watched.round(BLOCKED_S).state is State.HUNG:
            break
    assert watched.findings[-1].state is State.HUNG


def test_storage_that_does_not_answer_is_told_of_once(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch, Phase.DATA)
    watched.watch.asked_s = 10.0
    watched.watch._last = object()  # type: ignore[assignment]
    for _ in range(2):
        watched.says(0, blocked=True)
        for _ in range(20):
            watched.round()
        watched.says(0, blocked=False)
        watched.round()
    messages = [event.body.message for event in watched.events if isinstance(event.body, WarningIssued)]
    assert len(messages) == 2
    assert messages[0].startswith("no progress for 10 s: the storage of worker 0 does not answer")


def test_what_a_silent_worker_said_last_of_its_storage_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch, Phase.DATA)
    watched.says(0, blocked=True)
    watched.members[0].hello = replace(watched.members[0].hello, pid=2**22 + 1)  # gone
    watched.round()
    watched.now_s += 20.0
    watched.members[1].renewed_s = watched.now_s
    watched.watch.round(watched.now_s, 0.1, None)
    assert watched.findings[-1].excused == ()
