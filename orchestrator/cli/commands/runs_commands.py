"""`convoy runs`, `convoy show` and `convoy logs`: the runs, their state and their output."""

import json
import time
from pathlib import Path

import click

from orchestrator.cli.display import formatting
from orchestrator.cli.options import home_option, json_option, run_argument
from orchestrator.cli.server_connection import server_option
from orchestrator.domain.errors import UsageError
from orchestrator.metrics.jsonl import finite
from orchestrator.store.run_store import RunRecord, RunStore

SHOWN_RUNS = 20


@click.command()
@click.option("--all", "show_all", is_flag=True, help=f"Show all of them, not only the newest {SHOWN_RUNS}.")
@home_option
@json_option
def runs(show_all: bool, home: Path, as_json: bool) -> None:
    """List runs, the newest first.

    A run shown as `lost` was not ended, but its driver is gone: the process was killed, or its host went down. It can
    be resumed.

    \b
    Examples:
      convoy runs
      convoy runs --json | jq -r '.[] | select(.state == "failed") | .id'
    """
    records = RunStore(home).list()
    shown = records if show_all else records[:SHOWN_RUNS]
    if as_json:
        click.echo(json.dumps([record.to_json() for record in shown], indent=2))
        return
    if not records:
        click.echo(f"No runs under {home.absolute()}. Start one: convoy run job.yaml")
        return
    now_s = time.time()
    rows: list[tuple[str, ...]] = [("RUN", "STATE", "WORKERS", "STEP", "LOSS", "VAL", "TOK/S", "UPDATED")]
    rows += [_row(record, now_s) for record in shown]
    click.echo(formatting.table(rows))
    if len(shown) < len(records):
        click.echo(f"... and {len(records) - len(shown)} older ones (show them with --all)")


def workers(record: RunRecord) -> str:
    """`3`, or `3 of 4` if another number was requested."""
    now, asked = record.progress.workers, record.asked_workers
    return f"{now or 0} of {asked}" if asked is not None and asked != now else f"{now}" if now else "-"


def _row(record: RunRecord, now_s: float) -> tuple[str, ...]:
    step = f"{record.step}/{record.total_steps}" if record.total_steps else str(record.step)
    return (
        record.id,
        record.status,
        workers(record),
        step,
        formatting.loss(record.loss),
        formatting.loss(record.validation_loss),
        formatting.count(record.progress.tokens_per_s),
        formatting.ago(now_s - record.updated_s),
    )


@click.command()
@run_argument
@server_option
@home_option
@json_option
def show(run: str, server: str | None, home: Path, as_json: bool) -> None:
    """Show a run: state, progress, losses, checkpoints, and where its time went.

    RUN is a run's id, the beginning of one, a job's name (its newest run), a run's directory, or `last`. Of a run that
    only a server has it shows what `convoy status` shows.

    \b
    Examples:
      convoy show last
      convoy show quickstart
      convoy show last --json | jq .ledger.goodput
    """
    from orchestrator.cli.display.facts_text import text
    from orchestrator.cli.served_records import local_record
    from orchestrator.run_facts.run_model import read_facts

    record = local_record(home, run, server)
    if record is None:
        from orchestrator.cli.commands.queue.run_control import show_status

        show_status(home, run, server, as_json)
        return
    found = read_facts(record)
    click.echo(json.dumps(finite(found.to_json()), indent=2) if as_json else text(found, time.time()))


@click.command()
@run_argument
@click.option("--rank", type=click.IntRange(min=0), help="Print only this worker's output.")
@click.option("-f", "--follow", is_flag=True, help="Follow the output until the run ends.")
@click.option("-n", "--tail", type=click.IntRange(min=0), help="Print only the last N lines of each worker.")
@server_option
@home_option
def logs(run: str, rank: int | None, follow: bool, tail: int | None, server: str | None, home: Path) -> None:
    """Print the output of a run's workers.

    With several workers each line begins with its rank. The files are `logs/rank-N.log` in the run's directory. A run
    that is not here is looked for on the server.

    \b
    Examples:
      convoy logs last
      convoy logs last --rank 0 --tail 50 -f
    """
    from orchestrator.cli.display.log_reader import follow_logs, log_ranks, print_logs
    from orchestrator.cli.served_records import local_record, print_served_logs

    record = local_record(home, run, server)
    if record is None:
        print_served_logs(home, run, server, rank, tail, follow, click.echo)
        return
    ranks = log_ranks(record.layout)
    if rank is not None and rank not in ranks and not (follow and record.active):
        known = f"it has logs of ranks {', '.join(map(str, ranks))}" if ranks else "it has no logs"
        raise UsageError(f"run {record.id} has no log of rank {rank}", hint=known)
    if not ranks and not (follow and record.active):
        click.echo(f"run {record.id} ({record.status}) has no worker output under {record.layout.logs}", err=True)
        return
    if follow:
        follow_logs(record.layout, rank, tail, click.echo)
    else:
        print_logs(record.layout, rank, tail, click.echo)
