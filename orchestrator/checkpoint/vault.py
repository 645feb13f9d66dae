"""A node's vault: keeps the state of the node's own ranks and of its peers' in memory that outlives the workers.

Runs in a process of its own. A worker asks for a cell, copies its state into one of the cell's slots after a step
and says so; the vault sends that slot to the vaults of its peers, off the training path, and notes in the cell what
has arrived everywhere. Whoever restores reads ranges. What is whole, and what to go on from, is decided by whoever
asks all vaults (`inventory`): a vault only knows what it holds.
"""

import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from orchestrator.checkpoint.cells import SLOTS, Cell, CellSize
from orchestrator.checkpoint.copies import Copies
from orchestrator.checkpoint.fencing import end_writers
from orchestrator.checkpoint.held import CellKey, Held
from orchestrator.checkpoint.peers import descriptor_path
from orchestrator.checkpoint.reports import Reports
from orchestrator.checkpoint.wire import Channel, Server, WireError
from orchestrator.checkpoint.writing import ShardOrder, ShardWriterThread

RETRY_S = 1.0
"""From a copy that did not arrive to the next attempt, where there is nothing else to do."""
_COPY_BYTES = 1 << 20
_DRIVERS = frozenset({"ping", "peers", "inventory", "forget", "fence"})
"""What only a driver asks."""


