"""A question to the worker processes before they train, about something that only they can determine."""

import time
from collections.abc import Callable

import ray

from orchestrator.clusters.ray.handles import ActorHandle, ObjectRef
from orchestrator.domain.errors import UsageError
from orchestrator.domain.session import Question
from orchestrator.gang.agent.worker_actor import Raised
from orchestrator.gang.group.polling import TICK_S
from orchestrator.gang.group.worker_handle import first_line

ANSWER_TIMEOUT_S = 900.0
"""From the start of the worker processes; they import torch first."""


def ask(actors: list[ActorHandle], question: Question) -> list[ObjectRef]:
    """Send a question to every worker; return references to their answers."""
    return [
        actor.ask.remote(question.entry, {**question.value, "thorough": index == 0})
        for index, actor in enumerate(actors)
    ]


def wait_for_answers(answers: list[ObjectRef], stopped: Callable[[], bool]) -> str | None:
    """Wait until all workers have answered, or `stopped`. Returns why a worker could not answer, or None.

    Raises UsageError: the first one that a worker raised.
    """
    deadline_s = time.monotonic() + ANSWER_TIMEOUT_S
    waiting, problem = list(answers), None
    while waiting and not stopped():
        if time.monotonic() > deadline_s:
            return f"{len(waiting)} workers did not answer within {ANSWER_TIMEOUT_S:.0f} s"
        done, waiting = ray.wait(waiting, num_returns=1, timeout=TICK_S)
        for answer in done:
            try:
                raised: Raised | None = ray.get(answer)
            except ray.exceptions.RayError as error:
                problem = first_line(error)
                continue
            if raised is not None:
                raise UsageError(raised.message, raised.hint)
    return problem
