"""What the driver checks in each round of its loop, besides the workers' reports."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from orchestrator.domain.events import Event, WarningIssued
from orchestrator.domain.generation import Ending
from orchestrator.domain.policy.driver_pauses import PAUSE_S, DriverPauses
from orchestrator.domain.session import Leave
from orchestrator.gang.elastic.resizer import Regroup
from orchestrator.gang.group.gang_policy import Quiet, silent_nodes
from orchestrator.gang.group.polling import Listener
from orchestrator.gang.group.worker_handle import WorkerHandle, is_broken
from orchestrator.gang.vaults.vault_clients import node_answers, raylet_refuses

if TYPE_CHECKING:
    from orchestrator.gang.group.worker_group import Gang

QUIET_S = 1.0
"""From the last heartbeat of a node's workers to checking whether its ports refuse connections. Workers send twice a
second."""
ASK_GONE_S = 0.5
"""Between two checks whether a quiet node is gone: for a node that is only stopped, a check takes its whole timeout."""
GONE = "its node is unreachable, vault and raylet refuse connections:"
PROBES = 2
"""Unanswered probes in a row before a silent node is given up."""
PROBES_AT_ONCE = 64
"""Nodes that are probed at the same time. A probe of a silent node takes more than a second."""


class HealthMonitor:
    """For one generation while it trains. `round` never waits for long."""

    def __init__(self, gang: "Gang", listener: Listener) -> None:
        self._gang, self._listener = gang, listener
        self._round_s = time.monotonic()
        self._pauses = DriverPauses()
        self._unanswered: dict[str, int] = {}
        self._ask_gone_s = 0.0
        self._forgotten = self._retired = self._parked = False
        self._regroup = Regroup(gang, gang.planned, gang.seek_more)

    def round(self, now_s: float) -> None:
        """One round."""
        gap_s, self._round_s = now_s - self._round_s, now_s
        if gap_s > PAUSE_S:
            for member in self._gang.members:  # what arrived meanwhile is as new as it can be
                member.renewed_s = min(now_s, member.renewed_s + gap_s)
        warning = self._pauses.take(now_s, gap_s)
        if warning is not None:
            self._listener.tell([Event(WarningIssued(warning), time.time())])
        quietest_s = max((now_s - member.renewed_s for member in self._waiting()), default=0.0)
        if quietest_s >= QUIET_S or is_broken(self._gang.members):
            self._silence(now_s)
            self._gone(now_s)
            self._round_s = time.monotonic()  # probes take their time
        self._listener.tell(self._gang.saves.finished() if self._gang.saves is not None else [])
        self._gang.hangs.round(now_s, gap_s, self._listener.last)
        self._old_states()
        if self._listener.last is not None and self._gang.pacer.due(now_s):
            self._gang.ask_to_save()
        if self._headless():
            return
        if self._listener.last is not None:
            self._gang.spares.keep(self._gang.node_ids())
        if self._listener.last is not None:
            self._listener.tell(self._gang.vault_care.round(now_s))
        self._regroup.round(now_s, self._listener.last)

    def _headless(self) -> bool:
        """Whether the cluster's head is silent. Processes cannot be started meanwhile; before Ray would end the gang,
        it leaves training with its state in storage."""
        head = self._gang.head
        if head.round() and not self._parked:
            self._parked = True
            self._gang.ask_to_leave(Leave.PARK)
        return bool(head.silent)

    def _silence(self, now_s: float) -> None:
        """Give up members on nodes where neither the workers nor another process answers."""
        gang, vaults = self._gang, self._gang.vaults
        quiet = [Quiet(member.hello.node_id, now_s - member.renewed_s) for member in self._waiting()]
        answers = together(lambda node_id: node_answers(vaults, node_id), silent_nodes(quiet))
        for node_id, answered in answers.items():
            self._unanswered[node_id] = 0 if answered else self._unanswered.get(node_id, 0) + 1
            if self._unanswered[node_id] < PROBES:
                continue
            for member in gang.members:
                if member.hello.node_id == node_id and not member.over:
                    member.take_silence("no heartbeat of its process and no answer from its node:", time.monotonic())
            if vaults is not None:
                vaults.lose(node_id)

    def _gone(self, now_s: float) -> None:
        """Give up members on nodes that are gone: both the vault and the raylet there refuse connections. The vault
        alone is not enough, because it may have crashed by itself.

        Checked for nodes whose workers are silent while peers' collectives failed, and for nodes that have been quiet
        for `QUIET_S`, because NCCL's collectives do not fail when a peer dies. These signals need no timeout.
        """
        gang, vaults = self._gang, self._gang.vaults
        if vaults is None:
            return
        waiting = self._waiting()
        if is_broken(gang.members):
            suspects = {member.hello.node_id for member in waiting}
        else:
            quiet = [Quiet(member.hello.node_id, now_s - member.renewed_s) for member in waiting]
            suspects = set(silent_nodes(quiet, QUIET_S)) if now_s >= self._ask_gone_s else set()
            self._ask_gone_s = now_s + ASK_GONE_S if suspects else self._ask_gone_s
        gone = together(lambda node_id: vaults.refuses(node_id) and raylet_refuses(node_id), sorted(suspects))
        for node_id, is_gone in gone.items():
            if is_gone:
                for member in waiting:
                    if member.hello.node_id == node_id:
                        member.take_silence(GONE, time.monotonic(), Ending.NODE_DIED)
                vaults.lose(node_id)

    def _waiting(self) -> list[WorkerHandle]:
        """Members that are to be heard of."""
        return [member for member in self._gang.members if not member.over and member.run_ref is not None]

    def _old_states(self) -> None:
        """Free the states of earlier generations once this one's is complete, and end vaults on nodes without
        members."""
        gang, last, vaults = self._gang, self._listener.last, self._gang.vaults
        if vaults is None or last is None or last.protected_step is None:
            return
        if not self._forgotten:
            self._forgotten = True
            vaults.forget(gang.generation)
        if not self._retired and (gang.saves is None or not gang.saves.busy):  # it may be writing a checkpoint yet
            self._retired = True
            vaults.retire({*gang.node_ids(), *gang.recruits.look()})


def together(probe: Callable[[str], bool], node_ids: Sequence[str]) -> dict[str, bool]:
    """What `probe` says of each node. Nodes are probed at the same time, up to `PROBES_AT_ONCE`: a rack may fall silent
    at once."""
    if len(node_ids) < 2:
        return {node_id: probe(node_id) for node_id in node_ids}
    with ThreadPoolExecutor(min(len(node_ids), PROBES_AT_ONCE), thread_name_prefix="probe") as pool:
        return dict(zip(node_ids, pool.map(probe, node_ids), strict=True))
