"""`convoy goodput`: what the time of a run's workers was spent on, and what it cost."""

import json
import time
from pathlib import Path

import click

from orchestrator.cli.display.goodput_text import RunLedger, goodput_text, summary_table
from orchestrator.cli.options import complete_run, home_option, json_option
from orchestrator.cli.served_records import local_record, served_ledger
from orchestrator.cli.server_connection import server_option
from orchestrator.domain.errors import UsageError
from orchestrator.store.recorded_ledger import ledger_of


@click.command()
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, shell_complete=complete_run)
@click.option(
    "--by",
    type=click.Choice(["class", "cause", "node", "incident"]),
    default="class",
    show_default=True,
    help="What a line of the table is for.",
)
@server_option
@home_option
@json_option
def goodput(runs: tuple[str, ...], by: str, server: str | None, home: Path, as_json: bool) -> None:
    """Show what the time of a run's workers was spent on.

    Every second of every worker, from its reservation to its release, belongs to one class. Goodput is the share of
    the reserved worker time in steps that count, ETTR the share of wall time. With `cluster.usd_per_hour` in the job,
    costs are shown as well. Of a run in progress, the figures are at most a few seconds old. With several runs, each
    has one line. A run that is not here is looked for on the server.

    \b
    Examples:
      convoy goodput last
      convoy goodput last --by cause
      convoy goodput last --by node
      convoy goodput last --json | jq .lost_s
    """
    now_s = time.time()
    found = [_read(home, run, server) for run in runs]
    if as_json:
        values = [each.to_json(now_s) for each in found]
        click.echo(json.dumps(values if len(values) > 1 else values[0], indent=2))
    elif len(found) > 1:
        click.echo(summary_table(found))
    else:
        click.echo(goodput_text(found[0], by, now_s))


def _read(home: Path, run: str, server: str | None) -> RunLedger:
    """Raises UsageError if nothing was recorded."""
    record = local_record(home, run, server)
    if record is None:
        return served_ledger(home, run, server)
    ledger = ledger_of(record.layout)
    if ledger is None:
        hint = "it is written once the run has a driver" if record.active else "its driver recorded nothing"
        raise UsageError(f"run {record.id} ({record.status}) has no {record.layout.ledger.name}", hint=hint)
    return RunLedger(record.id, record.status, record.active, ledger)
