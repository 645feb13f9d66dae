"""`convoy durability`: what a run would lose if a node failed now."""

import json
import sys
import time
from pathlib import Path

import click

from orchestrator.cli.display.survey_text import survey_of, survey_text
from orchestrator.cli.options import home_option, json_option, run_argument
from orchestrator.cli.served_records import local_record, served_survey
from orchestrator.cli.server_connection import server_option
from orchestrator.domain.errors import UsageError
from orchestrator.store.run_store import RunRecord, RunStore

WATCH_S = 1.0


@click.command()
@run_argument
@click.option("-w", "--watch", is_flag=True, help="Keep showing it until the run ends.")
@server_option
@home_option
@json_option
def durability(run: str, watch: bool, server: str | None, home: Path, as_json: bool) -> None:
    """Show what a run would lose if a node failed now.

    Shows the copies of each worker's state by tier (memory of its own node, memory of peers, storage), the steps at
    risk, and the nodes whose loss the state in memory would not survive. The driver surveys the nodes every 2
    seconds. A run that is not here is looked for on the server.

    \b
    Examples:
      convoy durability last
      convoy durability last --watch
      convoy durability last --json | jq .steps_at_risk
    """
    store = RunStore(home)
    record = local_record(home, run, server)
    if record is None:
        if watch:
            raise UsageError("--watch needs the files of the run, and they are not here", "run it on the server")
        seen = served_survey(home, run, server)
        click.echo(json.dumps(seen.to_json(), indent=2) if as_json else survey_text(seen))
    elif not watch:
        click.echo(_shown(record, as_json))
    elif as_json or not sys.stdout.isatty():
        _follow(store, record, as_json)
    else:
        _live(store, record)


def _shown(record: RunRecord, as_json: bool) -> str:
    seen = survey_of(record, time.time())
    return json.dumps(seen.to_json(), indent=2) if as_json else survey_text(seen)


def _follow(store: RunStore, record: RunRecord, as_json: bool) -> None:
    """A line of JSON, or a paragraph, for each survey."""
    shown_s: float | None = None
    while True:
        record = store.read(str(record.directory.absolute()))
        seen = survey_of(record, time.time()) if record.layout.durability.exists() else None
        if seen is not None and seen.durability.time_s != shown_s:
            shown_s = seen.durability.time_s
            click.echo(json.dumps(seen.to_json()) if as_json else survey_text(seen) + "\n")
        if not record.active:
            return
        time.sleep(WATCH_S)


def _live(store: RunStore, record: RunRecord) -> None:
    from rich.live import Live
    from rich.text import Text

    with Live(auto_refresh=False) as live:
        while True:
            record = store.read(str(record.directory.absolute()))
            try:
                shown = _shown(record, as_json=False)
            except UsageError as error:
                shown = f"{error.message}: {error.hint}"
            live.update(Text(shown), refresh=True)
            if not record.active:
                return
            time.sleep(WATCH_S)
