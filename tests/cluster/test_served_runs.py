"""Runs that a server drives, on its own cluster: grants, suspension, drivers and nodes that die."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestrator.clusters.ray.local.keeper_files import KeeperFiles
from orchestrator.clusters.ray.node_processes import node_id_of
from orchestrator.control.drivers.driver_processes import DriverProcesses
from orchestrator.domain.errors import ConvoyError
from orchestrator.domain.events import RecoveryStarted, RunState, WorkerStarted
from orchestrator.domain.run_layout import RunLayout
from orchestrator.store.driver_process import DriverProcess
from orchestrator.store.run_history import read_events, read_steps
from tests.cluster.gang_runs import kill_worker, own_temporary_directory
from tests.cluster.served import SECRET, Served, served

pytestmark = pytest.mark.cluster

STEPS = 60
JOB: dict[str, Any] = {
    "train": {"steps": STEPS, "global_batch": 12, "lr": 1e-3},
    "resources": {"workers": {"min": 1, "max": 3}},
    "cluster": {"nodes": 1},
}


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with own_temporary_directory() as directory, served(directory, 4) as found:
        yield found


def worker_on(run: RunLayout, node_id: str) -> int:
    """Pid of the newest worker on a node."""
    started = [event.body for event in read_events(run.events) if isinstance(event.body, WorkerStarted)]
    return next(each.pid for each in reversed(started) if each.node_id == node_id)


def driver_of(run: RunLayout) -> DriverProcess:
    found = DriverProcess.from_json(run_json(run)["driver"])
    assert found is not None
    return found


def run_json(run: RunLayout) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(run.state.read_text())
    return value


def kill_node(server: Served, node_id: str) -> None:
    """SIGKILL its raylet. The keeper starts another node in its place, with another id."""
    found = KeeperFiles(server.home / "server" / "cluster").cluster()
    assert found is not None
    raylets = [each for each in psutil.Process(found.keeper).children() if each.name() == "raylet"]
    next(each for each in raylets if node_id_of(each) == node_id).kill()


def test_a_run_follows_its_grants_and_survives_suspension_and_the_loss_of_its_driver(server: Served) -> None:
    """Beside a run that nothing disturbs, with equal losses."""
    moved, calm = server.submit("moved", **JOB), server.submit("calm", **JOB)
    first = server.launch(moved, 0)
    server.launch(calm, 3)
    server.until(moved, lambda facts: facts.step >= 3)
    assert server.facts(moved).answered == first.number
    server.until_held(moved, first.places)
    environment = Path(f"/proc/{driver_of(moved).pid}/environ").read_text()
    assert "PATH=" in environment
    assert SECRET not in environment
    assert os.getsid(driver_of(moved).pid) == driver_of(moved).pid, "a session of its own"

    for nodes in ((0, 1), (1, 2), (2,)):  # grows, moves, shrinks
        grant = server.grant(moved, *nodes)
        facts = server.until(moved, lambda facts, number=grant.number: facts.answered == number)
        assert facts.holding == grant.places
        server.until_held(moved, grant.places)

    # Suspended, and resumed elsewhere. A second request to stop changes nothing.
    server.drivers.stop(moved.run_id, moved.root)
    server.drivers.stop(moved.run_id, moved.root)
    suspended = server.until(moved, lambda facts: facts.alive is False)
    assert (suspended.state, suspended.exit_code) == (RunState.STOPPED, 130)
    server.until_held(moved, {})
    again = server.launch(moved, 0, 1)
    server.until(moved, lambda facts: facts.step > suspended.step and facts.answered == again.number)
    server.until_held(moved, again.places)
    made = [step.step for step in read_steps(moved.steps)]
    assert made == list(range(1, len(made) + 1)), "no step was lost, none was made twice"

    # Its driver is killed; a server that is started again finds it, and replaces it.
    later = DriverProcesses(server.home, 2, os.environ, preload=False)
    assert later.look({moved.run_id: moved.root})[moved.run_id].alive is True
    step = server.facts(moved).step
    server.drivers.kill(moved.run_id, moved.root)
    facts = server.until(moved, lambda facts: facts.alive is False)
    assert (facts.exit_code, facts.lease_moved) == (None, False)
    assert later.look({moved.run_id: moved.root})[moved.run_id].alive is False
    last = server.launch(moved, 1, 2)
    server.until(moved, lambda facts: facts.step > step and facts.answered == last.number)
    later.grant(moved.run_id, moved.root, server.next_grant(moved, 1, 2))
    with pytest.raises(ConvoyError, match="another server acts on it"):
        server.grant(moved, 0)
    later.close()

    for run in (moved, calm):
        facts = server.until(run, lambda facts: facts.alive is False)
        assert (facts.state, facts.exit_code, facts.step) == (RunState.SUCCEEDED, 0, STEPS)
        server.until_held(run, {})
    assert server.losses(moved) == pytest.approx(server.losses(calm), rel=1e-5)


def test_after_a_failure_only_granted_places_are_used(server: Served) -> None:
    """A worker is killed, then one node, then the other: the run waits for a new grant, though there is room."""
    run = server.submit("struck", **{**JOB, "train": {**JOB["train"], "steps": 1000}})
    grant = server.launch(run, 2, 3)
    first, second = server.nodes[2], server.nodes[3]
    server.until(run, lambda facts: facts.step >= 3)
    kill_worker(worker_on(run, second))
    server.until(run, lambda facts: recoveries(run) == 1 and facts.state is RunState.RUNNING)
    server.until(run, lambda facts: facts.holding == grant.places and worker_counts(run)[-2:] == [1, 2])
    server.until_held(run, grant.places)

    kill_node(server, second)
    server.until(run, lambda facts: recoveries(run) == 2 and facts.state is RunState.RUNNING)
    server.until_held(run, {first: 1})
    kill_node(server, first)
    waiting = server.until(run, lambda facts: facts.state is RunState.WAITING and not facts.holding)
    assert waiting.alive is True
    server.until_held(run, {})
    server.until_nodes(4)
    assert server.facts(run).state is RunState.WAITING, "new nodes are not granted"
    again = server.grant(run, 1, 2)
    server.until(run, lambda facts: facts.answered == again.number and facts.state is RunState.RUNNING)
    server.drivers.stop(run.run_id, run.root)
    facts = server.until(run, lambda facts: facts.alive is False)
    assert (facts.state, facts.exit_code) == (RunState.STOPPED, 130)
    server.until_held(run, {})


def test_a_driver_that_cannot_begin_says_why(server: Served) -> None:
    broken = server.submit("broken", **JOB)
    broken.spec.write_text("name: broken\n")
    server.launch(broken, 0)
    facts = server.until(broken, lambda facts: facts.alive is False and facts.exit_code is not None)
    assert (facts.state, facts.exit_code) == (None, 2)
    assert facts.reason is not None
    assert "model" in facts.reason
    with pytest.raises(ProcessLookupError):
        os.kill(driver_pid(broken), 0)


def test_a_driver_too_many_leaves_the_run_alone(server: Served) -> None:
    run = server.submit("driven", **{**JOB, "train": {"steps": 15, "global_batch": 12, "lr": 1e-3}})
    server.launch(run, 0)
    server.until(run, lambda facts: facts.lease_moved and facts.state is not None)
    driver = driver_of(run)
    server.launch(run, 0)
    server.until(run, lambda _: driver_pid(run) == driver.pid)  # the second one has found that out
    facts = server.until(run, lambda facts: facts.alive is False)
    assert (facts.state, facts.exit_code, driver_of(run)) == (RunState.SUCCEEDED, 0, driver)


def recoveries(run: RunLayout) -> int:
    return sum(isinstance(event.body, RecoveryStarted) for event in read_events(run.events))


def worker_counts(run: RunLayout) -> list[int]:
    """The numbers of workers that have made steps, one after the other."""
    counts = [step.world_size for step in read_steps(run.steps)]
    return [count for index, count in enumerate(counts) if index == 0 or counts[index - 1] != count]


def driver_pid(run: RunLayout) -> int:
    return int(json.loads(run.driver.read_text())["pid"])
