"""`convoy validate` and `convoy schema` as a user or a program calls them."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from orchestrator.cli.commands.validate_command import schema, validate
from orchestrator.domain.events.event_schema import events_schema
from orchestrator.spec.describe.schema import json_schema

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[4]
QUICKSTART = str(ROOT / "jobs" / "quickstart.yaml")


def call(*arguments: str, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(validate, arguments, input=stdin)


def test_a_valid_job_is_summed_up_on_stdout() -> None:
    result = call(QUICKSTART, "--set", "resources.workers={min: 2, max: 3}")
    assert result.exit_code == 0
    assert result.stderr == ""
    assert "valid" in result.stdout
    assert "gpt2 from scratch (n_layer 4, n_embd 256, n_head 4)" in result.stdout
    assert "2 to 3, each with 1 CPU" in result.stdout


def test_what_a_gpu_needs_is_estimated_where_the_model_is_known() -> None:
    assert "GPU memory" not in call(QUICKSTART).stdout
    result = call(QUICKSTART, "--set", "resources.gpus_per_worker=1", "--set", "train.precision=bf16")
    line = next(line for line in result.stdout.splitlines() if line.startswith("  GPU memory "))
    assert " per GPU with 4 workers and a micro batch of " in line
    assert "communicators 960.0 MiB" in line or "communicators 0.9 GiB" in line


def test_every_problem_is_on_stderr_with_exit_code_2(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(Path(QUICKSTART).read_text().replace("  lr: 1e-3", "  lrr: 1e-3").replace("n_layer", "n_layers"))
    result = call(str(path), "--set", "train.stpes=5")
    assert result.exit_code == 2
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert lines[0] == "--set train.stpes=5:1:13: unknown key `stpes` in `train`"
    assert lines[1] == "  hint: did you mean `steps`?"
    assert lines[2].startswith(f"{path}:14:5: unknown key `n_layers` in `model.config`")
    assert lines[-1] == "3 problems"


def test_standard_input_and_json() -> None:
    text = Path(QUICKSTART).read_text()
    good = call("-", "--json", stdin=text)
    assert good.exit_code == 0
    assert json.loads(good.stdout)["spec"]["train"]["lr"] == 1e-3
    bad = call("-", "--json", stdin=text.replace("steps: 150", "steps: 0"))
    assert bad.exit_code == 2
    (problem,) = json.loads(bad.stdout)["problems"]
    assert (problem["file"], problem["line"], problem["column"]) == ("<stdin>", 32, 10)
    assert "expected a whole number of at least 1" in problem["message"]
    assert call("-", stdin=b"name: \xff").stderr.startswith("<stdin>:1:7: the byte 0xff is not UTF-8 text")


def test_pretrained_weights_are_looked_at_if_they_are_here(tmp_path: Path) -> None:
    from tests.unit.weights.written import LFS_POINTER, write_model

    path, base = tmp_path / "job.yaml", write_model(tmp_path / "base")
    model = "model:\n  pretrained: base\n"
    rest = "data: {sources: [{files: [a.txt]}], sequence_length: 8}\ntrain: {steps: 1, global_batch: 1, lr: 1e-3}\n"
    path.write_text(f"name: x\n{model}{rest}")
    assert call(str(path)).exit_code == 0
    (base / "model.safetensors").write_bytes(LFS_POINTER)
    result = call(str(path))
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"{path}:3:15: `model.pretrained`: the weights in {base} are damaged")
    assert "git lfs pull" in result.stderr
    (problem,) = json.loads(call(str(path), "--json").stdout)["problems"]
    assert (problem["line"], problem["column"]) == (3, 15)
    # What is not here may be where the job will run.
    assert call(str(path), "--set", "model.pretrained=/not/on/this/machine").exit_code == 0


def test_schema_is_printed_whole() -> None:
    result = CliRunner().invoke(schema)
    assert result.exit_code == 0
    assert json.loads(result.stdout) == json_schema()


def test_the_schema_of_the_events_is_printed_whole() -> None:
    result = CliRunner().invoke(schema, ["--events"])
    assert result.exit_code == 0
    assert json.loads(result.stdout) == events_schema()


def test_nothing_heavy_is_imported_and_it_is_quick() -> None:
    code = (
        "import sys; from orchestrator.cli.main import cli; cli.main(sys.argv[1:], standalone_mode=False); "
        "heavy = {'torch', 'ray', 'transformers', 'datasets', 'numpy', 'pyarrow', 'tokenizers', 'deepspeed', 'rich'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, "validate", QUICKSTART]
    seconds = []
    for _ in range(3):
        start_s = children_s()
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        seconds.append(children_s() - start_s)
        assert done.stdout.splitlines()[-1] == "[]"
    # Half a second is the promise on an idle machine. What other processes take does not count.
    assert min(seconds) < 2


def children_s() -> float:
    """Processor seconds of all children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
