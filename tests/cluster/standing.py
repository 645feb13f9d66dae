"""A cluster that stands on its own, as somebody else's would, and `convoy` processes that join it."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CONVOY = str(Path(sys.executable).with_name("convoy"))
HOLD = """
import sys, time
from orchestrator.clusters.ray.local.local_cluster import LocalCluster
from orchestrator.gang.agent.worker_actor import worker_environment
import os
cluster = LocalCluster(int(sys.argv[1]), {"CPU": 1.0, "memory": 2e9}, env=worker_environment(1, 0, os.environ)).start()
print(cluster.address, flush=True)
time.sleep(600)
"""

PACED = (
    sys.executable,
    "-c",
    """
import functools
from orchestrator.run import launcher
launcher.run_job = functools.partial(launcher.run_job, entry="tests.cluster.entries:train_paced")
from orchestrator.cli.main import main
main()
""",
)
"""`convoy` whose training makes ten steps a second: what a test does at a step does not come after the end."""


@contextmanager
def standing_cluster(nodes: int) -> Iterator[str]:
    """The address of a cluster of nodes with one CPU each; its processes are those of another program."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(nodes)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address, "the cluster did not start"
        yield address
    finally:
        process.kill()
        process.wait()


class Driver:
    """`convoy run --json` in a process of its own, whose output is read as it comes."""

    def __init__(self, home: Path, *arguments: str, program: Sequence[str] = (CONVOY,)) -> None:
        """`program`: what to run in place of `convoy`."""
        self.started_s = time.time()
        self.seen: list[dict[str, Any]] = []
        self._stderr = home.parent / f"driver-{time.time_ns()}.txt"
        with self._stderr.open("w") as errors:
            self.process = subprocess.Popen(
                [*program, "run", "--json", *arguments],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, "CONVOY_HOME": str(home), "OMP_NUM_THREADS": "1"},
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def read_until_step(self, step: int) -> None:
        """Wait until it has finished a step."""
        while not any(event["step"] >= step for event in self.of("step")):
            assert self._reader.is_alive(), f"it ended before step {step}: {self.errors()}"
            time.sleep(0.005)

    def read_until_saved(self, step: int) -> None:
        """Wait until a checkpoint of that step or a later one is complete: it is written in the background."""
        while not any(event["step"] >= step for event in self.of("checkpoint.saved")):
            assert self._reader.is_alive(), f"it ended before a checkpoint of step {step}: {self.errors()}"
            time.sleep(0.005)

    def end(self) -> int:
        """Wait for its end; its exit code."""
        self._reader.join()
        return self.process.wait()

    def kill(self) -> None:
        """SIGKILL; what it had printed by then is taken."""
        self.process.kill()
        self.end()

    def of(self, kind: str) -> list[dict[str, Any]]:
        """Events of a kind."""
        return [event for event in list(self.seen) if event["kind"] == kind]

    def errors(self) -> str:
        """The end of its stderr."""
        return self._stderr.read_text()[-3000:]

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.endswith("\n"):  # a driver that is killed may leave a part of one
                self.seen.append(json.loads(line))
