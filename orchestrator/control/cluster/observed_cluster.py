"""The cluster that a server schedules on: implements `ClusterPort` for any Ray address."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from orchestrator.clusters.placement import NodeCapacity
from orchestrator.clusters.ray.cluster_observer import ClusterSight
from orchestrator.clusters.ray.local.keeper_files import KeeperFiles
from orchestrator.domain.errors import ClusterError
from orchestrator.json_values import JsonObject, JsonShapeError, parse_object
from orchestrator.lasting_thread import LastingThread

FRESH_S = 4.0
"""What was seen longer ago is not known any more."""
SILENT_S = 8.0
"""An observer that says nothing for this long is replaced: its GCS hangs, or is gone."""
PAUSE_S = 1.0
"""From the end of an observer to the next one."""
DRAIN_S = 6.0
"""How long the cluster may take to answer a request to drain a node."""


class ObservedCluster:
    """Thread-safe; no method but `drain` waits. A process of its own talks to Ray, and is replaced when it ends or
    hangs: see `cluster_observer`."""

    def __init__(self, address: Callable[[], str | None], environment: Mapping[str, str]) -> None:
        """`address`: of the GCS now; None if there is no cluster. `environment` of the process that talks to Ray."""
        self._find, self._environment = address, dict(environment)
        self._lock, self._answered = threading.Lock(), threading.Condition()
        self._sight: ClusterSight | None = None
        self._seen_s = float("-inf")
        self._address = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._problems: dict[str, str | None] = {}
        """Answers to requests to drain, by node."""
        self._drained: set[str] = set()
        self._began_s = float("-inf")
        """When the present observer was started."""
        self._closed = False
        self._reader = LastingThread("cluster observer", self._observe)
        self._guard = LastingThread("guard of the cluster observer", self._guard_turn)

    @property
    def address(self) -> str:
        """See `ClusterPort`; empty while there is none."""
        return self._find() or ""

    def nodes(self) -> tuple[NodeCapacity, ...] | None:
        """See `ClusterPort`."""
        sight = self._fresh()
        return sight.nodes if sight is not None else None

    def held(self, run_ids: Collection[str]) -> Mapping[str, Mapping[str, int]]:
        """See `ClusterPort`. What was seen last, if the cluster does not answer."""
        sight = self._sight
        held = sight.held if sight is not None else {}
        return {run_id: held[run_id] for run_id in run_ids if run_id in held}

    @property
    def autoscales(self) -> bool:
        """See `ClusterPort`."""
        sight = self._sight
        return sight is not None and sight.autoscales

    def wait_for_nodes(self, timeout_s: float) -> bool:
        """Wait until it answers; whether it does."""
        deadline = time.monotonic() + timeout_s
        while self.nodes() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        return self.nodes() is not None

    def drain(self, node_id: str, reason: str, deadline_s: float | None) -> None:
        """See `ClusterPort`. `deadline_s`: Unix seconds."""
        sight = self._fresh()
        if sight is None:
            raise ClusterError("the cluster does not answer", hint="try again when it does")
        if node_id not in {node.node_id for node in sight.nodes} | self._drained:  # Ray would accept it
            raise ClusterError(f"the cluster has no live node {node_id}")
        notice_s = max(0.0, deadline_s - time.time()) if deadline_s is not None else None
        request: JsonObject = {"drain": node_id, "reason": reason, "notice_s": notice_s}
        with self._lock:
            process = self._process
            try:
                if process is None or process.stdin is None:
                    raise ClusterError("the cluster does not answer", hint="try again when it does")
                self._problems.pop(node_id, None)
                process.stdin.write(json.dumps(request).encode() + b"\n")
                process.stdin.flush()
            except (OSError, ValueError) as error:
                raise ClusterError(f"the cluster does not answer: {error}") from error
        with self._answered:
            if not self._answered.wait_for(lambda: node_id in self._problems, DRAIN_S):
                raise ClusterError(f"the cluster does not say within {DRAIN_S:g} s whether node {node_id} is drained")
            problem = self._problems.pop(node_id)
        if problem is not None:
            raise ClusterError(f"node {node_id} cannot be drained: {problem}")
        self._drained.add(node_id)

    def close(self) -> None:
        """Observe no more. Idempotent."""
        self._closed = True
        self._reader.stop()
        self._guard.stop()
        self._end_process()
        self._reader.join(PAUSE_S)

    def _fresh(self) -> ClusterSight | None:
        """What was seen lately of the cluster that is there now."""
        if time.monotonic() - self._seen_s > FRESH_S or self._find() != self._address:
            return None
        return self._sight

    def _observe(self) -> bool:
        """One observer, from its start to its end."""
        address = self._find()
        if address is None:
            time.sleep(PAUSE_S)
            return not self._closed
        command = [sys.executable, "-m", "orchestrator.clusters.ray.cluster_observer", address]
        process = subprocess.Popen(
            command,
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        with self._lock:
            if address != self._address:
                self._sight = None  # of a cluster that was replaced
            self._process, self._address, self._began_s = process, address, time.monotonic()
        try:
            assert process.stdout is not None
            while line := process.stdout.readline():
                self._take(line)
        finally:
            self._end_process()
        if not self._closed:
            time.sleep(PAUSE_S)
        return not self._closed

    def _take(self, line: bytes) -> None:
        try:
            value = parse_object(line)
            if "drained" in value:
                problem = value.get("problem")
                with self._answered:
                    self._problems[str(value["drained"])] = str(problem) if problem is not None else None
                    self._answered.notify_all()
                return
            self._sight, self._seen_s = ClusterSight.from_json(value), time.monotonic()
        except JsonShapeError:
            return  # cut off by its end

    def _guard_turn(self) -> bool:
        """End an observer that is silent, or that observes a cluster that was replaced."""
        time.sleep(PAUSE_S)
        with self._lock:
            process, address = self._process, self._address
        if process is None:
            return not self._closed
        silent_s = time.monotonic() - max(self._seen_s, self._began_s)
        if silent_s > SILENT_S or self._find() != address:
            process.kill()
        return not self._closed

    def _end_process(self) -> None:
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()


def kept_address(directory: Path) -> Callable[[], str | None]:
    """Where the cluster is that is kept in a directory; for `ObservedCluster`."""
    files = KeeperFiles(directory)

    def find() -> str | None:
        found = files.cluster()
        return found.address if found is not None else None

    return find
