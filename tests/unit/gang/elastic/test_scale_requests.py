"""What is wanted of a gang: who asked for how many workers, what came of it, and which nodes are about to go."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.clusters.placement import WorkerRequest, request_of
from orchestrator.domain.errors import ClusterError, ConvoyError
from orchestrator.domain.events import EventBody, NodeDraining, ScaleAnswered
from orchestrator.domain.scaling import ScaleAnswer, ScaleRequest, ScaleState
from orchestrator.gang.elastic.scale_requests import LOOK_S, ScaleRequests
from orchestrator.spec.loading.load import load_job
from tests.events import recorded

pytestmark = pytest.mark.unit

JOB = Path(__file__).parents[4] / "jobs" / "quickstart.yaml"
SETTINGS = ("resources.workers={min: 2, max: 4}", "train.global_batch=8", "cluster.nodes=4")
Emitted = list[tuple[type[EventBody], dict[str, Any]]]


class Desk:
    """One request after another, and every answer."""

    def __init__(self, *requests: ScaleRequest, standing: int | None = None) -> None:
        self.requests, self.answers, self._standing = list(requests), [], standing
        self.answers: list[ScaleAnswer]

    def newest(self) -> ScaleRequest | None:
        return self.requests.pop(0) if self.requests else None

    def answer(self, answer: ScaleAnswer) -> None:
        self.answers.append(answer)

    def standing(self) -> int | None:
        return self._standing


def asking(workers: int, force: bool = False) -> ScaleRequest:
    return ScaleRequest(f"r{workers}", workers, "ann@desk", 12.5, {"pid": 7}, force)


def members(count: int, node: str = "n") -> Any:
    """Of a gang, as far as this matters: rank, node and life."""
    hello = SimpleNamespace(node_id=node, node_ip="10.0.0.7")
    return [SimpleNamespace(rank=rank, lives=True, hello=hello) for rank in range(count)]


def watch(draining: dict[str, float | None]) -> Any:
    """What a cluster says of its nodes."""
    return SimpleNamespace(draining=draining)


def planned_for(desk: Desk, emitted: Emitted) -> ScaleRequests:
    spec = load_job(JOB, SETTINGS).spec
    return ScaleRequests(spec, request_of(spec.resources), desk, lambda body: emitted.append(recorded(body)))


def test_a_request_becomes_the_aim_and_is_done_with_the_first_step_of_that_many(
    report: Callable[..., Any],
) -> None:
    desk, emitted = Desk(asking(2)), []
    planned = planned_for(desk, emitted)
    assert (planned.request.minimum, planned.request.maximum) == (2, 4)
    assert planned.look(members(4), 1.0)
    assert (planned.request.minimum, planned.request.maximum) == (2, 2)
    planned.on_step(report(step=9, world_size=4))
    planned.on_step(report(step=10, world_size=2))
    planned.on_step(report(step=11, world_size=2))
    assert [(answer.state, answer.step) for answer in desk.answers] == [
        (ScaleState.ACCEPTED, None),
        (ScaleState.DONE, 10),
    ]
    assert "2 leave at a step boundary" in desk.answers[0].message
    assert desk.answers[1].message == "2 workers from step 10 on"
    assert [(kind, fields["state"]) for kind, fields in emitted] == [
        (ScaleAnswered, "accepted"),
        (ScaleAnswered, "done"),
    ]


def test_it_looks_a_few_times_a_second_at_most() -> None:
    desk = Desk(asking(3), asking(2))
    planned = planned_for(desk, [])
    assert planned.look(members(4), 1.0)
    assert not planned.look(members(4), 1.0 + LOOK_S / 2)
    assert planned.request.maximum == 3
    assert planned.look(members(4), 1.0 + LOOK_S)
    assert planned.request.maximum == 2
    assert not planned.look(members(4), 2.0 + LOOK_S)


def test_what_the_spec_excludes_is_refused_and_changes_nothing() -> None:
    desk, emitted = Desk(asking(1)), []
    planned = planned_for(desk, emitted)
    assert not planned.look(members(4), 1.0)
    assert (planned.request.minimum, planned.request.maximum) == (2, 4)
    (answer,) = desk.answers
    assert answer.state is ScaleState.REFUSED
    assert "2 to 4 workers, 1 were requested; --force" in answer.message


def test_force_goes_below_the_minimum_and_the_run_then_gets_along_with_that() -> None:
    desk = Desk(asking(1, force=True))
    planned = planned_for(desk, [])
    assert planned.look(members(4), 1.0)
    assert (planned.request.minimum, planned.request.maximum) == (1, 1)


def test_what_the_cluster_could_never_hold_is_refused_with_its_reason() -> None:
    asked: list[WorkerRequest] = []

    def can_hold(request: WorkerRequest) -> ConvoyError | None:
        asked.append(request)
        return ClusterError("three nodes, strictly spread", hint="add one")

    desk = Desk(asking(4))
    planned = planned_for(desk, [])
    planned.begin(watch({}), can_hold)
    assert not planned.look(members(3), 1.0)
    assert [(request.minimum, request.maximum) for request in asked] == [(4, 4)]
    assert desk.answers[0].message == "refused: three nodes, strictly spread; add one"


def test_what_an_earlier_driver_accepted_stands() -> None:
    planned = planned_for(Desk(standing=3), [])
    assert (planned.request.minimum, planned.request.maximum) == (2, 3)


def test_a_node_that_is_about_to_go_is_told_once_with_its_ranks() -> None:
    emitted: Emitted = []
    planned = planned_for(Desk(), emitted)
    planned.begin(watch({"n": 2000.0, "elsewhere": None}), lambda _: None)
    there = members(2)
    there[1].lives = False
    assert planned.look(there, 1.0)
    assert not planned.look(there, 2.0)
    assert planned.draining == {"n": 2000.0, "elsewhere": None}
    told = {fields["node"]: fields for kind, fields in emitted if kind is NodeDraining}
    assert (told["n"]["ranks"], told["n"]["address"], told["n"]["deadline_s"]) == ([0], "10.0.0.7", 2000.0)
    assert (told["elsewhere"]["ranks"], told["elsewhere"]["address"], told["elsewhere"]["notice_s"]) == ([], None, None)
