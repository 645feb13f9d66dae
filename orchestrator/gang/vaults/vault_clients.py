"""The driver's side of the vaults: one actor on each node that has workers, asked over their own ports."""

import contextlib
import errno
import secrets
import socket
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.checkpoint.memory.wire import Channel, RefusedError
from orchestrator.checkpoint.survey.inventory import Holding, NodePlace, choose_peers, domain_warning, failure_domains
from orchestrator.checkpoint.survey.surveyor import VaultContact, ask_reports, holdings
from orchestrator.clusters.cluster_provider import ClusterProvider
from orchestrator.clusters.ray.handles import ActorClass, ActorHandle, ObjectRef
from orchestrator.domain.session import VaultAccess
from orchestrator.gang.vaults.adoption import FoundVault, vault_name
from orchestrator.gang.vaults.vault_actor import VaultActor, VaultHello
from orchestrator.json_values import JsonObject, integer, integers

ASK_TIMEOUT_S = 1.0
REFUSAL_S = 0.2
HEAR_S = 0.5
WAIT_S = 0.1
FENCE_TIMEOUT_S = 5.0
BURY_S = 0.3
UNREACHABLE = (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN)
"""What the kernel says of a way that is cut, be it at this end."""


class VaultClients:
    """All vaults of a run. Methods are for the driver's thread; they wait no longer than they say."""

    def __init__(self, cluster: ClusterProvider, run_id: str, kept_s: float, failure_domain: str | None) -> None:
        """On a `cluster` that outlives its driver the vaults do too, for another driver to adopt, and end by themselves
        after `kept_s` without a request. Otherwise their processes die with their raylet. `failure_domain`: the label
        of nodes that copies are spread over, see `failure_domains`."""
        self._cluster, self._run_id, self._kept_s = cluster, run_id, kept_s
        self._failure_domain = failure_domain
        self._token = secrets.token_hex(16)
        self._attempt = secrets.token_hex(3)
        self._actors: dict[str, ActorHandle] = {}
        self._pending: dict[str, ObjectRef] = {}
        self._known: dict[str, VaultHello] = {}
        self._channels: dict[str, Channel] = {}
        self._untold: dict[str, JsonObject] = {}
        """By node: where its vault's copies go, when it has not confirmed that."""

    def start(self, node_ids: Collection[str]) -> None:
        """Start vaults on nodes that have none. Does not wait."""
        for node_id in node_ids:
            if node_id not in self._actors:
                stays = self._cluster.outlives_driver
                life = {"name": vault_name(self._run_id), "lifetime": "detached"} if stays else {}
                self._actors[node_id] = _actor_class().options(
                    num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False), **life
                ).remote(self._token, not stays, self._kept_s if stays else None)  # fmt: skip
                self._pending[node_id] = self._actors[node_id].hello.remote()

    def adopt(self, found: Sequence[FoundVault]) -> int:
        """Take over vaults that another driver of this run started; the newest generation that they have heard of.

        Afterwards nothing of that or an earlier generation is written any more: see `fence`.
        """
        for vault in found:
            self._token = vault.token  # all vaults of a run have the same
            self._actors[vault.hello.node_id], self._known[vault.hello.node_id] = vault.actor, vault.hello
        answers = self._ask_all({"do": "inventory"})
        return max((integer(answer, "generation") for answer in answers.values()), default=0)

    def fence(self, generation: int) -> tuple[list[int], list[int]]:
        """End whoever still writes for a generation before this one, and refuse what comes of it later. A vault that
        does not answer may still take what the gang before this one sends: it is ended, and what it holds is lost.

        Pids of workers that had to be ended, and of those that could not be.
        """
        found = self._ask_all({"do": "fence", "generation": generation}, FENCE_TIMEOUT_S)
        for node_id in set(self._known) - set(found):
            self.lose(node_id)
        answers = found.values()
        return (
            [pid for answer in answers for pid in integers(answer, "ended")],
            [pid for answer in answers for pid in integers(answer, "left")],
        )

    def release(self) -> None:
        """Leave all of them behind, for another driver to adopt."""
        for channel in self._channels.values():
            channel.close()
        for known in (self._actors, self._pending, self._known, self._channels, self._untold):
            known.clear()

    def contacts(self) -> list[VaultContact]:
        """How to reach each of them. May be called from any thread."""
        return [VaultContact(node_id, hello.address, self._token) for node_id, hello in list(self._known.items())]

    def wait(self, node_ids: Collection[str], timeout_s: float, stopped: Callable[[], bool]) -> list[str]:
        """Wait for the vaults of these nodes, those that cannot come excepted; the nodes whose are still to come. Looks
        once where there is no time."""
        deadline = time.monotonic() + timeout_s
        waiting = {self._pending[node_id]: node_id for node_id in node_ids if node_id in self._pending}
        late: list[str] = []
        while waiting:
            left_s = deadline - time.monotonic()
            ready, _ = ray.wait(list(waiting), num_returns=1, timeout=max(0.0, min(WAIT_S, left_s)))
            for ref in ready:
                node_id = waiting.pop(ref)
                del self._pending[node_id]
                try:
                    self._known[node_id] = ray.get(ref)
                except ray.exceptions.ActorUnavailableError:  # for now: it is slow, not gone
                    self._pending[node_id] = self._actors[node_id].hello.remote()
                    late.append(node_id)
                except ray.exceptions.RayError:
                    self.lose(node_id)
            if (left_s <= 0 and not ready) or stopped():
                break
        return sorted([*waiting.values(), *late])

    def ended_alone(self, node_id: str, answer: ObjectRef) -> bool:
        """Whether a node's vault has ended while its node lives: Ray says so, in `answer` to a call that has been
        answered, its port refuses connections, and the raylet's does not. Slow ones have not ended."""
        return _says_ended(answer) and self.refuses(node_id) and not raylet_refuses(node_id)

    def bury(self, node_ids: Collection[str]) -> None:
        """Forget the vaults of these nodes that have ended alone: others can be started there. Waits `BURY_S` at most
        for Ray's word."""
        asked = {self._actors[node_id].hello.remote(): node_id for node_id in node_ids if self.refuses(node_id)}
        ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=BURY_S) if asked else ([], [])
        for answer in ready:
            if self.ended_alone(asked[answer], answer):
                self.lose(asked[answer])

    def lose(self, node_id: str) -> None:
        """Forget a node's vault: it is gone. Its memory, if the process still lives, is given back."""
        actor = self._actors.pop(node_id, None)
        self._pending.pop(node_id, None)
        self._known.pop(node_id, None)
        self._untold.pop(node_id, None)
        channel = self._channels.pop(node_id, None)
        if channel is not None:
            channel.close()
        if actor is not None:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.kill(actor, no_restart=True)

    def access(self, node_id: str, generation: int) -> VaultAccess | None:
        """How a worker of that node reaches its vault; None where there is none."""
        hello = self._known.get(node_id)
        if hello is None:
            return None
        return VaultAccess(
            address=hello.address, pid=hello.pid, token=self._token, generation=generation, attempt=self._attempt
        )

    def assign(
        self,
        generation: int,
        node_ids: Sequence[str],
        replicas: int,
        doomed: Collection[str] = frozenset(),
    ) -> dict[str, tuple[str, ...]]:
        """Tell the vaults of a generation's nodes where copies go; by node, the nodes that keep its copies.

        `doomed` nodes are about to go and keep copies only if no others can. May be called several times in one
        generation: later copies go where the last call says.
        """
        known = [node_id for node_id in node_ids if node_id in self._known]
        peers = self._choose(known, replicas, doomed)
        for node_id, others in peers.items():
            addresses = [self._known[other].address for other in others]
            request: JsonObject = {"do": "peers", "generation": generation, "addresses": addresses}
            self._untold.pop(node_id, None)
            if self._ask(node_id, request) is None:
                self._untold[node_id] = request
        return peers

    def plan_copies(self, node_ids: Sequence[str], replicas: int, warn: Callable[[str], None]) -> int:
        """The most copies that one of these nodes would keep for the others. Warns if the failure domain that the job
        asks for cannot be used."""
        warning = domain_warning(self._cluster.labels(node_ids), self._failure_domain)
        if warning is not None:
            warn(warning)
        peers = self._choose(node_ids, replicas)
        return max(Counter(peer for others in peers.values() for peer in others).values(), default=0)

    def _choose(
        self, node_ids: Sequence[str], replicas: int, doomed: Collection[str] = frozenset()
    ) -> dict[str, tuple[str, ...]]:
        domains = failure_domains(self._cluster.labels(node_ids), self._failure_domain)
        return choose_peers([NodePlace(node_id, domains.get(node_id)) for node_id in node_ids], replicas, doomed)

    def tell_again(self) -> None:
        """Tell a vault its peers that did not answer to that before: without any it copies nothing, and nobody takes
        a snapshot. One at a time, for about `HEAR_S`."""
        for node_id, request in list(self._untold.items())[:1]:
            del self._untold[node_id]
            if self._ask(node_id, request, HEAR_S) is None and node_id in self._known:
                self._untold[node_id] = request

    def survey(self) -> list[Holding]:
        """What all vaults that answer hold, asked at the same time, for `ASK_TIMEOUT_S`."""
        answers = self._ask_all({"do": "inventory"})
        found = [holdings(self._known[node_id].address, answer) for node_id, answer in answers.items()]
        return [held for each in found for held in each]

    def reports_after(self, step: int) -> list[bytes]:
        """Reports of the steps after one, of the vault that has the most."""
        best: list[bytes] = []
        for contact in self.contacts():
            with contextlib.suppress(OSError):
                found = ask_reports(contact, step)
                best = max(best, found, key=len)
        return best

    def forget(self, before: int) -> None:
        """Free the states of generations before one: a later one's is whole."""
        self._ask_all({"do": "forget", "before": before})

    def actor(self, node_id: str) -> ActorHandle | None:
        """The actor on a node; None where there is none."""
        return self._actors.get(node_id)

    def retire(self, keep: Collection[str]) -> None:
        """End the vaults of nodes that have no part in the run any more."""
        for node_id in set(self._actors) - set(keep):
            self.lose(node_id)

    def refuses(self, node_id: str) -> bool:
        """Whether a node's vault, which was there, refuses connections at once: its process is gone. Silence is not
        that."""
        hello = self._known.get(node_id)
        if hello is None:
            return False
        try:
            Channel.connect(hello.address, self._token, REFUSAL_S).close()
        except TimeoutError:
            return False
        except OSError as error:
            return error.errno not in UNREACHABLE
        return False

    def hears(self, node_id: str) -> bool:
        """Whether a node's vault takes a new connection and answers on it, within `HEAR_S` for each. That a connection
        is made says nothing: the kernel makes it for a process that does not accept, too."""
        hello = self._known.get(node_id)
        if hello is None:
            return False
        try:
            with contextlib.closing(Channel.connect(hello.address, self._token, HEAR_S)) as channel:
                channel.ask({"do": "ping"})
        except RefusedError:
            return True  # it has no room for a connection more, but it hears
        except OSError:
            return False
        return True

    def answers(self, node_id: str) -> bool | None:
        """Whether a node's vault answers within `ASK_TIMEOUT_S`; None where there is none that ever did."""
        return None if node_id not in self._known else self._ask(node_id, {"do": "ping"}) is not None

    def close(self) -> None:
        """End all of them."""
        for node_id in list(self._actors):
            self.lose(node_id)

    def _ask_all(self, request: JsonObject, timeout_s: float = ASK_TIMEOUT_S) -> dict[str, JsonObject]:
        nodes = list(self._known)
        if not nodes:
            return {}
        with ThreadPoolExecutor(len(nodes)) as pool:
            answers = list(pool.map(lambda node_id: self._ask(node_id, request, timeout_s), nodes))
        return {node_id: answer for node_id, answer in zip(nodes, answers, strict=True) if answer is not None}

    def _ask(self, node_id: str, request: JsonObject, timeout_s: float = ASK_TIMEOUT_S) -> JsonObject | None:
        """One question to one vault; None where it does not answer. A connection that broke is made anew once."""
        hello = self._known.get(node_id)
        if hello is None:
            return None
        for _ in range(2):
            # A request that may take longer has a connection of its own.
            channel = self._channels.pop(node_id, None) if timeout_s == ASK_TIMEOUT_S else None
            fresh = channel is None
            try:
                if channel is None:
                    channel = Channel.connect(hello.address, self._token, timeout_s)
                answer, _ = channel.ask(request)
            except TimeoutError:
                if channel is not None:
                    channel.close()
                return None
            except OSError:
                if channel is not None:
                    channel.close()
                if fresh:
                    return None
            else:
                if timeout_s == ASK_TIMEOUT_S:
                    self._channels[node_id] = channel
                else:
                    channel.close()
                return answer
        return None


