"""`convoy ps`, `convoy queue` and `convoy nodes`: what is in a server's queue, and on the cluster."""

import json
import time
from pathlib import Path

import click

from orchestrator.cli.options import home_option, json_option
from orchestrator.cli.server_connection import connect, server_option
from orchestrator.domain.queue.queue_states import FINAL, QueueState

SHOWN_FINISHED = 10
"""Runs that have ended, below those that have not."""
PAGE_RUNS = 1000
MOST_SHOWN = 20_000
_GOING = tuple(state.value for state in QueueState if state not in FINAL)


@click.command()
@click.option("--all", "show_all", is_flag=True, help=f"Show all runs that have ended, not only {SHOWN_FINISHED}.")
@click.option("--state", "states", multiple=True, type=click.Choice([state.value for state in QueueState]),
              help="Only runs in this state. Repeatable.")  # fmt: skip
@click.option("--queue", help="Only runs of this queue.")
@click.option("--user", help="Only runs of this user.")
@click.option("--group", help="Only runs of this matrix.")
@server_option
@home_option
@json_option
def ps(
    show_all: bool, states: tuple[str, ...], queue: str | None, user: str | None, group: str | None,
    server: str | None, home: Path, as_json: bool,
) -> None:  # fmt: skip
    """List the runs of a server: those that wait or train, and the newest that have ended.

    \b
    Examples:
      convoy ps
      convoy ps --state queued --state suspended
      convoy ps --group lr-sweep
      convoy ps --json | jq -r '.[] | select(.waits) | .waits.message'
    """
    from orchestrator.cli.display.queue_text import runs_table
    from orchestrator.wire.run_messages import RunView

    with connect(home, server) as client:

        def pages(wanted: tuple[str, ...], most: int) -> list[RunView]:
            found: list[RunView] = []
            cursor: str | None = None
            while len(found) < most:
                page = client.runs(wanted, queue, user, group, min(PAGE_RUNS, most - len(found)), cursor)
                found, cursor = [*found, *page.runs], page.next_cursor
                if cursor is None:
                    break
            return found

        if states or show_all:
            runs = pages(states, MOST_SHOWN)
        else:
            runs = pages(_GOING, MOST_SHOWN) + pages(tuple(sorted(FINAL)), SHOWN_FINISHED)
    if as_json:
        click.echo(json.dumps([run.model_dump(mode="json") for run in runs], indent=2))
    elif not runs:
        click.echo("No runs. Submit one: convoy submit job.yaml")
    else:
        click.echo(runs_table(runs, time.time()))


@click.command()
@server_option
@home_option
@json_option
def queue(server: str | None, home: Path, as_json: bool) -> None:
    """List the queues of a server: what they use and may use, and who waits in which order.

    \b
    Examples:
      convoy queue
      convoy queue --json | jq '.[].waiting'
    """
    from orchestrator.cli.display.queue_text import queues_table

    with connect(home, server) as client:
        found = client.queues()
    if as_json:
        click.echo(json.dumps([each.model_dump(mode="json") for each in found], indent=2))
    else:
        click.echo(queues_table(found))


@click.group(invoke_without_command=True)
@server_option
@home_option
@json_option
@click.pass_context
def nodes(ctx: click.Context, server: str | None, home: Path, as_json: bool) -> None:
    """List the nodes of a server's cluster, or drain one.

    \b
    Examples:
      convoy nodes
      convoy nodes drain 10.0.0.7 --deadline 600
    """
    from orchestrator.cli.display.queue_text import nodes_table

    if ctx.invoked_subcommand is not None:
        return
    with connect(home, server) as client:
        found = client.nodes()
    if as_json:
        click.echo(json.dumps([each.model_dump(mode="json") for each in found], indent=2))
    elif not found:
        click.echo("The cluster has no node.")
    else:
        click.echo(nodes_table(found, time.time()))


@nodes.command()
@click.argument("node")
@click.option("--deadline", "deadline_s", type=click.FloatRange(min=0), help="Seconds until the node goes away.")
@server_option
@home_option
@json_option
def drain(node: str, deadline_s: float | None, server: str | None, home: Path, as_json: bool) -> None:
    """Move all workers away from a node, and place no others on it.

    Runs leave at a step boundary and lose no step: elastic ones continue with fewer workers or on other nodes, the
    others are suspended until there is room. NODE is the id of a node, the beginning of one, or its address.

    \b
    Examples:
      convoy nodes drain 10.0.0.7
      convoy nodes drain 3f2a --deadline 120
    """
    with connect(home, server) as client:
        found = client.drain(node, deadline_s)
    if as_json:
        click.echo(json.dumps(found.model_dump(mode="json"), indent=2))
        return
    runs = ", ".join(f"{run} ({count})" for run, count in sorted(found.runs.items()))
    click.echo(f"node {found.id} ({found.address}) drains" + (f"; runs that leave it: {runs}" if runs else ""))
