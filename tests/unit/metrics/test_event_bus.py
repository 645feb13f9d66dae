"""The bus: in order, never re-entrantly, and a broken observer stops nobody else."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from orchestrator.domain.events import Event, WarningIssued, WorkerLog
from orchestrator.domain.step_report import StepReport
from orchestrator.metrics.event_bus import MAX_QUEUED, EventBus

pytestmark = pytest.mark.unit
Make = Callable[..., StepReport]


def label(item: Event | StepReport) -> str:
    if isinstance(item, StepReport):
        return f"step {item.step}"
    return item.body.message if isinstance(item.body, WarningIssued) else item.body.kind


@dataclass
class Listens:
    """Keeps what it gets, and does something then."""

    then: Callable[[str], None] = lambda _: None
    got: list[str] = field(default_factory=list)

    def on_event(self, event: Event) -> None:
        self.got.append(label(event))
        self.then(label(event))

    def on_step(self, report: StepReport) -> None:
        self.got.append(label(report))
        self.then(label(report))


def raises(_: str) -> None:
    raise ValueError("broken")


def test_observers_get_everything_in_order(report: Make) -> None:
    bus, first, second = EventBus(lambda: 5.0), Listens(), Listens()
    bus.add("first", first)
    bus.emit(WarningIssued("a"))
    bus.add("second", second)
    bus.publish(report(1))
    bus.publish(Event(WarningIssued("b"), 1.0))
    assert (first.got, second.got) == (["a", "step 1", "b"], ["step 1", "b"])


def test_an_event_that_an_observer_emits_follows_the_one_it_handles(report: Make) -> None:
    """`recovery.finished` belongs behind the step that ended the recovery, for every observer."""
    bus, last = EventBus(), Listens()
    emits = Listens(lambda got: bus.emit(WarningIssued(f"after {got}")) if got == "step 1" else None)
    bus.add("emits", emits)
    bus.add("last", last)
    bus.publish(report(1))
    bus.publish(report(2))
    assert emits.got == last.got == ["step 1", "after step 1", "step 2"]


def test_an_observer_can_be_placed_behind_another() -> None:
    bus, order = EventBus(), list[str]()
    for name in ("a", "c"):
        bus.add(name, Listens(lambda _, name=name: order.append(name)))  # type: ignore[misc]
    bus.add("b", Listens(lambda _: order.append("b")), after="a")
    bus.add("a", Listens(lambda _: order.append("A")))
    bus.emit(WarningIssued("x"))
    assert order == ["A", "b", "c"]


def test_one_that_raises_is_reported_once_and_stops_nobody(report: Make) -> None:
    bus, broken, sound = EventBus(), Listens(raises), Listens()
    bus.add("the broken one", broken)
    bus.add("the sound one", sound)
    for step in (1, 2, 3):
        bus.publish(report(step))
    told = "the broken one failed and may be incomplete from here on: ValueError: broken"
    assert sound.got == broken.got == ["step 1", told, "step 2", "step 3"]


def test_what_an_essential_one_raises_reaches_the_caller_and_the_others_have_the_item(report: Make) -> None:
    bus, sound = EventBus(), Listens()
    healthy = [False]
    bus.add("the recorder", Listens(lambda got: None if healthy[0] else raises(got)), essential=True)
    bus.add("another", sound)
    with pytest.raises(ValueError, match="broken"):
        bus.publish(report(1))
    healthy[0] = True
    bus.emit(WarningIssued("the end"))  # the run still reports how it ended
    assert sound.got == ["step 1", "the end"]


def test_what_was_queued_when_an_essential_one_raised_comes_with_the_next() -> None:
    bus, sound = EventBus(), Listens()

    def emit_and_raise(got: str) -> None:
        if got == "a":
            bus.emit(WarningIssued("b"))
            raise ValueError("broken")

    bus.add("essential", Listens(emit_and_raise), essential=True)
    bus.add("sound", sound)
    with pytest.raises(ValueError, match="broken"):
        bus.emit(WarningIssued("a"))
    bus.emit(WarningIssued("c"))
    assert sound.got == ["a", "b", "c"]


def test_an_observer_that_emits_without_end_is_bounded() -> None:
    bus, sound = EventBus(), Listens()

    def flood(got: str) -> None:
        if got == "go":
            for _ in range(MAX_QUEUED + 1):
                bus.emit(WorkerLog(0, "x"))

    bus.add("floods", Listens(flood))
    bus.add("sound", sound)
    bus.emit(WarningIssued("go"))
    assert sound.got.count("worker.log") == MAX_QUEUED
    assert "floods failed" in sound.got[-1]


def test_items_of_two_threads_are_delivered_one_at_a_time() -> None:
    bus, inside, most = EventBus(), list[int](), list[int]()

    def enter(_: str) -> None:
        inside.append(1)
        most.append(len(inside))
        inside.pop()

    seen = Listens(enter)
    bus.add("seen", seen)

    def speak(name: str) -> None:
        for number in range(300):
            bus.emit(WarningIssued(f"{name} {number}"))

    threads = [threading.Thread(target=speak, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) == {1}
    for name in "ab":
        assert [got for got in seen.got if got.startswith(name)] == [f"{name} {number}" for number in range(300)]
