"""`convoy checkpoint`: list, verify, remove and convert a run's checkpoints."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from orchestrator.cli.display import formatting
from orchestrator.cli.options import complete_run, home_option, json_option, run_argument
from orchestrator.domain.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from orchestrator.checkpoint.storage.checkpoint_catalog import FoundCheckpoint
    from orchestrator.json_values import JsonObject
    from orchestrator.store.run_store import RunRecord
    from orchestrator.train.convert.to_deepspeed import Adam
    from orchestrator.train.convert.universal import Converted


@click.group()
def checkpoint() -> None:
    """List, verify, convert and remove a run's checkpoints.

    \b
    Examples:
      convoy checkpoint list last
      convoy checkpoint verify last
      convoy checkpoint prune last --keep-last 1
      convoy checkpoint convert last --to-deepspeed for-deepspeed
    """


@checkpoint.command("list")
@run_argument
@home_option
@json_option
def list_(run: str, home: Path, as_json: bool) -> None:
    """List a run's checkpoints, newest first. Only manifests and file sizes are checked.

    \b
    Examples:
      convoy checkpoint list last
      convoy checkpoint list quickstart --json | jq '.[0].path'
    """
    from orchestrator.checkpoint.storage.checkpoint_catalog import list_checkpoints
    from orchestrator.store.checkpoint_places import checkpoint_storage

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
    """Read checkpoints completely: check every checksum, and that every tensor is complete.

    \b
    Examples:
      convoy checkpoint verify last
      convoy checkpoint verify quickstart --step 150

    Exit codes: 0 all are complete; 1 one is damaged, or there is none.
    """
    from orchestrator.checkpoint.storage.checkpoint_catalog import list_checkpoints, silent, verify_checkpoint
    from orchestrator.store.checkpoint_places import checkpoint_storage

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
            click.echo(_line(entry, problem, good="complete"))
    if as_json:
        click.echo(json.dumps([{**_value(entry), "problem": problem} for entry, problem in checked], indent=2))
    elif not checked:
        click.echo(f"run {record.id} has no checkpoint")
    ctx.exit(0 if checked and all(problem is None for _, problem in checked) else 1)


@checkpoint.command()
@run_argument
@click.option("--keep-last", type=click.IntRange(min=1), required=True, help="Keep this many of the newest.")
@click.option(
    "--keep-every", type=click.IntRange(min=1), metavar="STEPS", help="Also keep steps that are multiples of this."
)
@click.option("--keep-best", type=click.IntRange(min=1), help="Also keep this many with the lowest loss.")
@home_option
@json_option
def prune(run: str, keep_last: int, keep_every: int | None, keep_best: int | None, home: Path, as_json: bool) -> None:
    """Remove a run's old checkpoints. The newest complete one is always kept.

    \b
    Examples:
      convoy checkpoint prune last --keep-last 1
      convoy checkpoint prune last --keep-last 2 --keep-every 1000 --keep-best 1
    """
    from orchestrator.checkpoint.storage.checkpoint_catalog import retain
    from orchestrator.checkpoint.storage.retention import Rule
    from orchestrator.store.checkpoint_places import checkpoint_storage

    record = _read(run, home)
    if record.active:
        raise UsageError(
            f"run {record.id} is active and applies its own retention rule",
            hint="set checkpoint.keep_last, keep_every and keep_best in its job file, or stop it first",
        )
    gone = retain(checkpoint_storage(record.layout), Rule(keep_last, keep_every, keep_best))
    if as_json:
        click.echo(json.dumps(gone, indent=2))
        return
    click.echo("\n".join(f"removed {place}" for place in gone) or "nothing to remove")


@checkpoint.command()
@click.argument("source", metavar="RUN|DIR", shell_complete=complete_run)
@click.option(
    "--to-deepspeed", type=click.Path(path_type=Path), metavar="DIR", help="Write a universal checkpoint to DIR."
)
@click.option(
    "--to-convoy", type=click.Path(path_type=Path), metavar="DIR", help="Convert one of DeepSpeed's to DIR/step-N."
)
@click.option(
    "--step", type=click.IntRange(min=0), help="Checkpoint of this step of a run. Default: the newest complete one."
)
@click.option(
    "--adam",
    type=click.Choice(["torch", "deepspeed"]),
    default="torch",
    show_default=True,
    help="The Adam that will load it: torch's (torch_adam: true), or DeepSpeed's FusedAdam or CPUAdam.",
)
@click.option(
    "--position", type=click.IntRange(min=0), help="With --to-convoy: the first sample of the next step. Default: 0."
)
@home_option
@json_option
def convert(
    source: str,
    to_deepspeed: Path | None,
    to_convoy: Path | None,
    step: int | None,
    adam: str,
    position: int | None,
    home: Path,
    as_json: bool,
) -> None:
    """Convert to and from DeepSpeed's universal checkpoints.

    --to-deepspeed writes a checkpoint that a plain DeepSpeed script loads at ZeRO stage 1, 2 or 3 and any number of
    ranks: {"checkpoint": {"load_universal": true}} in its config, and engine.load_checkpoint(DIR).
    --to-convoy reads the directory that DeepSpeed's ds_to_universal.py wrote.

    \b
    Examples:
      convoy checkpoint convert last --to-deepspeed for-deepspeed
      convoy checkpoint convert runs/my-run/checkpoints/step-00000200 --to-deepspeed for-deepspeed
      convoy checkpoint convert saved/global_step200_universal --to-convoy taken --position 6400
      python -m orchestrator.train.standalone job.yaml --resume taken/step-00000200
    """
    if (to_deepspeed is None) == (to_convoy is None):
        raise UsageError(
            "expected one of --to-deepspeed and --to-convoy",
            hint="--to-deepspeed DIR writes DeepSpeed's format, --to-convoy DIR reads it",
        )
    if to_deepspeed is not None:
        if position is not None:
            raise UsageError("--position needs --to-convoy: DeepSpeed's format cannot store it", hint="leave it out")
        _quiet_deepspeed()
        from orchestrator.train.convert.to_deepspeed import to_deepspeed as give

        converted = give(_checkpoint_place(source, step, home), to_deepspeed, cast("Adam", adam))
    else:
        if step is not None:
            raise UsageError(
                "--step chooses among a run's checkpoints", hint="give the directory of the checkpoint to convert"
            )
        _quiet_deepspeed()
        from orchestrator.train.convert.from_deepspeed import from_deepspeed as take

        assert to_convoy is not None
        converted = take(Path(source), to_convoy, position)
    _report(converted, as_json)


def _quiet_deepspeed() -> None:
    """Import it first: when others import it, it probes for devices and prints what it found to stdout."""
    from orchestrator.train.engine.engine import import_deepspeed

    import_deepspeed("cpu")


def _report(converted: "Converted", as_json: bool) -> None:
    if as_json:
        value = {
            "path": str(converted.path.absolute()),
            "step": converted.step,
            "parameters": converted.elements,
            "bytes": converted.size_bytes,
            "seconds": round(converted.seconds, 3),
            "notes": list(converted.notes),
        }
        click.echo(json.dumps(value, indent=2))
        return
    for note in converted.notes:
        click.echo(f"note: {note}", err=True)
    size = f"{formatting.count(converted.elements)} parameters, {formatting.size(converted.size_bytes)}"
    click.echo(f"{converted.path}: step {converted.step}, {size} in {converted.seconds:.1f} s")


def _checkpoint_place(source: str, step: int | None, home: Path) -> str:
    """The checkpoint named on the command line: a directory, or one of a run's, wherever that lies."""
    from orchestrator.checkpoint.format.checkpoint_manifest import MANIFEST
    from orchestrator.checkpoint.storage.checkpoint_catalog import list_checkpoints, newest_valid
    from orchestrator.store.checkpoint_places import checkpoint_storage

    if (Path(source) / MANIFEST).is_file():
        if step is not None:
            raise UsageError(f"{source} is one checkpoint: there are no steps to choose from", hint="leave --step out")
        return source
    try:
        record = _read(source, home)
    except UsageError as error:
        if not Path(source).is_dir():
            raise
        raise UsageError(
            f"{source} is neither a run nor a checkpoint of Convoy: it has no {MANIFEST}",
            hint="give a run or a directory step-NNNNNNNN; --to-convoy reads DeepSpeed's",
        ) from error
    storage = checkpoint_storage(record.layout)
    found = list_checkpoints(storage)
    if step is not None:
        named = [entry.place for entry in found if entry.step == step]
        if not named:
            known = ", ".join(str(entry.step) for entry in found) or "none"
            raise UsageError(f"run {record.id} has no checkpoint of step {step}", hint=f"it has: {known}")
        return named[0]
    newest = newest_valid(storage, lambda place, why: click.echo(f"warning: skipped {place}: {why}", err=True))
    if newest is None:
        raise UsageError(f"run {record.id} has no complete checkpoint", hint="convoy checkpoint verify says why")
    return newest.place


def _read(run: str, home: Path) -> "RunRecord":
    from orchestrator.store.run_store import RunStore

    return RunStore(home).read(run)


def _value(entry: "FoundCheckpoint") -> "JsonObject":
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


def _line(entry: "FoundCheckpoint", problem: str | None, good: str = "") -> str:
    manifest = entry.manifest
    if manifest is None:
        return f"step {entry.step:>8,}  damaged: {problem}"
    facts = f"{formatting.size(manifest.size_bytes):>10}  {manifest.world_size} workers, ZeRO-{manifest.stage}"
    end = f"damaged: {problem}" if problem else good
    return f"step {entry.step:>8,}  {facts}  {formatting.when(manifest.saved_at_s)}  {end}".rstrip()
