"""The process that holds a node's vault. It imports neither torch nor DeepSpeed, and outlives the node's workers."""

import os
import threading
import time
from dataclasses import dataclass

import psutil

from orchestrator.checkpoint.memory.vault import Vault
from orchestrator.clusters.ray.processes import die_with_parent
from orchestrator.domain.devices.device import device_environment
from orchestrator.gang.agent.process_activity import Look, look_at
from orchestrator.gang.health.stacks import Stacks, end_worker, foreign_stacks

RESERVE_SHARE = 0.05
"""Share of the host's memory that a vault does not use."""
LOOK_S = 1.0


@dataclass(frozen=True)
class VaultHello:
    """Location of a vault."""

    node_id: str
    address: str
    pid: int


@dataclass(frozen=True)
class VaultHealth:
    """Health of a vault as it reports itself."""

    deaf_s: float
    """How long it has accepted no new connections; see `VaultServer.deaf_s`."""


class VaultActor:
    """Runs a `Vault`. Except for these methods, all requests go through the vault's own port."""

    shares = True
    """See `Vault`."""

    def __init__(self, token: str, fate_share: bool, kept_s: float | None) -> None:
        """`fate_share`: the process dies with its raylet. `kept_s`: it ends by itself after no driver has sent a
        request for this long; None: never."""
        import ray

        if fate_share:
            die_with_parent()
        os.environ.update(device_environment(0))
        self._token = token
        self._vault = Vault(ray.util.get_node_ip_address(), token, _memory_left, self.shares)
        if kept_s is not None:
            threading.Thread(target=self._end_alone, args=(kept_s,), name="vault-end", daemon=True).start()

    def introduce(self) -> tuple[VaultHello, str]:
        """Location and token of this vault, for a driver that did not start it. Only through Ray: the token is on no
        disk."""
        return self.hello(), self._token

    def hello(self) -> VaultHello:
        """Where this vault is."""
        import ray

        return VaultHello(ray.get_runtime_context().get_node_id(), self._vault.address, os.getpid())

    def health(self) -> VaultHealth:
        """Health of this vault. Through Ray, so it is answered even if the vault's own port is not."""
        return VaultHealth(self._vault.deaf_s)

    def look_at(self, pid: int) -> Look | None:
        """See `process_activity.look_at`: inspects a silent worker of this node."""
        return look_at(pid)

    def stacks(self, pid: int) -> Stacks:
        """See `stacks.foreign_stacks`."""
        return foreign_stacks(pid)

    def end_worker(self, pid: int) -> None:
        """See `stacks.end_worker`."""
        end_worker(pid)

    def _end_alone(self, kept_s: float) -> None:
        while time.monotonic() - self._vault.asked_s < kept_s:
            time.sleep(LOOK_S)
        try:
            self._vault.close()
        finally:
            os._exit(0)  # the main thread is Ray's


def _memory_left() -> int:
    memory = psutil.virtual_memory()
    return int(memory.available - RESERVE_SHARE * memory.total)
