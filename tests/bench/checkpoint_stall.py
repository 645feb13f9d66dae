"""How long training stands still for a durable checkpoint: about 110 M parameters, two workers.

Ours is the time that the training thread gives to it (event `checkpoint.started`): the copy into the vault, and the
wait for the copy before it; the vaults write in the background. The peers are DeepSpeed's `engine.save_checkpoint`
and torch's DCP `async_save`, the better of its two ways.
"""

import statistics
import tempfile
from pathlib import Path

from orchestrator.domain.events import CheckpointStarted
from orchestrator.domain.step_report import StepReport
from tests.bench.checkpoint_peers import checkpoint_stall
from tests.bench.course import MODEL_110M, Course, train
from tests.bench.head_and_nodes import head_and_nodes
from tests.bench.measure import Row
from tests.bench.peer_figures import Figure, Peers
from tests.bench.peer_processes import say

WORKERS, STAGE = 2, 1
EVERY_STEPS = 6
CHECKPOINTS = 4
BATCH = 2
NODE_BYTES = 9_000_000_000
LIMIT_S = 220.0
TIMES_LESS = 25.0


class StallCourse(Course):
    """Stops the run once the vaults have begun enough checkpoints."""

    def on_step(self, report: StepReport) -> None:
        super().on_step(report)
        if len(self.of(CheckpointStarted)) >= CHECKPOINTS and report.step % EVERY_STEPS == EVERY_STEPS - 1:
            self.over.set()


def stalls(scratch: Path, model: dict[str, int] | None = None) -> list[float]:
    """Seconds of every checkpoint, the first one included. Raises RuntimeError where they do not come in time."""
    say(f"Convoy, ZeRO-{STAGE}, {WORKERS} workers: {CHECKPOINTS} checkpoints")
    cluster = head_and_nodes(WORKERS, memory_bytes=NODE_BYTES)
    with cluster as nodes, tempfile.TemporaryDirectory(dir=scratch) as directory:
        course = StallCourse()
        train(
            Path(directory),
            nodes.address,
            course,
            model or MODEL_110M,
            LIMIT_S,
            zero={"stage": STAGE},
            resources={"workers": WORKERS},
            train={"steps": 1_000_000, "global_batch": BATCH, "lr": 1e-4, "schedule": "constant"},
            checkpoint={"interval_steps": EVERY_STEPS, "at_end": False},
        )
    return [float(fields["seconds"]) for fields in course.of(CheckpointStarted)]


def peer_stalls(scratch: Path) -> dict[str, float]:
    """Medians of the peers."""
    result = checkpoint_stall(scratch, STAGE, WORKERS)
    fresh, kept = statistics.median(result.async_save_s), statistics.median(result.async_save_kept_stager_s)
    return {
        "save_checkpoint": statistics.median(result.save_checkpoint_s),
        "save_checkpoint_first": result.save_checkpoint_s[0],
        "async_save": min(fresh, kept),
    }


def rows(seconds: list[float], found: Figure | None) -> list[Row]:
    """One line a peer, and the first checkpoint apart."""
    ours = statistics.median(seconds[1:] or seconds)
    text = (
        f"{ours * 1000:.0f} ms ({min(seconds[1:] or seconds) * 1000:.0f} to {max(seconds[1:] or seconds) * 1000:.0f})"
    )
    made = []
    for peer, label, times in (
        ("save_checkpoint", "engine.save_checkpoint", TIMES_LESS),
        ("async_save", "DCP async_save", 1.0),
    ):
        theirs = found.values[peer] if found is not None else None
        made.append(
            Row(
                f"stall per checkpoint against {label}, ZeRO-{STAGE}, {WORKERS} workers",
                text,
                f"{theirs:.2f} s" if theirs is not None else "",
                ours / theirs if theirs is not None else None,
                f"<= 1/{times:g}" if times > 1 else "< 1",
                ours <= theirs / times if theirs is not None else None,
                f"measured on {found.date}" if found is not None else "the peer is not measured: --peers",
            )
        )
    return [*made, Row("stall of the first checkpoint", f"{seconds[0] * 1000:.0f} ms", "", None, "", None)]


def measure(scratch: Path, peers: Peers) -> list[Row]:
    return rows(stalls(scratch), peers.get(f"checkpoint-zero{STAGE}", lambda: peer_stalls(scratch)))
