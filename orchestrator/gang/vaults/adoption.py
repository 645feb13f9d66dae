"""What a dead driver of a run left on a cluster: vaults to adopt, workers to end. They are found by their names."""

import contextlib
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import ray
from ray.util import list_named_actors

from orchestrator.clusters.ray.handles import ActorHandle
from orchestrator.domain.errors import ClusterError
from orchestrator.gang.vaults.vault_actor import VaultHello

HELLO_TIMEOUT_S = 5.0
"""How long a vault may take to report its address before it is ended."""
GONE_TIMEOUT_S = 20.0
"""How long Ray may take to end the workers of a dead driver."""
LOOK_S = 0.05
_VAULT, _WORKER = "convoy-vault:", "convoy-worker:"


@dataclass(frozen=True)
class FoundVault:
    """A vault that answers."""

    actor: ActorHandle
    hello: VaultHello
    token: str = field(repr=False)


def vault_name(run_id: str) -> str:
    """A unique name for a vault of the run, in the namespace that all drivers of Convoy share."""
    return f"{_VAULT}{run_id}:{secrets.token_hex(4)}"


def worker_name(run_id: str) -> str:
    """A unique name for a worker of the run."""
    return f"{_WORKER}{run_id}:{secrets.token_hex(4)}"


def find_vaults(run_id: str) -> list[FoundVault]:
    """Vaults of the run that answer within `HELLO_TIMEOUT_S`, one per node. Those that do not answer are ended."""
    actors = {name: actor for name in _names(f"{_VAULT}{run_id}:") if (actor := _actor(name)) is not None}
    asked = {actor.introduce.remote(): actor for actor in actors.values()}
    if not asked:
        return []
    ready, late = ray.wait(list(asked), num_returns=len(asked), timeout=HELLO_TIMEOUT_S)
    found: dict[str, FoundVault] = {}
    for ref in ready:
        try:
            hello, token = ray.get(ref)
        except ray.exceptions.RayError:
            continue  # it has died
        found[hello.node_id] = FoundVault(asked[ref], hello, token)
    for ref in late:
        _kill(asked[ref])
    return list(found.values())


def end_workers(run_id: str, stopped: Callable[[], bool]) -> int:
    """End the workers that a previous driver left, and wait until Ray lists none of them; return how many there were.
    Ray ends them with the driver's job, but not at once, and two gangs must never train at the same time.

    Raises ClusterError if some are left.
    """
    prefix = f"{_WORKER}{run_id}:"
    seen: set[str] = set()
    deadline = time.monotonic() + GONE_TIMEOUT_S
    while (names := _names(prefix)) and not stopped():
        for name in names:
            if name not in seen and (actor := _actor(name)) is not None:
                _kill(actor)
        seen.update(names)
        if time.monotonic() > deadline:
            raise ClusterError(
                f"{len(names)} workers of the previous driver of this run do not end",
                hint="`ray list actors` shows them; the run cannot continue while they might train",
            )
        time.sleep(LOOK_S)
    return len(seen)


def _names(prefix: str) -> list[str]:
    return [name for name in list_named_actors() if name.startswith(prefix)]


def _actor(name: str) -> ActorHandle | None:
    try:
        return ray.get_actor(name)
    except ValueError:  # it has ended meanwhile
        return None


def _kill(actor: ActorHandle) -> None:
    with contextlib.suppress(ray.exceptions.RayError):
        ray.kill(actor, no_restart=True)
