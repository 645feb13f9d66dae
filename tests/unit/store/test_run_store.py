import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.domain.errors import LeaseLostError, UsageError
from orchestrator.domain.events import EvalFinished, RunState, TrainingPlanned
from orchestrator.domain.run_layout import RunLayout
from orchestrator.metrics.run_recorder import RunRecorder
from orchestrator.store.driver_process import DriverProcess
from orchestrator.store.run_history import current_steps, read_events
from orchestrator.store.run_store import SILENT_S, RunStore, read_record
from tests.events import event

pytestmark = pytest.mark.unit

T0 = 1_700_000_000.0


def finished(store: RunStore, name: str, now_s: float) -> RunLayout:
    layout = store.create(name, now_s)
    store.set_state(layout, RunState.SUCCEEDED, now_s=now_s + 60)
    return layout


def test_a_new_run_is_being_prepared_by_this_process(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "runs")
    layout = store.create("tiny", T0)
    record = store.read(layout.run_id)
    assert layout.run_id.startswith("tiny-20231114-")
    assert (record.status, record.active, record.name) == ("preparing", True, "tiny")
    assert record.driver is not None
    assert record.driver.pid == os.getpid()


def test_runs_of_the_same_second_do_not_collide(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    assert len({store.create("tiny", T0).run_id for _ in range(50)}) == 50


@pytest.mark.parametrize("name", ["", "Tiny", "../up", "a/b", "-a", "x" * 64])
def test_a_name_that_is_no_name_makes_no_directory(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError):
        RunStore(tmp_path).create(name, T0)
    assert list(tmp_path.iterdir()) == []


def test_home_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("")
    with pytest.raises(UsageError, match="home"):
        RunStore(tmp_path / "home").create("tiny", T0)
    assert RunStore(tmp_path / "home").list() == []


def test_a_query_finds_its_run(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    old = finished(store, "tiny", T0)
    new = finished(store, "tiny", T0 + 100)
    other = finished(store, "tiny-big", T0 + 50)
    assert store.read(old.run_id).id == old.run_id
    assert store.read("tiny").id == new.run_id
    assert store.read("last").id == new.run_id
    assert store.read("tiny-b").id == other.run_id
    assert store.read(str(other.root)).id == other.run_id
    assert [record.id for record in store.list()] == [new.run_id, other.run_id, old.run_id]


def test_what_is_not_there_or_not_one_is_said(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    with pytest.raises(UsageError, match="no runs under"):
        store.read("tiny")
    finished(store, "tiny", T0)
    finished(store, "tiny", T0 + 100)
    with pytest.raises(UsageError, match="start of 2 runs"):
        store.read("tiny-2")
    with pytest.raises(UsageError, match="no run 'tiyn'") as raised:
        store.read("tiyn")
    assert raised.value.hint is not None
    assert "did you mean tiny" in raised.value.hint


@pytest.mark.parametrize("query", ["", "..", ".", "/", "../..", "tiny\0"])
def test_a_query_that_is_no_name_is_an_error_like_any_other(tmp_path: Path, query: str) -> None:
    store = RunStore(tmp_path / "runs")
    finished(store, "tiny", T0)
    with pytest.raises(UsageError):
        store.read(query)


def test_foreign_directories_and_damaged_runs_are_passed_over(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    good = finished(store, "tiny", T0)
    (tmp_path / "cache").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    for name, text in [("a", "{"), ("b", "[]"), ("c", '{"state": "dancing"}'), ("d", '{"state": ["x"]}')]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(text)
    assert [record.id for record in store.list()] == [good.run_id]


def test_progress_is_read_from_files_that_end_in_the_middle_of_a_line(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    layout = store.create("tiny", T0)
    recorder = RunRecorder(layout)
    recorder.on_event(event(TrainingPlanned, T0, total_steps=60))
    recorder.on_event(event(EvalFinished, T0, step=5, loss=4.25))
    layout.steps.write_text(
        '{"step": 1, "loss": 9.0, "time_s": 1}\n{"step": 2, "loss": 8.0, "time_s": 1800000000, "tokens_per_s": 5}\n{"st'
    )
    with layout.events.open("a") as file:
        file.write('{"time_s": 5, "kind": "eva')
    record = store.read("last")
    assert (record.step, record.total_steps, record.loss, record.validation_loss) == (2, 60, 8.0, 4.25)
    assert record.updated_s == 1_800_000_000
    assert len(list(read_events(layout.events))) == 2


def test_a_run_whose_driver_was_killed_is_lost_not_running(tmp_path: Path) -> None:
    program = (
        "import sys, os, signal; from pathlib import Path; from orchestrator.store.run_store import RunStore; "
        "from orchestrator.domain.events import RunState; s = RunStore(Path(sys.argv[1])); l = s.create('tiny'); "
        "s.set_state(l, RunState.RUNNING); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", program, str(tmp_path)]).returncode == -9
    record = RunStore(tmp_path).read("last")
    assert (record.state, record.status, record.active) == (RunState.RUNNING, "lost", False)
    RunStore(tmp_path).claim(record.layout, 2)
    assert RunStore(tmp_path).read("last").status == "preparing"


def test_another_hosts_run_is_believed(tmp_path: Path) -> None:
    layout = RunStore(tmp_path).create("tiny", T0)
    value = json.loads(layout.state.read_text())
    value["driver"]["host"] = "elsewhere"
    layout.state.write_text(json.dumps(value))
    assert RunStore(tmp_path).read("last").status == "preparing"
    value["driver"] = {**DriverProcess.current().to_json(), "start_ticks": 1}
    layout.state.write_text(json.dumps(value))
    assert RunStore(tmp_path).read("last").status == "lost", "the pid was given to another process"


def test_the_same_host_name_with_another_boot_may_be_another_machine(tmp_path: Path) -> None:
    layout = RunStore(tmp_path).create("tiny", T0)
    value = json.loads(layout.state.read_text())
    value["driver"]["boot_id"] = "of a container elsewhere with this host name"
    layout.state.write_text(json.dumps(value))
    assert RunStore(tmp_path).read("last").status == "preparing"


def test_a_driver_that_cannot_be_seen_is_shown_as_lost_when_its_lease_is_old(tmp_path: Path) -> None:
    """After a reboot, for instance; nobody takes a run over because of that."""
    layout = RunStore(tmp_path).create("tiny", T0)
    value = json.loads(layout.state.read_text())
    value["driver"]["boot_id"] = "before the reboot"
    layout.state.write_text(json.dumps(value))
    layout.leases.mkdir()
    lease = layout.leases / "00000001.json"
    for age_s, status in ((1.0, "preparing"), (SILENT_S + 60.0, "lost")):
        lease.write_text("{}")
        os.utime(lease, (time.time() - age_s, time.time() - age_s))
        assert RunStore(tmp_path).read("last").status == status


def test_a_driver_that_was_taken_over_writes_no_state(tmp_path: Path) -> None:
    before, after = RunStore(tmp_path), RunStore(tmp_path)
    layout = before.create("tiny", T0)
    before.claim(layout, 1)
    after.claim(layout, 2)
    after.set_state(layout, RunState.RUNNING)
    for late in (lambda: before.set_state(layout, RunState.STOPPED, "too late"), lambda: before.claim(layout, 1)):
        with pytest.raises(LeaseLostError, match="lease 2; this driver had lease 1"):
            late()
    record = RunStore(tmp_path).read("last")
    assert (record.state, record.reason) == (RunState.RUNNING, None)
    assert json.loads(layout.state.read_text())["lease"] == 2
    after.set_state(layout, RunState.SUCCEEDED)


def _write_states(root: Path, count: int) -> None:
    store = RunStore(root.parent)
    for number in range(count):
        store.set_state(RunLayout(root), RunState.RUNNING, reason="x" * (number % 500))


def test_a_reader_never_sees_half_a_state(tmp_path: Path) -> None:
    layout = RunStore(tmp_path).create("tiny", T0)
    writer = multiprocessing.get_context("spawn").Process(target=_write_states, args=(layout.root, 300))
    writer.start()
    reads = 0
    while writer.is_alive():
        assert read_record(layout) is not None
        reads += 1
    writer.join()
    assert reads > 20
    assert sorted(path.name for path in layout.root.iterdir()) == ["run.json"]


def test_a_resume_supersedes_the_steps_it_repeats(tmp_path: Path) -> None:
    line = (
        '{"step":%d,"time_s":1,"epoch":0,"loss":%f,"grad_norm":null,"lr":0.1,"tokens":1,"target_tokens":1,"samples":1,'
        '"first_position":0,"data_digest":0,"step_time_s":1,"tokens_per_s":1,"tokens_per_s_per_worker":1,'
        '"tflops_per_s":null,"mfu":null,"world_size":1,"micro_batch":1,"accumulation":1,"ranks":[]}\n'
    )
    path = tmp_path / "steps.jsonl"
    path.write_text("".join(line % pair for pair in [(1, 9), (2, 8), (3, 7), (4, 6), (3, 5), (4, 4)]) + '{"step": 9}\n')
    assert [(report.step, report.loss) for report in current_steps(path)] == [(1, 9), (2, 8), (3, 5), (4, 4)]


def test_a_run_that_waits_in_a_servers_queue_is_shown_so_until_a_driver_claims_it(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    layout = store.reserve("tiny", T0)
    assert store.list() == []
    store.restore_queued(layout, "tiny", T0)
    record = store.read("tiny")
    assert (record.status, record.active, record.lost, record.driver) == ("queued", False, False, None)
    assert store.list()[0].to_json()["state"] == "queued"
    store.claim(layout, 1, T0 + 1)
    record = store.read("tiny")
    assert (record.status, record.active, record.queued) == ("preparing", True, False)
    assert not store.leave_queue(layout, RunState.FAILED, "too late"), "its driver says what becomes of it"
    assert store.read("tiny").status == "preparing"


def test_a_run_that_ends_in_the_queue_says_why(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    layout = store.reserve("tiny", T0)
    store.restore_queued(layout, "tiny", T0)
    assert store.leave_queue(layout, RunState.FAILED, "run a-1, which it comes after, is cancelled")
    record = store.read("tiny")
    assert (record.status, record.reason) == ("failed", "run a-1, which it comes after, is cancelled")
    assert not store.leave_queue(layout, RunState.STOPPED, "again")
    assert not store.leave_queue(RunLayout(tmp_path / "missing"), RunState.STOPPED, "gone")
    store.restore_queued(RunLayout(tmp_path / "restored-20260101-000000-aaaa"), "restored", T0)
    assert store.read("restored").status == "queued"
