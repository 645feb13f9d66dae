"""Restoring at another world size with DeepSpeed's own means: conversion to a universal checkpoint, then a load.

The state is that of GPT-2 with about 110 M parameters, saved by `engine.save_checkpoint`, converted by
`ds_to_universal` with its defaults, loaded by `load_checkpoint` with `load_universal`. The norms of masters and
moments are compared with the saved ones, so that an incomplete restore is no success.

`python -m tests.bench.restore_peers --help` runs one case by hand.
"""

import argparse
import json
import math
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.bench.checkpoint_peers import MODEL_110M, STAGES
from tests.bench.measure import Row, exit_on_sigterm
from tests.bench.peer_processes import run_state, say

SAVED_AT = 2
LOADED_AT = 3
TIMEOUT_S = 600.0


@dataclass(frozen=True)
class ElasticRestore:
    """What it costs to go from one world size to another; memory is the resident set of one process."""

    stage: int
    saved_at: int
    loaded_at: int
    command_s: float
    """The conversion as a command: its imports are part of it."""
    convert_s: float
    """The conversion alone."""
    convert_peak_rss_bytes: int
    """Of the conversion's processes together."""
    load_s: float
    """`load_checkpoint` on the slowest rank; processes and engines stand already."""
    peak_rss_before_bytes: list[int]
    """Of every worker, before it loads."""
    peak_rss_bytes: list[int]

    @property
    def seconds(self) -> float:
        """Conversion and load without the start of any process: the least a user waits."""
        return self.convert_s + self.load_s


def elastic_restore(
    scratch: Path,
    stage: int,
    saved_at: int = SAVED_AT,
    loaded_at: int = LOADED_AT,
    model: dict[str, int] | None = None,
) -> ElasticRestore:
    """Save with `saved_at` workers, convert, load with `loaded_at`. Raises RuntimeError where the state differs."""
    text = json.dumps(model or MODEL_110M)
    with tempfile.TemporaryDirectory(dir=scratch, prefix="restore-") as name:
        directory = Path(name)
        say(f"DeepSpeed universal checkpoint, ZeRO-{stage}: save with {saved_at} workers")
        saved = run_state("save", directory, text, stage, saved_at, TIMEOUT_S).last_json()
        say("convert")
        command = run_state("convert", directory, text, stage, 1, TIMEOUT_S)
        say(f"load with {loaded_at} workers")
        loaded = run_state("load", directory, text, stage, loaded_at, TIMEOUT_S, "--universal").last_json()
    check_norms(saved["norms"], loaded["norms"])
    return ElasticRestore(
        stage=stage,
        saved_at=saved_at,
        loaded_at=loaded_at,
        command_s=command.seconds,
        convert_s=command.last_json()["convert_s"],
        convert_peak_rss_bytes=command.peak_rss_bytes,
        load_s=loaded["load_s"],
        peak_rss_before_bytes=loaded["peak_rss_before_bytes"],
        peak_rss_bytes=loaded["peak_rss_bytes"],
    )


def check_norms(saved: dict[str, float], loaded: dict[str, float]) -> None:
    for kind, value in saved.items():
        if not math.isclose(value, loaded[kind], rel_tol=1e-6):
            raise RuntimeError(f"the restored {kind} differs: norm {loaded[kind]}, saved {value}")


def row(result: ElasticRestore) -> Row:
    """What is known about the peer alone."""
    peak, before = max(result.peak_rss_bytes), max(result.peak_rss_before_bytes)
    note = (
        f"conversion {result.convert_s:.1f} s ({result.command_s:.1f} s as a command, "
        f"{result.convert_peak_rss_bytes / 2**30:.1f} GiB), load {result.load_s:.1f} s; "
        f"peak of a worker {peak / 2**30:.2f} GiB, {before / 2**30:.2f} GiB before the load"
    )
    name = f"universal conversion and load, ZeRO-{result.stage}, {result.saved_at} to {result.loaded_at} workers"
    return Row(name, "", f"{result.seconds:.1f} s", None, "", None, note)


def measure(scratch: Path) -> list[Row]:
    return [row(elastic_restore(scratch, stage)) for stage in STAGES]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.restore_peers")
    parser.add_argument("--stage", type=int, choices=(1, 2, 3), default=1)
    parser.add_argument("--saved-at", type=int, default=SAVED_AT, help="workers that save")
    parser.add_argument("--loaded-at", type=int, default=LOADED_AT, help="workers that load")
    parser.add_argument("--model", type=json.loads, help="GPT-2 configuration; default 110 M parameters")
    args = parser.parse_args()
    exit_on_sigterm()
    with tempfile.TemporaryDirectory(prefix="convoy-bench-restore-") as scratch:
        result = elastic_restore(Path(scratch), args.stage, args.saved_at, args.loaded_at, args.model)
    print(json.dumps({**asdict(result), "seconds": result.seconds}))


if __name__ == "__main__":
    main()
