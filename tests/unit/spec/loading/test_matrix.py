"""`schedule`, `matrix`, and references to other runs."""

import pytest

from orchestrator.spec.job import JobSpec
from orchestrator.spec.loading.interpolate import run_key
from orchestrator.spec.loading.load import dump_job, load_text
from orchestrator.spec.loading.matrix import load_matrix
from orchestrator.spec.quantities import parse_seconds
from orchestrator.spec.schedule import MOST_RUNS_OF_MATRIX
from orchestrator.spec.spec_errors import SpecError
from tests.unit.spec.jobs_for_tests import BASE

pytestmark = pytest.mark.unit


def expanded(more: str, overrides: tuple[str, ...] = ()) -> list[tuple[str, JobSpec]]:
    return [(job.label, job.spec) for job in load_matrix(BASE + more, "job.yaml", overrides, {})]


def problem(more: str) -> str:
    with pytest.raises(SpecError) as caught:
        expanded(more)
    return str(caught.value)


def test_a_job_without_a_matrix_stands_for_itself() -> None:
    assert expanded("") == [("", load_text(BASE, "job.yaml", (), {}))]
    assert expanded("matrix: {}\n")[0][0] == ""


def test_every_combination_is_a_job_in_the_order_of_the_values() -> None:
    jobs = expanded("matrix:\n  train.lr: [1e-2, 1e-3]\n  data.sources.0.weight: [1, 2]\n", ("train.seed=9",))
    assert [label for label, _ in jobs] == [
        f"train.lr={lr}, data.sources.0.weight={weight}" for lr in ("1e-2", "1e-3") for weight in (1, 2)
    ]
    assert [(spec.train.lr, spec.data.sources[0].weight) for _, spec in jobs] == [
        (0.01, 1), (0.01, 2), (0.001, 1), (0.001, 2),
    ]  # fmt: skip
    assert {spec.train.seed for _, spec in jobs} == {9}
    assert all(not spec.matrix for _, spec in jobs)


def test_a_value_that_does_not_fit_is_reported_where_it_is_written() -> None:
    lines = BASE.count("\n")
    assert problem("matrix:\n  train.lr: [1e-3, fast]\n").startswith(f"job.yaml:{lines + 2}:20: `train.lr` is `fast`")
    assert problem("matrix:\n  train.lrr: [1e-3]\n").startswith(f"job.yaml:{lines + 2}:9: unknown key `lrr`")
    assert problem("matrix:\n  train..lr: [1e-3]\n").startswith(f"job.yaml:{lines + 2}:3: ")
    assert "at least one item" in problem("matrix: {train.lr: []}\n")
    assert "`name` cannot vary" in problem("matrix: {name: [a, b]}\n")


def test_a_matrix_has_a_bound() -> None:
    values = ", ".join(str(number) for number in range(1, 18))
    assert len(expanded(f"matrix: {{train.seed: [{values[:40].rstrip(', ')}]}}\n")) > 1
    found = problem(f"matrix: {{train.seed: [{values}], train.steps: [{values}]}}\n")
    assert f"289 combinations, expected at most {MOST_RUNS_OF_MATRIX}" in found


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90m", 5400), ("1h30m", 5400), ("2d", 172_800), ("45s", 45), ("60", 60), (60, 60), ("1d1s", 86_401)],
)
def test_times_are_read(text: str | int, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "1.5h", "-1h", "0", "0s", "h", "30m1h", "1w"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="time"):
        parse_seconds(text)
    assert "`schedule.max_runtime`" in problem(f"schedule: {{max_runtime: '{text}'}}\n")


def test_a_schedule_survives_being_written_and_read() -> None:
    more = "schedule: {queue: night, priority: high, max_runtime: 12h, retries: 0, after: [a, b]}\n"
    ((_, spec),) = expanded(more)
    assert spec.schedule.after == ["a", "b"]
    assert load_text(dump_job(spec), "job.yaml", (), {}) == spec
    assert "expected one of `low`, `normal`, `high`, `urgent`" in problem("schedule: {priority: 7}\n")
    assert "unknown key `prio`" in problem("schedule: {prio: high}\n")


def test_the_export_of_another_run_is_a_variable_that_only_a_server_knows() -> None:
    text = BASE.replace("name: ", "name: ", 1) + "generate: {prompt: 'see ${runs.pre-train.export}/x'}\n"
    spec = load_text(text, "job.yaml", (), {run_key("pre-train"): "/runs/p/export"})
    assert spec.generate.prompt == "see /runs/p/export/x"
    with pytest.raises(SpecError, match=r"this job comes after no run `pre-train`") as caught:
        load_text(text, "job.yaml", (), {})
    assert "convoy submit --after pre-train" in str(caught.value)
    with pytest.raises(SpecError, match=r"did you mean \$\{runs.pretrain.export\}"):
        load_text(text, "job.yaml", (), {run_key("pretrain"): "/x"})
    with pytest.raises(SpecError, match="`loss` is nothing that a run has"):
        load_text(text.replace(".export", ".loss"), "job.yaml", (), {})
