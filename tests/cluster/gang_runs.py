"""Small jobs on local clusters, and what must not be left behind by them."""

import json
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import yaml

from orchestrator.data.samples.data_verify import final_lineage, verify_run
from orchestrator.data.samples.dataset import TokenDataset
from orchestrator.domain.events import Event, EventBody, WarningIssued, WorkerLog, WorkerStarted
from orchestrator.domain.events.event_codec import encode_body
from orchestrator.domain.step_report import StepReport
from orchestrator.run.launcher import RunOutcome, run_job
from orchestrator.spec.loading.load import load_job
from orchestrator.store.run_history import read_steps
from tests.events import BROKEN_OBSERVERS

ENTRIES = "tests.cluster.entries"


class Recording:
    """Observer that keeps everything; with `stop`, it asks for the end at the second step."""

    def __init__(self, stop: threading.Event | None = None) -> None:
        self.stop = stop
        self.stopped_s = 0.0
        self.events: list[Event] = []
        self.steps: list[StepReport] = []
        self._safe: tuple[type[EventBody], Path] | None = None

    def safe_after(self, kind: type[EventBody], home: Path) -> None:
        """From the first event of a kind on, a training that is held (`entries.HeldSession`) takes no longer than it
        needs: what it was held for has happened."""
        self._safe = (kind, home / "safe")

    def on_event(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event.body, WarningIssued) and "failed and may be incomplete" in event.body.message:
            BROKEN_OBSERVERS.append(event.body.message)
        if self._safe is not None and isinstance(event.body, self._safe[0]):
            self._safe[1].touch()

    def on_step(self, report: StepReport) -> None:
        self.steps.append(report)
        if self.stop is not None and len(self.steps) == 2:
            self.stopped_s = time.monotonic()
            self.stop.set()

    def of(self, kind: type[EventBody]) -> list[dict[str, Any]]:
        return [encode_body(event.body) for event in self.events if isinstance(event.body, kind)]

    def lines(self, rank: int) -> list[str]:
        return [fields["line"] for fields in self.of(WorkerLog) if fields["rank"] == rank]


class Strike(Recording):
    """Does something to a worker's process, once, when a step has been reported."""

    def __init__(self, at: int, rank: int, what: Callable[[int], None]) -> None:
        super().__init__()
        self.at, self.rank, self.what = at, rank, what
        self.pid: int | None = None
        self.struck = 0

    def on_event(self, event: Event) -> None:
        super().on_event(event)
        if isinstance(event.body, WorkerStarted) and event.body.rank == self.rank:
            self.pid = event.body.pid

    def on_step(self, report: StepReport) -> None:
        super().on_step(report)
        if report.step == self.at and not self.struck and self.pid is not None:
            self.struck += 1
            self.what(self.pid)


class StrikeWhenProtected(Strike):
    """As soon after that step as the state is whole in the vaults."""

    def on_step(self, report: StepReport) -> None:
        if not self.struck and report.protected_step is not None:
            self.at = max(self.at, report.step)
        elif not self.struck:
            self.at = max(self.at, report.step + 1)
        super().on_step(report)


def kill_worker(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


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


def curve(outcome: RunOutcome, batch: int) -> list[float]:
    """Losses of the final lineage, after the proof that its data is exact. `batch`: samples of a global one."""
    steps = list(read_steps(outcome.run_dir / "steps.jsonl"))
    data = Path(json.loads((outcome.run_dir / "data.json").read_text())["directory"])
    assert verify_run(steps, TokenDataset.open(data), batch).ok
    return [step.loss for step in final_lineage(steps, batch)[0]]


def state_of(outcome: RunOutcome) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((outcome.run_dir / "run.json").read_text())
    return value


def command_of(process: psutil.Process) -> str:
    """Its command line; empty if the process has ended meanwhile, as idle workers of Ray do at any time."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def ray_processes(since: set[int]) -> list[str]:
    """Ray processes of this test's own clusters that were not there before, whoever's children they are by now.

    Other programs may run clusters meanwhile: ours have their files under our directory for temporary files.
    """
    found = []
    for pid in set(psutil.pids()) - since - {os.getpid()}:
        try:
            process = psutil.Process(pid)
            line = " ".join(process.cmdline())
            ray = "convoy-ray-" in line or line.startswith("ray::")
            if ray and process.status() != psutil.STATUS_ZOMBIE and _uses(pid, tempfile.gettempdir()):
                found.append(f"{pid} {line[:120]}")
        except (psutil.Error, OSError):
            continue
    return found


def _uses(pid: int, directory: str) -> bool:
    """Whether a process names a directory on its command line or has a file of it open."""
    if directory.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
        return True
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if str(link.readlink()).startswith(directory):
                return True
        except OSError:
            continue
    return False


@contextmanager
def own_temporary_directory() -> Iterator[Path]:
    """A directory for temporary files of this test and of what it starts, short enough for sockets.

    Afterwards nothing of a cluster may be left in it, unless its driver was killed.
    """
    directory = Path(tempfile.mkdtemp(prefix="cv-", dir="/tmp"))
    before, tempfile.tempdir = tempfile.tempdir, str(directory)
    variable = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = str(directory)
    try:
        yield directory
    finally:
        tempfile.tempdir = before
        if variable is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = variable
        shutil.rmtree(directory, ignore_errors=True)


def all_pids() -> set[int]:
    return set(psutil.pids())


def shared_memory() -> set[str]:
    """What lies in shared memory, semaphores of other programs' multiprocessing left out."""
    return {path.name for path in Path("/dev/shm").iterdir() if not path.name.startswith("sem.")}


def left_in_shared_memory(before: set[str]) -> set[str]:
    """What has come into shared memory and stays there for a while: other programs come and go."""
    left = shared_memory() - before
    deadline = time.monotonic() + 3.0
    while left and time.monotonic() < deadline:
        time.sleep(0.1)
        left &= shared_memory()
    return left
