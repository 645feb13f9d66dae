"""Runs that a server drives, on its own cluster: grants, suspension, drivers that die."""

import json
import os
import signal
import time
from collections.abc import Iterator

import pytest

from orchestrator.domain.events import RunState, WorkerStarted
from orchestrator.domain.run_layout import RunLayout
from orchestrator.store.driver_process import DriverProcess
from orchestrator.store.run_history import read_events
from tests.cluster.gang_runs import own_temporary_directory
from tests.cluster.served import Served, served

pytestmark = pytest.mark.cluster

STEPS = 70
JOB = {
    "train": {"steps": STEPS, "global_batch": 12, "lr": 1e-3},
    "resources": {"workers": {"min": 1, "max": 3}},
    "cluster": {"nodes": 1},
}


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with own_temporary_directory() as directory, served(directory, 4) as found:
        yield found


def workers(run: RunLayout) -> dict[str, int]:
    """Pids of the newest workers by node."""
    started = [event.body for event in read_events(run.events) if isinstance(event.body, WorkerStarted)]
    newest = max(each.generation for each in started)
    return {each.node: each.pid for each in started if each.generation == newest}


def driver_of(run: RunLayout) -> int:
    found = DriverProcess.from_json(json.loads(run.driver.read_text()))
    assert found is not None
    return found.pid


def test_a_run_follows_its_grants_and_survives_suspension_and_the_loss_of_its_driver(server: Served) -> None:
    """Beside a run that nothing disturbs, with equal losses."""
    moved, calm = server.submit("moved", **JOB), server.submit("calm", **JOB)
    before = time.monotonic()
    first = server.launch(moved, 0)
    server.launch(calm, 3)
    server.until(moved, lambda facts: facts.lease_moved)
    print("start to lease", time.monotonic() - before)
    server.until(moved, lambda facts: facts.step >= 3)
    print("start to step 3", time.monotonic() - before)
    assert server.facts(moved).answered == first.number
    server.until_held(moved, first.places)

    grown = server.grant(moved, 0, 1)
    server.until(moved, lambda facts: facts.answered == grown.number)
    server.until_held(moved, grown.places)
    print("grown", server.facts(moved))
    elsewhere = server.grant(moved, 1, 2)
    facts = server.until(moved, lambda facts: facts.answered == elsewhere.number)
    assert facts.holding == elsewhere.places
    server.until_held(moved, elsewhere.places)
    print("moved", server.facts(moved))
    shrunk = server.grant(moved, 2)
    server.until(moved, lambda facts: facts.answered == shrunk.number)
    server.until_held(moved, shrunk.places)
    print("shrunk", server.facts(moved))

    step = server.facts(moved).step
    server.drivers.stop(moved.run_id, moved.root)
    server.drivers.stop(moved.run_id, moved.root)
    facts = server.until(moved, lambda facts: facts.alive is False)
    assert (facts.state, facts.exit_code) == (RunState.STOPPED, 130)
    assert facts.step >= step
    server.until_held(moved, {})
    print("suspended", facts)
    again = server.launch(moved, 0, 1)
    server.until(moved, lambda now: now.step > facts.step and now.answered == again.number)
    server.until_held(moved, again.places)
    print("resumed", server.facts(moved))

    step = server.facts(moved).step
    os.kill(driver_of(moved), signal.SIGKILL)
    server.until(moved, lambda facts: facts.alive is False)
    last = server.launch(moved, 1, 2)
    server.until(moved, lambda facts: facts.step > step and facts.answered == last.number)
    print("adopted", server.facts(moved))

    for run in (moved, calm):
        facts = server.until(run, lambda facts: facts.alive is False)
        assert (facts.state, facts.exit_code, facts.step) == (RunState.SUCCEEDED, 0, STEPS)
        server.until_held(run, {})
    assert server.losses(moved) == pytest.approx(server.losses(calm), rel=1e-5)
