"""`convoy checkpoint`: what a run has saved, whether it is whole, and making room."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli import render
from orchestrator.cli.options import home_option, json_option, run_argument
from orchestrator.domain.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from orchestrator.checkpoint.catalog import Found
    from orchestrator.store.runs import RunRecord


@click.group()
def checkpoint() -> None:
    """List, verify and remove a run's checkpoints.

    \b
    Examples:
      convoy checkpoint list last
      convoy checkpoint verify last
      convoy checkpoint prune last --keep-last 1
    """


@checkpoint.command("list")
@run_argument
@home_option
@json_option
def list_(run: str, home: Path, as_json: bool) -> None:
    """List a run's checkpoints, newest first, as far as manifests and file sizes tell.

    \b
    Examples:
      convoy checkpoint list last
      convoy checkpoint list quickstart --json | jq '.[0].path'
    """
    from orchestrator.checkpoint.catalog import list_checkpoints
    from orchestrator.store.checkpoints import checkpoint_storage

    record = _read(run, home)
    found = list_checkpoints(checkpoint_storage(record.layout))
    if as_json:
        click.echo(json.dumps([_value(entry) for entry in found], indent=2))
        return
    click.echo("\n".join(_line(entry, entry.problem) for entry in found) or f"run {record.id} has no checkpoint")


@checkpoint.command()
@run_argument
@click.option("--step", type=click.IntRange(min=0), help="Only the checkpoint of this step.")
@home_option
@json_option
@click.pass_context
def verify(ctx: click.Context, run: str, step: int | None, home: Path, as_json: bool) -> None:
    """Read checkpoints whole and check every checksum, and that each tensor is there in full.

    \b
    Examples:
      convoy checkpoint verify last
      convoy checkpoint verify quickstart --step 150

    Exit codes: 0 all are whole; 1 one is damaged, or there is none.
    """
    from orchestrator.checkpoint.catalog import list_checkpoints, silent, verify_checkpoint
    from orchestrator.store.checkpoints import checkpoint_storage

    record = _read(run, home)
    found = list_checkpoints(checkpoint_storage(record.layout))
    chosen = [entry for entry in found if step in (None, entry.step)]
    if step is not None and not chosen:
        known = ", ".join(str(entry.step) for entry in found) or "none"
        raise UsageError(f"run {record.id} has no checkpoint of step {step}", hint=f"it has: {known}")
    checked = []
    for entry in chosen:
        problem = None
        try:
            verify_checkpoint(entry.place)
        except CheckpointError as error:
            if silent(error):
                raise
            problem = error.message
        checked.append((entry, problem))
        if not as_json:
            click.echo(_line(entry, problem, good="whole"))
    if as_json:
        click.echo(json.dumps([{**_value(entry), "problem": problem} for entry, problem in checked], indent=2))
    elif not checked:
        click.echo(f"run {record.id} has no checkpoint")
    ctx.exit(0 if checked and all(problem is None for _, problem in checked) else 1)


@checkpoint.command()
@run_argument
@click.option("--keep-last", type=click.IntRange(min=1), required=True, help="How many of the newest stay.")
@click.option("--keep-every", type=click.IntRange(min=1), metavar="STEPS", help="Multiples of so many steps stay too.")
@click.option("--keep-best", type=click.IntRange(min=1), help="So many of the lowest loss stay too.")
@home_option
@json_option
def prune(run: str, keep_last: int, keep_every: int | None, keep_best: int | None, home: Path, as_json: bool) -> None:
    """Remove a run's old checkpoints. The newest whole one always stays.

    \b
    Examples:
      convoy checkpoint prune last --keep-last 1
      convoy checkpoint prune last --keep-last 2 --keep-every 1000 --keep-best 1
    """
    from orchestrator.checkpoint.catalog import retain
    from orchestrator.checkpoint.retention import Rule
    from orchestrator.store.checkpoints import checkpoint_storage

    record = _read(run, home)
    if record.active:
        raise UsageError(
            f"run {record.id} is going on, and keeps its checkpoints by its own rule",
            hint="set checkpoint.keep_last, keep_every and keep_best in its job file, or stop it first",
        )
    gone = retain(checkpoint_storage(record.layout), Rule(keep_last, keep_every, keep_best))
    if as_json:
        click.echo(json.dumps(gone, indent=2))
        return
    click.echo("\n".join(f"removed {place}" for place in gone) or "nothing to remove")


def _read(run: str, home: Path) -> "RunRecord":
    from orchestrator.store.runs import RunStore

    return RunStore(home).read(run)


def _value(entry: "Found") -> dict[str, Any]:
    manifest = entry.manifest
    return {
        "step": entry.step,
        "path": entry.place,
        "problem": entry.problem,
        "bytes": manifest.size_bytes if manifest else None,
        "world_size": manifest.world_size if manifest else None,
        "stage": manifest.stage if manifest else None,
        "saved_at_s": manifest.saved_at_s if manifest else None,
    }


def _line(entry: "Found", problem: str | None, good: str = "") -> str:
    manifest = entry.manifest
    if manifest is None:
        return f"step {entry.step:>8,}  damaged: {problem}"
    facts = f"{render.size(manifest.size_bytes):>10}  {manifest.world_size} workers, ZeRO-{manifest.stage}"
    end = f"damaged: {problem}" if problem else good
    return f"step {entry.step:>8,}  {facts}  {render.when(manifest.saved_at_s)}  {end}".rstrip()
