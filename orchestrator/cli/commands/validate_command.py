"""`convoy validate` and `convoy schema`: a job file checked without starting anything, and what files may hold."""

import json
import sys
from pathlib import Path

import click

from orchestrator.cli.display import gpu_fit_text
from orchestrator.cli.display.vault_text import estimate
from orchestrator.spec.describe.job_summary import summary_lines
from orchestrator.spec.job import JobSpec
from orchestrator.spec.loading.load import decode_source, load_job, load_text
from orchestrator.spec.loading.yaml_source import MAX_BYTES
from orchestrator.spec.spec_errors import SpecError
from orchestrator.weights.pretrained_location import check_files


@click.command()
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a field, e.g. train.lr=1e-3.")
@click.option("--json", "as_json", is_flag=True, help="Print problems as a JSON object on stdout.")
def validate(file: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Check a job file without starting anything.

    Every problem is reported at once, as file:line:column. Exit code: 0 if there is none, else 2.
    FILE may be - for standard input.

    \b
    Examples:
      convoy validate jobs/quickstart.yaml
      convoy validate job.yaml --set train.lr=1e-3 --set data.sources.0.weight=2
      convoy validate job.yaml --json | jq .problems
    """
    try:
        spec = _load(file, overrides)
    except SpecError as error:
        if as_json:
            print(json.dumps({"valid": False, "problems": [problem.to_json() for problem in error.problems]}, indent=2))
        else:
            _print_problems(error)
        sys.exit(error.exit_code)
    if as_json:
        print(json.dumps({"valid": True, "problems": [], "spec": spec.model_dump(mode="json")}, indent=2))
        return
    print(f"{file if str(file) != '-' else '<stdin>'}: valid")
    for label, text in summary_lines(spec):
        print(f"  {label:<11}{text}")
    for label, memory in (("memory", estimate(spec)), ("GPU memory", gpu_fit_text.estimate(spec))):
        if memory is not None:
            print(f"  {label:<11}{memory}")


def _load(file: Path, overrides: tuple[str, ...]) -> JobSpec:
    if str(file) == "-":
        raw = sys.stdin.buffer.read(MAX_BYTES + 1)
        return load_text(decode_source(raw, "<stdin>"), "<stdin>", overrides)
    job = load_job(file, overrides)
    check_files(job, must_exist=False)
    return job.spec


def _print_problems(error: SpecError) -> None:
    for problem in error.problems:
        print(problem, file=sys.stderr)
    count = len(error.problems)
    print(f"{count} problem{'s' if count != 1 else ''}", file=sys.stderr)


@click.command()
@click.option("--events", is_flag=True, help="The JSON Schema of a line of events.jsonl instead.")
def schema(events: bool) -> None:
    """Print the JSON Schema of job files.

    Editors use it to complete keys if the first line of a job file is
    `# yaml-language-server: $schema=job.schema.json`. With --events it is the schema of the events that a run writes to
    events.jsonl and that `convoy run --json` prints.

    \b
    Examples:
      convoy schema > job.schema.json
      convoy schema --events > events.schema.json
    """
    if events:
        from orchestrator.domain.events.event_schema import events_schema

        print(json.dumps(events_schema(), indent=2))
        return
    from orchestrator.spec.describe.schema import schema_text

    sys.stdout.write(schema_text())
