"""Recovery from lost workers and nodes: seconds from the fault to the end of the first new step.

Four nodes beside a head, GPT-2 of 4 M parameters, default settings. One run a stage: worker processes are killed,
nodes are killed (raylet and all of its processes), at last a node falls silent (SIGSTOP). Each fault strikes a full
gang; what is lost is replaced. The peer is stock elastic Ray Train in the same case.

`python -m tests.bench.recovery --stage 3 --faults worker,node` runs some by hand.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.bench.course import MODEL_4M, NODES, Striker, Struck, spread, train, where_they_go
from tests.bench.head_and_nodes import head_and_nodes
from tests.bench.measure import Row, exit_on_sigterm
from tests.bench.peer_figures import Peers
from tests.bench.peer_processes import say
from tests.bench.recovery_peers import recoveries

FAULTS = (*["worker"] * 3, *["node"] * 5, "silent")
LIMIT_S = 420.0


@dataclass(frozen=True)
class Bar:
    """What a case must reach."""

    seconds: dict[int, float]
    """By stage."""
    peer: str | None = None
    """Its name among the peers' cases."""
    times_faster: float = 0.0


BARS = {
    "worker": Bar({1: 1.5, 3: 2.5}),
    "node": Bar({1: 2.0, 3: 3.0}, "node-killed", 25.0),
    "silent": Bar({1: 8.0, 3: 8.0}, "node-silent", 15.0),
}
NAMES = {
    "worker": "worker process killed to first new step",
    "node": "node killed to first new step",
    "silent": "node silent to first new step",
}


def struck_run(scratch: Path, stage: int, faults: Sequence[str] = FAULTS, limit_s: float = LIMIT_S) -> list[Struck]:
    """One run under these faults. Raises RuntimeError where it does not get over them in time."""
    say(f"Convoy, ZeRO-{stage}, {NODES} nodes: {', '.join(faults)}")
    with head_and_nodes(NODES) as cluster, tempfile.TemporaryDirectory(dir=scratch) as directory:
        striker = Striker(faults, NODES, cluster)
        changes = {"zero": {"stage": stage}, "resources": {"workers": {"min": 1, "max": NODES}}}
        recovery = {"recovery": {"max_failures": 100}}
        train(Path(directory), cluster.address, striker, MODEL_4M, limit_s, **changes, **recovery)
    return striker.struck


def row(stage: int, fault: str, struck: Sequence[Struck], peers: Peers) -> Row:
    """One line of the table, and where the seconds go."""
    bar, seconds = BARS[fault], [each.seconds for each in struck]
    median = statistics.median(seconds)
    case = bar.peer
    found = peers.get(f"{case}-zero{stage}", lambda: peer_seconds(case, stage)) if case is not None else None
    limit, theirs = f"<= {bar.seconds[stage]:g} s", found.values["seconds"] if found is not None else None
    met = median <= bar.seconds[stage]
    if case is not None:
        limit += f", {bar.times_faster:g}x faster"
        met = met and (theirs is None or theirs / median >= bar.times_faster)
    return Row(
        f"{NAMES[fault]}, ZeRO-{stage}, {NODES} nodes",
        spread(seconds),
        f"{theirs:.1f} s" if theirs is not None else "",
        median / theirs if theirs is not None else None,
        limit,
        met,
        where_they_go(struck) + (f"; Ray Train measured on {found.date}" if found is not None else ""),
    )


def peer_seconds(case: str, stage: int) -> dict[str, float]:
    """Ray Train's."""
    (result,) = recoveries(case, stage)
    return {"seconds": result.seconds, "steps_recomputed": result.steps_recomputed}


def rows(stage: int, struck: Sequence[Struck], peers: Peers) -> list[Row]:
    """All lines of a stage."""
    by_fault = {fault: [each for each in struck if each.fault == fault] for fault in BARS}
    found = [row(stage, fault, of, peers) for fault, of in by_fault.items() if of]
    most = max(each.steps_recomputed for each in struck)
    sources = ", ".join(sorted({each.source for each in struck}))
    name = f"steps recomputed after any of {len(struck)} losses, ZeRO-{stage}"
    return [*found, Row(name, str(most), "", None, "<= 1", most <= 1, f"continued from: {sources}")]


def measure(scratch: Path, peers: Peers) -> list[Row]:
    return rows(1, struck_run(scratch, 1), peers)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.recovery")
    parser.add_argument("--stage", type=int, choices=(1, 2, 3), default=1)
    parser.add_argument("--faults", default=",".join(FAULTS), help="in their order: worker, node, silent")
    parser.add_argument("--limit", type=float, default=LIMIT_S, help="seconds")
    args = parser.parse_args()
    exit_on_sigterm()
    with tempfile.TemporaryDirectory(prefix="convoy-bench-recovery-") as scratch:
        for each in struck_run(Path(scratch), args.stage, args.faults.split(","), args.limit):
            print(json.dumps({**asdict(each), "seconds": each.seconds}), flush=True)


if __name__ == "__main__":
    main()
