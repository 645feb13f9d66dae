"""Interrupts the survivors of a generation that are in a collective that cannot finish."""

import contextlib
import time
from collections.abc import Sequence

import ray

from orchestrator.gang.group.polling import POLL_S, TICK_S, Listener
from orchestrator.gang.group.worker_handle import WorkerHandle


def interrupt(members: Sequence[WorkerHandle], generation: int, limit_s: float, listener: Listener) -> None:
    """Interrupt all members that are alive, and wait for them at most `limit_s`. End the processes of those that do not
    leave their collective, and of those whose device is lost."""
    for member in members:
        if member.run_ref is not None and member.lives:
            member.actor.interrupt.remote(generation, limit_s)
    waited_s = 0.0
    while any(member.run_ref is not None and member.lives for member in members) and waited_s < limit_s + POLL_S:
        started_s = time.monotonic()
        listener.listen(TICK_S)
        # Time in which the driver was paused does not count.
        waited_s += min(time.monotonic() - started_s, 2 * TICK_S)
    for member in members:
        if member.run_ref is not None and member.lives:
            member.take_silence("its process did not leave its collective in time:", time.monotonic())
        if not member.lives:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.kill(member.actor, no_restart=True)  # if it wakes up later, it must not take part
