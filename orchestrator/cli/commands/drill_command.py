"""`convoy drill`: inject real faults into a job and compare it with an undisturbed run."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator.cli.display import formatting
from orchestrator.cli.interrupt import Interrupt
from orchestrator.cli.options import home_option, json_option
from orchestrator.domain.policy.scorecard import DrillFault

if TYPE_CHECKING:
    from orchestrator.domain.policy.scorecard import FaultResult, Scorecard


FAULTS = """\b
Faults:
  kill-worker    SIGKILL to a worker
  kill-node      SIGKILL to every process of a node
  silence-node   SIGSTOP to every process of a node: a machine that hangs
  partition      the network link of a node goes down; needs root: nodes get network namespaces
  drain-node     a node is announced as preempted, and killed 20 s later
  corrupt-shard  a bit of the newest checkpoint is flipped, then a worker is killed
  disk-full      no space for checkpoints (ENOSPC) until one has failed; needs root: a small file system
  bucket-down    the bucket is unreachable until a checkpoint has failed; needs s3:// at an http:// endpoint
  nan            a worker's loss is multiplied by NaN
  oom            a worker can allocate no more memory for one step
  hang-rank      SIGSTOP to a worker
  slow-rank      a worker is slowed down until it is reported as slow
  kill-driver    SIGKILL to the run's driver; a new driver resumes the run from storage
  random         any of these but slow-rank that the job and this machine permit
"""


@click.command(epilog=FAULTS)
@click.argument("job", type=click.Path(path_type=Path))
@click.option(
    "--fault",
    type=click.Choice([fault.value for fault in DrillFault]),
    default=DrillFault.KILL_WORKER.value,
    show_default=True,
    help="Fault to inject.",
)
@click.option("--times", type=click.IntRange(min=1), default=1, show_default=True, help="Number of faults.")
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Seed for choosing the targets, and the faults of `random`."
)
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a field, e.g. train.steps=60. Repeatable."
)
@home_option
@json_option
@click.pass_context
def drill(
    ctx: click.Context,
    job: Path,
    fault: str,
    times: int,
    seed: int,
    overrides: tuple[str, ...],
    home: Path,
    as_json: bool,
) -> None:
    """Inject real faults into a job on a local cluster, and compare it with an undisturbed run.

    The job runs twice: once undisturbed, once with faults spread over its steps. If a fault made the job leave samples
    out, it runs a third time, undisturbed and without them, for the comparison. Progress goes to stderr, the
    scorecard to stdout. Faults are real; they are listed below.

    `detected` is the time to the event that reports the fault, `next step` the time to the end of the first step after
    the recovery; for disk-full and bucket-down, the time to the next checkpoint that is saved.

    \b
    Examples:
      convoy drill jobs/quickstart.yaml --set train.steps=60 --set checkpoint.interval_steps=10
      convoy drill job.yaml --fault kill-node --set resources.workers='{min: 2, max: 4}'
      convoy drill job.yaml --fault nan
      convoy drill job.yaml --fault hang-rank --set resources.workers=3
      convoy drill job.yaml --fault disk-full --set checkpoint.interval_steps=10
      convoy drill job.yaml --fault random --times 5 --json

    Exit codes: 0 the job survived; 1 it did not; 2 the job file or the command is wrong; 130 interrupted.
    """
    from orchestrator.spec.loading.load import load_job
    from orchestrator.spec.loading.matrix import require_one_run

    loaded = load_job(job, overrides)
    require_one_run(loaded)
    from orchestrator.cli.display.plain_display import PlainDisplay
    from orchestrator.drill.drill_course import drill as carry_out

    interrupt = Interrupt()
    with interrupt.installed():
        display = PlainDisplay(sys.stderr)
        card = carry_out(loaded, home, DrillFault(fault), times, seed, [display], interrupt.stop, _tell)
    if card is None:
        ctx.exit(interrupt.exit_code)
    click.echo(json.dumps(card.to_json(), indent=2) if as_json else text(card))
    ctx.exit(0 if card.survived else 1)


def _tell(message: str) -> None:
    click.echo(message, err=True)


def text(card: "Scorecard") -> str:
    """The scorecard as text."""
    lines = ["", f"{'fault':<14} {'step':>6} {'rank':>4} {'detected':>9} {'next step':>10} {'recomputed':>10}  workers"]
    lines += [_line(result) for result in card.faults]
    if len(card.faults) < card.planned:
        lines.append(f"{card.planned - len(card.faults)} of {card.planned} faults could not be injected")
    difference = "no common step" if card.max_loss_difference is None else f"{card.max_loss_difference:.1e}"
    aside = f"; {card.samples_left_out} samples left out, as recorded" if card.samples_left_out else ""
    exact = f"exactly once, proved{aside}" if card.data_exact else f"NOT exact: convoy data verify {card.run}"
    lines += [
        "",
        f"  finished          {'yes' if card.finished else f'no: {card.reason}'}",
        f"  data              {exact}",
        f"  loss difference   {difference} at most, relative to {card.undisturbed_run} (allowed: {card.tolerance:g})",
        f"  run               {card.run}",
        "",
        "SURVIVED" if card.survived else "DID NOT SURVIVE",
    ]
    return "\n".join(lines)


def _line(result: "FaultResult") -> str:
    seconds = [formatting.duration(value) for value in (result.detection_s, result.first_step_s)]
    again = "-" if result.steps_recomputed is None else str(result.steps_recomputed)
    workers = f"{result.workers_before} -> {'-' if result.workers_after is None else result.workers_after}"
    rank = "-" if result.rank is None else str(result.rank)
    return f"{result.fault:<14} {result.step:>6} {rank:>4} {seconds[0]:>9} {seconds[1]:>10} {again:>10}  {workers}"
