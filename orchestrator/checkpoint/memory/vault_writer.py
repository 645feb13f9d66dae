"""Durable checkpoints out of vaults: a vault writes the shards of its own ranks in the background, off training.

The state is copied first, before its slot can be written again, and written from the copy at low priority. What came
of it is asked for (`answers`); whoever has all shards of a step makes the checkpoint exist (`manifest_of`, then
`durable.commit`).
"""

import contextlib
import mmap
import os
import queue
import threading
import time
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from functools import partial

from orchestrator.checkpoint.format.checkpoint_manifest import Manifest, ShardEntry, installed_versions
from orchestrator.checkpoint.memory.frames import ShardAnswer
from orchestrator.checkpoint.memory.peers import CellIndex, SmallState, manifest_of_state
from orchestrator.checkpoint.storage.durable import abandon, write_shard
from orchestrator.checkpoint.storage.storage import StorageError, StorageFault, open_storage
from orchestrator.domain.errors import ConvoyError
from orchestrator.domain.tick import Tick
from orchestrator.json_values import JsonObject, mapping
from orchestrator.lasting_thread import LastingThread

NICENESS = 10
KEPT_ANSWERS = 32
_COPIED_BYTES = 16 << 20


@dataclass(frozen=True)
class ShardOrder:
    """One rank's shard of one checkpoint, to be written."""

    generation: int
    rank: int
    step: int
    place: str
    """Storage, as `open_storage` takes it."""
    name: str
    """Of the checkpoint in it."""
    tag: str
    extra: JsonObject
    """What the manifest says besides what the state does."""


class ShardWriterThread:
    """Writes one shard after the other. `order` is for the thread that owns the slots, `answers` for any."""

    def __init__(self) -> None:
        self._orders: queue.Queue[tuple[ShardOrder, memoryview, bytes, bytes] | None] = queue.Queue()
        self._answers: dict[tuple[int, int, int], ShardAnswer] = {}
        self._lock = threading.Lock()
        self._nice = False
        LastingThread("vault-write", self._turn)

    def order(self, order: ShardOrder, payload: memoryview, state: bytes, index: bytes) -> None:
        """Copy a slot and have it written."""
        key = (order.generation, order.step, order.rank)
        with self._lock:
            while len(self._answers) >= KEPT_ANSWERS:
                self._answers.pop(next(iter(self._answers)))
            self._answers[key] = {"rank": order.rank, "pending": True, "parts": 0}
        self._orders.put((order, _copied(payload), state, index))

    def refuse(self, order: ShardOrder, reason: str) -> None:
        """Answer for a slot that cannot be written."""
        with self._lock:
            key = (order.generation, order.step, order.rank)
            self._answers[key] = {"rank": order.rank, "error": reason, "fault": "other"}

    def answers(self, generation: int, step: int) -> list[ShardAnswer]:
        """What is known of the shards of a step that were ordered here, by rank. `pending` ones say how many `parts` of
        them are written, which changes as long as there is progress."""
        with self._lock:
            return [
                value.copy() for (of, at, _), value in sorted(self._answers.items()) if of == generation and at == step
            ]

    def close(self) -> None:
        """Write what was ordered, then end."""
        self._orders.put(None)

    def _turn(self) -> bool:
        if not self._nice:
            self._nice = True
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        item = self._orders.get()
        if item is None:
            return False
        order, copy, state, index = item
        try:
            answer = _write(order, copy, state, index, partial(self._count, order))
        except Exception as error:  # noqa: BLE001  # an order that is not answered would be waited for
            answer = {
                "rank": order.rank,
                "error": f"{type(error).__name__}: {error}",
                "fault": StorageFault.OTHER.value,
            }
        with self._lock:
            self._answers[order.generation, order.step, order.rank] = answer
        return True

    def _count(self, order: ShardOrder) -> None:
        """Another part of a shard is written."""
        with self._lock:
            answer = self._answers.get((order.generation, order.step, order.rank))
            if answer is not None and "pending" in answer:
                answer["parts"] += 1


def _copied(payload: memoryview) -> memoryview:
    """A copy, made piece by piece: a copy in one call would keep all other threads of the vault from running, for
    several seconds if it has 10 GB. The memory is given back with the last view of it."""
    size_bytes = len(payload)
    copy = memoryview(mmap.mmap(-1, max(1, size_bytes)))[:size_bytes]
    for first in range(0, size_bytes, _COPIED_BYTES):
        copy[first : first + _COPIED_BYTES] = payload[first : first + _COPIED_BYTES]
    return copy


def _write(order: ShardOrder, copy: memoryview, state: bytes, index: bytes, tick: Tick) -> ShardAnswer:
    started_s = time.monotonic()
    try:
        described = CellIndex.from_bytes(index, "the vault")
        small = SmallState.from_bytes(state, "the vault")
        storage = open_storage(order.place)
        try:
            entry = write_shard(
                storage,
                order.name,
                order.rank,
                described.shard.intervals,
                copy,
                small.rng,
                order.tag,
                tick,
            )
        except StorageError:
            abandon(storage, order.name, order.rank, order.tag)
            raise
    except StorageError as error:
        return {"rank": order.rank, "error": error.message, "fault": error.fault.value}
    except (ConvoyError, OSError, ValueError) as error:
        return {"rank": order.rank, "error": str(error), "fault": "other"}
    answer: ShardAnswer = {"rank": order.rank, "entry": asdict(entry), "seconds": time.monotonic() - started_s}
    answer["small"] = {**small.manifest, "extra": {**mapping(small.manifest, "extra"), **order.extra}}
    if order.rank == 0:
        answer["index"] = index.decode()
    return answer


def manifest_of(answers: Collection[ShardAnswer], now_s: float) -> Manifest:
    """The manifest of a step all of whose shards are written. Raises CheckpointError where an answer is damaged."""
    by_rank = sorted(answers, key=lambda answer: answer["rank"])
    index = CellIndex.from_bytes(by_rank[0]["index"].encode(), "the vault of rank 0")
    return replace(
        manifest_of_state(index, [answer["small"] for answer in by_rank]),
        shards=tuple(ShardEntry.from_json(answer["entry"]) for answer in by_rank),
        versions=installed_versions(),
        saved_at_s=now_s,
    )
