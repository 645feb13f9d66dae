"""Workers that start in the background while the gang trains, to take the places that are empty."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from orchestrator.gang.member import Member
from orchestrator.gang.worker_actor import Hello


@dataclass(eq=False)
class _Recruit:
    """One that is on its way. Its place is a placement group; Ray starts it when that has a node."""

    actor: Any
    group: Any
    hello_ref: Any
    warm_ref: Any
    hello: Hello | None = None
    warm: bool = False


class Recruits:
    """Those on their way, and those that are ready. All calls are the driver thread's."""

    def __init__(self, start: Callable[[Any], Any], warm: tuple[str, ...]) -> None:
        """`start` makes the actor for a placement group; `warm`: what it imports."""
        self._start, self._warm = start, warm
        self._coming: list[_Recruit] = []

    @property
    def coming(self) -> int:
        """How many are on their way or ready."""
        return len(self._coming)

    @property
    def groups(self) -> list[Any]:
        """The places they are for."""
        return [recruit.group for recruit in self._coming]

    def call(self, group: Any) -> None:
        """Have a worker started in a place, as soon as the place has a node."""
        actor = self._start(group)
        recruit = _Recruit(actor, group, actor.hello.remote(), actor.warm.remote(self._warm))
        self._coming.append(recruit)

    def send_away(self, count: int) -> None:
        """Call off so many, the last ones first."""
        self._drop(self._coming[max(0, len(self._coming) - count) :])

    def leave(self, groups: Sequence[Any]) -> None:
        """Call off those who were to come to these places."""
        self._drop([recruit for recruit in self._coming if recruit.group in groups])

    def _drop(self, recruits: Sequence["_Recruit"]) -> None:
        self._coming = [recruit for recruit in self._coming if recruit not in recruits]
        for recruit in recruits:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.kill(recruit.actor, no_restart=True)

    def look(self) -> list[str]:
        """Take in who has arrived; the ids of the nodes they are on."""
        for recruit in list(self._coming):
            try:
                if recruit.hello is None and _done(recruit.hello_ref):
                    recruit.hello = ray.get(recruit.hello_ref)
                if recruit.hello is not None and not recruit.warm and _done(recruit.warm_ref):
                    ray.get(recruit.warm_ref)
                    recruit.warm = True
            except ray.exceptions.RayError:
                self._coming.remove(recruit)  # its node or its process is gone again
                self.call(recruit.group)
        return [recruit.hello.node_id for recruit in self._coming if recruit.hello is not None]

    @property
    def ready(self) -> int:
        """How many could join now."""
        return sum(recruit.warm for recruit in self._coming)

    @property
    def arriving(self) -> int:
        """How many have a process that is not ready yet: worth a moment's wait."""
        return sum(recruit.hello is not None and not recruit.warm for recruit in self._coming)

    def join(self, most: int) -> list[Member]:
        """Take those who are ready out, `most` at most."""
        joined = [recruit for recruit in self._coming if recruit.warm][:most]
        self._coming = [recruit for recruit in self._coming if recruit not in joined]
        members = []
        for recruit in joined:
            assert recruit.hello is not None
            members.append(Member(recruit.actor, recruit.hello, recruit.group))
        return members

    def dismiss(self) -> None:
        """End all of them."""
        self._drop(self._coming)


def _done(ref: Any) -> bool:
    ready, _ = ray.wait([ref], timeout=0)
    return bool(ready)
