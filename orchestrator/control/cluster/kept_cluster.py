"""A server's own Ray cluster on this machine: started if there is none, found if there is one, ended on request."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from orchestrator.clusters.ray.local.keeper_files import KeeperFiles, KeptCluster, KeptNodes
from orchestrator.domain.errors import ClusterError

START_S = 60.0
"""How long the cluster may take to come up."""
END_S = 15.0
"""How long it may take to end when it is asked to."""
KILLED_S = 5.0
LOOK_S = 0.05


def ensure_cluster(directory: Path, kept: KeptNodes, environment: Mapping[str, str]) -> KeptCluster:
    """The cluster that is kept in `directory`, started if there is none. One that runs is used as it is, whatever
    `kept` says: compare with `KeptCluster.kept`. `environment` of its processes. Raises ClusterError."""
    files, keeper = KeeperFiles(directory), None
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        found = files.cluster()
        if found is not None:
            return found
        if keeper is not None and keeper.poll() not in (None, 0):
            break
        if files.keeper() is None and (keeper is None or keeper.poll() is not None):
            keeper = _start_keeper(files, kept, environment)
        time.sleep(LOOK_S)
    tail = files.log_tail()
    raise ClusterError(
        f"the server's local Ray cluster did not start within {START_S:.0f} s",
        hint=f"the end of {files.log}: {tail}" if tail else f"see {files.log}",
    )


def stop_cluster(directory: Path) -> bool:
    """End the cluster that is kept in `directory`, with everything that runs on it; whether there was one. Raises
    ClusterError if it does not end."""
    files = KeeperFiles(directory)
    if files.keeper() is None:
        return False
    for number, limit_s in ((signal.SIGTERM, END_S), (signal.SIGKILL, KILLED_S)):
        deadline, sent = time.monotonic() + limit_s, 0
        while (keeper := files.keeper()) is not None and time.monotonic() < deadline:
            if keeper and keeper != sent:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(keeper, number)
                sent = keeper
            time.sleep(LOOK_S)
        if keeper is None:
            files.withdraw()
            return True
    raise ClusterError(
        f"the keeper of the local Ray cluster, process {files.keeper()}, does not end", hint=f"see {files.log}"
    )


def _start_keeper(files: KeeperFiles, kept: KeptNodes, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    files.directory.mkdir(parents=True, exist_ok=True)
    with files.log.open("ab") as log:
        command = [sys.executable, "-m", "orchestrator.control.cluster.cluster_keeper", str(files.directory)]
        return subprocess.Popen(
            [*command, json.dumps(kept.to_json())],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
