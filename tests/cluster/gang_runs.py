"""Small jobs on local clusters, and what must not be left behind by them."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import yaml

from orchestrator.domain.events import Event, EventKind
from orchestrator.domain.report import StepReport
from orchestrator.service import RunOutcome, run_job
from orchestrator.spec.load import load_job

ENTRIES = "tests.cluster.entries"


class Recording:
    """Observer that keeps everything; with `stop`, it asks for the end at the second step."""

    def __init__(self, stop: threading.Event | None = None) -> None:
        self.stop = stop
        self.stopped_s = 0.0
        self.events: list[Event] = []
        self.steps: list[StepReport] = []

    def on_event(self, event: Event) -> None:
        self.events.append(event)

    def on_step(self, report: StepReport) -> None:
        self.steps.append(report)
        if self.stop is not None and len(self.steps) == 2:
            self.stopped_s = time.monotonic()
            self.stop.set()

    def of(self, kind: EventKind) -> list[dict[str, Any]]:
        return [event.fields for event in self.events if event.kind is kind]

    def lines(self, rank: int) -> list[str]:
        return [fields["line"] for fields in self.of(EventKind.WORKER_LOG) if fields["rank"] == rank]


def write_job(directory: Path, name: str = "gang", **changes: Any) -> Path:
    """A job file with a corpus of its own; `changes` replace whole sections."""
    corpus = directory / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for index in range(4):
        text = "".join(f"line {line} of file {index}: the quick brown fox jumps\n" for line in range(200))
        (corpus / f"{index}.txt").write_text(text)
    job: dict[str, Any] = {
        "name": name,
        "model": {"architecture": "gpt2", "config": {"n_layer": 1, "n_embd": 32, "n_head": 2}},
        "tokenizer": {"train": {"vocab_size": 300}},
        "data": {"sources": [{"files": ["corpus/*.txt"]}], "sequence_length": 16},
        "train": {"steps": 3, "global_batch": 4, "lr": 1e-3},
        "resources": {"workers": 2},
        "cluster": {"nodes": 2},
        **changes,
    }
    path = directory / f"{name}.yaml"
    path.write_text(yaml.safe_dump(job))
    return path


def run(directory: Path, entry: str, stop_early: bool = False, **changes: Any) -> tuple[RunOutcome, Recording]:
    """Run a small job with an entry point of `entries`, in this process; `stop_early` stops it at its second step."""
    stop = threading.Event()
    recording = Recording(stop if stop_early else None)
    job = load_job(write_job(directory, **changes))
    outcome = run_job(job, directory / "runs", [recording], stop, f"{ENTRIES}:{entry}")
    return outcome, recording


def state_of(outcome: RunOutcome) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((outcome.run_dir / "run.json").read_text())
    return value


def ray_processes(since: set[int]) -> list[str]:
    """Command lines of Ray's processes that were not there before, whoever's children they are by now."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline", "name", "status"]):
        line = " ".join(process.info["cmdline"] or [])
        ours = "convoy-ray-" in line or line.startswith("ray::")
        if ours and process.info["pid"] not in since and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(f"{process.info['pid']} {line[:120]}")
    return found


def all_pids() -> set[int]:
    return set(psutil.pids())


def shared_memory() -> set[str]:
    """What lies in shared memory, semaphores of other programs' multiprocessing left out."""
    return {path.name for path in Path("/dev/shm").iterdir() if not path.name.startswith("sem.")}
