"""A server's cluster and its driver processes, without a server: a test decides the grants."""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.clusters.ray.local.keeper_files import KeptNodes
from orchestrator.control.cluster.kept_cluster import ensure_cluster, stop_cluster
from orchestrator.control.cluster.observed_cluster import ObservedCluster, kept_address
from orchestrator.control.drivers.driver_environment import driver_environment
from orchestrator.control.drivers.driver_processes import DriverProcesses
from orchestrator.control.ports import DriverFacts
from orchestrator.domain.queue.grant import Grant
from orchestrator.domain.run_layout import RunLayout
from orchestrator.run.launcher import lay_out
from orchestrator.spec.loading.load import load_job
from orchestrator.store.run_history import current_steps
from tests.cluster.gang_runs import write_job

PATIENCE_S = 90.0
SECRET = "a-secret-of-the-server"
PACED_ENTRY = "tests.cluster.entries:train_paced"


@dataclass
class Served:
    """What a server has."""

    directory: Path
    cluster: ObservedCluster
    drivers: DriverProcesses
    numbers: dict[str, int] = field(default_factory=dict)

    @property
    def home(self) -> Path:
        return self.directory / "runs"

    @property
    def nodes(self) -> list[str]:
        """Ids, in the order in which the nodes are numbered."""
        found = self.cluster.nodes()
        assert found is not None
        return sorted(node.node_id for node in found)

    def submit(self, name: str, **changes: Any) -> RunLayout:
        return lay_out(load_job(write_job(self.directory, name, **changes)), self.home)

    def next_grant(self, run: RunLayout, *nodes: int) -> Grant:
        """The next grant of a run: a worker on each of these nodes, by number."""
        self.numbers[run.run_id] = number = self.numbers.get(run.run_id, 0) + 1
        places: dict[str, int] = {}
        for node in nodes:
            places[self.nodes[node]] = places.get(self.nodes[node], 0) + 1
        return Grant(number, places)

    def launch(self, run: RunLayout, *nodes: int) -> Grant:
        grant = self.next_grant(run, *nodes)
        self.drivers.launch(run.run_id, run.root, grant, False, self.cluster.address)
        return grant

    def grant(self, run: RunLayout, *nodes: int) -> Grant:
        grant = self.next_grant(run, *nodes)
        self.drivers.grant(run.run_id, run.root, grant)
        return grant

    def facts(self, run: RunLayout) -> DriverFacts:
        return self.drivers.look({run.run_id: run.root})[run.run_id]

    def until(self, run: RunLayout, done: Callable[[DriverFacts], bool]) -> DriverFacts:
        """Wait until the facts of a run are as they should be."""
        deadline = time.monotonic() + PATIENCE_S
        while not done(facts := self.facts(run)):
            assert time.monotonic() < deadline, (facts, _tail(run.driver_log), _tail(run.events))
            time.sleep(0.02)
        return facts

    def until_held(self, run: RunLayout, places: Mapping[str, int]) -> None:
        """Wait until Ray says that a run has these reservations, and no others."""
        deadline = time.monotonic() + PATIENCE_S
        while (held := self.cluster.held([run.run_id]).get(run.run_id, {})) != places:
            assert time.monotonic() < deadline, held
            time.sleep(0.02)

    def until_nodes(self, count: int) -> None:
        """Wait until there are so many nodes."""
        deadline = time.monotonic() + PATIENCE_S
        while len(self.cluster.nodes() or ()) != count:
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def losses(self, run: RunLayout) -> list[float]:
        """Of all steps, each of which was made exactly once in the end."""
        steps = current_steps(run.steps)
        assert [step.step for step in steps] == list(range(1, len(steps) + 1))
        return [step.loss for step in steps]


def _tail(path: Path) -> str:
    """The end of a file, for messages."""
    return path.read_text()[-3000:] if path.exists() else ""


@contextmanager
def served(directory: Path, nodes: int, entry: str = PACED_ENTRY) -> Iterator[Served]:
    """A cluster of nodes with two CPUs each, and drivers for it."""
    environment = driver_environment({**os.environ, "DATABASE_URL": SECRET, "CONVOY_API_TOKEN": SECRET})
    kept = directory / "runs" / "server" / "cluster"
    ensure_cluster(
        kept, KeptNodes(nodes, {"CPU": 2.0, "memory": 2e9}, (), ("numpy",)), os.environ
    )  # as the fork server of all tests
    cluster = ObservedCluster(kept_address(kept), environment)
    drivers = DriverProcesses(directory / "runs", 1, environment, entry=entry)
    try:
        assert cluster.wait_for_nodes(PATIENCE_S)
        assert drivers.starts.wait_until_ready()
        yield Served(directory, cluster, drivers)
    finally:
        drivers.close()
        cluster.close()
        stop_cluster(kept)
