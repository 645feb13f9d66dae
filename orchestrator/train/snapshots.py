"""The training side of the vault: after a step, copy this rank's flat partitions into its node's shared memory."""

import json
import os
import threading
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch

from orchestrator.checkpoint.cells import SLOTS, Cell, CellSize
from orchestrator.checkpoint.dtypes import storage_dtype
from orchestrator.checkpoint.intervals import Range
from orchestrator.checkpoint.peers import CellIndex, SmallState, descriptor_path
from orchestrator.checkpoint.shard import CHUNK_BYTES, Interval, ShardIndex
from orchestrator.checkpoint.wire import Channel
from orchestrator.domain.progress import Tick, no_tick
from orchestrator.domain.session import VaultAccess
from orchestrator.train.zero_layout import dtype_name
from orchestrator.train.zero_state import CapturedState, EngineState

NO_VAULT = -2
"""`replicated_step` of a rank that cannot take a snapshot yet."""
_ALIGNMENT = 64
_SPARE_STATE_BYTES = 16 << 10
_TIMEOUT_S = 30.0
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
    """One rank's snapshots in one generation. All calls are the training thread's, at step boundaries.

    The vault is asked for memory in the background: until it has answered, `replicated_step` says NO_VAULT. A vault
    that refuses or dies leaves it at that, with `problem` set: training goes on without.
    """

    def __init__(self, engine: Any, access: VaultAccess, rank: int, world_size: int, tick: Tick = no_tick) -> None:
        """`tick`: called after each piece that is copied."""
        self._engine, self._access, self._tick = engine, access, tick
        self._state: EngineState | None = None
        self._rank, self._world_size = rank, world_size
        self._chunks: tuple[_Chunk, ...] = ()
        self._cell: Cell | None = None
        self._channel: Channel | None = None
        self._targets: dict[int, list[torch.Tensor]] = {}
        self._asking: threading.Thread | None = None
        self._clock = time.thread_time if engine.device.type == "cpu" else time.perf_counter
        self._copied_us = 0
        self.problem: str | None = None
        """Why there are no snapshots; None where there are, or will be."""

    @property
    def replicated_step(self) -> int:
        """See `RankStep.replicated_step`."""
        cell = self._cell
        return NO_VAULT if cell is None or self.problem is not None else cell.replicated_step

    @property
    def settled(self) -> bool:
        """Nothing is on its way to the peers: the last snapshot has arrived, or there is none."""
        cell = self._cell
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

    def take(self, step: int, position: int, extra: dict[str, Any]) -> float:
        """Copy the state after `step` into the older slot and tell the vault; the seconds it cost: of this thread's CPU
        where the state lies in host memory (where others share the cores the clock would count their work too), by
        the clock where it comes from a device; and this node's share of what its vault spent since on copies, which
        takes cores from training. `position`: first sample of the next step. Call it where `replicated_step` is not
        NO_VAULT on any rank."""
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
        with torch.no_grad():
            for chunk, target in zip(self._chunks, targets, strict=True):
                target.copy_(state.flats[chunk.flat].tensor.detach()[chunk.first : chunk.last])
                self._tick()
        cell.finish(slot, step, _small(state, step, position, extra).to_bytes())
        self._tell("filled", step)
        before_us, self._copied_us = self._copied_us, cell.spent_us
        copied_us = self._copied_us - before_us if before_us else 0  # the vault may be older than this gang
        return self._clock() - started + copied_us / 1e6 / (os.cpu_count() or 1)

    def keep_report(self, step: int, report: dict[str, Any]) -> None:
        """Give the vault the report of a step, should the driver not live to write it down. Rank 0 only."""
        if self._cell is None or self._channel is None or self.problem is not None:
            return
        self._tell("report", step, {"copy": False}, json.dumps(report, separators=(",", ":")).encode())

    def store(self, step: int, place: str, name: str, extra: dict[str, Any]) -> None:
        """Have the vault write `step`, which was taken last, as this rank's shard of a checkpoint."""
        tag = f"-{self._access.attempt}{self._access.generation}"
        self._tell("store", step, {"place": place, "name": name, "tag": tag, "extra": extra})

    def _tell(self, what: str, step: int, more: dict[str, Any] | None = None, payload: bytes = b"") -> None:
        """Say something of a step to the vault, which does not answer; a vault that is gone is a `problem`."""
        frame = {"do": what, "generation": self._access.generation, "rank": self._rank, "step": step, **(more or {})}
        try:
            assert self._channel is not None
            self._channel.send(frame, payload)
        except OSError as error:
            self.problem = f"the vault at {self._access.address} is gone: {error}"

    def close(self) -> None:
        """Let go of the shared memory; the vault keeps it."""
        if self._asking is not None:
            self._asking.join(_TIMEOUT_S)
        self._targets.clear()
        cell, self._cell = self._cell, None
        if cell is not None:
            cell.close()
        if self._channel is not None:
            self._channel.close()

    def _ask(self, size: CellSize, index: bytes) -> None:
        access = self._access
        try:
            channel = Channel.connect(access.address, access.token, _TIMEOUT_S)
            self._channel = channel
            request = {
                "do": "create", "generation": access.generation, "rank": self._rank, "world_size": self._world_size,
                "payload_bytes": size.payload_bytes, "slot_state_bytes": size.state_bytes, "pid": os.getpid(),
            }  # fmt: skip
            answer, _ = channel.ask(request, index)
            self._cell = Cell.attach(descriptor_path(access.pid, answer["descriptor"]), size)
        except Exception as error:  # noqa: BLE001  # the training thread learns of it from `problem` alone
            self.problem = f"no memory from the vault at {access.address}: {error or type(error).__name__}"


def _view(payload: memoryview, state: CapturedState, chunk: _Chunk) -> torch.Tensor:
    dtype = state.flats[chunk.flat].tensor.dtype
    return torch.frombuffer(payload, dtype=dtype, count=chunk.last - chunk.first, offset=chunk.offset)


def _layout(state: CapturedState) -> tuple[tuple[_Chunk, ...], CellIndex, int]:
    """Where each flat goes: the part of it that holds anything, one behind the other; the index; the size in bytes."""
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


def _small(state: CapturedState, step: int, position: int, extra: dict[str, Any]) -> SmallState:
    fields = {
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