def node_answers(vaults: VaultClients | None, node_id: str) -> bool:
    """Whether something on a node answers besides its workers: its vault, or, without one, its raylet, as Ray says. A
    vault whose port refuses has ended, and says nothing about its node."""
    answers = vaults.answers(node_id) if vaults is not None else None
    if vaults is None or answers is None:
        return any(node["NodeID"] == node_id and node["Alive"] for node in ray.nodes())
    return answers or (vaults.refuses(node_id) and not raylet_refuses(node_id))


def raylet_refuses(node_id: str) -> bool:
    """Whether a node's raylet is gone: it refuses connections at once, or Ray knows. Silence is not that."""
    node = next((node for node in ray.nodes() if node["NodeID"] == node_id and node["Alive"]), None)
    if node is None:
        return True
    try:
        where = node["NodeManagerAddress"], int(node["NodeManagerPort"])
        socket.create_connection(where, timeout=REFUSAL_S).close()
    except TimeoutError:
        return False
    except OSError:
        return True
    return False


def _says_ended(answer: ObjectRef) -> bool:
    """Whether Ray answered a call of an actor with the actor's end. That it cannot be reached now is not that."""
    try:
        ray.get(answer)
    except ray.exceptions.ActorUnavailableError:
        return False
    except ray.exceptions.RayActorError:
        return True
    except ray.exceptions.RayError:
        return False
    return False


def _actor_class() -> ActorClass:
    return ray.remote(max_restarts=0, max_task_retries=0)(type("ConvoyVault", (VaultActor,), {}))
