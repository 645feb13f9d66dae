"""Finds out which workers are still alive while the gang waits between two generations."""

import time

import ray

from orchestrator.clusters.ray.handles import ObjectRef
from orchestrator.gang.group.worker_handle import WorkerHandle

CHECK_S = 1.0


class LivenessProbe:
    """Asks waiting workers for a heartbeat: they do nothing that could fail, so a dead one would not be noticed."""

    def __init__(self) -> None:
        self._asked: dict[int, tuple[WorkerHandle, ObjectRef]] = {}
        self._asked_s = time.monotonic()

    def look(self, members: list[WorkerHandle]) -> bool:
        """Process the answers, and ask again at intervals; return whether a worker has died. Does not wait."""
        now_s, died = time.monotonic(), False
        for key, (member, ref) in list(self._asked.items()):
            ready, _ = ray.wait([ref], timeout=0)
            if not ready:
                continue
            del self._asked[key]
            try:
                ray.get(ref)
            except ray.exceptions.RayError as error:
                member.take_death(error, now_s, oom_kills=0)
                died = True
        if now_s - self._asked_s >= CHECK_S:
            self._asked_s = now_s
            for member in members:
                if member.lives and id(member) not in self._asked:
                    self._asked[id(member)] = (member, member.actor.hello.remote())
        return died
