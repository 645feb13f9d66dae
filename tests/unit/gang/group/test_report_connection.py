"""Reports pushed over a connection: once, in order, whatever becomes of the connection."""

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.checkpoint.memory.wire import Channel, WireError
from orchestrator.domain.events import CheckpointSaved, Event, WorkerPhase
from orchestrator.domain.policy.hang import Phase
from orchestrator.domain.step_report import StepReport
from orchestrator.gang.agent.ray_session import Assignment
from orchestrator.gang.agent.report_frames import decode_batch, encode_batch
from orchestrator.gang.agent.report_queue import Heartbeat, Published, ReportBatch, ReportQueue
from orchestrator.gang.agent.report_sender import ReportSender
from orchestrator.gang.agent.worker_actor import Hello
from orchestrator.gang.group import report_receiver
from orchestrator.gang.group.polling import STALE_S, Listener
from orchestrator.gang.group.report_inbox import Pushed, ReportInbox
from orchestrator.gang.group.worker_handle import WorkerHandle
from orchestrator.json_values import parse_object
from orchestrator.metrics.event_bus import EventBus
from tests.events import body, event

pytestmark = pytest.mark.unit
Make = Callable[..., StepReport]
LIMIT_S = 10.0
BEAT = Heartbeat(0, 7, Phase.FORWARD, 3, 0.25, 12, False, 2)


class Worker:
    """A worker's end, connected to an inbox."""

    def __init__(self, inbox: ReportInbox, name: str = "node:1") -> None:
        self.queue, self.beat = ReportQueue(), BEAT
        access = inbox.access(name)
        assert access is not None
        self.sender = ReportSender(access, self.queue, lambda: self.beat)
        until(lambda: inbox.connected(name))


def until(true: Callable[[], Any]) -> Any:
    deadline_s = time.monotonic() + LIMIT_S
    while not (found := true()):
        assert time.monotonic() < deadline_s
        time.sleep(0.001)
    return found


@pytest.fixture
def inbox() -> Iterator[ReportInbox]:
    inbox = ReportInbox()
    inbox.open("127.0.0.1", 2)
    yield inbox
    inbox.close()


@pytest.fixture
def worker(inbox: ReportInbox) -> Iterator[Worker]:
    worker = Worker(inbox)
    yield worker
    worker.sender.close()


def next_batch(inbox: ReportInbox) -> Pushed:
    found = inbox.wait(LIMIT_S)
    assert len(found) == 1
    assert isinstance(found[0], Pushed)
    return found[0]


def through_text(batch: ReportBatch) -> ReportBatch:
    return decode_batch(parse_object(json.dumps(encode_batch(batch))))


def test_a_batch_survives_the_way(report: Make) -> None:
    large = report(3, world_size=1024)
    large = replace(large, loss=math.inf, ranks=replace(large.ranks, every=()))
    items = (report(2), event(WorkerPhase, 1.5, rank=1, phase="build"), Published("a", "b:1"), large)
    batch = ReportBatch(BEAT, 4, items, ("a line", "ünï"), 3)
    assert through_text(batch) == batch
    assert through_text(ReportBatch(BEAT)) == ReportBatch(BEAT)
    assert len(json.dumps(encode_batch(ReportBatch(BEAT, 1, (large,))))) < 40_000


FULL = encode_batch(ReportBatch(BEAT, 1, (), ("x",)))


@pytest.mark.parametrize(
    "frame",
    [
        {},
        {"beat": [1, 2]},
        {"beat": [0, 1, "dancing", 0, 0.0, 0, False, 1]},
        {**FULL, "items": [{"event": {}}]},
        {**FULL, "items": [{"published": {}}]},
        {**FULL, "items": [{"other": 1}]},
    ],
)
def test_what_is_no_batch_is_refused(frame: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"beat|event|published|dancing"):
        decode_batch(frame)


