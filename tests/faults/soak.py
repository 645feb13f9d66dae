"""Soak: a hundred random faults in one run of a tiny model; lost nodes are replaced, as an autoscaled cloud does.

`make soak`, or `python -m tests.faults.soak --times 100`. Prints a scorecard; `--write` puts it into
docs/reliability.md. Ends with 1 where the run did not survive, or not in time.
"""

import argparse
import contextlib
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from orchestrator.clusters.ray.node_processes import descendants
from orchestrator.domain.events import Event, GangResized, RecoveryFinished, RecoveryStarted
from orchestrator.domain.fault_plan import Arranged
from orchestrator.domain.policy.numeric import Injection
from orchestrator.domain.policy.scorecard import DrillFault, Scorecard, strike_steps
from orchestrator.domain.run_layout import RunLayout
from orchestrator.domain.step_report import StepReport
from orchestrator.drill.drill_course import _score
from orchestrator.drill.drill_plan import ON_NODES
from orchestrator.drill.fault_injector import Injector, Means
from orchestrator.run.launcher import run_job
from orchestrator.spec.loading.load import LoadedJob, load_job
from orchestrator.store.skip_file import read_skips
from tests.bench.head_and_nodes import HeadAndNodes, head_and_nodes
from tests.bench.measure import exit_on_sigterm
from tests.bench.peer_processes import end_processes, say, with_environment
from tests.cluster.gang_runs import ENTRIES, write_job

NODES, LEAST = 3, 2
"""Nodes beside the head, a worker each; with how many of them the next fault may come."""
STEPS_BETWEEN, TAIL = 30, 300
"""Between two faults, and after the last one: at `train_paced`'s pace a lost node is replaced within a hundred."""
FAULTS = (
    DrillFault.KILL_WORKER,
    DrillFault.KILL_NODE,
    DrillFault.SILENCE_NODE,
    DrillFault.DRAIN_NODE,
    DrillFault.HANG_RANK,
    DrillFault.CORRUPT_SHARD,
    DrillFault.NAN,
)
LIMIT_S = 3000.0
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"
BEGIN, END = "<!-- soak begin -->", "<!-- soak end -->"


def _never() -> None:
    raise AssertionError("this run's driver is not killed")


def job_of(directory: Path, steps: int, **changes: Any) -> LoadedJob:
    """The tiny model, with budgets that a hundred faults do not use up."""
    sections = {
        "train": {"steps": steps, "global_batch": 12, "lr": 1e-3},
        "zero": {"stage": 1},
        "resources": {"workers": {"min": 1, "max": NODES}},
        "checkpoint": {"interval_steps": 100, "keep_last": 3},
        "recovery": {"max_failures": 1_000_000, "max_rollbacks": 1_000_000, "hang_timeout_s": 5},
        **changes,
    }
    return load_job(write_job(directory, name="soak", **sections))


class Soaker(Injector):
    """Strikes again as soon as enough workers are there and their state lies in the vaults; replaces lost nodes."""

    def __init__(
        self,
        home: Path,
        planned: Sequence[tuple[int, DrillFault]],
        draw: random.Random,
        cluster: HeadAndNodes,
        marker: str,
    ) -> None:
        """`marker`: the TMPDIR of the cluster's processes."""
        super().__init__(home, planned, draw, Means(os.environ, _never))
        self._cluster, self._marker, self._replaced = cluster, marker, 0
        self._adding: list[threading.Thread] = []

    def on_step(self, report: StepReport) -> None:
        if self.tally.open is None and (report.world_size < LEAST or report.protected_step is None):
            self.tally.on_step(report)
            return
        super().on_step(report)

    def on_event(self, event: Event) -> None:
        super().on_event(event)
        if isinstance(event.body, RecoveryStarted):
            say(f"{event.time_s:.0f} fault {len(self.tally.results)}: {event.body.cause[:100]}")
        if isinstance(event.body, RecoveryFinished | GangResized):
            self._replace()

    def _replace(self) -> None:
        """A new node for each that was lost or is about to go; what stands still on lost ones is ended."""
        lost = sum(1 for result in self.tally.results if result.fault in ON_NODES and result.detection_s is not None)
        for _ in range(lost - self._replaced):
            self._adding.append(threading.Thread(target=self._add, name="add-node", daemon=True))
            self._adding[-1].start()
        self._replaced = max(self._replaced, lost)

    def _add(self) -> None:
        for pid in with_environment("TMPDIR", self._marker):
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                if process.name() == "raylet" and process.status() == psutil.STATUS_STOPPED:
                    end_processes([*(child.pid for child in descendants(pid)), pid])
        self._cluster.add()


