"""`schedule` and `matrix`: times that are none, matrices that are too large."""

import math
from collections.abc import Iterator

from orchestrator.spec.checks.partial_job import View
from orchestrator.spec.quantities import parse_seconds
from orchestrator.spec.schedule import MOST_RUNS_OF_MATRIX
from orchestrator.spec.spec_errors import Problem

NOT_IN_MATRIX = ("name", "matrix", "schedule.after")
"""Runs of a matrix are named and chained by the server."""


def max_runtime_is_a_time(view: View) -> Iterator[Problem]:
    """`schedule.max_runtime` can be read."""
    value = view.get("schedule.max_runtime")
    if isinstance(value, str):
        try:
            parse_seconds(value)
        except ValueError as error:
            yield view.problem("schedule.max_runtime", f"`schedule.max_runtime`: {error}", "for example `12h`")


def matrix_is_bounded(view: View) -> Iterator[Problem]:
    """Not too many combinations, and nothing that the server decides."""
    for key in view.keys("matrix"):
        if key in NOT_IN_MATRIX or key.split(".")[0] == "matrix":
            message = f"`{key}` cannot vary in a matrix"
            yield view.problem(("matrix", key), message, "the server names the runs of a matrix itself", key=True)
    matrix = view.mapping("matrix")
    count = math.prod(len(values) for values in matrix.values() if isinstance(values, list))
    if count > MOST_RUNS_OF_MATRIX:
        message = f"`matrix` has {count} combinations, expected at most {MOST_RUNS_OF_MATRIX}"
        yield view.problem("matrix", message, "remove some values, or submit parts of it", key=True)


CHECKS = (max_runtime_is_a_time, matrix_is_bounded)
