"""Recovery of stock elastic Ray Train from a killed node, a silent one, and the loss of the whole gang.

Minutes a case. `python -m tests.bench.recovery_peers --help` runs one by hand.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tests.bench.measure import Row, exit_on_sigterm
from tests.bench.ray_train_elastic import CASES, NODES, Recovery, recovery

STAGES = (1, 3)
MEASURED = ("node-killed", "node-silent", "gang-lost")
"""The cases that the bars compare."""


def recoveries(case: str, stage: int, repetitions: int = 1) -> list[Recovery]:
    """The same fault in `repetitions` fresh runs."""
    return [recovery(case, stage) for _ in range(repetitions)]


def row(results: Sequence[Recovery]) -> Row:
    """What is known about the peer alone."""
    last = results[-1]
    seconds = [result.seconds for result in results]
    note = (
        f"{len(results)} runs, {min(seconds):.1f} to {max(seconds):.1f} s; {last.entered_s:.1f} s until the training "
        f"function, {last.restore_s:.1f} s to restore; {last.workers_before} to {last.workers_after} workers, "
        f"{max(result.steps_recomputed for result in results)} steps recomputed"
    )
    name = f"Ray Train, {last.case}, ZeRO-{last.stage}, {NODES} nodes"
    return Row(name, "", f"{statistics.median(seconds):.1f} s", None, "", None, note)


def measure(scratch: Path) -> list[Row]:
    return [row(recoveries(case, stage)) for case in MEASURED for stage in STAGES]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.recovery_peers")
    parser.add_argument("--case", choices=CASES, default="node-killed")
    parser.add_argument("--stage", type=int, choices=(1, 2, 3), default=1)
    parser.add_argument("--repetitions", type=int, default=1)
    args = parser.parse_args()
    exit_on_sigterm()
    for result in recoveries(args.case, args.stage, args.repetitions):
        print(json.dumps(asdict(result)), flush=True)


if __name__ == "__main__":
    main()
