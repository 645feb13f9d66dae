"""State of about 110 M parameters restored at another world size out of the vaults, and the memory that it takes.

A node joins a gang of two; the three restore what the two had. The peer is DeepSpeed's universal conversion and its
load from two to three. Memory is what a process has for itself, without pages that it shares with a vault.
"""

import argparse
import contextlib
import json
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from orchestrator.domain.events import CheckpointRestored, Event, GangResized, TrainingPlanned, WorkerPhase
from orchestrator.domain.events.event_codec import encode_body
from orchestrator.domain.step_report import StepReport
from tests.bench.course import MODEL_110M, Course, train
from tests.bench.head_and_nodes import HeadAndNodes, head_and_nodes
from tests.bench.measure import Row, exit_on_sigterm
from tests.bench.peer_figures import Figure, Peers
from tests.bench.peer_processes import say
from tests.bench.restore_peers import elastic_restore

SAVED_AT, LOADED_AT, STAGE = 2, 3, 1
PAGE_BYTES = 4096
SAMPLE_S = 0.01
NODE_BYTES = 7_000_000_000
LIMIT_S = 220.0
TIMES_FASTER = 5.0
CONSTANT_BYTES = 128 << 20


@dataclass(frozen=True)
class Restored:
    """What a restore took."""

    seconds: float
    shard_bytes: int
    """Masters and moments of one new rank."""
    growth_bytes: int
    """Of the worker that grew most, from the beginning of its restore to its peak."""


class GrowCourse(Course):
    """Has a node join, watches the workers' memory until they have restored, and stops the run."""

    def __init__(self, cluster: HeadAndNodes) -> None:
        super().__init__()
        self.samples: list[tuple[float, dict[int, int]]] = []
        self._cluster, self._asked, self._ended = cluster, False, threading.Event()

    def on_event(self, event: Event) -> None:
        super().on_event(event)
        if isinstance(event.body, GangResized):
            threading.Thread(target=self._sample, name="memory", daemon=True).start()

    def on_step(self, report: StepReport) -> None:
        super().on_step(report)
        if report.world_size == LOADED_AT:
            self._ended.set()
            self.over.set()
        elif not self._asked and self.steady(report, SAVED_AT):
            self._asked = True
            threading.Thread(target=self._cluster.add, name="add-node", daemon=True).start()

    def restored(self) -> Restored:
        """Raises StopIteration where nothing was restored."""
        fields = next(encode_body(event.body) for event in self.events if isinstance(event.body, CheckpointRestored))
        plan = [encode_body(event.body) for event in self.events if isinstance(event.body, TrainingPlanned)][-1]
        phases = [e for e in self.events if isinstance(e.body, WorkerPhase) and e.body.phase in ("restore", "train")]
        begin_s, end_s = phases[-2].time_s, phases[-1].time_s
        within = [sample for at_s, sample in self.samples if begin_s <= at_s <= end_s]
        growth = [max(sample.get(pid, 0) for sample in within) - within[0][pid] for pid in within[0]] if within else [0]
        return Restored(float(fields["seconds"]), 3 * 4 * int(plan["parameters"]) // LOADED_AT, max(growth, default=0))

    def _sample(self) -> None:
        while not self._ended.wait(SAMPLE_S):
            self.samples.append(
                (time.time(), {pid: own for pid in list(self.pids.values()) if (own := own_bytes(pid))})
            )


def own_bytes(pid: int) -> int:
    """Resident memory that is the process's own; 0 where it is gone."""
    with contextlib.suppress(OSError):
        _, resident, shared, *_ = Path(f"/proc/{pid}/statm").read_text().split()
        return (int(resident) - int(shared)) * PAGE_BYTES
    return 0


def restore(scratch: Path, model: dict[str, int] | None = None) -> Restored:
    """Raises RuntimeError where it takes too long."""
    say(f"Convoy, ZeRO-{STAGE}: from {SAVED_AT} to {LOADED_AT} workers")
    nodes = head_and_nodes(SAVED_AT, memory_bytes=NODE_BYTES)
    with nodes as cluster, tempfile.TemporaryDirectory(dir=scratch) as directory:
        course = GrowCourse(cluster)
        train(
            Path(directory),
            cluster.address,
            course,
            model or MODEL_110M,
            LIMIT_S,
            zero={"stage": STAGE},
            resources={"workers": {"min": 1, "max": LOADED_AT}},
            train={"steps": 1_000_000, "global_batch": 6, "lr": 1e-4, "schedule": "constant"},
        )
    return course.restored()


def peer_restore(scratch: Path) -> dict[str, float]:
    """DeepSpeed's."""
    result = elastic_restore(scratch, STAGE, SAVED_AT, LOADED_AT)
    return {"seconds": result.seconds, "convert": result.convert_s, "load": result.load_s}


def rows(result: Restored, found: Figure | None) -> list[Row]:
    """Time and memory."""
    theirs, mebi = found.values["seconds"] if found is not None else None, 1 << 20
    limit = result.shard_bytes + CONSTANT_BYTES
    name = f"ZeRO-{STAGE}, {SAVED_AT} to {LOADED_AT} workers"
    return [
        Row(
            f"restore from vaults, {name}",
            f"{result.seconds:.2f} s",
            f"{theirs:.1f} s" if theirs is not None else "",
            result.seconds / theirs if theirs is not None else None,
            f"<= 1/{TIMES_FASTER:g}",
            result.seconds <= theirs / TIMES_FASTER if theirs is not None else None,
            f"DeepSpeed measured on {found.date}" if found is not None else "the peer is not measured: --peers",
        ),
        Row(
            f"memory that a worker's restore takes, {name}",
            f"{result.growth_bytes / mebi:.0f} MiB",
            "",
            None,
            f"<= its shard ({result.shard_bytes / mebi:.0f} MiB) + {CONSTANT_BYTES / mebi:.0f} MiB",
            result.growth_bytes <= limit,
        ),
    ]


def measure(scratch: Path, peers: Peers) -> list[Row]:
    return rows(restore(scratch), peers.get(f"restore-zero{STAGE}", lambda: peer_restore(scratch)))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.elastic_restore")
    parser.add_argument("--model", type=json.loads, help="GPT-2 configuration; default about 110 M parameters")
    args = parser.parse_args()
    exit_on_sigterm()
    with tempfile.TemporaryDirectory(prefix="convoy-bench-elastic-") as scratch:
        print(restore(Path(scratch), args.model))


if __name__ == "__main__":
    main()
