"""Replication: copies the slots that a node's workers have filled to the peers' vaults, in the background.

LANES threads do it, each for some of the ranks: several cells are sent at once, and one that fails does not delay other
lanes. All work for a rank is done by its lane in the order of the requests, so that a slot is written again only after
all earlier work on it is done. A copy that fails is tried again for as long as its generation is the newest: the
workers take no further snapshot until it has arrived, so one that never arrived would leave them without any.
"""

import queue
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from orchestrator.checkpoint.memory.copies import Copies, CpuTime
from orchestrator.checkpoint.memory.copy_totals import CopyTotals
from orchestrator.checkpoint.memory.frames import ShardAnswer
from orchestrator.checkpoint.memory.held import CellKey, FreedError, Held
from orchestrator.checkpoint.memory.vault_writer import ShardOrder, ShardWriterThread
from orchestrator.lasting_thread import LastingThread

RETRY_S = 1.0
"""From a copy that failed, or has no peers yet, to the next attempt."""
LANES = 4
"""One TCP stream carries 1 to 2 GB/s between two processes on any network; four fill most networks of 25 to 50 Gbit/s,
and more would take cores from the workers' feeds. A large cell is also sent in stripes: see `stripes`."""


@dataclass(frozen=True)
class Filled:
    """A slot of a rank of this node contains a complete step."""

    key: CellKey
    step: int
    since_s: float = field(default_factory=time.monotonic)
    """When it was."""


@dataclass(frozen=True)
class Reported:
    """The report of a step, to be kept by the peers too."""

    key: CellKey
    step: int
    data: bytes


@dataclass(frozen=True)
class _Told:
    """The peers of a generation have been set or changed."""


Work = Filled | Reported | ShardOrder | _Told


class Replication:
    """`put` never blocks. Its own threads do the work, until `close`."""

    def __init__(
        self,
        copies: Callable[[], Copies],
        find: Callable[[CellKey], Held | None],
        newest: Callable[[], int],
        memory_left: Callable[[], int],
        spent: CpuTime,
        totals: CopyTotals,
    ) -> None:
        """`copies` makes what one thread copies with, `find` gives what the vault holds, `newest` the newest generation
        it has heard of, `memory_left` the bytes that this host could still give."""
        self._make_copies, self._find, self._newest, self._memory_left = copies, find, newest, memory_left
        self._spent = spent
        self.totals = totals
        """Counts what has been copied."""
        self._writer = ShardWriterThread()
        self._ordering = threading.Lock()
        """Two lanes must not both take the memory that is left for one copy."""
        self._peers: dict[int, tuple[str, ...]] = {}
        self._lock = threading.Lock()
        self._lanes: dict[int, _Lane] = {}
        """By number; those that have had something to do."""

    def put(self, work: Filled | Reported | ShardOrder) -> None:
        """Have something done, after what was put before for the same rank."""
        rank = work.rank if isinstance(work, ShardOrder) else work.key.rank
        with self._lock:
            number = rank % LANES
            lane = self._lanes.get(number)
            if lane is None:
                lane = self._lanes[number] = _Lane(self, self._make_copies(), number)
        lane.work.put(work)

    def written(self, generation: int, step: int) -> list[ShardAnswer]:
        """The progress and results of the shards of a step that were ordered here."""
        return self._writer.answers(generation, step)

    def set_peers(self, generation: int, addresses: Collection[str]) -> None:
        """Set where the states of a generation are copied from now on."""
        with self._lock:
            self._peers[generation] = tuple(addresses)
            lanes = list(self._lanes.values())
        for lane in lanes:
            lane.work.put(_Told())

    def forget(self, before: int, gone: list[CellKey]) -> None:
        """Generations before one have ended; `gone`: their cells."""
        with self._lock:
            self._peers = {generation: to for generation, to in self._peers.items() if generation >= before}
            lanes = list(self._lanes.values())
        for lane in lanes:
            lane.copies.forget(gone)

    @property
    def last_problem(self) -> str:
        """Why a copy did not arrive, the last time one of a rank's lane did not."""
        with self._lock:
            lanes = list(self._lanes.values())
        return next((lane.copies.last_problem for lane in lanes if lane.copies.last_problem), "")

    def close(self) -> None:
        """Do what was put, then end."""
        with self._lock:
            lanes = list(self._lanes.values())
        for lane in lanes:
            lane.work.put(None)
        self._writer.close()

    def peers_of(self, key: CellKey) -> tuple[str, ...] | None:
        """Where the states of a generation go; None if the driver has not set it yet. Called by lanes."""
        with self._lock:
            return self._peers.get(key.generation)

    def find(self, key: CellKey) -> Held | None:
        """What the vault holds."""
        return self._find(key)

    def newest(self) -> int:
        """The newest generation that was heard of."""
        return self._newest()

    @property
    def spent(self) -> CpuTime:
        """What copies have cost so far."""
        return self._spent

    def order(self, order: ShardOrder) -> None:
        """Copy a slot for the writer. In the thread of the rank's lane: the slot is written again only when a later
        step is replicated, which is after this."""
        with self._ordering:
            self._order(order)

    def _order(self, order: ShardOrder) -> None:
        held = self._find(CellKey(order.generation, order.rank))
        reason = f"the state of step {order.step} is no longer in the vault"
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


