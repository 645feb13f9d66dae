"""Fields that contradict each other. Each check is a rule; all that can be judged are applied."""

from collections.abc import Callable, Iterator

from orchestrator.spec.errors import Problem
from orchestrator.spec.view import View

Check = Callable[[View], Iterator[Problem]]


def cross_check(view: View) -> list[Problem]:
    return []
