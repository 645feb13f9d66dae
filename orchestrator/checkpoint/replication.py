"""The part of a vault that works by itself: what its node's workers filled is copied to the peers' vaults, in order.

One thread does it, so that a slot is written again only after everything that was asked for it is done. A copy that
fails is tried again for as long as its generation is the newest: the workers take no further snapshot until it has
arrived, so one that never did would leave them without any.
"""

import queue
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

from orchestrator.checkpoint.copies import Copies
from orchestrator.checkpoint.held import CellKey, FreedError, Held
from orchestrator.checkpoint.writing import ShardOrder, ShardWriterThread
from orchestrator.lasting_thread import LastingThread

RETRY_S = 1.0
"""From a copy that did not arrive, or has no peers to go to yet, to the next attempt."""


class CpuTime:
    """Seconds of CPU that a vault has spent on copies, sent and received. Thread-safe."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._lock = threading.Lock()

    def add(self, since_s: float) -> None:
        """Count this thread's time since `time.thread_time()` was `since_s`."""
        with self._lock:
            self.seconds += time.thread_time() - since_s


@dataclass(frozen=True)
class Filled:
    """A slot of a rank of this node holds a step, whole."""

    key: CellKey
    step: int


@dataclass(frozen=True)
class Reported:
    """The report of a step, to be kept at the peers too."""

    key: CellKey
    step: int
    data: bytes


@dataclass(frozen=True)
class _Told:
    """It is known now where a generation's copies go, or that it has changed."""


Work = Filled | Reported | ShardOrder | _Told


class Replication:
    """`put` never blocks. Its own thread does the work, until `close`."""

    def __init__(
        self,
        copies: Copies,
        find: Callable[[CellKey], Held | None],
        newest: Callable[[], int],
        memory_left: Callable[[], int],
        spent: CpuTime,
    ) -> None:
        """`find` gives what the vault holds, `newest` the newest generation it has heard of, `memory_left` the bytes
        that this host could still give."""
        self._copies, self._find, self._newest, self._memory_left = copies, find, newest, memory_left
        self._spent = spent
        self._work: queue.Queue[Work | None] = queue.Queue()
        self._writer = ShardWriterThread()
        self._peers: dict[int, tuple[str, ...]] = {}
        self._lock = threading.Lock()
        self._late: dict[CellKey, tuple[int, float]] = {}
        """Steps whose copies have not arrived, and when to try again. The thread's own."""
        LastingThread("vault-replicate", self._turn, self._note)

    def put(self, work: Work) -> None:
        """Have something done, after what was put before."""
        self._work.put(work)

    def written(self, generation: int, step: int) -> list[dict[str, object]]:
        """What has come of the shards of a step that were ordered here."""
        return self._writer.answers(generation, step)

    def set_peers(self, generation: int, addresses: Collection[str]) -> None:
        """Where the states of a generation are copied from now on."""
        with self._lock:
            self._peers[generation] = tuple(addresses)
        self._work.put(_Told())

    def forget(self, before: int, gone: list[CellKey]) -> None:
        """Generations before one are over; `gone` are their cells."""
        with self._lock:
            self._peers = {generation: to for generation, to in self._peers.items() if generation >= before}
        self._copies.forget(gone)

    def close(self) -> None:
        """Do what was put, then end."""
        self._work.put(None)
        self._writer.close()

    def _turn(self) -> bool:
        self._try_again()
        try:
            work = self._work.get(timeout=RETRY_S if self._late else None)
        except queue.Empty:
            return True
        match work:
            case None:
                return False
            case ShardOrder():
                self._order(work)
            case Filled(key, step):
                self._bring(key, step)
            case Reported(key, step, data):
                for peer in self._peers_of(key) or ():
                    self._copies.report(peer, key, step, data)
            case _Told():
                self._late = {key: (step, 0.0) for key, (step, _) in self._late.items()}
        return True

    def _peers_of(self, key: CellKey) -> tuple[str, ...] | None:
        with self._lock:
            return self._peers.get(key.generation)

    def _bring(self, key: CellKey, step: int) -> None:
        """Copy a step to all peers; it is late while that has not succeeded."""
        peers, held = self._peers_of(key), self._find(key)
        self._late.pop(key, None)
        if held is None:
            return
        self._late[key] = step, time.monotonic() + RETRY_S
        if peers is not None and self._copied(key, held, step, peers):
            self._late.pop(key)

    def _copied(self, key: CellKey, held: Held, step: int, peers: tuple[str, ...]) -> bool:
        """Whether nothing is left to do for a step: all peers have it, or it is not there any more."""
        try:
            with held.in_use() as cell:
                if cell.slot_of(step) is None:
                    return True
                started_s = time.thread_time()
                arrived = [self._copies.bring(peer, key, held, step) for peer in peers]  # to each, whatever the others
                self._spent.add(started_s)
                if all(arrived):
                    cell.spent_us = int(self._spent.seconds * 1e6)
                    cell.replicated_step = step
                return all(arrived)
        except FreedError:
            return True

    def _try_again(self) -> None:
        """Late copies of the generation that is; those of earlier ones have nobody to wait for them."""
        now_s = time.monotonic()
        for key, (step, due_s) in list(self._late.items()):
            if key.generation < self._newest():
                del self._late[key]
            elif due_s <= now_s:
                self._bring(key, step)

    def _order(self, order: ShardOrder) -> None:
        """Copy a slot for the writer. In this thread: the slot is written again only when a later step is replicated,
        which is after this."""
        held = self._find(CellKey(order.generation, order.rank))
        reason = f"the state of step {order.step} is not in the vault any more"
        try:
            if held is None:
                raise FreedError(reason)
            with held.in_use() as cell:
                slot = cell.slot_of(order.step)
                if slot is None:
                    raise FreedError(reason)
                if cell.size.payload_bytes > self._memory_left():
                    raise MemoryError(f"no memory to copy the {cell.size.payload_bytes >> 20} MiB of a shard")
                self._writer.order(order, cell.payload(slot), cell.state(slot), held.index)
        except FreedError:
            self._writer.refuse(order, reason)
        except Exception as error:  # noqa: BLE001  # an order that is not answered would be waited for
            self._writer.refuse(order, str(error) or type(error).__name__)

    def _note(self, problem: str) -> None:
        self._copies.last_problem = problem
