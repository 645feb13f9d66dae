"""`convoy scale`: another number of workers for a run that is under way."""

import getpass
import json
import socket
from pathlib import Path

import click

from orchestrator.cli.options import home_option, json_option, run_argument
from orchestrator.domain.errors import ConvoyError
from orchestrator.domain.events import ScaleState
from orchestrator.domain.scaling import ScaleAnswer, check_workers
from orchestrator.store.run_store import RunStore
from orchestrator.store.scale_files import answers, ask


@click.command()
@run_argument
@click.option("--workers", type=click.IntRange(min=1), required=True, help="How many the run is to have.")
@click.option("--force", is_flag=True, help="Also beyond the range in the job's spec.")
@click.option("--no-wait", is_flag=True, help="Until the driver has said yes or no, and not until it is done.")
@click.option("--timeout", "timeout_s", type=click.FloatRange(min=0), default=300.0, show_default=True,
              help="How many seconds to wait.")  # fmt: skip
@home_option
@json_option
@click.pass_context
def scale(
    ctx: click.Context,
    run: str,
    workers: int,
    force: bool,
    no_wait: bool,
    timeout_s: float,
    home: Path,
    as_json: bool,
) -> None:
    """Give a running run more workers, or fewer. Nothing is lost, no step is made twice.

    Workers leave and join at a step boundary, and the losses stay what they would have been. Places of
    workers that leave are free for others at once; workers that join start while the others train, as soon
    as a node has room for them. The run keeps the new number until it is told another, recoveries and
    `--resume` included. Where the spec gives a range (`resources.workers: {min, max}`), it holds unless --force.

    \b
    Examples:
      convoy scale last --workers 2
      convoy scale my-job --workers 8 --no-wait

    Exit codes: 0 done (with --no-wait: accepted); 1 refused, overtaken by another request, or not done in
    time (it still holds); 2 the command is wrong, or the run is not under way.
    """
    from orchestrator.spec.loading.load import load_job

    record = RunStore(home).read(run)
    if record.active:
        check_workers(load_job(record.layout.spec).spec, workers, force)
    request = ask(record, workers, f"{_user()}@{socket.gethostname()}", force)
    last: ScaleAnswer | None = None
    for answer in answers(record, request, timeout_s):
        last = answer
        if not as_json:
            click.echo(answer.message, err=answer.state is ScaleState.REFUSED)
        if answer.state is ScaleState.ACCEPTED and no_wait:
            break
    if last is None:
        raise ConvoyError(
            f"the driver of run {record.id} has not answered within {timeout_s:g} s",
            hint="it answers while it trains; before that, and when its host hangs, it does not",
        )
    if as_json:
        click.echo(json.dumps(last.to_json(), indent=2))
    waited_in_vain = last.state is ScaleState.ACCEPTED and not no_wait
    if waited_in_vain:
        click.echo(f"not done within {timeout_s:g} s; the run still aims for it: convoy show {record.id}", err=True)
    ctx.exit(1 if waited_in_vain or last.state is ScaleState.REFUSED else 0)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in many containers
        return "somebody"
