"""`convoy submit`: put a job into a server's queue."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec

import click

from orchestrator.cli.options import home_option, json_option
from orchestrator.cli.server_connection import connect, server_option

if TYPE_CHECKING:
    from orchestrator.client.convoy_client import ConvoyClient
    from orchestrator.client.job_submission import SubmitChoice
    from orchestrator.wire.run_messages import RunView, SubmitAnswer

CHOSEN = "convoy.submit"
"""Key of click's `meta`: the options of the job."""
Arguments = ParamSpec("Arguments")


def _keep(ctx: click.Context, param: click.Parameter, value: object) -> None:
    ctx.meta.setdefault(CHOSEN, {})[param.name] = value


def job_options(command: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """What may be said about a job beside its file. They are kept in click's `meta`."""
    for option in reversed((
        click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", callback=_keep, expose_value=False,
                     help="Override a field of the job. Repeatable."),
        click.option("--name", callback=_keep, expose_value=False, help="Name of the run, in place of the job's."),
        click.option("--priority", callback=_keep, expose_value=False, help="low, normal, high or urgent."),
        click.option("--queue", callback=_keep, expose_value=False, help="Queue to wait in."),
        click.option("--after", multiple=True, metavar="RUN", callback=_keep, expose_value=False,
                     help="Start once this run has succeeded. Repeatable."),
        click.option("--key", metavar="TEXT", callback=_keep, expose_value=False,
                     help="Idempotency key: a second submission with it returns the first run."),
        click.option("--dry-run", is_flag=True, callback=_keep, expose_value=False,
                     help="Check the job and say where it would stand; queue nothing."),
    )):  # fmt: skip
        command = option(command)
    return command


@click.command()
@click.argument("job", type=click.Path(path_type=Path))
@job_options
@click.option("--wait", is_flag=True, help="Wait until the run has ended.")
@click.option("--follow", is_flag=True, help="Print the run's events until it has ended.")
@server_option
@home_option
@json_option
@click.pass_context
def submit(
    ctx: click.Context, job: Path, wait: bool, follow: bool, server: str | None, home: Path, as_json: bool
) -> None:
    """Put a job into a server's queue.

    The job file travels to the server, and so do small local files that it names with relative paths below its own
    directory; `.convoyignore` there excludes some. Everything else has to exist where the cluster reads it.

    \b
    Examples:
      convoy submit jobs/quickstart.yaml
      convoy submit job.yaml --priority high --set resources.workers=4
      convoy submit finetune.yaml --after pretrain
      convoy submit job.yaml --dry-run
      convoy submit job.yaml --wait --json | jq -r .runs[0].state

    Exit codes: 0 queued (with --wait or --follow: the run succeeded); 1 the server cannot answer, or the awaited run
    failed or was cancelled; 2 the job or the command is wrong; 130 interrupted: the run stays in the queue.
    """
    from orchestrator.client.job_submission import submit_job

    choice = _choice(ctx)
    with connect(home, server) as client:
        answer = submit_job(client, job, choice, lambda file, sends: _say_file(file.name, file.size_bytes, sends))
        ended = [_await_end(client, run, follow) for run in answer.runs] if (wait or follow) and answer.runs else []
    if as_json:
        shown = answer.model_copy(update={"runs": ended}) if ended else answer
        click.echo(json.dumps(shown.model_dump(mode="json"), indent=2))
    elif ended:
        _say_ends(ended)
    else:
        _say_queued(answer, choice.dry_run)
    ctx.exit(1 if any(run.state.value != "succeeded" for run in ended) else 0)


def _choice(ctx: click.Context) -> "SubmitChoice":
    from orchestrator.client.job_submission import SubmitChoice

    return SubmitChoice(**ctx.meta[CHOSEN])


def _say_file(name: str, size_bytes: int, sends: bool) -> None:
    from orchestrator.run_facts.quantity_text import printable, size

    click.echo(f"{'uploading' if sends else 'known    '}  {printable(name)}  ({size(size_bytes)})", err=True)


def _say_queued(answer: "SubmitAnswer", dry_run: bool) -> None:
    from orchestrator.cli.display.queue_text import state_text, wait_text

    for warning in answer.warnings:
        click.echo(f"warning: {warning}", err=True)
    word = "would be queued" if dry_run else "already queued" if answer.existing else "queued"
    for run in answer.runs:
        state, reason = state_text(run), wait_text(run, time.time())
        outcome = word if state == "queued" else f"{word}, {state}"
        click.echo(f"{run.id or run.name}  {outcome}" + (f": {reason}" if reason else ""))
    if answer.runs and not dry_run:
        first = answer.runs[0].id
        click.echo(f"`convoy status {first}` shows it, `convoy logs {first} -f` follows it", err=True)


def _await_end(client: "ConvoyClient", run: "RunView", show: bool) -> "RunView":
    from orchestrator.cli.display.queue_text import event_line

    for event in client.follow_events(run.id):
        if show:
            click.echo(event_line(event), err=True)
    return client.run(run.id)


def _say_ends(runs: "list[RunView]") -> None:
    for run in runs:
        reason = f": {run.reason}" if run.reason else ""
        failed = run.state.value != "succeeded"
        click.echo(f"{run.id}  {run.state.value}{reason}", err=failed)