class _Lane:
    """A thread that does the work for some of the ranks, in order."""

    def __init__(self, of: Replication, copies: Copies, number: int) -> None:
        self._of, self.copies = of, copies
        self.work: queue.Queue[Work | None] = queue.Queue()
        self._late: dict[CellKey, tuple[Filled, float]] = {}
        """Slots whose copies have not arrived, and when to try again."""
        LastingThread(f"vault-replicate-{number}", self._turn, self._note)

    def _turn(self) -> bool:
        self._try_again()
        try:
            work = self.work.get(timeout=RETRY_S if self._late else None)
        except queue.Empty:
            return True
        match work:
            case None:
                self.copies.close()
                return False
            case ShardOrder():
                self._of.order(work)
            case Filled():
                self._bring(work)
            case Reported(key, step, data):
                for peer in self._of.peers_of(key) or ():
                    self.copies.report(peer, key, step, data)
            case _Told():
                self._late = {key: (filled, 0.0) for key, (filled, _) in self._late.items()}
        return True

    def _bring(self, filled: Filled) -> None:
        """Copy a step to all peers; it is late while that has not succeeded."""
        key = filled.key
        peers, held = self._of.peers_of(key), self._of.find(key)
        self._late.pop(key, None)
        if held is None:
            return
        self._late[key] = filled, time.monotonic() + RETRY_S
        if peers is not None and self._copied(filled, held, peers):
            self._late.pop(key)

    def _copied(self, filled: Filled, held: Held, peers: tuple[str, ...]) -> bool:
        """Whether nothing is left to do for a step: all peers have it, or it is not there any more."""
        key, step = filled.key, filled.step
        try:
            with held.in_use() as cell:
                if cell.slot_of(step) is None:
                    return True
                started_s = time.thread_time()
                arrived = [self.copies.bring(peer, key, held, step) for peer in peers]  # to each, whatever the others
                self._of.spent.add(started_s)
                if all(arrived):
                    cell.spent_us = int(self._of.spent.seconds * 1e6)
                    cell.replicated_step = step
                    seconds = time.monotonic() - filled.since_s
                    self._of.totals.replicated(cell.size.payload_bytes, len(peers), seconds)
                return all(arrived)
        except FreedError:
            return True

    def _try_again(self) -> None:
        """Retry late copies of the present generation; nothing waits for those of earlier ones."""
        now_s = time.monotonic()
        for key, (filled, due_s) in list(self._late.items()):
            if key.generation < self._of.newest():
                del self._late[key]
            elif due_s <= now_s:
                self._bring(filled)

    def _note(self, problem: str) -> None:
        self.copies.last_problem = problem