def soak(directory: Path, times: int, seed: int, limit_s: float) -> Scorecard:
    """The undisturbed run, the struck one, and the undisturbed one without what that left out. Raises RuntimeError
    where it takes too long."""
    stop, began_s = threading.Event(), time.monotonic()
    timer = threading.Timer(limit_s, stop.set)
    timer.daemon = True
    timer.start()
    steps = times * STEPS_BETWEEN + TAIL
    calm = job_of(directory, steps, resources={"workers": 1})  # the curve does not depend on how many there are
    home = directory / "runs"
    undisturbed = run_job(calm, home, [], stop)
    say(f"undisturbed: {undisturbed.state}, {time.monotonic() - began_s:.0f} s")
    draw = random.Random(seed)
    with head_and_nodes(NODES) as cluster:
        job = job_of(directory, steps, cluster={"address": cluster.address})
        planned = [(step, draw.choice(FAULTS)) for step in strike_steps(steps - TAIL, times)]
        numeric = tuple(Injection("nan", step + 1, 0) for step, fault in planned if fault is DrillFault.NAN)
        strikes = [each for each in planned if each[1] is not DrillFault.NAN]
        soaker = Soaker(home, strikes, draw, cluster, os.environ["TMPDIR"])
        arranged = Arranged(injections=numeric)
        outcome = run_job(job, home, [soaker], stop, f"{ENTRIES}:train_paced", arranged=arranged)
    say(f"struck: {outcome.state} {outcome.reason or ''}, {time.monotonic() - began_s:.0f} s")
    left_out = read_skips(RunLayout(outcome.run_dir))
    if left_out and not stop.is_set():
        given = tuple(replace(skip, from_step=0, fault=None) for skip in left_out)
        undisturbed = run_job(calm, home, [], stop, arranged=Arranged(skips=given))
    timer.cancel()
    if stop.is_set():
        raise RuntimeError(f"not done within {limit_s:.0f} s: {len(soaker.tally.results)} of {times} faults")
    return _score(job, undisturbed, outcome, soaker.tally.results, times)


def text(card: Scorecard, seconds: float) -> str:
    """By fault: how many, and what they cost."""
    lines = [
        "| fault | times | detected | next step, median (worst) | steps recomputed, at most |",
        "|---|---|---|---|---|",
    ]
    for fault, times in sorted(Counter(result.fault for result in card.faults).items()):
        of = [result for result in card.faults if result.fault == fault]
        seen = [result.detection_s for result in of if result.detection_s is not None]
        back = [result.first_step_s for result in of if result.first_step_s is not None]
        again = [result.steps_recomputed for result in of if result.steps_recomputed is not None]
        detected = f"{statistics.median(seen):.1f} s" if seen else "-"
        next_step = f"{statistics.median(back):.1f} s ({max(back):.1f})" if back else "-"
        lines.append(f"| {fault} | {times} | {detected} | {next_step} | {max(again, default='-')} |")
    difference = "none to compare" if card.max_loss_difference is None else f"{card.max_loss_difference:.1e}"
    recovered = sum(result.recovered for result in card.faults)
    return "\n".join(
        [
            *lines,
            "",
            f"{card.planned} faults planned, {len(card.faults)} injected, {recovered} recovered from, in "
            f"{seconds / 60:.0f} minutes; finished: {'yes' if card.finished else f'no: {card.reason}'}; "
            f"data exactly once: {'proved' if card.data_exact else 'NOT PROVED'}, {card.samples_left_out} samples left "
            f"out and recorded; "
            f"largest loss difference {difference} (allowed {card.tolerance:g}). "
            f"{'SURVIVED' if card.survived else 'DID NOT SURVIVE'}",
        ]
    )


def write(command: str, found: str) -> None:
    """Into docs/reliability.md, in place of the last one."""
    document = DOCUMENT.read_text()
    head, rest = document.split(BEGIN, 1)
    DOCUMENT.write_text(
        f"{head}{BEGIN}\n`{command}`, {time.strftime('%Y-%m-%d')}:\n\n{found}\n{END}{rest.split(END, 1)[1]}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak")
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=LIMIT_S, help="seconds")
    parser.add_argument("--write", action="store_true", help="put the scorecard into docs/reliability.md")
    args = parser.parse_args()
    exit_on_sigterm()
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="convoy-soak-") as directory:
        card = soak(Path(directory), args.times, args.seed, args.limit)
    found = text(card, time.monotonic() - began_s)
    print(found, flush=True)
    if args.write:
        write(f"python -m tests.faults.soak --times {args.times} --seed {args.seed}", found)
    return 0 if card.survived else 1


if __name__ == "__main__":
    sys.exit(main())
