"""Vaults for the members of a gang: at its start, and when one starts late or crashes while its node is up."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import ray

from orchestrator.clusters.ray.handles import ActorHandle, ObjectRef
from orchestrator.domain.events import Event, WarningIssued
from orchestrator.metrics.event_bus import EventBus

if TYPE_CHECKING:
    from orchestrator.gang.group.worker_group import Gang
    from orchestrator.gang.vaults.vault_clients import VaultClients

VAULT_TIMEOUT_S = 30.0
"""How long to wait for vaults once the workers have started. Then training begins without the missing ones."""
LOOK_S = 1.0
DEAF_S = 10.0
"""How long a vault must report that it accepts no connections before it may be replaced."""
DEAF_LOOKS = 3
"""Rounds in a row in which it must report that and not answer the driver on a new connection."""
AGAIN_S = 10.0
"""Between two starts of a vault on a node; twice as long each time."""
LONGEST_S = 600.0


def protect(gang: "Gang", bus: EventBus, stopped: Callable[[], bool]) -> None:
    """Give every member its node's vault, and every vault its peers. Members without a vault train unprotected until
    one is available."""
    vaults = gang.vaults
    if vaults is None:
        return
    expected = [node_id for node_id in gang.node_ids() if node_id not in gang.planned.draining]
    for node_id in vaults.wait(expected, VAULT_TIMEOUT_S, stopped):
        message = f"no vault on node {node_id[:8]} yet: until it has started, its workers' state is not kept in memory"
        bus.emit(WarningIssued(message))
    gang.shield()
    now_s = time.monotonic()
    for member in gang.members:
        vault = vaults.access(member.hello.node_id, gang.generation)
        member.begin(replace(member.assignment, vault=vault), now_s)


@dataclass
class _Starts:
    """Restarts of vaults on one node."""

    count: int
    last_s: float


class VaultCare:
    """For a run. `round` is for a training gang: every member's entry point is running. It never waits for long."""

    def __init__(self, gang: "Gang") -> None:
        self._gang = gang
        self._looked_s = 0.0
        self._asked: dict[str, tuple[ActorHandle, ObjectRef]] = {}
        """By node: its vault's actor, and the reference of a pending call."""
        self._starts: dict[str, _Starts] = {}
        self._deaf_looks: dict[str, int] = {}
        """By node: rounds in a row in which its vault accepted no connections."""

    def round(self, now_s: float) -> list[Event]:
        """Replace vaults that have ended or no longer accept connections, and hand new ones to their members. Returns
        events to emit."""
        gang, vaults = self._gang, self._gang.vaults
        if vaults is None or now_s - self._looked_s < LOOK_S or any(member.over for member in gang.members):
            return []
        self._looked_s, told = now_s, []
        node_ids = [node_id for node_id in gang.node_ids() if node_id not in gang.planned.draining]
        for node_id in node_ids:
            why = self._lost(node_id)
            if why is not None:
                told.append(_warning(self._replaced(node_id, why)))
                vaults.lose(node_id)
            if vaults.actor(node_id) is None and self._may_start(node_id, now_s):
                vaults.start([node_id])
        vaults.wait(node_ids, 0.0, lambda: False)
        vaults.tell_again()
        self._hand_over(node_ids)
        return told

    @property
    def _vaults(self) -> "VaultClients":
        """`round` ends early without vaults."""
        assert self._gang.vaults is not None
        return self._gang.vaults

    def _lost(self, node_id: str) -> str | None:
        """Why a node's vault is unusable, or None. Judged by Ray's answer to the call of the previous round and by the
        node's ports; makes the next call. A slow vault does not answer the call."""
        vaults, before = self._vaults, self._asked.pop(node_id, None)
        actor = vaults.actor(node_id)
        if actor is None:
            return None
        if before is None or before[0] is not actor:
            self._asked[node_id] = actor, actor.health.remote()
            self._deaf_looks.pop(node_id, None)
            return None
        answer = before[1]
        if not ray.wait([answer], timeout=0)[0]:
            self._asked[node_id] = actor, answer
            return None
        if vaults.ended_alone(node_id, answer):
            return "has ended although its node is up"
        if self._is_deaf(node_id, answer):
            return f"has accepted no connections for over {DEAF_S:g} s"
        self._asked[node_id] = actor, actor.health.remote()
        return None

    def _is_deaf(self, node_id: str, answer: ObjectRef) -> bool:
        """Whether a vault whose process is alive accepts no new connections: it reports so through Ray, and the
        driver's own attempts fail repeatedly."""
        try:
            deaf_s = ray.get(answer).deaf_s
        except ray.exceptions.RayError:
            deaf_s = 0.0
        deaf = deaf_s >= DEAF_S and not self._vaults.hears(node_id)
        self._deaf_looks[node_id] = self._deaf_looks.get(node_id, 0) + 1 if deaf else 0
        return self._deaf_looks[node_id] >= DEAF_LOOKS

    def _replaced(self, node_id: str, why: str) -> str:
        access = self._vaults.access(node_id, 0)
        process = f" (process {access.pid})" if access is not None else ""
        return (
            f"the vault on node {node_id[:8]}{process} {why}: a new one is started, until then the "
            "state of its workers is not kept in memory"
        )

    def _may_start(self, node_id: str, now_s: float) -> bool:
        """A vault that crashes repeatedly is restarted at increasing intervals."""
        starts = self._starts.get(node_id, _Starts(0, now_s - AGAIN_S))
        if now_s - starts.last_s < min(LONGEST_S, AGAIN_S * 2 ** (starts.count - 1)):
            return False
        self._starts[node_id] = _Starts(starts.count + 1, now_s)
        return True

    def _hand_over(self, node_ids: Sequence[str]) -> None:
        """Pass a new vault to its members, after it has its peers and its peers have it."""
        gang = self._gang
        found = []
        for member in gang.members:
            access = self._vaults.access(member.hello.node_id, gang.generation)
            if access is not None and access != member.assignment.vault and member.hello.node_id in node_ids:
                found.append((member, access))
        if found:
            gang.shield()
        for member, access in found:
            member.assignment = replace(member.assignment, vault=access)
            member.actor.use_vault.remote(gang.generation, access)


def _warning(message: str) -> Event:
    return Event(WarningIssued(message), time.time())
