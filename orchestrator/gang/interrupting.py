"""Gets the survivors of a generation out of a collective that cannot end."""

import contextlib
import time
from collections.abc import Sequence

import ray

from orchestrator.gang.listening import POLL_S, TICK_S, Listener
from orchestrator.gang.member import Member

CPU_PATIENCE_S = 2.0
"""How long a worker may take to leave its collective; then its process is given up."""
GPU_PATIENCE_S = 15.0
"""The same on a GPU: the kernels that are queued before the collective have to end, and its communicators are torn
down."""
GPU_STEPS = 2.0
"""Or this many steps, if that is longer."""


def patience_s(gpus: bool, step_s: float) -> float:
    """How long to wait for a survivor; `step_s`: of the last step."""
    return max(GPU_PATIENCE_S, GPU_STEPS * step_s) if gpus else CPU_PATIENCE_S


def interrupt(members: Sequence[Member], generation: int, limit_s: float, listener: Listener) -> None:
    """Interrupt all members who live and wait for them, `limit_s` at most. End the processes of the others: those that
    do not come out, and those whose device is lost."""
    for member in members:
        if member.run_ref is not None and member.lives:
            member.actor.interrupt.remote(generation, limit_s)
    waited_s = 0.0
    while any(member.run_ref is not None and member.lives for member in members) and waited_s < limit_s + POLL_S:
        started_s = time.monotonic()
        listener.listen(TICK_S)
        # If the driver was paused, that is not their time.
        waited_s += min(time.monotonic() - started_s, 2 * TICK_S)
    for member in members:
        if member.run_ref is not None and member.lives:
            member.take_silence("its process could not be interrupted", time.monotonic())
        if not member.lives:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.kill(member.actor, no_restart=True)  # should it wake up, it has no part in this any more
