"""Standby processes on each node that has workers: they have imported everything and wait to replace a lost worker."""

import contextlib
from collections.abc import Callable, Collection
from dataclasses import dataclass

import ray

from orchestrator.clusters.ray.handles import ActorHandle, ObjectRef
from orchestrator.gang.agent.worker_actor import Hello

ANSWER_S = 0.3
"""How long a ready process may take to confirm that it still is; its node may be lost together with the worker."""


@dataclass
class _Standby:
    """One process. It holds no reservation: it takes over that of the worker that it replaces."""

    actor: ActorHandle
    hello_ref: ObjectRef
    warm_ref: ObjectRef


class StandbyPool:
    """The standby processes of a run, by node. For the driver's thread only."""

    def __init__(self, start: Callable[[str], ActorHandle], per_node: int, warm: tuple[str, ...]) -> None:
        """`start` creates the actor on a node; `warm`: what it imports."""
        self._start, self._per_node, self._warm = start, per_node, warm
        self._waiting: dict[str, list[_Standby]] = {}

    def keep(self, node_ids: Collection[str]) -> None:
        """Start missing processes on these nodes, and end those on others. Does not wait."""
        for node_id in self._waiting.keys() - set(node_ids):
            for spare in self._waiting.pop(node_id):
                self._end(spare)
        for node_id in node_ids:
            waiting = self._waiting.setdefault(node_id, [])
            while len(waiting) < self._per_node:
                actor = self._start(node_id)
                waiting.append(_Standby(actor, actor.hello.remote(), actor.warm.remote(self._warm)))

    def take(self, node_id: str) -> tuple[ActorHandle, Hello] | None:
        """Remove a ready process of a node and return it; None if there is none. Waits at most `ANSWER_S`."""
        waiting = self._waiting.get(node_id, [])
        while waiting:
            spare = waiting.pop(0)
            try:
                if not ray.wait([spare.warm_ref], timeout=0)[0]:
                    waiting.insert(0, spare)  # later ones are not ready either
                    return None
                ray.get(spare.warm_ref)
                hello: Hello = ray.get(spare.actor.hello.remote(), timeout=ANSWER_S)
            except ray.exceptions.RayError:  # a timeout is one of them
                self._end(spare)
                continue
            return spare.actor, hello
        return None

    def dismiss(self) -> None:
        """End all of them."""
        for waiting in self._waiting.values():
            for spare in waiting:
                self._end(spare)
        self._waiting.clear()

    @staticmethod
    def _end(spare: _Standby) -> None:
        with contextlib.suppress(ray.exceptions.RayError):
            ray.kill(spare.actor, no_restart=True)
