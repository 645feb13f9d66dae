"""Train two small models for a few minutes, with faults, and keep what Prometheus saw of it."""

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.standing import CONVOY, PACED, Driver
from tests.monitoring.made_up_run import JOB as GPU_JOB
from tests.monitoring.made_up_run import RUN as GPU_RUN
from tests.monitoring.made_up_run import made_up_endpoints
from tests.monitoring.prometheus_server import PrometheusServer, Span, free_port
from tests.rendering.recording import Recording, recorded
from tests.session_server import own_server

SECONDS = 240.0
STEP_S = 3.0
MAIN, OTHER = "python-lm", "stdlib-mini"


def job(name: str, workers: int, steps: int) -> dict[str, Any]:
    """A language model of Python source."""
    return {
        "name": name,
        "model": {"architecture": "gpt2", "config": {"n_layer": 2, "n_embd": 64, "n_head": 2}},
        "tokenizer": {"train": {"vocab_size": 1024}},
        "data": {
            "sources": [{"files": ["${PYTHON_STDLIB}/json/*.py", "${PYTHON_STDLIB}/asyncio/*.py"]}],
            "sequence_length": 64,
            "validation": {"fraction": 0.05, "max_samples": 16},
        },
        "train": {"steps": steps, "global_batch": 24, "lr": 2e-3, "warmup_steps": 50, "eval_interval_steps": 100},
        "zero": {"stage": 2},
        "resources": {"workers": {"min": 2, "max": workers}},
        "cluster": {"nodes": workers, "cpus_per_node": 1, "usd_per_hour": 2.5},
        "checkpoint": {"interval_steps": 200},
    }


class Stage:
    """The runs, and what is done to them."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.ports = (free_port(), free_port())
        jobs = (job(MAIN, 4, 3000), job(OTHER, 2, 6000))
        self.main, self.other = (self._start(each, port) for each, port in zip(jobs, self.ports, strict=True))

    def _start(self, value: dict[str, Any], port: int) -> Driver:
        path = self._directory / f"{value['name']}.yaml"
        path.write_text(yaml.safe_dump(value))
        return Driver(self._directory / value["name"], str(path), "--set", f"metrics.port={port}", program=PACED)

    def run_id(self, driver: Driver) -> str:
        return str(driver.of("run.created")[0]["run_id"])

    def hit(self, rank: int, number: int) -> None:
        """Send a signal to a worker of the main run."""
        pids = [event["pid"] for event in self.main.of("worker.started") if event["rank"] == rank]
        with contextlib.suppress(ProcessLookupError):
            os.kill(pids[-1], number)

    def scale(self, workers: int) -> None:
        command = [CONVOY, "scale", "last", "--workers", str(workers), "--no-wait"]
        subprocess.run(command, env={**os.environ, "CONVOY_HOME": str(self._directory / MAIN)}, capture_output=True)

    def end(self) -> None:
        for driver in (self.main, self.other):
            driver.process.send_signal(signal.SIGTERM)  # SIGINT is ignored by what a shell runs in the background
        for driver in (self.main, self.other):
            driver.end()


def plan(stage: Stage) -> Iterator[tuple[float, Callable[[], None]]]:
    """What happens, by the share of the time after which it does."""
    yield 0.25, lambda: stage.hit(1, signal.SIGKILL)
    yield 0.45, lambda: stage.scale(3)
    yield 0.55, lambda: stage.scale(4)
    yield 0.75, lambda: stage.hit(2, signal.SIGSTOP)


def record(seconds: float = SECONDS) -> Recording:
    """Takes a minute more than the seconds of training."""
    with (
        tempfile.TemporaryDirectory(prefix="convoy-recording-") as name,
        own_server(os.environ),
        made_up_endpoints() as (gpus, exporters),
    ):
        directory = Path(name)
        stage = Stage(directory)
        targets = {"convoy": [*(f"127.0.0.1:{port}" for port in stage.ports), gpus], "exporters": [exporters]}
        server = PrometheusServer(directory, targets)
        try:
            for driver in (stage.main, stage.other):
                driver.read_until_step(5)
            begun_s = time.time()
            for share, act in plan(stage):
                time.sleep(max(0.0, begun_s + share * seconds - time.time()))
                act()
            time.sleep(max(0.0, begun_s + seconds - time.time()))
            span = Span(begun_s - 20.0, time.time() - 2.0, STEP_S)
            return recorded(server, span, stage.run_id(stage.main), MAIN, GPU_RUN)
        finally:
            stage.end()
            server.close()


GPU_CHOICE = {"job": GPU_JOB, "run": GPU_RUN, "rank": ".+"}
"""Variables of the dashboard of GPUs."""
