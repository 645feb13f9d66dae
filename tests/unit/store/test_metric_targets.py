"""Where Prometheus finds runs: a file for each, of whoever drives the run now, and none of drivers that are gone."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.domain.events import RunState
from orchestrator.domain.run_layout import RunLayout
from orchestrator.host_identity import boot_id
from orchestrator.metrics import metric_catalog
from orchestrator.store.driver_process import DriverProcess
from orchestrator.store.metric_targets import (
    MISSED_S,
    Announcement,
    Signs,
    announce,
    announcements,
    clean_targets,
    is_over,
    targets_directory,
    withdraw,
)
from orchestrator.store.run_store import SILENT_S, RunStore

pytestmark = pytest.mark.unit
GONE = replace(DriverProcess.current(), start_ticks=1)
ELSEWHERE = replace(DriverProcess.current(), boot_id="of another machine")


def of(layout: RunLayout, driver: DriverProcess | None = None, lease: int = 1) -> Announcement:
    driver = driver or DriverProcess.current()
    return Announcement(layout.run_id, "tiny", str(layout.root), "127.0.0.1:4711", lease, driver)


@pytest.fixture
def layout(tmp_path: Path) -> RunLayout:
    return RunStore(tmp_path).create("tiny")


def test_the_file_is_what_prometheus_reads(tmp_path: Path, layout: RunLayout) -> None:
    path = announce(tmp_path, replace(of(layout), bearer=True))
    assert path == targets_directory(tmp_path) / f"{layout.run_id}.json"
    (group,) = json.loads(path.read_text())
    assert set(group) == {"targets", "labels"}, "file_sd refuses anything else"
    assert group["targets"] == ["127.0.0.1:4711"]
    assert all(isinstance(value, str) for value in group["labels"].values())
    assert group["labels"]["__meta_convoy_auth"] == "bearer"
    lasting = {name for name in group["labels"] if not name.startswith("__")}
    assert lasting == {"instance"}
    exported = {label for metric in metric_catalog.CATALOG for label in metric.all_labels}
    assert not lasting & exported, "a label set by both would be renamed to exported_..."
    assert [found for _, found in announcements(tmp_path)] == [replace(of(layout), bearer=True)]


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '[{"targets": ["a:1"]}]', '[{"targets": ["a:1"], "labels": {}}]', "[1]"]
)
def test_other_files_there_are_left_alone(tmp_path: Path, text: str) -> None:
    directory = targets_directory(tmp_path)
    directory.mkdir(parents=True)
    (directory / "own.json").write_text(text)
    assert list(announcements(tmp_path)) == []
    assert clean_targets(tmp_path, refuses=lambda _: True) == []
    assert (directory / "own.json").read_text() == text


def test_a_driver_that_has_lost_its_run_leaves_the_file_of_the_next_one(tmp_path: Path, layout: RunLayout) -> None:
    path = announce(tmp_path, of(layout, lease=1))
    later = replace(of(layout, ELSEWHERE, lease=2), target="10.0.0.2:99", everywhere=True)
    announce(tmp_path, later)
    withdraw(path, 1)
    announce(tmp_path, of(layout, lease=1))
    assert [found for _, found in announcements(tmp_path)] == [later]
    withdraw(path, 2)
    withdraw(path, 2)
    assert list(announcements(tmp_path)) == []


def test_who_reaches_a_target(layout: RunLayout) -> None:
    assert of(layout).here
    assert not of(layout, ELSEWHERE).here
    assert replace(of(layout, ELSEWHERE), everywhere=True).here
    assert of(layout).driver.boot_id == boot_id()


@pytest.mark.parametrize(
    ("signs", "over"),
    [
        (Signs(process_alive=False, ended=False, silent=False, refused=True), True),
        (Signs(process_alive=False, ended=True, silent=False, refused=False), True),
        (Signs(process_alive=False, ended=False, silent=True, refused=False), True),
        (Signs(process_alive=None, ended=True, silent=True, refused=False), True),
        (Signs(process_alive=None, ended=False, silent=True, refused=True), True),
        (Signs(process_alive=False, ended=False, silent=False, refused=False), False),
        (Signs(process_alive=None, ended=True, silent=False, refused=False), False),
        (Signs(process_alive=None, ended=False, silent=True, refused=False), False),
        (Signs(process_alive=None, ended=False, silent=False, refused=True), False),
        (Signs(process_alive=False, ended=False, silent=True, refused=True, missed=True), False),
        (Signs(process_alive=True, ended=True, silent=True, refused=True), False),
    ],
)
def test_one_sign_is_not_enough(signs: Signs, over: bool) -> None:
    assert is_over(signs) is over


def test_files_of_drivers_that_are_gone_are_removed(tmp_path: Path, layout: RunLayout) -> None:
    path = announce(tmp_path, of(layout, GONE))
    assert clean_targets(tmp_path, refuses=lambda target: False) == [path], "another driver has the run"
    store, other = RunStore(tmp_path), RunStore(tmp_path).create("other")
    kept = announce(tmp_path, of(other))
    store.set_state(other, RunState.SUCCEEDED)
    assert clean_targets(tmp_path, refuses=lambda target: True) == [], "a process that lives removes its file itself"
    assert kept.is_file()


def test_a_driver_that_was_killed_is_missed_for_an_hour(tmp_path: Path, layout: RunLayout) -> None:
    value = json.loads(layout.state.read_text())
    layout.state.write_text(json.dumps({**value, "driver": GONE.to_json()}))
    layout.leases.mkdir()
    lease = layout.leases / "00000001.json"
    lease.touch()
    path, now_s = announce(tmp_path, of(layout, GONE)), max(lease.stat().st_mtime, layout.state.stat().st_mtime)
    assert clean_targets(tmp_path, lambda target: True, now_s + MISSED_S - 1) == []
    assert clean_targets(tmp_path, lambda target: True, now_s + MISSED_S + 1) == [path]


def test_a_driver_on_another_machine_is_judged_by_its_lease(tmp_path: Path, layout: RunLayout) -> None:
    path = announce(tmp_path, of(layout, ELSEWHERE))
    lease = layout.leases / "00000001.json"
    layout.leases.mkdir()
    lease.touch()
    now_s = lease.stat().st_mtime
    asked: list[str] = []

    def refuses(target: str) -> bool:
        asked.append(target)
        return True

    RunStore(tmp_path).set_state(layout, RunState.FAILED)
    assert clean_targets(tmp_path, refuses, now_s + SILENT_S - 1) == []
    assert clean_targets(tmp_path, refuses, now_s + SILENT_S + 1) == [path]
    assert asked == [], "its loopback is not this machine's"


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    directory = targets_directory(tmp_path)
    directory.mkdir(parents=True)
    old, new = directory / ".a.json.x.tmp", directory / ".b.json.y.tmp"
    old.touch()
    new.touch()
    os.utime(old, (0, 0))
    clean_targets(tmp_path)
    assert [path.name for path in directory.iterdir()] == [new.name]
