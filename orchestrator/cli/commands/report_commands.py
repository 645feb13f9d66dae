"""`convoy why` and `convoy report`: what bounds the speed of a run, and all that is known about it as one file."""

import json
import time
from pathlib import Path

import click

from orchestrator.cli.options import home_option, json_option, run_argument
from orchestrator.domain.errors import UsageError
from orchestrator.metrics.jsonl import finite
from orchestrator.store.run_store import RunStore


@click.command()
@run_argument
@home_option
@json_option
def why(run: str, home: Path, as_json: bool) -> None:
    """Say what bounds the speed of a run, and what to do.

    Applies rules to what the run has recorded: waiting for data, a slow rank, communication, a small micro batch,
    padding, evaluations, checkpoints, copies to memory, recoveries, waiting for workers, the start. Each finding has
    its share of the wall clock, the figures that show it, and advice; the largest comes first.

    \b
    Examples:
      convoy why last
      convoy why last --json | jq -r '.found[0].name'

    Exit codes: 0 whatever is found; 2 there is no such run.
    """
    from orchestrator.cli.display.why_text import text
    from orchestrator.run_facts.run_model import read_facts
    from orchestrator.run_facts.why.diagnosis import diagnose

    found = read_facts(RunStore(home).read(run))
    diagnosis = diagnose(found)
    if as_json:
        value = {"run": found.record.id, "state": found.record.status, **diagnosis.to_json()}
        click.echo(json.dumps(finite(value), indent=2))
    else:
        click.echo(text(found, diagnosis))


@click.command()
@run_argument
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="The file to write.")
@click.option("--no-proof", is_flag=True, help="Do not replay the data that the run consumed.")
@home_option
def report(run: str, html: Path | None, no_proof: bool, home: Path) -> None:
    """Write a run's report as one HTML file.

    The file is complete in itself: it needs no network and no other file. It shows curves, throughput, phases, memory,
    generations and recoveries, where the time went, what bounds the speed, incidents, the spec and the proof of the
    data. Values of environment variables and credentials are left out.

    At its end every run writes `report.html` into its directory. Without --html this command writes it again.

    \b
    Examples:
      convoy report last --html report.html
      convoy report quickstart
    """
    from orchestrator.report.report_file import write_report
    from orchestrator.report.report_proof import PROOF_TOKENS

    record = RunStore(home).read(run)
    target = html if html is not None else record.layout.report
    try:
        written_bytes = write_report(record, target, time.time(), 0 if no_proof else PROOF_TOKENS)
    except OSError as error:
        raise UsageError(f"cannot write {target}: {error.strerror}", hint="name another file with --html") from error
    click.echo(f"{target}  ({written_bytes / 1024:.0f} KiB)")
