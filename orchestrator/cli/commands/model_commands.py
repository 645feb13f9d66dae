"""`convoy export` and `convoy generate`: write a run's model, and generate text with it."""

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from orchestrator.cli.display import formatting
from orchestrator.cli.options import home_option, json_option, run_argument
from orchestrator.domain.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from orchestrator.checkpoint.storage.checkpoint_catalog import FoundCheckpoint
    from orchestrator.store.run_store import RunRecord
    from orchestrator.train.convert.export import Exported, Precision


@click.command()
@run_argument
@click.option("--to", "dest", type=click.Path(path_type=Path), required=True, help="Directory to write.")
@click.option("--step", type=click.IntRange(min=0), help="Checkpoint of this step. Default: the newest valid one.")
@click.option("--dtype", type=click.Choice(["fp32", "bf16", "fp16"]), default="fp32", show_default=True)
@click.option("--force", is_flag=True, help="Replace an earlier export in that directory.")
@home_option
@json_option
def export(run: str, dest: Path, step: int | None, dtype: str, force: bool, home: Path, as_json: bool) -> None:
    """Write a run's model in Hugging Face format: safetensors, config, tokenizer.

    The weights come from a checkpoint, so this works during a run and with any number of workers. The directory
    appears when it is complete.

    \b
    Examples:
      convoy export last --to my-model
      convoy export quickstart --to my-model --dtype bf16 --force
      convoy export last --step 200 --to at-200
      python -c "import transformers as t; t.AutoModelForCausalLM.from_pretrained('my-model')"
    """
    from orchestrator.store.run_store import RunStore

    record = RunStore(home).read(run)
    exported, skipped = _export(record, step, dest, dtype, force)
    if as_json:
        value = {
            "path": str(exported.path.absolute()),
            "run": record.id,
            "step": exported.step,
            "parameters": exported.parameters,
            "bytes": exported.size_bytes,
            "dtype": dtype,
            "seconds": round(exported.seconds, 3),
            "skipped": skipped,
        }
        click.echo(json.dumps(value, indent=2))
        return
    _report_skipped(skipped)
    size = f"{formatting.count(exported.parameters)} parameters, {exported.size_bytes / 1e6:.1f} MB"
    click.echo(f"{dest}: step {exported.step} of {record.id}, {size} in {dtype}")
    click.echo(f'try: convoy generate {dest} --prompt "..."')


