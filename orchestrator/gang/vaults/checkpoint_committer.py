"""Commits checkpoints that vaults are writing: waits for their shards and writes the manifest, in a thread."""

import contextlib
import math
import queue
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from orchestrator.checkpoint.memory.frames import ShardAnswer, WrittenAnswer, WrittenRequest, decode
from orchestrator.checkpoint.memory.vault_writer import manifest_of
from orchestrator.checkpoint.memory.wire import Channel
from orchestrator.checkpoint.storage.checkpoint_catalog import directory_name, retain
from orchestrator.checkpoint.storage.durable import commit
from orchestrator.checkpoint.storage.retention import Rule
from orchestrator.checkpoint.storage.storage import StorageError, StorageFault, open_storage
from orchestrator.checkpoint.survey.surveyor import VaultContact
from orchestrator.domain.errors import CheckpointError
from orchestrator.domain.events import CheckpointFailed, CheckpointSaved, CheckpointStarted, Event
from orchestrator.domain.policy.cadence import checkpoint_interval_s
from orchestrator.lasting_thread import LastingThread

POLL_S = 0.2
ASK_TIMEOUT_S = 5.0
GIVE_UP_S = 600.0
"""A checkpoint fails if no vault writes a part of it for this long. Its total duration is not limited."""
LOST_S = 10.0
"""A rank's shard counts as lost with its vault if no vault knows of it for this long."""


@dataclass(frozen=True)
class _PendingCommit:
    """A checkpoint in progress."""

    generation: int
    step: int
    place: str
    world_size: int
    stage: int
    stall_s: float
    since_s: float


class Pacer:
    """When the next checkpoint is due, if the spec derives that from its cost. For the driver's thread."""

    def __init__(self, wanted: bool) -> None:
        """`wanted`: whether the spec does so."""
        self._wanted = wanted
        self._begin_s: float | None = None
        self._last_s = 0.0
        self._cost = (1.0, 10.0)  # stall and write, before any was measured: two minutes
        self.failures = 0
        """Failures of this run's gangs so far."""

    def due(self, now_s: float) -> bool:
        """Whether to write one now; the time counts from the first call."""
        if self._begin_s is None:
            self._begin_s = self._last_s = now_s
        interval_s = checkpoint_interval_s(*self._cost, now_s - self._begin_s, self.failures)
        if not self._wanted or now_s - self._last_s < interval_s:
            return False
        self._last_s = now_s
        return True

    def take(self, saved: CheckpointSaved) -> None:
        """A checkpoint was saved."""
        self._cost = (saved.seconds, saved.write_seconds or 0.0)


