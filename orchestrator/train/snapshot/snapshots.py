"""The training side of the vault: after a step, copy this rank's flat partitions into its node's shared memory.

`staging` copies them and reports when that is complete. Then the slot holds the step, and the vault is notified; small
state is captured when the copy begins.
"""

import json
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

import torch

from orchestrator.checkpoint.format.dtypes import storage_dtype
from orchestrator.checkpoint.format.intervals import Kind, Range
from orchestrator.checkpoint.format.shard import CHUNK_BYTES, Interval, ShardIndex
from orchestrator.checkpoint.memory.cells import Cell, CellSize
from orchestrator.checkpoint.memory.frames import CreateAnswer, CreateRequest, decode
from orchestrator.checkpoint.memory.peers import CellIndex, SmallState, descriptor_path
from orchestrator.checkpoint.memory.wire import Channel
from orchestrator.domain.session import VaultAccess
from orchestrator.domain.tick import Tick, no_tick
from orchestrator.json_values import JsonObject
from orchestrator.planner.state_size import SLOTS
from orchestrator.train.engine.engine_types import Engine
from orchestrator.train.snapshot.staging import Copy, Staging, staging_for
from orchestrator.train.zero.zero_layout import dtype_name
from orchestrator.train.zero.zero_state import CapturedState, EngineState

NO_VAULT = -2
"""`replicated_step` of a rank that cannot take a snapshot yet."""
_ALIGNMENT = 64
_SPARE_STATE_BYTES = 16 << 10
_TIMEOUT_S = 30.0
FLUSH_LIMIT_S = 60.0
"""How long training waits at a step boundary for a snapshot that must be in the vault before it continues."""
_PIECE_BYTES = 64 << 20
"""What is copied between two signs of progress. The first copy faults the slot's pages in, at a tenth of the speed."""


@dataclass(frozen=True)
class _Chunk:
    """Elements [first, last) of a captured flat go to byte `offset` of the payload."""

    flat: int
    first: int
    last: int
    offset: int


