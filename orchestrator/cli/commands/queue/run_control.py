"""`convoy status`, `convoy events`, and what a person may do with a run in a server's queue."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator.cli.options import home_option, json_option, run_argument
from orchestrator.cli.server_connection import connect, server_option

if TYPE_CHECKING:
    from orchestrator.client.convoy_client import ConvoyClient
    from orchestrator.wire.record_messages import ProgressView
    from orchestrator.wire.run_messages import RunView

PAGE_EVENTS = 1000
MOST_EVENTS = 100_000


@click.command()
@run_argument
@server_option
@home_option
@json_option
def status(run: str, server: str | None, home: Path, as_json: bool) -> None:
    """Show a run in a server's queue.

    Shows its state; while it waits: why, its position, what would free it, and when it may start; while it trains:
    progress, time left, and the last incidents. RUN is a run's id, the beginning of one, or a name (its newest run).

    \b
    Examples:
      convoy status pretrain
      convoy status pretrain --json | jq .waits
    """
    show_status(home, run, server, as_json)


def show_status(home: Path, run: str, server: str | None, as_json: bool) -> None:
    """What a server says about a run. Raises ApiError, UnreachableError, UsageError."""
    from orchestrator.cli.display.queue_text import run_text

    with connect(home, server) as client:
        view = client.run(run)
        progress = _progress(client, view.id)
    if as_json:
        seen = None if progress is None else progress.model_dump(mode="json")
        click.echo(json.dumps({**view.model_dump(mode="json"), "progress": seen}, indent=2))
    else:
        click.echo(run_text(view, progress, time.time()))


def _progress(client: "ConvoyClient", run: str) -> "ProgressView | None":
    """None if the run has recorded nothing yet."""
    from orchestrator.client.api_errors import ApiError

    try:
        return client.progress(run)
    except ApiError as error:
        if error.code != "not_found":
            raise
        return None


@click.command()
@run_argument
@click.option("-f", "--follow", is_flag=True, help="Follow the events until the run has ended.")
@click.option("--after", type=click.IntRange(min=0), default=0, metavar="NUMBER", help="Only events after this one.")
@server_option
@home_option
@json_option
def events(run: str, follow: bool, after: int, server: str | None, home: Path, as_json: bool) -> None:
    """Print the events of a run: its transitions in the queue with their causes, and what its driver reports.

    With --json each event is one line.

    \b
    Examples:
      convoy events pretrain
      convoy events pretrain -f
      convoy events pretrain --json | jq -c 'select(.source == "queue")'
    """
    from orchestrator.cli.display.queue_text import event_line

    with connect(home, server) as client:
        shown = 0
        if follow:
            for event in client.follow_events(run, after):
                click.echo(event.model_dump_json() if as_json else event_line(event))
            return
        while shown < MOST_EVENTS:
            page = client.events(run, after, PAGE_EVENTS)
            for event in page.events:
                click.echo(event.model_dump_json() if as_json else event_line(event))
            shown, after = shown + len(page.events), page.next_after
            if len(page.events) < PAGE_EVENTS:
                return


@click.command()
@run_argument
@server_option
@home_option
@json_option
def cancel(run: str, server: str | None, home: Path, as_json: bool) -> None:
    """End a run in a server's queue for good. Its files stay; `convoy retry` continues it.

    \b
    Examples:
      convoy cancel pretrain
      convoy cancel pretrain-20261128-120000-1a2b --json
    """
    _act(run, "cancel", server, home, as_json)


@click.command()
@run_argument
@server_option
@home_option
@json_option
def pause(run: str, server: str | None, home: Path, as_json: bool) -> None:
    """Save the state of a run and release its capacity until `convoy resume`. No step is lost.

    \b
    Examples:
      convoy pause pretrain
    """
    _act(run, "pause", server, home, as_json)


@click.command()
@run_argument
@server_option
@home_option
@json_option
def resume(run: str, server: str | None, home: Path, as_json: bool) -> None:
    """Queue a paused run again. It continues with its next step.

    \b
    Examples:
      convoy resume pretrain
    """
    _act(run, "resume", server, home, as_json)


@click.command()
@run_argument
@server_option
@home_option
@json_option
def retry(run: str, server: str | None, home: Path, as_json: bool) -> None:
    """Queue a failed or cancelled run again. It continues from its newest state.

    \b
    Examples:
      convoy retry pretrain
    """
    _act(run, "retry", server, home, as_json)


def _act(run: str, action: str, server: str | None, home: Path, as_json: bool) -> None:
    with connect(home, server) as client:
        view = client.act(run, action)
    say_run(view, as_json)


def say_run(view: "RunView", as_json: bool) -> None:
    """A run after something was done with it."""
    from orchestrator.cli.display.queue_text import state_text, wait_text

    if as_json:
        click.echo(json.dumps(view.model_dump(mode="json"), indent=2))
        return
    reason = wait_text(view, time.time())
    click.echo(f"{view.id}  {state_text(view)}" + (f": {reason}" if reason else ""))