def test_news_arrive_at_once_and_signs_of_life_without_news(inbox: ReportInbox, worker: Worker) -> None:
    started_s = time.monotonic()
    worker.queue.put(Published("key", "value"))
    assert next_batch(inbox).batch.items == (Published("key", "value"),)
    assert time.monotonic() - started_s < LIMIT_S / 2
    worker.beat = replace(BEAT, step=8)
    sign = until(lambda: next((sign for sign in inbox.beats().values() if sign.beat.step == 8), None))
    assert abs(time.monotonic() - sign.at_s) < LIMIT_S / 2
    assert inbox.wait(0.0) == []


def test_the_next_batch_waits_until_the_last_one_is_dealt_with(inbox: ReportInbox, worker: Worker) -> None:
    worker.queue.put(Published("a", "1"))
    first = next_batch(inbox)
    worker.queue.put(Published("b", "2"))
    worker.queue.put_lines(["a line"])
    assert inbox.wait(0.05) == []
    inbox.confirm(first)
    second = next_batch(inbox).batch
    assert (second.number, second.items, second.lines) == (2, (Published("b", "2"),), ("a line",))


def test_a_broken_connection_loses_nothing(inbox: ReportInbox, worker: Worker) -> None:
    worker.queue.put(Published("a", "1"))
    lost = next_batch(inbox)
    assert worker.sender._channel is not None
    worker.sender._channel.abort()  # before it was confirmed
    again = next_batch(inbox)
    assert (again.batch.number, again.batch.items) == (lost.batch.number, lost.batch.items)
    inbox.confirm(again)
    worker.queue.put(Published("b", "2"))
    assert next_batch(inbox).batch.number == 2


def test_a_poll_has_what_was_pushed_until_that_is_confirmed(inbox: ReportInbox, worker: Worker) -> None:
    worker.queue.put(Published("a", "1"))
    pushed = next_batch(inbox)
    polled = worker.queue.take(BEAT, 0.0, lambda: True, 0)
    assert (polled.number, polled.items) == (1, (Published("a", "1"),))
    worker.queue.put(Published("b", "2"))
    assert worker.queue.take(BEAT, 0.0, lambda: True, 1).items == (Published("b", "2"),)
    assert next_batch(inbox).batch.number == 2, "the answer to a poll may be lost"
    inbox.confirm(pushed)
    assert worker.queue.take(BEAT, 0.0, lambda: True, 1).number == 2, "an old confirmation forgets nothing"


def test_many_lines_come_in_several_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.gang.agent.report_queue.BATCH_CHARACTERS", 10)
    queue, lines = ReportQueue(), ["1234", "56789", "0" * 30, "1"]
    queue.put_lines(lines)
    found, seen = [], 0
    while batch := queue.to_send(BEAT, seen):
        found.append(list(batch.lines))
        seen = batch.number
        queue.confirm(seen)
    assert found == [["1234", "56789"], ["0" * 30], ["1"]]


def send_and_receive(channel: Channel) -> None:
    """Whichever of the two notices first that the other side has hung up."""
    channel.send({"beat": []})
    channel.receive()


def test_strangers_are_refused_and_nonsense_ends_one_connection(inbox: ReportInbox, worker: Worker) -> None:
    access = inbox.access("node:2")
    assert access is not None
    with pytest.raises(WireError, match="wrong token"):
        Channel.connect(access.address, "another", 1.0)
    for nonsense in ({"worker": 5}, {"worker": "node:2", "bytes": 3}):
        channel = Channel.connect(access.address, access.token, LIMIT_S)
        channel.send(nonsense, bytes(nonsense.get("bytes", 0)))  # type: ignore[call-overload]
        with pytest.raises(ConnectionError):
            send_and_receive(channel)
        channel.close()
    worker.queue.put(Published("a", "1"))
    assert next_batch(inbox).worker == "node:1"


def test_a_worker_has_one_connection_the_newest(inbox: ReportInbox, worker: Worker) -> None:
    first, access = worker.sender._channel, worker.sender.access
    second = Channel.connect(access.address, access.token, LIMIT_S)
    second.send({"worker": access.worker})
    until(lambda: worker.sender._channel is not first)
    second.close()