class Snapshots:
    """One rank's snapshots in one generation. All calls are the training thread's, at step boundaries but for `fence`.

    The vault is asked for memory in the background: until it has answered, `replicated_step` says NO_VAULT. A vault
    that refuses or dies, or a copy that fails, leaves it so, with `problem` set: training continues without snapshots.
    """

    def __init__(
        self,
        engine: Engine,
        access: VaultAccess,
        rank: int,
        world_size: int,
        tick: Tick = no_tick,
        staging: Staging | None = None,
    ) -> None:
        """`tick`: called after each piece that is copied. `staging`: how; default: what suits the engine's device."""
        self._engine, self._access = engine, access
        self._staging = staging if staging is not None else staging_for(engine.device, tick)
        self._taking: int | None = None
        """The step that is being copied."""
        self._state: EngineState | None = None
        self._rank, self._world_size = rank, world_size
        self._chunks: tuple[_Chunk, ...] = ()
        self._cell: Cell | None = None
        self._channel: Channel | None = None
        self._telling = threading.Lock()
        """The thread that finds a copy complete also sends to the vault."""
        self._targets: dict[int, list[torch.Tensor]] = {}
        self._asking: threading.Thread | None = None
        self._clock = time.thread_time if engine.device.type == "cpu" else time.perf_counter
        self._copied_us = 0
        self.problem: str | None = None
        """Why there are no snapshots; None if there are, or will be."""
        self.slow: str | None = None
        """Why snapshots take longer than they could."""

    @property
    def replicated_step(self) -> int:
        """See `RankStep.replicated_step`."""
        cell = self._cell
        return NO_VAULT if cell is None or self.problem is not None else cell.replicated_step

    @property
    def settled(self) -> bool:
        """Nothing is on its way to the vault or the peers: the last snapshot has arrived, or there is none."""
        cell = self._cell
        if self._taking is not None:
            return False
        return cell is None or cell.replicated_step >= max(cell.step(slot) for slot in range(SLOTS))

    @property
    def asking(self) -> bool:
        """The vault has not answered yet."""
        return self._asking is not None and self._asking.is_alive()

    def prepare(self) -> None:
        """Ask the vault for memory, once it is known how much: before the first update Adam has no moments."""
        if self._asking is not None:
            return
        if self._state is None:
            self._state = EngineState(self._engine)
        state = self._state.capture()
        if not state.moments:
            return
        self._chunks, index, payload_bytes = _layout(state)
        state_bytes = 2 * len(_small(state, 0, 0, {}).to_bytes()) + _SPARE_STATE_BYTES
        size = CellSize(payload_bytes, state_bytes)
        self._asking = threading.Thread(target=self._ask, args=(size, index.to_bytes()), name="vault-ask", daemon=True)
        self._asking.start()

    def take(self, step: int, position: int, extra: JsonObject) -> float:
        """Begin to copy the state after `step` into the older slot. `position`: first sample of the next step. Call it
        if `replicated_step` is not NO_VAULT on any rank, and nothing is being copied.

        Returns what it cost in seconds: of this thread's CPU if the state lies in host memory (if others share the
        cores the clock would count their work too), by the clock if it comes from a device; and this node's share of
        what its vault spent since on copies, which takes cores from training. What a copy costs after that is
        `stalled_s`.
        """
        started = self._clock()
        cell = self._cell
        assert cell is not None
        assert self._state is not None
        state = self._state.capture()
        slot = cell.older_slot()
        payload = cell.begin(slot)
        targets = self._targets.get(slot)
        if targets is None:
            targets = self._targets[slot] = [_view(payload, state, chunk) for chunk in self._chunks]
        flats = self._still(state)
        copies = [
            Copy(flats[chunk.flat].detach()[chunk.first : chunk.last], target)
            for chunk, target in zip(self._chunks, targets, strict=True)
        ]
        small = _small(state, step, position, extra).to_bytes()
        self._taking = step
        self._staging.begin(copies, lambda problem: self._taken(slot, step, small, problem))
        before_us, self._copied_us = self._copied_us, cell.spent_us
        copied_us = self._copied_us - before_us if before_us else 0  # the vault may be older than this gang
        return self._clock() - started + copied_us / 1e6 / (os.cpu_count() or 1)

    def fence(self) -> None:
        """Call it before each update: it must not begin to change what is being copied."""
        self._staging.fence()

    def flush(self) -> None:
        """Wait until the vault holds what was taken last, or there is a `problem`."""
        if not self._staging.wait(FLUSH_LIMIT_S):
            self.problem = f"the copy of step {self._taking} has taken longer than {FLUSH_LIMIT_S:.0f} s"

    def stalled_s(self) -> float:
        """Seconds for which fences held up training since the last call."""
        return self._staging.stalled_s()

    def keep_report(self, step: int, report: JsonObject) -> None:
        """Give the vault the report of a step, in case the driver dies before it records it. Rank 0 only."""
        if self._cell is None or self._channel is None or self.problem is not None:
            return
        self._tell("report", step, {"copy": False}, json.dumps(report, separators=(",", ":")).encode())

    def store(self, step: int, place: str, name: str, extra: JsonObject) -> None:
        """Have the vault write `step`, which was taken last, as this rank's shard of a checkpoint."""
        tag = f"-{self._access.attempt}{self._access.generation}"
        self._tell("store", step, {"place": place, "name": name, "tag": tag, "extra": extra})

    def _tell(
        self,
        what: Literal["filled", "report", "store"],
        step: int,
        more: Mapping[str, object] | None = None,
        payload: bytes = b"",
    ) -> None:
        """Send a message about a step to the vault, which does not answer; a lost vault is a `problem`."""
        frame = {"do": what, "generation": self._access.generation, "rank": self._rank, "step": step, **(more or {})}
        try:
            with self._telling:
                assert self._channel is not None
                self._channel.send(frame, payload)
        except OSError as error:
            self.problem = f"the vault at {self._access.address} is lost: {error}"

    def close(self) -> None:
        """Let go of the shared memory; the vault keeps it, with what is complete after a short wait."""
        if self._asking is not None:
            self._asking.join(_TIMEOUT_S)
        self._staging.close()
        self._targets.clear()
        cell, self._cell = self._cell, None
        if cell is not None:
            cell.close()
        if self._channel is not None:
            self._channel.close()

    def _still(self, state: CapturedState) -> list[torch.Tensor]:
        """The flats, such that they do not change before the next update. Only buffers do (the statistics of a batch
        norm are updated in the forward pass): if they are copied later, it is from clones, on the device."""
        overlaps = self._staging.overlaps
        return [flat.tensor.clone() if overlaps and flat.kind is Kind.BUFFER else flat.tensor for flat in state.flats]

    def _taken(self, slot: int, step: int, small: bytes, problem: str | None) -> None:
        """A copy has ended. By whatever thread finds it so."""
        try:
            if problem is None:
                assert self._cell is not None
                self._cell.finish(slot, step, small)
                self._tell("filled", step)
        except Exception as error:  # noqa: BLE001  # the training thread learns of it from `problem` alone
            problem = f"{type(error).__name__}: {error}"
        finally:
            self._taking = None
        if problem is not None:
            self.problem = f"the state of step {step} could not be copied: {problem}"

    def _ask(self, size: CellSize, index: bytes) -> None:
        access = self._access
        try:
            channel = Channel.connect(access.address, access.token, _TIMEOUT_S)
            self._channel = channel
            request: CreateRequest = {
                "do": "create", "generation": access.generation, "rank": self._rank, "world_size": self._world_size,
                "payload_bytes": size.payload_bytes, "slot_state_bytes": size.state_bytes, "pid": os.getpid(),
                "numa_node": self._staging.numa_node(),
            }  # fmt: skip
            answer, _ = channel.ask(request, index)
            cell = Cell.attach(descriptor_path(access.pid, decode(CreateAnswer, answer)["descriptor"]), size)
            self.slow = self._staging.pin(cell.memory)
            self._cell = cell
        except Exception as error:  # noqa: BLE001  # the training thread learns of it from `problem` alone
            self.problem = f"the vault at {access.address} provided no memory: {error or type(error).__name__}"


