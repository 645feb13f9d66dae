"""Which cases of a parametrised test run in `make test`; `make soak` runs the others."""

from collections.abc import Iterable
from typing import Any

import pytest


def every_day(cases: Iterable[Any], *chosen: Any) -> list[Any]:
    """Parameters for `pytest.mark.parametrize`: all but the chosen ones are marked `soak`.

    `cases`: values, or tuples of values. Raises ValueError if a chosen one is not among them.
    """
    listed = list(cases)
    for case in chosen:
        listed.index(case)
    return [case if case in chosen else _soak(case) for case in listed]


def _soak(case: Any) -> Any:
    values = case if isinstance(case, tuple) else (case,)
    return pytest.param(*values, marks=pytest.mark.soak)