class Vault:
    """Everything one node holds for a run. `serve` gives it a port; every method may be called from any thread."""

    def __init__(self, host: str, token: str, memory_left: Callable[[], int], shares: bool = False) -> None:
        """`memory_left` says how many bytes this host could still give; a cell that would not fit is refused.

        `shares`: peers on this very host get hold of a cell's memory itself, in place of copies of it: several nodes
        on one machine lose all of it together anyway, and each alone, whatever way it ends, leaves it to the others.
        """
        self._memory_left = memory_left
        self._spent_s = 0.0
        """CPU time of copies, sent and received."""
        self._cells: dict[CellKey, Held] = {}
        self._lock = threading.Lock()
        self._filled: queue.Queue[tuple[CellKey, int, bytes | None] | ShardOrder | None] = queue.Queue()
        """What peers are to have, a step of a cell or the report of a step; or a slot that is to be written."""
        self._writer = ShardWriterThread()
        self._reports = Reports()
        self._peers: dict[int, tuple[str, ...]] = {}
        self._late: dict[CellKey, tuple[int, float]] = {}
        """Steps whose copies did not arrive, and when to try again. The replicating thread's own."""
        self.asked_s = time.monotonic()
        """When a driver last asked for something."""
        self._newest = 0
        """The newest generation that was heard of."""
        self._fence = 0
        """Generations before this one are over: nothing of theirs is taken any more."""
        self._server = Server(host, token, self._handle)
        self.address = self._server.address
        self._copies = Copies(self.address, token, shares)
        threading.Thread(target=self._replicate, name="vault-replicate", daemon=True).start()

    @property
    def last_problem(self) -> str:
        """Why a copy did not arrive, the last time one did not."""
        return self._copies.last_problem

    def close(self) -> None:
        """Hang up, and give all memory back."""
        self._filled.put(None)
        self._writer.close()
        self._server.close()
        with self._lock:
            cells, self._cells = self._cells, {}
        for held in cells.values():
            held.cell.close()

    # Frames -------------------------------------------------------------------------------------------------------

    def _handle(self, channel: Channel, frame: dict[str, Any]) -> None:
        handlers: dict[str, Callable[[Channel, dict[str, Any]], None]] = {
            "ping": lambda channel, _: channel.send({}),
            "create": self._on_create,
            "filled": self._on_filled,
            "store": self._on_store,
            "written": self._on_written,
            "peers": self._on_peers,
            "copy": self._on_copy,
            "share": self._on_share,
            "inventory": self._on_inventory,
            "describe": self._on_describe,
            "read": self._on_read,
            "forget": self._on_forget,
            "fence": self._on_fence,
            "report": self._on_report,
            "reports": self._on_reports,
        }
        what = str(frame.get("do"))
        if what in _DRIVERS:
            self.asked_s = time.monotonic()
        self._newest = max(self._newest, int(frame.get("generation", 0)))
        handler = handlers.get(what)
        if handler is None:
            raise WireError(f"unknown request {frame.get('do')!r}")
        handler(channel, frame)

    def _on_create(self, channel: Channel, frame: dict[str, Any]) -> None:
        """A cell for a rank of this node; answers with the descriptor to map."""
        index = channel.take(frame["bytes"])
        try:
            self._require_current(frame)
            held = self._make(frame, index, own=True)
        except OSError as error:
            channel.send({"error": str(error)})
            return
        channel.send({"descriptor": held.cell.descriptor})

    def _on_filled(self, _: Channel, frame: dict[str, Any]) -> None:
        """A slot of a rank of this node is whole. Not answered: the worker goes on."""
        self._require_current(frame)
        self._filled.put((_key(frame), int(frame["step"]), None))

    def _on_report(self, channel: Channel, frame: dict[str, Any]) -> None:
        """Rank 0 has finished a step; so says itself, or its vault. Not answered."""
        data = channel.take(frame["bytes"])
        self._require_current(frame)
        self._reports.put(int(frame["step"]), data)
        if not frame["copy"]:
            self._filled.put((_key(frame), int(frame["step"]), data))

    def _on_reports(self, channel: Channel, frame: dict[str, Any]) -> None:
        """Reports of the steps after one."""
        found = self._reports.after(int(frame["after"]))
        channel.send({"sizes": [len(data) for data in found]}, b"".join(found))

    def _on_store(self, _: Channel, frame: dict[str, Any]) -> None:
        """A slot of a rank of this node is to be written to storage. Not answered; see `written`."""
        fields = {name: frame[name] for name in ("generation", "rank", "step", "place", "name", "tag", "extra")}
        self._filled.put(ShardOrder(**fields))

    def _on_written(self, channel: Channel, frame: dict[str, Any]) -> None:
        """What has come of the shards of a step that were ordered here."""
        channel.send({"shards": self._writer.answers(int(frame["generation"]), int(frame["step"]))})

    def _on_peers(self, channel: Channel, frame: dict[str, Any]) -> None:
        """Where the states of a generation are to be copied."""
        with self._lock:
            self._peers[int(frame["generation"])] = tuple(frame["addresses"])
        channel.send({})

    def _on_copy(self, channel: Channel, frame: dict[str, Any]) -> None:
        """A peer's slot arrives: index (where new), small state, payload."""
        index = channel.take(frame["index_bytes"])
        key = _key(frame)
        held = self._cells.get(key)
        if held is None or held.shared:
            try:
                self._require_current(frame)
                held = self._make(frame, index, own=False)
            except OSError as error:
                channel.send({"error": str(error)})
                raise WireError("refused") from error  # the payload is on its way: hang up
        slot, started_s = int(frame["slot"]), time.thread_time()
        payload = held.cell.begin(slot)
        state = channel.take(frame["state_bytes"])
        channel.take_into(payload)
        held.cell.finish(slot, int(frame["step"]), state)
        self._spend(started_s)
        channel.send({})

    def _on_share(self, channel: Channel, frame: dict[str, Any]) -> None:
        """A peer of this host has filled a slot of memory that we hold, or are to hold, too."""
        index, key = channel.take(frame["index_bytes"]), _key(frame)
        held = self._cells.get(key)
        if held is None or held.cell.serial != int(frame["serial"]):
            try:
                self._require_current(frame)
                held = self._join(frame, index)
            except (OSError, ValueError) as error:
                channel.send({"error": str(error)})
                return
        known = held.cell.slot_of(int(frame["step"])) is not None
        channel.send({} if known else {"error": f"step {frame['step']} is not there any more"})

    def _on_inventory(self, channel: Channel, _: dict[str, Any]) -> None:
        """Everything whole that lies here."""
        with self._lock:
            cells = dict(self._cells)
        found = [
            {
                "generation": key.generation,
                "rank": key.rank,
                "world_size": held.world_size,
                "step": step,
                "own": held.own,
                "bytes": held.cell.size.payload_bytes,
            }
            for key, held in cells.items()
            for slot in range(SLOTS)
            if (step := held.cell.step(slot)) >= 0
        ]
        memory_bytes = sum(held.cell.size.total_bytes for held in cells.values() if not held.shared)
        channel.send(
            {
                "held": found,
                "memory_bytes": memory_bytes,
                "problem": self.last_problem,
                "generation": self._newest,
            }
        )

    def _on_describe(self, channel: Channel, frame: dict[str, Any]) -> None:
        """The index and the small state of a slot."""
        held, slot = self._find(frame)
        if held is None or slot is None:
            channel.send({"error": "not here"})
            return
        state = held.cell.state(slot)
        pid_path = {"descriptor": held.cell.descriptor, "slot": slot}
        size = {"payload_bytes": held.cell.size.payload_bytes, "slot_state_bytes": held.cell.size.state_bytes}
        channel.send({**pid_path, **size, "state_bytes": len(state)}, state + held.index)

    def _on_read(self, channel: Channel, frame: dict[str, Any]) -> None:
        """Bytes [offset, offset + length) of a slot's payload."""
        held, slot = self._find(frame)
        offset, length = int(frame["offset"]), int(frame["length"])
        if held is None or slot is None or not 0 <= offset <= offset + length <= held.cell.size.payload_bytes:
            channel.send({"error": "not here"})
            return
        channel.send_file({}, b"", held.cell.descriptor, held.cell.payload_position(slot) + offset, length)

    def _on_forget(self, channel: Channel, frame: dict[str, Any]) -> None:
        """Free the cells of generations before one."""
        before = int(frame["before"])
        with self._lock:
            gone = [key for key in self._cells if key.generation < before]
            cells = [self._cells.pop(key) for key in gone]
            self._copies.forget(gone)
            self._peers = {generation: to for generation, to in self._peers.items() if generation >= before}
        for held in cells:
            held.cell.close()
        channel.send({})

    def _on_fence(self, channel: Channel, frame: dict[str, Any]) -> None:
        """Another driver takes over: what is left of the gangs before its first generation must not write any more.

        Answers with the pids of workers that had to be ended, and of those that could not be.
        """
        before = int(frame["generation"])
        with self._lock:
            self._fence = max(self._fence, before)
            old = [held for key, held in self._cells.items() if key.generation < before and held.writer]
        ended, left = end_writers([(held.writer, held.cell.descriptor) for held in old])
        channel.send({"ended": ended, "left": left})

    def _require_current(self, frame: dict[str, Any]) -> None:
        if int(frame["generation"]) < self._fence:
            raise WireError(f"generation {frame['generation']} is over: another driver has taken the run over")

    def _find(self, frame: dict[str, Any]) -> tuple[Held | None, int | None]:
        held = self._cells.get(_key(frame))
        return held, held.cell.slot_of(int(frame["step"])) if held is not None else None

    def _make(self, frame: dict[str, Any], index: bytes, own: bool) -> Held:
        size = CellSize(int(frame["payload_bytes"]), int(frame["slot_state_bytes"]))
        left_bytes = self._memory_left()
        if size.total_bytes > left_bytes:
            raise OSError(
                f"no room for {'the state' if own else 'the copy'} of rank {frame['rank']}: it takes "
                f"{size.total_bytes >> 20} MiB, {max(0, left_bytes) >> 20} MiB can be had"
            )
        key = _key(frame)
        writer = int(frame.get("pid", 0)) if own else 0
        held = Held(Cell.create(size, f"{key.generation}-{key.rank}"), int(frame["world_size"]), index, own, writer)
        return self._hold(key, held)

    def _join(self, frame: dict[str, Any], index: bytes) -> Held:
        """Hold memory of another vault of this host. Raises OSError, ValueError where it cannot be reached."""
        size = CellSize(int(frame["payload_bytes"]), int(frame["slot_state_bytes"]))
        cell = Cell.attach(descriptor_path(int(frame["pid"]), int(frame["descriptor"])), size)
        if cell.serial != int(frame["serial"]) or not index:
            cell.close()
            raise ValueError("that is another cell")
        return self._hold(_key(frame), Held(cell, int(frame["world_size"]), index, own=False, shared=True))

    def _hold(self, key: CellKey, held: Held) -> Held:
        with self._lock:
            before, self._cells[key] = self._cells.get(key), held
        if before is not None:
            before.cell.close()
        return held

    def _spend(self, since_s: float) -> None:
        """Count CPU time of this thread."""
        with self._lock:
            self._spent_s += time.thread_time() - since_s

    # Replication --------------------------------------------------------------------------------------------------

    def _replicate(self) -> None:
        while True:
            self._try_again()
            try:
                item = self._filled.get(timeout=RETRY_S if self._late else None)
            except queue.Empty:
                continue
            if item is None:
                return
            if isinstance(item, ShardOrder):
                self._order(item)
                continue
            key, step, report = item
            peers = self._peers.get(key.generation)
            if peers is None:
                continue
            if report is not None:
                for peer in peers:
                    self._copies.report(peer, key, step, report)
                continue
            self._replicate_step(key, step, peers)

    def _replicate_step(self, key: CellKey, step: int, peers: tuple[str, ...]) -> None:
        """Copy a step to all peers. Where that fails it is tried again: the workers take no other snapshot until it has
        arrived, so one that never did would leave them without any."""
        self._late.pop(key, None)
        held = self._cells.get(key)
        if held is None or held.cell.slot_of(step) is None:
            return
        started_s = time.thread_time()
        arrived = [self._copies.bring(peer, key, held, step) for peer in peers]  # to each, whatever comes of the others
        self._spend(started_s)
        if all(arrived):
            held.cell.spent_us = int(self._spent_s * 1e6)
            held.cell.replicated_step = step
        else:
            self._late[key] = step, time.monotonic() + RETRY_S

    def _try_again(self) -> None:
        """Copies that did not arrive, of the generation that is; those of others have other peers by now, or none."""
        now_s = time.monotonic()
        for key, (step, due_s) in list(self._late.items()):
            if key.generation < self._newest:
                del self._late[key]
            elif due_s <= now_s:
                self._replicate_step(key, step, self._peers.get(key.generation, ()))

    def _order(self, order: ShardOrder) -> None:
        """Copy a slot for the writer. In this thread: the slot is written again only when a later step is replicated,
        which is after this."""
        held = self._cells.get(CellKey(order.generation, order.rank))
        slot = held.cell.slot_of(order.step) if held is not None else None
        if held is None or slot is None:
            self._writer.refuse(order, f"the state of step {order.step} is not in the vault any more")
        elif held.cell.size.payload_bytes > self._memory_left():
            self._writer.refuse(order, f"no memory to copy the {held.cell.size.payload_bytes >> 20} MiB of a shard")
        else:
            self._writer.order(order, held.cell.payload(slot), held.cell.state(slot), held.index)


def _key(frame: dict[str, Any]) -> CellKey:
    return CellKey(int(frame["generation"]), int(frame["rank"]))