def test_the_driver_may_open_as_many_files_as_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    set_to: list[tuple[int, int]] = []
    monkeypatch.setattr(report_receiver.resource, "getrlimit", lambda _: (1024, 4096))
    monkeypatch.setattr(report_receiver.resource, "setrlimit", lambda _, limits: set_to.append(limits))
    for workers in (0, 100, 100_000):
        report_receiver.make_room(workers)
    assert set_to == [(1424, 4096), (4096, 4096)]


class Actor:
    """Stands for Ray's handle of a worker: polls are counted, and never answered."""

    def __init__(self) -> None:
        self.polls = 0
        self.poll = self.notify = self

    def remote(self, *arguments: object) -> Any:
        from concurrent.futures import Future

        self.polls += len(arguments) == 2
        future: Future[None] = Future()
        return type("Ref", (), {"future": lambda self: future})()


class Gang:
    """Two members of generation 2, and what is published."""

    def __init__(self, inbox: ReportInbox) -> None:
        self.published: list[Event | StepReport] = []
        self.members = []
        for rank in range(2):
            hello = Hello("node", "127.0.0.1", "host", rank, "/none")
            assignment = Assignment(rank, 2, rank, "127.0.0.1", generation=2)
            handle = WorkerHandle(Actor(), hello, None, assignment, renewed_s=time.monotonic())
            handle.run_ref = Actor().remote()
            self.members.append(handle)
        bus = EventBus()
        bus.add("the test", self)
        self.listener = Listener(self.members, 2, bus, lambda: 0, inbox)
        self.listener.begin()

    def on_event(self, event: Event) -> None:
        self.published.append(event)

    def on_step(self, report: StepReport) -> None:
        self.published.append(report)


def test_reports_are_published_once_and_in_order(inbox: ReportInbox, worker: Worker, report: Make) -> None:
    gang, saved = Gang(inbox), Event(body(CheckpointSaved, step=2), 1.0)
    items = [report(1), saved, report(2), report(3)]
    for item in items:
        worker.queue.put(item)
        # What the poll answers is pushed as well.
        gang.listener._digest(gang.members[1], worker.queue.take(BEAT, 0.0, lambda: True, gang.members[1].seen))
        gang.listener.listen(0.05)
    until(lambda: gang.listener.listen(0.01) or worker.queue.to_send(BEAT, 0) is None)
    assert [getattr(each, "step", "event") for each in gang.published] == [1, "event", 2, 3]
    assert gang.listener.last is not None
    assert gang.listener.last.step == 3
    assert gang.members[1].heartbeat == BEAT


def test_a_sign_of_life_from_an_earlier_gang_says_that_the_process_lives(inbox: ReportInbox, worker: Worker) -> None:
    worker.beat = replace(BEAT, generation=1)
    gang = Gang(inbox)
    inbox.beats()
    gang.members[1].renewed_s = 0.0
    until(lambda: gang.listener.listen(0.01) or gang.members[1].renewed_s)
    assert gang.members[1].heartbeat is None


def test_only_a_worker_that_pushes_nothing_is_polled(inbox: ReportInbox, worker: Worker) -> None:
    gang = Gang(inbox)
    gang.listener.listen(0.0)
    assert [member.actor.polls for member in gang.members] == [1, 0], "rank 0 is not connected"
    gang.members[1].renewed_s = time.monotonic() - STALE_S
    inbox.beats()
    gang.listener._poll()
    assert [member.actor.polls for member in gang.members] == [1, 1]


def test_a_worker_without_a_driver_tries_again_and_ends_when_it_is_told_to(tmp_path: Path) -> None:
    inbox = ReportInbox()
    inbox.open("127.0.0.1", 1)
    access = inbox.access("node:1")
    assert access is not None
    inbox.close()
    queue = ReportQueue()
    sender = ReportSender(access, queue, lambda: BEAT)
    queue.put(Published("a", "1"))
    time.sleep(0.05)
    sender.close()
    assert queue.take(BEAT, 0.0, lambda: True, 0).items == (Published("a", "1"),)
