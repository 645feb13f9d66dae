"""Stall of the peers' checkpoints: DeepSpeed's `engine.save_checkpoint` and torch's DCP `async_save`.

Two workers train GPT-2 with about 110 M parameters under ZeRO and save to the local disk. A stall is the time from
the call to its return on the slowest rank: training stands still for that long. DCP saves the same state, the flat
partitions with their moments, and its background work is let finish alone before the next save.

`python -m tests.bench.checkpoint_peers --help` runs one case by hand.
"""

import argparse
import json
import statistics
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.bench.measure import Row, exit_on_sigterm
from tests.bench.peer_processes import run_state, say

MODEL_110M = {"n_layer": 12, "n_embd": 768, "n_head": 12, "vocab_size": 32000, "n_positions": 1024}
"""GPT-2 small with 110 M parameters: 1.3 GB of masters and moments."""

WORKERS = 2
STAGES = (1, 3)
ROUNDS = 3
TIMEOUT_S = 600.0


@dataclass(frozen=True)
class CheckpointStall:
    """Seconds, one value a round; the first round pays for fresh memory."""

    stage: int
    workers: int
    parameters: int
    state_bytes: int
    """Masters and moments of one rank."""
    save_checkpoint_s: list[float]
    async_save_s: list[float]
    """DCP as it comes: every call stages into memory of its own."""
    background_s: list[float]
    """From the same call until the checkpoint lies on disk."""
    async_save_kept_stager_s: list[float]
    """DCP with a stager that the script keeps, so that its buffers are used again."""
    background_kept_stager_s: list[float]


def checkpoint_stall(
    scratch: Path, stage: int, workers: int = WORKERS, rounds: int = ROUNDS, model: dict[str, int] | None = None
) -> CheckpointStall:
    """Train a step and save `rounds` times in each way under `scratch`, which is left empty of checkpoints."""
    say(f"DeepSpeed and DCP, ZeRO-{stage}, {workers} workers: {rounds} rounds of checkpoints")
    with tempfile.TemporaryDirectory(dir=scratch, prefix="stall-") as directory:
        options = ("--rounds", str(rounds))
        done = run_state("stall", Path(directory), json.dumps(model or MODEL_110M), stage, workers, TIMEOUT_S, *options)
    return CheckpointStall(stage=stage, workers=workers, **done.last_json())


def rows(result: CheckpointStall) -> list[Row]:
    """What is known about the peers alone."""
    millions = f"{result.parameters / 1e6:.0f} M parameters, ZeRO-{result.stage}, {result.workers} workers"
    named = {
        "engine.save_checkpoint": result.save_checkpoint_s,
        "DCP async_save": result.async_save_s,
        "DCP async_save, stager kept": result.async_save_kept_stager_s,
    }
    return [
        Row(f"stall of {name}, {millions}", "", f"{statistics.median(values):.2f} s", None, "", None, spread(values))
        for name, values in named.items()
    ]


def spread(values: list[float]) -> str:
    return f"{min(values):.2f} to {max(values):.2f} s"


def measure(scratch: Path) -> list[Row]:
    return [row for stage in STAGES for row in rows(checkpoint_stall(scratch, stage))]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.checkpoint_peers")
    parser.add_argument("--stage", type=int, choices=(1, 2, 3), default=1)
    parser.add_argument("--workers", type=int, default=WORKERS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--model", type=json.loads, help="GPT-2 configuration; default 110 M parameters")
    args = parser.parse_args()
    exit_on_sigterm()
    with tempfile.TemporaryDirectory(prefix="convoy-bench-checkpoint-") as scratch:
        print(json.dumps(asdict(checkpoint_stall(Path(scratch), args.stage, args.workers, args.rounds, args.model))))


if __name__ == "__main__":
    main()
