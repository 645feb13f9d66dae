"""Tests whether workers can use their GPUs, before data is prepared."""

import time
from collections.abc import Callable, Sequence

import ray

from orchestrator.clusters.ray.handles import ActorHandle, ObjectRef
from orchestrator.domain.devices.device import DeviceProblem
from orchestrator.domain.devices.device_room import DeviceRoom
from orchestrator.domain.errors import ClusterError, DeviceError
from orchestrator.gang.agent.worker_actor import Hello
from orchestrator.gang.group.polling import TICK_S
from orchestrator.gang.group.worker_handle import first_line

TIMEOUT_S = 180.0
"""For a worker process to start, import torch and test its GPU. A GPU driver that hangs never returns."""
SHOWN = 4


class DeviceChecks:
    """The checks of a run's first workers. They run before the workers import anything else: calls of an actor keep
    their order."""

    def __init__(self, actors: Sequence[ActorHandle], hello_refs: Sequence[ObjectRef], entry: str | None) -> None:
        """`entry`: import string of the function that tests a process's GPU; None: no worker needs a GPU."""
        self._hello_refs = list(hello_refs)
        self.rooms: list[DeviceRoom | None] = [None] * len(self._hello_refs)
        """Memory of each worker's GPU, once all have passed."""
        self._refs = [actor.check_device.remote(entry) for actor in actors] if entry is not None else []

    def passed(self, stopped: Callable[[], bool], warn: Callable[[str], None]) -> bool:
        """Wait for all of them; False if `stopped` meanwhile. `warn` is called for GPUs that other processes use.
        Raises DeviceError if a GPU cannot be used, ClusterError if a process ends or does not answer in time."""
        deadline_s = time.monotonic() + TIMEOUT_S
        waiting = list(self._refs)
        while waiting:
            if stopped():
                return False
            _, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=TICK_S)
            if waiting and time.monotonic() > deadline_s:
                raise ClusterError(
                    f"{len(waiting)} of {len(self._refs)} workers did not report within {TIMEOUT_S:.0f} s whether "
                    "their GPUs work",
                    hint="check whether `nvidia-smi` answers on each node: a GPU driver that hangs needs a restart",
                )
        try:
            answers: list[DeviceProblem | DeviceRoom | None] = ray.get(self._refs)
            hellos: list[Hello] = ray.get(self._hello_refs) if any(answers) else []
        except ray.exceptions.RayError as error:
            raise ClusterError(
                f"a worker process ended while it tested its GPU: {first_line(error)}",
                hint="see `dmesg` and Ray's logs on its node",
            ) from error
        told = zip(hellos, answers, strict=False)
        unfit = [(hello, answer) for hello, answer in told if isinstance(answer, DeviceProblem)]
        if unfit:
            raise _refusal(unfit, len(self._refs))
        if answers:
            self.rooms = [answer if isinstance(answer, DeviceRoom) else None for answer in answers]
        for hello, room in zip(hellos, self.rooms, strict=False):
            if (text := shared_text(hello, room)) is not None:
                warn(text)
        return True


def where(hello: Hello) -> str:
    """A worker's host and process, as text."""
    return f"{hello.host} ({hello.node_ip}, process {hello.pid})"


def shared_text(hello: Hello, room: DeviceRoom | None) -> str | None:
    """A warning about a GPU whose memory other processes hold; None if none do."""
    if room is None or not room.is_shared:
        return None
    return (
        f"{room.shared_text} of a worker on {where(hello)}: the plan uses the rest (`nvidia-smi` there lists them; "
        "the memory of a killed worker is freed after some seconds)"
    )


def _refusal(unfit: Sequence[tuple[Hello, DeviceProblem]], workers: int) -> DeviceError:
    shown = "; ".join(f"on {where(hello)}: {problem.why}" for hello, problem in unfit[:SHOWN])
    more = f"; and {len(unfit) - SHOWN} more" if len(unfit) > SHOWN else ""
    number = f"{len(unfit)} of {workers} workers" if workers > 1 else "the worker"
    return DeviceError(
        f"resources.gpus_per_worker is 1, but {number} cannot use a GPU: {shown}{more}",
        hint="; ".join(dict.fromkeys(problem.hint for _, problem in unfit[:SHOWN])),
    )
