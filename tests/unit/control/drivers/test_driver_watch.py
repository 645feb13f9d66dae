"""What a server knows of a driver from the run's files, and how cheaply."""

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.atomic_files import write_json
from orchestrator.control.drivers.driver_report import DriverReport
from orchestrator.control.drivers.driver_start import write_launch
from orchestrator.control.drivers.driver_watch import CHECK_S, DriverWatch
from orchestrator.control.ports import DriverFacts
from orchestrator.domain.events import RunState
from orchestrator.domain.lease import TTL_S, Lease
from orchestrator.domain.queue.grant import GrantAnswer
from orchestrator.domain.run_layout import RunLayout
from orchestrator.store.driver_process import DriverProcess
from orchestrator.store.exchange.grant_files import GrantFiles
from orchestrator.store.lease.lease_places import LeaseDirectory, LeaseEntry
from orchestrator.store.run_store import RunStore

pytestmark = pytest.mark.unit

OWN = DriverProcess.current()
GONE = replace(OWN, pid=2**22 + 7, start_ticks=1)
ELSEWHERE = replace(OWN, boot_id="another", pid=1)
RUNS, LIMIT_S = 1000, 0.05


def made(directory: Path, driver: DriverProcess = OWN, state: str = "running", lease: Lease | None = None) -> RunLayout:
    """A run that is driven."""
    directory.mkdir(exist_ok=True)
    layout = RunLayout(directory)
    write_json(layout.state, {"state": state, "reason": "why", "driver": driver.to_json()}, durable=False)
    write_json(layout.driver, driver.to_json(), durable=False)
    report = DriverReport(driver, step=7, total_steps=9, step_time_s=0.5, loss=2.5, address="head:1")
    write_json(layout.driver_report, report.to_json(), durable=False)
    layout.leases.mkdir(exist_ok=True)
    entry = LeaseEntry(lease or Lease("h", 1), driver)
    LeaseDirectory(directory).path(1).write_bytes(entry.to_bytes())
    GrantFiles(layout).answer(GrantAnswer(3, {"a": 2}))
    return layout


def test_a_run_without_files_has_no_driver(tmp_path: Path) -> None:
    facts = DriverWatch(tmp_path).look(0.0)
    assert facts == DriverFacts(False, False, None, None, None, 0)


def test_a_run_that_waits_in_the_queue_has_had_no_driver(tmp_path: Path) -> None:
    RunStore(tmp_path).restore_queued(RunLayout(tmp_path / "waits"), "waits", 1.0)
    assert DriverWatch(tmp_path / "waits").look(0.0) == DriverFacts(False, False, None, None, None, 0)


def test_a_driver_at_work(tmp_path: Path) -> None:
    made(tmp_path)
    facts = DriverWatch(tmp_path).look(0.0)
    assert (facts.alive, facts.lease_moved, facts.state, facts.exit_code) == (True, True, RunState.RUNNING, None)
    assert (facts.answered, facts.holding, facts.cluster_address) == (3, {"a": 2}, "head:1")
    assert (facts.step, facts.total_steps, facts.step_time_s, facts.loss) == (7, 9, 0.5, 2.5)


def test_a_dead_driver_holds_nothing_and_its_lease_does_not_count(tmp_path: Path) -> None:
    made(tmp_path, GONE)
    facts = DriverWatch(tmp_path).look(0.0)
    assert (facts.alive, facts.lease_moved, facts.holding, facts.answered) == (False, False, {}, 3)


def test_a_driver_that_cannot_be_seen_is_judged_by_its_lease_on_our_clock(tmp_path: Path) -> None:
    layout = made(tmp_path, ELSEWHERE)
    watch = DriverWatch(tmp_path)
    now_s = 100.0
    facts = watch.look(now_s)
    assert (facts.alive, facts.lease_moved) == (None, True)
    while now_s < 100.0 + TTL_S + 2:
        now_s += 1.0
        facts = watch.look(now_s)
    assert not facts.lease_moved
    LeaseDirectory(layout.root).path(1).write_bytes(LeaseEntry(Lease("h", 1, renewals=1), ELSEWHERE).to_bytes())
    assert watch.look(now_s + 1).lease_moved
    assert not DriverWatch(made(tmp_path, ELSEWHERE, lease=Lease("h", 1, released=True)).root).look(0.0).lease_moved


def test_a_driver_that_was_started_lately_counts_before_it_has_the_run(tmp_path: Path) -> None:
    made(tmp_path, GONE, state="stopped")
    watch = DriverWatch(tmp_path)
    assert watch.look(0.0).alive is False
    write_launch(tmp_path, os.getpid())
    assert watch.look(CHECK_S + 1).alive is True


def test_the_end_is_that_of_the_last_driver_only(tmp_path: Path) -> None:
    layout = made(tmp_path, GONE, state="failed")
    write_json(layout.driver_report, DriverReport(GONE, exit_code=2, error="no such file").to_json())
    facts = DriverWatch(tmp_path).look(0.0)
    assert (facts.exit_code, facts.reason) == (2, "no such file")
    later = replace(GONE, pid=GONE.pid + 1)
    write_json(layout.driver, later.to_json())
    write_json(layout.state, {"state": "preparing", "driver": later.to_json()})
    assert DriverWatch(tmp_path).look(0.0).exit_code is None  # the newest one has not said anything yet


def test_a_thousand_runs_are_looked_at_in_no_time(tmp_path: Path) -> None:
    """Two thirds of them have changed nothing since the last look, as with one look a second and a lease of 2 s."""
    runs = [made(tmp_path / f"run-{number}") for number in range(RUNS)]
    watches = [DriverWatch(run.root) for run in runs]
    for watch in watches:
        watch.look(0.0)
    best_s = float("inf")
    for turn in range(3):
        for run in runs[:: len(runs) // (RUNS // 3)]:
            report = DriverReport(OWN, step=8 + turn, total_steps=9, step_time_s=0.5, loss=2.5)
            write_json(run.driver_report, report.to_json(), durable=False)
        began = time.process_time()
        found = [watch.look(1.0 + turn) for watch in watches]
        best_s = min(best_s, time.process_time() - began)
        assert found[0].step == 8 + turn
    assert best_s < 2 * LIMIT_S, "of processor time, on whatever machine this is"
