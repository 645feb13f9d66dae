"""Workers that start in the background while the gang trains, to fill empty reservations."""

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import ray

from orchestrator.clusters.ray.handles import ActorHandle, ObjectRef, PlacementGroup
from orchestrator.domain.devices.device import DeviceProblem
from orchestrator.domain.devices.device_room import DeviceRoom
from orchestrator.gang.agent.worker_actor import Hello
from orchestrator.gang.group.device_checks import shared_text
from orchestrator.gang.group.worker_handle import WorkerHandle

FIRST_PAUSE_S, LONGEST_PAUSE_S = 30.0, 600.0
"""Pauses after a worker whose GPU did not work: twice as long each time."""


@dataclass(eq=False)
class _PendingWorker:
    """A starting worker. Its reservation is a placement group; Ray starts the process when that has a node."""

    actor: ActorHandle
    group: PlacementGroup
    hello_ref: ObjectRef
    warm_ref: ObjectRef
    check_ref: ObjectRef | None = None
    """The result of its GPU check; None: it needs no GPU, or the check passed."""
    hello: Hello | None = None
    room: DeviceRoom | None = None
    """Memory of its GPU."""
    warm: bool = False


class PendingWorkers:
    """Workers that are starting, and those that are ready. For the driver's thread only."""

    def __init__(
        self,
        start: Callable[[PlacementGroup], ActorHandle],
        warm: tuple[str, ...],
        check: str | None = None,
        warn: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`start` creates the actor for a placement group; `warm`: what it imports; `check`: the function that tests
        its GPU, if it needs one; `warn` is called for each worker that fails the test."""
        self._start, self._warm, self._check, self._warn = start, warm, check, warn
        self._coming: list[_PendingWorker] = []
        self._refused, self._paused_until_s = 0, 0.0

    @property
    def coming(self) -> int:
        """Number of workers that are starting or ready."""
        return len(self._coming)

    @property
    def groups(self) -> list[PlacementGroup]:
        """Their reservations."""
        return [recruit.group for recruit in self._coming]

    @property
    def arrived(self) -> list[tuple[PlacementGroup, Hello]]:
        """The reservations of those whose processes exist, and where they are."""
        return [(recruit.group, recruit.hello) for recruit in self._coming if recruit.hello is not None]

    @property
    def paused(self) -> bool:
        """Whether to start none for now: the GPU of the last one did not work, and another may get the same node."""
        return time.monotonic() < self._paused_until_s

    def pause_ended(self) -> bool:
        """Whether a pause has ended; true once for each pause."""
        ended = 0.0 < self._paused_until_s <= time.monotonic()
        if ended:
            self._paused_until_s = 0.0
        return ended

    def call(self, group: PlacementGroup) -> None:
        """Start a worker for a reservation as soon as that has a node."""
        actor = self._start(group)
        hello_ref = actor.hello.remote()
        check_ref = actor.check_device.remote(self._check) if self._check is not None else None
        self._coming.append(_PendingWorker(actor, group, hello_ref, actor.warm.remote(self._warm), check_ref))

    def send_away(self, count: int) -> None:
        """Cancel this many, the newest first."""
        self._drop(self._coming[max(0, len(self._coming) - count) :])

    def leave(self, groups: Sequence[PlacementGroup]) -> None:
        """Cancel those for these reservations."""
        self._drop([recruit for recruit in self._coming if recruit.group in groups])

    def _drop(self, recruits: Sequence["_PendingWorker"]) -> None:
        self._coming = [recruit for recruit in self._coming if recruit not in recruits]
        for recruit in recruits:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.kill(recruit.actor, no_restart=True)

    def look(self) -> list[str]:
        """Update the state of all; return the ids of the nodes on which processes have started."""
        for recruit in list(self._coming):
            try:
                if recruit.hello is None and _done(recruit.hello_ref):
                    recruit.hello = ray.get(recruit.hello_ref)
                if recruit.hello is not None and recruit.check_ref is not None and _done(recruit.check_ref):
                    answer: DeviceProblem | DeviceRoom | None = ray.get(recruit.check_ref)
                    recruit.check_ref = None
                    if isinstance(answer, DeviceProblem):
                        self._refuse(recruit, recruit.hello, answer)
                        continue
                    recruit.room = answer
                    if (shared := shared_text(recruit.hello, answer)) is not None:
                        self._warn(shared)
                checked = recruit.hello is not None and recruit.check_ref is None
                if checked and not recruit.warm and _done(recruit.warm_ref):
                    ray.get(recruit.warm_ref)
                    recruit.warm = True
            except ray.exceptions.RayError:
                self._coming.remove(recruit)  # its node or its process is lost again
                self.call(recruit.group)
        return [recruit.hello.node_id for recruit in self._coming if recruit.hello is not None]

    def _refuse(self, recruit: _PendingWorker, hello: Hello, problem: DeviceProblem) -> None:
        pause_s = min(FIRST_PAUSE_S * 2**self._refused, LONGEST_PAUSE_S)
        self._refused, self._paused_until_s = self._refused + 1, time.monotonic() + pause_s
        self._drop([recruit])
        self._warn(
            f"a worker on {hello.host} ({hello.node_ip}) cannot join, its GPU cannot be used: {problem.why} "
            f"({problem.hint}); the next attempt is in {pause_s:.0f} s"
        )

    @property
    def ready(self) -> int:
        """Number of workers that can join now."""
        return sum(recruit.warm for recruit in self._coming)

    @property
    def arriving(self) -> int:
        """Number of workers whose process exists but is not ready yet; they are worth a short wait."""
        return sum(recruit.hello is not None and not recruit.warm for recruit in self._coming)

    def join(self, most: int) -> list[WorkerHandle]:
        """Remove up to `most` ready workers and return them."""
        joined = [recruit for recruit in self._coming if recruit.warm][:most]
        self._coming = [recruit for recruit in self._coming if recruit not in joined]
        members = []
        for recruit in joined:
            assert recruit.hello is not None
            members.append(WorkerHandle(recruit.actor, recruit.hello, recruit.group, room=recruit.room))
        return members

    def dismiss(self) -> None:
        """End all of them."""
        self._drop(self._coming)


def _done(ref: ObjectRef) -> bool:
    ready, _ = ray.wait([ref], timeout=0)
    return bool(ready)
