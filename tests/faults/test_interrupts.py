"""Signals to a real `convoy run` in a process of its own: it ends in time and leaves nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.gang_runs import all_pids, left_in_shared_memory, ray_processes, shared_memory, write_job
from tests.selection import every_day

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("temporary_directory")]


class Convoy:
    """`convoy run` in a session of its own, as a terminal would start it."""

    def __init__(self, directory: Path) -> None:
        job = write_job(directory, train={"steps": 100_000, "global_batch": 4, "lr": 1e-3})
        self.home = directory / "runs"
        self.log = directory / "out.txt"
        env = {**os.environ, "CONVOY_HOME": str(self.home)}
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "orchestrator", "run", str(job)],
                stdout=out,
                stderr=subprocess.STDOUT,
                env=env,
                start_new_session=True,
            )

    @property
    def run_dir(self) -> Path | None:
        return next((path for path in self.home.glob("gang-*")), None)

    def wait_for(self, ready: Callable[["Convoy"], bool], timeout_s: float = 90.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not ready(self):
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    def state(self) -> str:
        assert self.run_dir is not None
        return str(json.loads((self.run_dir / "run.json").read_text())["state"])


def training(convoy: Convoy) -> bool:
    return convoy.run_dir is not None and (convoy.run_dir / "steps.jsonl").exists()


def starting(convoy: Convoy) -> bool:
    return convoy.run_dir is not None and "cluster.ready" in _text(convoy.run_dir / "events.jsonl")


def created(convoy: Convoy) -> bool:
    return convoy.run_dir is not None and (convoy.run_dir / "run.json").exists()


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


OFTEN = [(signal.SIGINT, training), (signal.SIGINT, starting), (signal.SIGHUP, created)]


@pytest.mark.parametrize(
    ("number", "when"),
    every_day([*OFTEN, (signal.SIGTERM, training)], *OFTEN),
)
def test_a_signal_stops_everything(number: int, when: Callable[[Convoy], bool], tmp_path: Path) -> None:
    pids, shm = all_pids(), shared_memory()
    convoy = Convoy(tmp_path)
    convoy.wait_for(when)
    asked_s = time.monotonic()
    os.killpg(convoy.process.pid, number)  # a terminal signals the whole group
    code = convoy.process.wait(timeout=10)
    assert time.monotonic() - asked_s < 5.5, convoy.log.read_text()
    assert code == 128 + number
    assert convoy.state() == "stopped"
    assert ray_processes(pids) == []
    assert left_in_shared_memory(shm) == set()


def test_a_killed_driver_takes_everything_with_it(tmp_path: Path) -> None:
    pids, shm = all_pids(), shared_memory()
    convoy = Convoy(tmp_path)
    convoy.wait_for(training)
    convoy.process.kill()
    convoy.process.wait()
    deadline = time.monotonic() + 5.0
    while ray_processes(pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert ray_processes(pids) == []
    assert left_in_shared_memory(shm) == set()
