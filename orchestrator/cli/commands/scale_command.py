"""`convoy scale`: change the number of workers of an active run."""

import getpass
import json
import socket
from pathlib import Path

import click

from orchestrator.cli.options import home_option, json_option, run_argument
from orchestrator.cli.server_connection import connect, known_server, server_option
from orchestrator.domain.errors import ConvoyError
from orchestrator.domain.events import ScaleState
from orchestrator.domain.scaling import ScaleAnswer, check_workers
from orchestrator.store.exchange.scale_files import answers, ask
from orchestrator.store.run_store import RunStore


@click.command()
@run_argument
@click.option(
    "--workers", type=click.IntRange(min=1), required=True, help="Number of workers that the run should have."
)
@click.option("--force", is_flag=True, help="Allow a number outside the range in the job's spec.")
@click.option("--no-wait", is_flag=True, help="Return when the driver has accepted or refused, not when it is done.")
@click.option("--timeout", "timeout_s", type=click.FloatRange(min=0), default=300.0, show_default=True,
              help="Seconds to wait.")  # fmt: skip
@server_option
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
    server: str | None,
    home: Path,
    as_json: bool,
) -> None:
    """Change the number of workers of an active run. Nothing is lost and no step is recomputed.

    Workers leave and join at a step boundary, and the losses do not change. The resources of workers that leave are
    free for others at once; workers that join start while the others train, as soon as a node has room for them. The
    run keeps the new number through recoveries and `--resume` until it is changed again. A range in the spec
    (`resources.workers: {min, max}`) is a limit unless --force is given. A run in a server's queue has at most the
    given number from then on: the queue decides when it grows.

    \b
    Examples:
      convoy scale last --workers 2
      convoy scale my-job --workers 8 --no-wait

    Exit codes: 0 done (with --no-wait: accepted); 1 refused, superseded by another request, or not done in time (the
    request stays in force); 2 the command is wrong, or the run is not active.
    """
    from orchestrator.spec.loading.load import load_job

    if _scale_served(run, workers, server, home, as_json):
        return
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
            hint="it answers only while it trains, not before that and not while its host hangs",
        )
    if as_json:
        click.echo(json.dumps(last.to_json(), indent=2))
    waited_in_vain = last.state is ScaleState.ACCEPTED and not no_wait
    if waited_in_vain:
        click.echo(f"not done within {timeout_s:g} s; the request stays in force: convoy show {record.id}", err=True)
    ctx.exit(1 if waited_in_vain or last.state is ScaleState.REFUSED else 0)


def _scale_served(run: str, workers: int, server: str | None, home: Path, as_json: bool) -> bool:
    """Ask the server that has the run; False if no server has it, and the run's driver has to be asked. Raises
    ApiError, UnreachableError if a server was named."""
    from orchestrator.cli.commands.queue.run_control import say_run
    from orchestrator.client.api_errors import ApiError, UnreachableError

    if known_server(home, server) is None:
        return False
    with connect(home, server) as client:
        try:
            view = client.scale(run, workers)
        except (ApiError, UnreachableError) as error:
            if server is not None or (isinstance(error, ApiError) and error.code != "not_found"):
                raise
            return False
    say_run(view, as_json)
    return True


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in many containers
        return "unknown"