@click.command()
@click.argument("model", metavar="RUN|DIR")
@click.option("--prompt", required=True, help="Text to continue; empty starts a new document.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=64, show_default=True)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0),
    default=0.8,
    show_default=True,
    help="Sampling temperature; 0 is greedy.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--step", type=click.IntRange(min=0), help="Checkpoint of this step of a run. Default: the newest.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@home_option
@json_option
def generate(
    model: str,
    prompt: str,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    step: int | None,
    device: str,
    home: Path,
    as_json: bool,
) -> None:
    """Generate text with a run's model, or with an exported one.

    The same seed gives the same text on the same device. A BERT fills blanks instead: put [MASK] into the prompt.

    \b
    Examples:
      convoy generate last --prompt "def main("
      convoy generate my-model --prompt "import " --temperature 0 --max-new-tokens 20
      convoy generate bert-run --prompt "import [MASK]"
    """
    from orchestrator.train.convert.generate import generate_text

    with _model_directory(model, step, home) as (directory, source):
        made = generate_text(directory, prompt, max_new_tokens, temperature, seed, device)
    if as_json:
        value = {
            "model": source,
            "prompt": prompt,
            "text": made.text,
            "new_text": made.new_text,
            "new_tokens": made.new_tokens,
            "prompt_tokens": made.prompt_tokens,
            "seed": seed,
            "temperature": temperature,
        }
        click.echo(json.dumps(value, indent=2))
    else:
        click.echo(formatting.printable(made.text))


def _export(record: "RunRecord", step: int | None, dest: Path, dtype: str, force: bool) -> tuple["Exported", list[str]]:
    """Export the checkpoint of `step`, or the newest that can be read; also which newer ones could not, and why."""
    from orchestrator.atomic_files import read_json
    from orchestrator.spec.loading.load import load_job
    from orchestrator.train.convert.export import check_destination, export_model
    from orchestrator.weights.pretrained_location import anchored

    check_destination(dest, force)
    candidates = _candidates(record, step)
    data = _data_directory(record)
    job_dir = (read_json(record.layout.data) or {}).get("job_dir") or record.layout.root
    spec = anchored(load_job(record.layout.spec).spec, Path(str(job_dir)))
    skipped: list[str] = []
    first_error: CheckpointError | None = None
    for checkpoint in candidates:
        try:
            return export_model(checkpoint.place, spec, data, dest, cast("Precision", dtype), force), skipped
        except CheckpointError as error:
            first_error = first_error or error
            skipped.append(f"{checkpoint.name}: {error.message}")
    assert first_error is not None, "there is at least one candidate"
    raise first_error


def _candidates(record: "RunRecord", step: int | None) -> list["FoundCheckpoint"]:
    """Checkpoints to try, newest first. Raises UsageError if there is none, or none of `step`."""
    from orchestrator.store.checkpoint_places import all_checkpoints

    found = all_checkpoints(record.layout)
    if not found:
        hint = "it writes one every checkpoint.interval_steps steps and at its end"
        raise UsageError(f"run {record.id} ({record.status}, step {record.step}) has no checkpoint yet", hint=hint)
    if step is None:
        return found
    named = [entry for entry in found if entry.step == step]
    if not named:
        known = ", ".join(str(entry.step) for entry in found)
        raise UsageError(f"run {record.id} has no checkpoint of step {step}", hint=f"it has: {known}")
    return named


def _data_directory(record: "RunRecord") -> Path:
    """The prepared data of a run: the tokenizer and the vocabulary are there."""
    from orchestrator.atomic_files import read_json
    from orchestrator.store.fingerprint_file import prepared_place

    facts = read_json(record.layout.data)
    if facts is None or "directory" not in facts:
        raise UsageError(f"run {record.id} has no record of its data", hint=f"expected {record.layout.data}")
    recorded = Path(str(facts["directory"]))
    directory = prepared_place(recorded, str(facts.get("fingerprint")), record.layout.root.parent / "cache") or recorded
    if not directory.is_dir():
        raise UsageError(
            f"the prepared data of run {record.id} is gone: {directory}",
            hint=f"prepare it again: convoy data prepare {record.layout.spec}",
        )
    return directory


@contextlib.contextmanager
def _model_directory(model: str, step: int | None, home: Path) -> Iterator[tuple[Path, str]]:
    """The directory of the model on the command line, and its description: an export, the run's own export, or a
    temporary one."""
    if (Path(model) / "config.json").is_file():
        if step is not None:
            raise UsageError(
                f"{model} is an export: it has no steps to choose from", hint="give a run, or leave --step out"
            )
        yield Path(model), str(Path(model).absolute())
        return
    from orchestrator.store.run_store import RunStore

    record = RunStore(home).read(model)
    own = _own_export(record, step)
    if own is not None:
        yield own, str(own)
        return
    with tempfile.TemporaryDirectory(prefix="convoy-generate-") as scratch:
        directory = Path(scratch) / "model"
        exported, skipped = _export(record, step, directory, "fp32", force=False)
        _report_skipped(skipped)
        yield directory, f"{record.id} at step {exported.step}"


def _own_export(record: "RunRecord", step: int | None) -> Path | None:
    """The export in the run's directory, if it is of the requested step: by default the newest."""
    from orchestrator.checkpoint.format.exported import exported_step
    from orchestrator.store.checkpoint_places import all_checkpoints

    exported = exported_step(record.layout.export)
    if exported is None:
        return None
    found = all_checkpoints(record.layout)
    newest = max((entry.step for entry in found if not entry.problem), default=-1)
    return record.layout.export if exported == (max(newest, exported) if step is None else step) else None


def _report_skipped(skipped: list[str]) -> None:
    for problem in skipped:
        click.echo(f"warning: skipped {problem}", err=True)
