"""`convoy data`: prepare a job's data ahead of time, and prove what a run consumed."""

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator.cli.display import formatting
from orchestrator.cli.options import home_option, json_option, run_argument

if TYPE_CHECKING:
    from orchestrator.data.data_manifest import DataManifest
    from orchestrator.data.samples.data_verify import EpochUse, Proof
    from orchestrator.domain.policy.numeric import Skip


@click.group()
def data() -> None:
    """Prepare data, and prove what a run consumed.

    \b
    Examples:
      convoy data prepare job.yaml
      convoy data verify last
    """


@data.command()
@click.argument("job", type=click.Path(path_type=Path))
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a field, e.g. data.packing=false. Repeatable.",
)
@click.option(
    "--workers", type=click.IntRange(min=0), help="Number of processes; 0: only this one. Default: one per CPU."
)
@home_option
@json_option
def prepare(job: Path, overrides: tuple[str, ...], workers: int | None, home: Path, as_json: bool) -> None:
    """Read, tokenise and cache the data of a job, without Ray and without training.

    `convoy run` does the same when it starts, and uses what is already prepared. A preparation that was
    interrupted continues where it stopped.

    \b
    Examples:
      convoy data prepare jobs/quickstart.yaml
      convoy data prepare job.yaml --set data.sequence_length=1024 --workers 8
      convoy data prepare job.yaml --json | jq .manifest.train_tokens
    """
    from orchestrator.spec.loading.load import load_job

    loaded = load_job(job, overrides)
    from orchestrator.cli.display.plain_display import PlainDisplay
    from orchestrator.run.launcher import prepare_data

    display = PlainDisplay(sys.stderr)
    processes = len(os.sched_getaffinity(0)) if workers is None else workers
    prepared = prepare_data(loaded, home, [display], processes)
    if as_json:
        value = {"directory": str(prepared.directory), "cached": prepared.cached}
        click.echo(json.dumps({**value, "manifest": prepared.manifest.to_json()}, indent=2))
        return
    click.echo(f"{'found in the cache' if prepared.cached else 'prepared'}: {prepared.directory}")
    click.echo(_counts(prepared.manifest))


def _counts(manifest: "DataManifest") -> str:
    lines = []
    for source in manifest.sources:
        kept = f"{source.documents:,} documents of {formatting.size(source.bytes)}"
        left_out = [f"{source.bad_records:,} unreadable"] if source.bad_records else []
        left_out += [f"{source.empty_documents:,} empty"] if source.empty_documents else []
        lines.append(f"  {source.name}: {kept}" + (f"; left out: {', '.join(left_out)}" if left_out else ""))
    cut = "packed" if manifest.packing else "one document per sample"
    lines.append(
        f"  train: {manifest.train_samples:,} samples of {manifest.sequence_length} ({cut}),"
        f" {manifest.train_tokens:,} tokens of a vocabulary of {manifest.vocab_size:,}"
    )
    if manifest.validation_samples:
        held = manifest.validation_samples_total
        lines.append(
            f"  validation: {manifest.validation_samples:,} of {held:,} samples, {manifest.validation_tokens:,} tokens"
        )
    return "\n".join(lines)


@data.command()
@run_argument
@home_option
@json_option
@click.pass_context
def verify(ctx: click.Context, run: str, home: Path, as_json: bool) -> None:
    """Prove what a run consumed.

    Replays the recorded steps: computes which samples each step had to feed, reads their tokens again, and
    compares them with the digest that was recorded of what was fed. Then checks that each sample of each epoch was
    used exactly once. A run that continued with other data (--accept-changes) is proved part by part.

    \b
    Examples:
      convoy data verify last
      convoy data verify quickstart --json | jq .ok

    Exit codes: 0 the proof holds; 1 it does not.
    """
    from orchestrator.store.data_proof import prove
    from orchestrator.store.run_store import RunStore

    record = RunStore(home).read(run)
    proof = prove(record)
    click.echo(json.dumps({"run": record.id, **proof.to_json()}, indent=2) if as_json else _text(record.id, proof))
    ctx.exit(0 if proof.ok else 1)


def _text(run: str, proof: "Proof") -> str:
    lines = [f"run {run}, data {proof.fingerprint}"]
    lines.append(f"  {proof.steps:,} steps replayed: {proof.samples:,} samples, {proof.tokens:,} tokens")
    if proof.superseded:
        lines.append(f"  {proof.superseded:,} recorded steps were recomputed after a resume and do not count")
    for index, part in enumerate(proof.parts):
        if len(proof.parts) > 1:
            lines.append(f"  steps {part.first_step:,} to {part.last_step:,}: data {part.fingerprint}")
        lines += [f"  {_use_text(use)}" for use in proof.epochs if use.part == index]
    if proof.skips:
        lines.append(
            f"  left out: {proof.skipped_samples:,} samples; together with the {proof.samples:,} fed samples they are"
            f" the {proof.end_position:,} positions up to the last step"
        )
        lines += [f"    {_skip_text(skip)}" for skip in proof.skips]
    return "\n".join([*lines, *_verdict(proof)])


def _use_text(use: "EpochUse") -> str:
    state = "complete" if use.complete else "in part"
    faults = f", {use.duplicates} twice" if use.duplicates else ""
    faults += f", {use.missing} missing" if use.missing else ""
    faults += f", {use.skipped:,} left out" if use.skipped else ""
    faults += f", {use.before:,} never: their positions came before this data" if use.before else ""
    return f"{use.source}, epoch {use.epoch}: {use.used:,} of {use.of:,} samples once, {state}{faults}"


def _verdict(proof: "Proof") -> list[str]:
    """What is proved, and what is not."""
    if proof.mismatch is not None:
        others = [
            f"steps {part.first_step:,} to {part.last_step:,}: cannot be checked: {part.problem}"
            for part in proof.parts
            if part.problem
        ]
        return [*others, f"NOT PROVED: step {proof.mismatch.step}: {proof.mismatch.what}"]
    aside = "" if not proof.skips else ", except those left out,"
    if len(proof.parts) == 1:
        return [f"PROVED: every sample of every epoch{aside} was used exactly once, with the right tokens"]
    changed = ", ".join(f"{part.first_step:,}" for part in proof.parts[1:])
    return [
        f"warning: the run continued with other data from step {changed} (accepted; `convoy show` lists the changes); a"
        " text that is in both may have been used in each part",
        f"PROVED PART BY PART: every step was fed the samples{aside} at its positions in the order of the data of its"
        " part, none of them twice in an epoch, with the right tokens",
    ]


def _skip_text(skip: "Skip") -> str:
    where = f"[{skip.first:,}, {skip.end:,})"
    if skip.fault is None:
        return f"{where}: from the start, as requested"
    return f"{where}: {formatting.when(skip.time_s)}, {skip.fault.text}; continued from step {skip.from_step}"