def _view(payload: memoryview, state: CapturedState, chunk: _Chunk) -> torch.Tensor:
    dtype = state.flats[chunk.flat].tensor.dtype
    return torch.frombuffer(payload, dtype=dtype, count=chunk.last - chunk.first, offset=chunk.offset)


def _layout(state: CapturedState) -> tuple[tuple[_Chunk, ...], CellIndex, int]:
    """The layout of the flats, one after the other without their padding; the index; the size in bytes."""
    chunks: list[_Chunk] = []
    intervals: list[Interval] = []
    end = 0
    for number, flat in enumerate(state.flats):
        if not flat.fragments:
            continue
        dtype = dtype_name(flat.tensor.dtype)
        item_bytes = storage_dtype(dtype).itemsize
        first = min(fragment.offset for fragment in flat.fragments)
        last = max(fragment.offset + fragment.length for fragment in flat.fragments)
        offset = -(-end // _ALIGNMENT) * _ALIGNMENT
        piece = _PIECE_BYTES // item_bytes
        for start in range(first, last, piece):
            chunks.append(_Chunk(number, start, min(start + piece, last), offset + (start - first) * item_bytes))
        for fragment in flat.fragments:
            extent = Range(fragment.start, fragment.start + fragment.length)
            at = offset + (fragment.offset - first) * item_bytes
            intervals.append(Interval(fragment.name, flat.kind, extent, at, dtype))
        end = offset + (last - first) * item_bytes
    shard = ShardIndex(state.rank, end, CHUNK_BYTES, (), tuple(intervals))
    return tuple(chunks), CellIndex(shard, state.tensors, state.tied), end


def _small(state: CapturedState, step: int, position: int, extra: JsonObject) -> SmallState:
    fields: JsonObject = {
        "step": step,
        "position": position,
        "world_size": state.world_size,
        "stage": state.stage,
        "optimizer": state.optimizer,
        "moments": state.moments,
        "groups": [asdict(group) for group in state.groups],
        "counters": state.counters,
        "loss_scaler": state.loss_scaler,
        "lr_scheduler": state.lr_scheduler,
        "extra": extra,
    }
    return SmallState(fields, state.rng)