class CheckpointCommitter:
    """`begin` registers a checkpoint; `finished` returns the events of those that ended. Never blocks the driver."""

    def __init__(self, contacts: Callable[[], Sequence[VaultContact]], rule: Rule, lease: int = 0) -> None:
        """`contacts`: how to reach the present vaults; `lease`: the token of this driver."""
        self._contacts, self._rule, self._lease = contacts, rule, lease
        self._pending: queue.Queue[_PendingCommit] = queue.Queue()
        self._ended: queue.Queue[tuple[int, Event]] = queue.Queue()
        """Steps and the events of those that came to an end."""
        self._open: list[int] = []
        """Steps of checkpoints whose event has not been fetched."""
        self._place = ""
        """Destination of the last one."""
        self._progress_s = 0.0
        """When a part was last written."""
        self._thread: LastingThread | None = None

    def begin(self, generation: int, started: CheckpointStarted) -> None:
        """Rank 0 reported that the vaults of a generation are writing."""
        self._open.append(started.step)
        self._place = started.place
        self._pending.put(
            _PendingCommit(
                generation,
                started.step,
                started.place,
                started.world_size,
                started.stage,
                started.seconds,
                time.monotonic(),
            )
        )
        if self._thread is None:
            self._thread = LastingThread("checkpoint-saves", self._turn)

    @property
    def busy(self) -> bool:
        """Vaults are writing, or the event of a written checkpoint has not been fetched."""
        return bool(self._open)

    def finished(self) -> list[Event]:
        """Events of the checkpoints that ended since the last call."""
        events = []
        with contextlib.suppress(queue.Empty):
            while True:
                step, event = self._ended.get_nowait()
                if step in self._open:  # else it was given up
                    self._open.remove(step)
                    events.append(event)
        return events

    def end(self, timeout_s: float, stopped: Callable[[], bool] | None = None) -> list[Event]:
        """As `finished`, after all have ended or `timeout_s` have passed. What is not written by then has failed,
        because the vaults end with the run. `stopped`: count the time from the last progress, until a stop is
        requested."""
        begin_s, events = time.monotonic(), self.finished()
        while self._open:
            since_s = begin_s if stopped is None else max(begin_s, self._progress_s)
            if time.monotonic() - since_s >= timeout_s or (stopped is not None and stopped()):
                break
            time.sleep(POLL_S / 4)
            events += self.finished()
        left, self._open = self._open, []
        why = f"it took longer than {timeout_s:g} s"
        if stopped is not None:
            why = "the run was stopped" if stopped() else f"nothing was written for {timeout_s:g} s"
        reason = f"the run ended before the checkpoint was written: {why}"
        return events + [_failed(step, self._place, reason, StorageFault.OTHER, 0.0) for step in left]

    def _turn(self) -> bool:
        save = self._pending.get()
        try:
            event = self._see_through(save)
        except Exception as error:  # noqa: BLE001  # otherwise the driver would wait for its end
            reason = f"checkpoint of step {save.step}: {type(error).__name__}: {error}"
            event = _failed(save.step, save.place, reason, StorageFault.OTHER, save.stall_s)
        self._ended.put((save.step, event))
        return True

    def _see_through(self, save: _PendingCommit) -> Event:
        try:
            shards = self._await_shards(save)
            failed = next((shard for shard in shards if "error" in shard), None)
            if failed is not None:
                fault = StorageFault(failed["fault"])
                raise StorageError(f"checkpoint of step {save.step}: rank {failed['rank']}: {failed['error']}", fault)
            storage, name = open_storage(save.place), directory_name(save.step)
            manifest = replace(manifest_of(shards, time.time()), lease=self._lease)
            commit(storage, name, manifest, self._progressed)
            with contextlib.suppress(CheckpointError):  # old ones can be removed another time
                retain(storage, self._rule, (save.step,), tuple(self._open), self._progressed)
        except CheckpointError as error:
            fault = error.fault if isinstance(error, StorageError) else StorageFault.OTHER
            return _failed(save.step, save.place, error.message, fault, save.stall_s)
        saved = CheckpointSaved(
            step=save.step,
            path=storage.place(name),
            bytes=manifest.size_bytes,
            seconds=save.stall_s,
            write_seconds=time.monotonic() - save.since_s,
            world_size=save.world_size,
            stage=save.stage,
        )
        return Event(saved, time.time())

    def _progressed(self) -> None:
        self._progress_s = time.monotonic()

    def _await_shards(self, save: _PendingCommit) -> Sequence[ShardAnswer]:
        """Answers of all ranks, or as soon as one failed. Raises CheckpointError if one is lost or no part is
        written."""
        known_s = self._progress_s = time.monotonic()
        parts: dict[int, float] = {}
        while True:
            found = {shard["rank"]: shard for shard in self._ask_all(save)}
            ended = [shard for shard in found.values() if "pending" not in shard]
            if len(ended) == save.world_size or any("error" in shard for shard in ended):
                return ended
            now_s = time.monotonic()
            if len(found) == save.world_size:
                known_s = now_s
            for rank, shard in found.items():
                done = float(shard["parts"]) if "pending" in shard else math.inf
                if done > parts.get(rank, -1.0):
                    parts[rank], self._progress_s = done, now_s
            if now_s - known_s > LOST_S:
                raise CheckpointError(f"checkpoint of step {save.step}: a vault was lost while it wrote")
            if now_s - self._progress_s > GIVE_UP_S:
                raise CheckpointError(f"checkpoint of step {save.step}: nothing was written for {GIVE_UP_S:.0f} s")
            time.sleep(POLL_S)

    def _ask_all(self, save: _PendingCommit) -> list[ShardAnswer]:
        shards: list[ShardAnswer] = []
        for vault in self._contacts():
            with (
                contextlib.suppress(OSError),
                contextlib.closing(Channel.connect(vault.address, vault.token, ASK_TIMEOUT_S)) as to,
            ):
                answer, _ = to.ask(WrittenRequest(do="written", generation=save.generation, step=save.step))
                shards += decode(WrittenAnswer, answer)["shards"]
        return shards


def _failed(step: int, place: str, reason: str, fault: StorageFault, seconds: float) -> Event:
    return Event(CheckpointFailed(step, place, reason, fault.value, seconds), time.time())
