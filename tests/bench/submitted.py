"""From the submission of a job to its first step: `convoy submit` against `ray job submit` of a Ray Train script.

Both tokenise the same text first and train the same model with DeepSpeed ZeRO-2. Warm: server and cluster have run such
a job before. Cold: nothing runs, and the time counts from the command that starts the server, or Ray's head.
"""

import contextlib
import json
import shutil
import statistics
import subprocess
import sys
import sysconfig
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

from tests.bench.jobs import GLOBAL_BATCH, MODEL, SEQUENCE_LENGTH, VOCAB_SIZE
from tests.bench.measure import CONVOY, Row, alternate, environment, median_ratio, run
from tests.bench.peer_processes import say
from tests.bench.throughput import peer_config, peer_model
from tests.monitoring.prometheus_server import free_port

WORKERS, STAGE = 2, 2
ROUNDS = 3
BARS = {"warm": 0.3, "cold": 0.5}
OWN_BAR_S = 1.0
LIMIT_S = 180.0
FOLDERS = ("json", "asyncio", "email")
JOB = f"""\
name: bench
model:
  architecture: gpt2
  config: {json.dumps(MODEL)}
tokenizer:
  train: {{vocab_size: {VOCAB_SIZE}}}
data:
  sources:
    - files: [{", ".join(f'"${{PYTHON_STDLIB}}/{folder}/*.py"' for folder in FOLDERS)}]
  sequence_length: {SEQUENCE_LENGTH}
train:
  steps: 2
  global_batch: {GLOBAL_BATCH}
  micro_batch: {GLOBAL_BATCH // WORKERS}
  lr: 1e-3
  schedule: constant
zero: {{stage: {STAGE}}}
resources: {{workers: {WORKERS}, placement: pack}}
checkpoint: {{at_end: false}}
"""


class Side(ABC):
    """What takes submissions."""

    @abstractmethod
    def start(self) -> None:
        """Start it, in the background."""

    @abstractmethod
    def stop(self) -> None:
        """End it with all of its processes."""

    @abstractmethod
    def submit(self) -> float:
        """Run a job; Unix time of the end of its first step."""

    def warm(self) -> float:
        """Seconds from the submission to the first step."""
        began_s = time.time()
        return self.submit() - began_s

    def cold(self) -> float:
        """The same from its start, with its start."""
        began_s = time.time()
        self.start()
        try:
            return self.submit() - began_s
        finally:
            self.stop()


class Ours(Side):
    """A server with a local cluster, in a directory of its own."""

    def __init__(self, scratch: Path) -> None:
        self._home = scratch / "home"
        self._home.mkdir(parents=True)
        self._job = scratch / "job.yaml"
        self._job.write_text(JOB)
        self._listen = f"127.0.0.1:{free_port()}"
        self._env = environment({"CONVOY_HOME": str(self._home)})
        self.own_s: list[float] = []
        """Of each submission: until its driver had the run."""

    def start(self) -> None:
        cpus = ["--cpus-per-node", str(WORKERS)]
        run([CONVOY, "server", "start", "--listen", self._listen, *cpus], self._env, timeout_s=LIMIT_S)

    def stop(self) -> None:
        run([CONVOY, "server", "stop", "--cluster"], self._env, timeout_s=LIMIT_S)

    def submit(self) -> float:
        """Unix time of the end of the first step; the data are prepared again."""
        shutil.rmtree(self._home / "cache", ignore_errors=True)
        done = subprocess.run(
            [CONVOY, "submit", str(self._job), "--wait", "--json"],
            env=self._env, capture_output=True, text=True, timeout=LIMIT_S, check=True,
        )  # fmt: skip
        (view,) = json.loads(done.stdout)["runs"]
        events = run([CONVOY, "events", view["id"], "--json"], self._env).stdout.splitlines()
        active = [json.loads(line) for line in events if line.startswith("{") and '"queue"' in line]
        began_s = next(each["time_s"] for each in active if each["data"].get("to") == "active")
        self.own_s.append(began_s - view["submitted_s"])
        steps = (Path(view["directory"]) / "steps.jsonl").read_text().splitlines()
        return float(json.loads(steps[0])["time_s"])


class Peer(Side):
    """A Ray head with its job server."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._port = free_port()
        self._env = environment({"RAY_USAGE_STATS_ENABLED": "0"})
        job = scratch / "job.yaml"
        job.write_text(JOB)
        stdlib = Path(sysconfig.get_path("stdlib"))
        files = [str(path) for folder in FOLDERS for path in sorted((stdlib / folder).glob("*.py"))]
        script = str(Path(__file__).with_name("peers") / "ray_train.py")
        options = ["--joined", "--model", peer_model(), "--config", peer_config(job, WORKERS)]
        self._command = [sys.executable, script, *options, "--workers", str(WORKERS), "--files", *files, "--storage"]

    def start(self) -> None:
        options = ["--port", str(free_port()), "--dashboard-port", str(self._port), "--num-cpus", str(WORKERS + 1)]
        ray = str(Path(sys.executable).with_name("ray"))
        run([ray, "start", "--head", "--disable-usage-stats", *options], self._env, timeout_s=LIMIT_S)

    def stop(self) -> None:
        run([str(Path(sys.executable).with_name("ray")), "stop", "--force"], self._env, timeout_s=LIMIT_S)

    def submit(self) -> float:
        storage = self._scratch / f"peer-{time.monotonic_ns()}"
        storage.mkdir()
        ray = str(Path(sys.executable).with_name("ray"))
        address = ["--address", f"http://127.0.0.1:{self._port}"]
        run([ray, "job", "submit", *address, "--", *self._command, str(storage)], self._env, timeout_s=LIMIT_S)
        return float(json.loads((storage / "first-step.json").read_text())["first_step_time_s"])


@contextlib.contextmanager
def _both(ours: Ours, peer: Peer) -> Iterator[None]:
    with contextlib.ExitStack() as ending:
        ours.start()
        ending.callback(ours.stop)
        peer.start()
        ending.callback(peer.stop)
        yield


def measure(scratch: Path) -> list[Row]:
    """Warm, cold, and the server's own time."""
    (scratch / "ours").mkdir(parents=True)
    (scratch / "peer").mkdir()
    ours, peer = Ours(scratch / "ours"), Peer(scratch / "peer")
    rows = []
    with _both(ours, peer):
        say("warm: one job of each first")
        ours.submit()
        peer.submit()
        ours.own_s.clear()
        rows.append(_row("warm", *alternate(ROUNDS, ours.warm, peer.warm)))
        own_s = statistics.median(ours.own_s)
    rows.append(_row("cold", *alternate(ROUNDS, ours.cold, peer.cold)))
    name = "submission to a driver that has the run, free cluster"
    rows.append(Row(name, f"{own_s:.2f} s", "", None, f"< {OWN_BAR_S:g} s", own_s < OWN_BAR_S))
    return rows


def _row(how: str, ours: list[float], theirs: list[float]) -> Row:
    ratio = median_ratio(ours, theirs)
    figures = [f"{statistics.median(values):.1f} s" for values in (ours, theirs)]
    bar = BARS[how]
    name = f"submission to first step, {how}, ZeRO-{STAGE}, {WORKERS} workers"
    return Row(name, *figures, ratio, f"<= {bar}", ratio <= bar)
