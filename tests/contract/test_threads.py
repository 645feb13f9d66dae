"""House rule on threads: one that is to run for long is a `LastingThread`, which no exception ends."""

import ast
from pathlib import Path

import pytest

pytestmark = pytest.mark.contract

PACKAGE = Path(__file__).resolve().parents[2] / "orchestrator"
PLAIN = {
    "lasting_thread.py": "the lasting thread itself",
    "checkpoint/memory/vault_server.py": "one connection: its end is the connection's, which the other side sees",
    "cli/commands/run_command.py": "the driver: what it raises is raised in the main thread",
    "clusters/ray/cluster_observer.py": "reads its stdin; a process that hears nothing is replaced by its parent",
    "control/drivers/driver_main.py": "the driver: what it raises is told by the main thread",
    "data/executor.py": "waits for the parent's end, and does nothing else",
    "drill/bucket_proxy.py": "one connection: its end is the connection's, which the other side sees",
    "drill/process_faults.py": "the brake on a worker: whatever ends it, the worker is let go",
    "clusters/ray/joined_cluster.py": "one question, given up after a while",
    "gang/vaults/vault_actor.py": "ends the process; if that fails the process ends all the same",
    "metrics/metrics_endpoint.py": "the standard library's server loop, which survives errors",
    "train/batch_feed.py": "what it raises is raised in the training thread",
    "train/collectives/abort_collectives.py": "one abort; a rank that it does not free is ended by the driver",
    "train/snapshot/snapshots.py": "one question, whose failure is a problem that the training thread tells",
}
"""Files that start plain threads, and why those may."""


def starts_plain_thread(path: Path) -> bool:
    return any(
        isinstance(node, ast.Call) and ast.unparse(node.func) in ("threading.Thread", "Thread")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    )


def test_plain_threads_are_short_lived_or_watched() -> None:
    found = {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if starts_plain_thread(path)}
    assert found == set(PLAIN), "use LastingThread, or say here why an exception may end the thread"
