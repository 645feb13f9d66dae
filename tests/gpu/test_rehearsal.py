"""`make gpu` on a machine without a GPU: every check runs on CPUs with tiny models, so that the script itself works."""

import threading
from pathlib import Path

import pytest

from tests.cluster.forked import cpu_forkserver
from tests.gpu.__main__ import BEGIN, CHECKS, DOCUMENT, END, CheckTimeout, as_markdown, limited, run_checks, write
from tests.gpu.lab import Lab
from tests.gpu.table import Result

pytestmark = pytest.mark.cluster


def test_every_check_passes_or_says_why_it_cannot_run(tmp_path: Path) -> None:
    told: list[str] = []
    results = run_checks(Lab(tmp_path, False, cpu_forkserver()), list(CHECKS), told.append)
    assert [result.check for result in results] == list(CHECKS)
    assert all(result.ok for result in results), "\n".join(told)
    skipped = {result.check: result.skipped for result in results if result.skipped}
    assert skipped == {
        "assertion": "kernels assert on GPUs only",
        "copies": "there is no device to copy from",
        "memory": "the plan is of a GPU's memory",
    }
    assert all(result.rows for result in results if result.check not in skipped)
    table = as_markdown([("device", "none")], results)
    assert "| not run: kernels assert on GPUs only |" in table
    assert "not met" not in table


def test_a_check_that_fails_is_in_the_table() -> None:
    result = Result("any", failed="Traceback ...\nValueError: a | b")
    result.add("seconds", "4.0 s", "<= 3 s", met=False)
    assert not result.ok
    table = as_markdown([], [result])
    assert "| any (0 s) | seconds | 4.0 s | <= 3 s | not met |" in table
    assert "| any (0 s) | failed: ValueError: a / b | | | not met |" in table


def test_a_check_that_hangs_ends() -> None:
    with pytest.raises(CheckTimeout, match="longer than"), limited(0.05):
        threading.Event().wait()


def test_the_table_is_put_between_the_marks_of_the_document(tmp_path: Path) -> None:
    document = tmp_path / "gpu.md"
    document.write_text(DOCUMENT.read_text())
    write(document, "| new |\n")
    text = document.read_text()
    assert f"{BEGIN}| new |\n{END}" in text
    assert text.replace("| new |\n", "") == text.partition(BEGIN)[0] + BEGIN + END + text.partition(END)[2]
    assert text.partition(BEGIN)[0] == DOCUMENT.read_text().partition(BEGIN)[0]
