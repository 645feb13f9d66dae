"""A node's vault: keeps the state of the node's own ranks and of its peers' in memory that outlives the workers.

Runs in a process of its own. A worker asks for a cell, copies its state into one of the cell's slots after a step
and says so; the vault sends that slot to the vaults of its peers, off the training path, and notes in the cell what
has arrived everywhere. Whoever restores reads ranges. What is whole, and what to go on from, is decided by whoever
asks all vaults (`inventory`): a vault only knows what it holds.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from orchestrator.checkpoint.memory import frames
from orchestrator.checkpoint.memory.cells import Cell, CellSize
from orchestrator.checkpoint.memory.copies import Copies, CpuTime
from orchestrator.checkpoint.memory.copy_totals import CopyTotals
from orchestrator.checkpoint.memory.fencing import end_writers
from orchestrator.checkpoint.memory.held import CellKey, FreedError, Held
from orchestrator.checkpoint.memory.numa import preferring
from orchestrator.checkpoint.memory.peers import descriptor_path
from orchestrator.checkpoint.memory.recent_reports import Reports
from orchestrator.checkpoint.memory.replication import Filled, Replication, Reported
from orchestrator.checkpoint.memory.stripes import Arrivals
from orchestrator.checkpoint.memory.vault_server import Handler, VaultServer
from orchestrator.checkpoint.memory.vault_writer import ShardOrder
from orchestrator.checkpoint.memory.wire import Channel, WireError
from orchestrator.domain.lease import first_generation, token_of
from orchestrator.json_values import JsonObject, integer
from orchestrator.planner.state_size import SLOTS

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
        self._spent, self._totals = CpuTime(), CopyTotals()
        self._cells: dict[CellKey, Held] = {}
        self._lock = threading.Lock()
        self._reports = Reports()
        self._arrivals = Arrivals()
        self.asked_s = time.monotonic()
        """When a driver last asked for something."""
        self._newest = 0
        """The newest generation that was heard of."""
        self._fence = 0
        """Generations before this one are over: nothing of theirs is taken any more. Read and raised under the lock by
        whatever changes cells, so that nothing of theirs is changed after it was raised."""
        self._ready = threading.Event()
        """Everything below is there: a request may come before the constructor returns."""
        self._server = VaultServer(host, token, self._handle)
        self.address = self._server.address
        self._replication = Replication(
            lambda: Copies(self.address, token, shares, self._spent),
            self._look_up,
            lambda: self._newest,
            memory_left,
            self._spent,
            self._totals,
        )
        self._ready.set()

    @property
    def last_problem(self) -> str:
        """What is wrong: why connections are not taken at present, or else why a copy did not arrive the last time one
        did not."""
        return self._server.problem or self._replication.last_problem

    @property
    def deaf_s(self) -> float:
        """See `VaultServer.deaf_s`."""
        return self._server.deaf_s

    def close(self) -> None:
        """Hang up, and give all memory back."""
        self._replication.close()
        self._server.close()
        with self._lock:
            cells, self._cells = self._cells, {}
        for held in cells.values():
            held.free()

    # Frames -------------------------------------------------------------------------------------------------------

    def _handle(self, channel: Channel, frame: JsonObject) -> None:
        handlers: dict[str, Handler] = {
            "ping": lambda channel, _: channel.send({}),
            "create": frames.handling(frames.CreateRequest, self._on_create),
            "filled": frames.handling(frames.FilledRequest, self._on_filled),
            "store": frames.handling(frames.StoreRequest, self._on_store),
            "written": frames.handling(frames.WrittenRequest, self._on_written),
            "peers": frames.handling(frames.PeersRequest, self._on_peers),
            "copy": frames.handling(frames.CopyRequest, self._on_copy),
            "stripe": frames.handling(frames.StripeRequest, self._on_stripe),
            "whole": frames.handling(frames.WholeRequest, self._on_whole),
            "share": frames.handling(frames.ShareRequest, self._on_share),
            "inventory": frames.handling(frames.InventoryRequest, self._on_inventory),
            "describe": frames.handling(frames.DescribeRequest, self._on_describe),
            "read": frames.handling(frames.ReadRequest, self._on_read),
            "forget": frames.handling(frames.ForgetRequest, self._on_forget),
            "fence": frames.handling(frames.FenceRequest, self._on_fence),
            "report": frames.handling(frames.ReportRequest, self._on_report),
            "reports": frames.handling(frames.ReportsRequest, self._on_reports),
        }
        self._ready.wait()
        what = str(frame.get("do"))
        if what in _DRIVERS:
            self.asked_s = time.monotonic()
        self._hear_of(integer(frame, "generation") if "generation" in frame else 0)
        handler = handlers.get(what)
        if handler is None:
            raise WireError(f"unknown request {frame.get('do')!r}")
        handler(channel, frame)

    def _hear_of(self, generation: int) -> None:
        """Note a generation that a request names. Its driver has a lease: if the token is higher than all before it,
        requests of earlier drivers and of their gangs are refused from now on."""
        if generation <= self._newest:
            return
        with self._lock:
            self._newest = max(self._newest, generation)
            self._fence = max(self._fence, first_generation(token_of(generation)))

    def _on_create(self, channel: Channel, frame: frames.CreateRequest) -> None:
        """A cell for a rank of this node; answers with the descriptor to map."""
        index = channel.take(frame["bytes"])
        try:
            self._require_current(frame)
            held = self._make(frame, index, own=True)
        except OSError as error:
            channel.send({"error": str(error)})
            return
        channel.send({"descriptor": held.cell.descriptor})

    def _on_filled(self, _: Channel, frame: frames.FilledRequest) -> None:
        """A slot of a rank of this node is whole. Not answered: the worker goes on."""
        self._require_current(frame)
        held = self._cells.get(_key(frame))
        if held is not None:
            self._totals.snapshot(held.cell.size.payload_bytes)
        self._replication.put(Filled(_key(frame), int(frame["step"])))

    def _on_report(self, channel: Channel, frame: frames.ReportRequest) -> None:
        """Rank 0 has finished a step; so says itself, or its vault. Not answered."""
        data = channel.take(frame["bytes"])
        self._require_current(frame)
        self._reports.put(int(frame["step"]), data)
        if not frame["copy"]:
            self._replication.put(Reported(_key(frame), int(frame["step"]), data))

    def _on_reports(self, channel: Channel, frame: frames.ReportsRequest) -> None:
        """Reports of the steps after one."""
        found = self._reports.after(int(frame["after"]))
        channel.send({"sizes": [len(data) for data in found]}, b"".join(found))

    def _on_store(self, _: Channel, frame: frames.StoreRequest) -> None:
        """A slot of a rank of this node is to be written to storage. Not answered; see `written`."""
        self._require_current(frame)
        self._replication.put(
            ShardOrder(
                generation=frame["generation"],
                rank=frame["rank"],
                step=frame["step"],
                place=frame["place"],
                name=frame["name"],
                tag=frame["tag"],
                extra=frame["extra"],
            )
        )

    def _on_written(self, channel: Channel, frame: frames.WrittenRequest) -> None:
        """What has come of the shards of a step that were ordered here."""
        channel.send({"shards": self._replication.written(int(frame["generation"]), int(frame["step"]))})

    def _on_peers(self, channel: Channel, frame: frames.PeersRequest) -> None:
        """Where the states of a generation are to be copied."""
        try:
            self._require_current(frame)
        except WireError as error:
            channel.send({"error": str(error)})
            return
        self._replication.set_peers(int(frame["generation"]), frame["addresses"])
        channel.send({})

    def _on_copy(self, channel: Channel, frame: frames.CopyRequest) -> None:
        """A peer's slot arrives: index (unless it is known), small state, and the payload, or `striped` a ticket for
        its stripes."""
        index = channel.take(frame["index_bytes"])
        held = self._cells.get(_key(frame))
        try:
            self._require_current(frame)
            if held is None or held.shared:
                held = self._make(frame, index, own=False)
        except OSError as error:
            channel.send({"error": str(error)})
            raise WireError("refused") from error  # the payload is on its way: hang up
        slot, started_s = int(frame["slot"]), time.thread_time()
        if frame.get("striped"):
            state = channel.take(frame["state_bytes"])
            try:
                changing = self._changing(frame)
                ticket = self._arrivals.begin(_key(frame), held, slot, int(frame["step"]), state, changing)
            except OSError as error:
                channel.send({"error": str(error)})
            else:
                channel.send({"ticket": ticket})
            return
        with held.in_use() as cell:
            with self._changing(frame):
                payload = cell.begin(slot)
            state = channel.take(frame["state_bytes"])
            channel.take_into(payload)
            payload.release()
            with self._changing(frame):
                cell.finish(slot, int(frame["step"]), state)
        self._spent.add(started_s)
        channel.send({})

    def _on_stripe(self, channel: Channel, frame: frames.StripeRequest) -> None:
        """A part of a slot whose arrival was begun."""
        started_s = time.thread_time()
        try:
            self._require_current(frame)
            self._arrivals.receive(_key(frame), int(frame["ticket"]), channel, int(frame["offset"]), frame["bytes"])
        except OSError as error:
            channel.send({"error": str(error)})
            raise WireError("refused") from error  # what is on its way of the stripe is never taken: hang up
        finally:
            self._spent.add(started_s)
        channel.send({})

    def _on_whole(self, channel: Channel, frame: frames.WholeRequest) -> None:
        """All stripes of a slot have been sent."""
        try:
            with self._changing(frame):
                self._arrivals.finish(_key(frame), int(frame["ticket"]))
        except OSError as error:
            channel.send({"error": str(error)})
            return
        channel.send({})

    def _on_share(self, channel: Channel, frame: frames.ShareRequest) -> None:
        """A peer of this host has filled a slot of memory that we hold, or are to hold, too."""
        index, key = channel.take(frame["index_bytes"]), _key(frame)
        held = self._cells.get(key)
        try:
            self._require_current(frame)
            if held is None or held.cell.serial != int(frame["serial"]):
                held = self._join(frame, index)
            with held.in_use() as cell:
                known = cell.slot_of(int(frame["step"])) is not None
        except (OSError, ValueError) as error:
            channel.send({"error": str(error)})
            return
        channel.send({} if known else {"error": f"step {frame['step']} is no longer available"})

    def _on_inventory(self, channel: Channel, _: frames.InventoryRequest) -> None:
        """Everything whole that lies here."""
        with self._lock:
            cells = dict(self._cells)
        found, memory_bytes, queued_bytes = [], 0, 0
        for key, held in cells.items():
            with contextlib.suppress(FreedError), held.in_use() as cell:
                memory_bytes += 0 if held.shared else cell.size.total_bytes
                of = {"generation": key.generation, "rank": key.rank, "world_size": held.world_size, "own": held.own}
                steps = [step for slot in range(SLOTS) if (step := cell.step(slot)) >= 0]
                found += [{**of, "step": step, "bytes": cell.size.payload_bytes} for step in steps]
                late = held.own and key.generation == self._newest and cell.replicated_step < max(steps, default=-1)
                queued_bytes += cell.size.payload_bytes if late else 0
        facts = {"memory_bytes": memory_bytes, "problem": self.last_problem, "generation": self._newest}
        channel.send({"held": found, "copies": self._totals.figures(queued_bytes).to_json(), **facts})

    def _on_describe(self, channel: Channel, frame: frames.DescribeRequest) -> None:
        """The index and the small state of a slot."""
        try:
            with self._found(frame) as (held, cell, slot):
                state = cell.state(slot)
                where = {"descriptor": cell.descriptor, "slot": slot, "serial": cell.serial}
                size = {"payload_bytes": cell.size.payload_bytes, "slot_state_bytes": cell.size.state_bytes}
                channel.send({**where, **size, "state_bytes": len(state)}, state + held.index)
        except FreedError:
            channel.send({"error": "not here"})

    def _on_read(self, channel: Channel, frame: frames.ReadRequest) -> None:
        """Bytes [offset, offset + length) of a slot's payload."""
        offset, length = int(frame["offset"]), int(frame["length"])
        try:
            with self._found(frame) as (_, cell, slot):
                if not 0 <= offset <= offset + length <= cell.size.payload_bytes:
                    raise FreedError("there is no such range")
                channel.send_file({}, b"", cell.descriptor, cell.payload_position(slot) + offset, length)
        except FreedError:
            channel.send({"error": "not here"})

    def _on_forget(self, channel: Channel, frame: frames.ForgetRequest) -> None:
        """Free the cells of generations before one. An earlier driver is refused."""
        before = int(frame["before"])
        try:
            self._require_current({"generation": before})
        except WireError as error:
            channel.send({"error": str(error)})
            return
        with self._lock:
            self._fence = max(self._fence, before)  # or a copy that is on its way would be held for good
            gone = [key for key in self._cells if key.generation < before]
            cells = [self._cells.pop(key) for key in gone]
        self._replication.forget(before, gone)
        self._arrivals.forget(before)
        for held in cells:
            held.free()
        channel.send({})

    def _on_fence(self, channel: Channel, frame: frames.FenceRequest) -> None:
        """Another driver takes over: what is left of the gangs before its first generation must not write any more.

        Answers with the pids of workers that had to be ended, and of those that could not be.
        """
        before = int(frame["generation"])
        with self._lock:
            self._fence = max(self._fence, before)
            old = [held for key, held in self._cells.items() if key.generation < before and held.writer]
        ended, left = end_writers([(held.writer, held.cell.descriptor) for held in old])
        channel.send({"ended": ended, "left": left})

    @contextlib.contextmanager
    def _changing(self, frame: frames.GenerationFields) -> Iterator[None]:
        """A cell is changed within, briefly: the fence cannot be raised meanwhile. Raises WireError if the frame's
        generation is over."""
        with self._lock:
            self._require_current(frame)
            yield

    def _require_current(self, frame: frames.GenerationFields) -> None:
        if int(frame["generation"]) < self._fence:
            raise WireError(f"generation {frame['generation']} is over: a later one has replaced it")

    def _look_up(self, key: CellKey) -> Held | None:
        return self._cells.get(key)

    @contextlib.contextmanager
    def _found(self, frame: frames.StepFields) -> Iterator[tuple[Held, Cell, int]]:
        """What is held of a step, its cell for use within, and its slot. Raises FreedError when it is not here."""
        held = self._cells.get(_key(frame))
        if held is None:
            raise FreedError("not here")
        with held.in_use() as cell:
            slot = cell.slot_of(int(frame["step"]))
            if slot is None:
                raise FreedError("not here")
            yield held, cell, slot

    def _make(self, frame: frames.CellFields, index: bytes, own: bool) -> Held:
        size = CellSize(int(frame["payload_bytes"]), int(frame["slot_state_bytes"]))
        left_bytes = self._memory_left()
        if size.total_bytes > left_bytes:
            raise OSError(
                f"no room for {'the state' if own else 'the copy'} of rank {frame['rank']}: it takes "
                f"{size.total_bytes >> 20} MiB, {max(0, left_bytes) >> 20} MiB are available"
            )
        key = _key(frame)
        writer = int(frame.get("pid", 0)) if own else 0
        with preferring(frame.get("numa_node")):
            cell = Cell.create(size, f"{key.generation}-{key.rank}", writes=not own)
        held = Held(cell, int(frame["world_size"]), index, own, writer)
        return self._hold(frame, held)

    def _join(self, frame: frames.ShareRequest, index: bytes) -> Held:
        """Hold memory of another vault of this host. Raises OSError, ValueError where it cannot be reached."""
        size = CellSize(int(frame["payload_bytes"]), int(frame["slot_state_bytes"]))
        cell = Cell.attach(descriptor_path(int(frame["pid"]), int(frame["descriptor"])), size, writes=False)
        if cell.serial != int(frame["serial"]) or not index:
            cell.close()
            raise ValueError("that is a different cell")
        return self._hold(frame, Held(cell, int(frame["world_size"]), index, own=False, shared=True))

    def _hold(self, frame: frames.StateFields, held: Held) -> Held:
        key = _key(frame)
        try:
            with self._changing(frame):
                before, self._cells[key] = self._cells.get(key), held
        except WireError:
            held.free()
            raise
        if before is not None:
            before.free()
        return held


def _key(frame: frames.StateFields) -> CellKey:
    return CellKey(int(frame["generation"]), int(frame["rank"]))
