"""Read a state that lies in vaults: this host's through shared memory, others' over the network."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.checkpoint.cells import Cell, CellSize
from orchestrator.checkpoint.intervals import Kind
from orchestrator.checkpoint.manifest import GroupEntry, Manifest, TensorEntry
from orchestrator.checkpoint.reader import IntervalReader, ShardSource
from orchestrator.checkpoint.shard import ShardIndex
from orchestrator.checkpoint.wire import Channel
from orchestrator.domain.errors import CheckpointError
from orchestrator.domain.progress import Tick, no_tick
from orchestrator.domain.session import PeerState, ShardPlace

READ_TIMEOUT_S = 20.0
PIECE_BYTES = 32 << 20
"""What is copied, or asked of a vault, at once."""


@dataclass(frozen=True)
class SmallState:
    """What of a rank's state is no flat: the same on all ranks, but for `rng`."""

    manifest: dict[str, Any]
    """The fields of `Manifest` that change from step to step."""
    rng: dict[str, str]

    def to_bytes(self) -> bytes:
        """JSON."""
        return json.dumps({"manifest": self.manifest, "rng": self.rng}, separators=(",", ":")).encode()


@dataclass(frozen=True)
class CellIndex:
    """What of a rank's state does not change within a generation."""

    shard: ShardIndex
    tensors: dict[str, TensorEntry]
    tied: dict[str, str]

    def to_bytes(self) -> bytes:
        """JSON."""
        body = {
            "shard": self.shard.to_bytes().decode(),
            "tensors": {name: [list(t.shape), t.dtype, t.kind, t.group] for name, t in self.tensors.items()},
            "tied": self.tied,
        }
        return json.dumps(body, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, data: bytes, source: str) -> "CellIndex":
        """The reverse of `to_bytes`. Raises CheckpointError."""
        try:
            body = json.loads(data)
            tensors = {
                name: TensorEntry(tuple(shape), dtype, Kind(kind), group)
                for name, (shape, dtype, kind, group) in body["tensors"].items()
            }
            return cls(ShardIndex.from_bytes(body["shard"].encode(), source), tensors, dict(body["tied"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{source} is no index of a state: {type(error).__name__}: {error}") from error


class PeerReader(IntervalReader):
    """The state of one step, out of the vaults that hold it. Raises CheckpointError where none that holds a
    shard can be reached; reading goes on from another where one goes meanwhile."""

    def __init__(
        self, state: PeerState, token: str, own_vault: str | None, vault_pid: int | None, tick: Tick = no_tick
    ) -> None:
        """`own_vault`: address of this node's vault, whose process is `vault_pid`: read without the network. `tick`:
        called after each shard that is opened and each piece that is read."""
        opened: list[ShardSource] = []
        indexes: list[CellIndex] = []
        small: list[dict[str, Any]] = []
        try:
            for place in state.shards:
                source, index, body = _open(state, place, token, own_vault, vault_pid)
                opened.append(_InPieces(source, tick))
                tick()
                indexes.append(index)
                small.append(body)
            manifest = manifest_of_state(indexes[0], [body["manifest"] for body in small])
        except BaseException:
            for source in opened:
                source.close()
            raise
        self._rng = {place.rank: dict(body["rng"]) for place, body in zip(state.shards, small, strict=True)}
        super().__init__(
            manifest, [index.shard for index in indexes], opened.__getitem__, f"the peers' state of step {state.step}"
        )
        self._shards = dict(enumerate(opened))

    def rng(self, rank: int) -> dict[str, str]:
        return self._rng.get(rank, {})


class _InPieces:
    """A shard that is read piece by piece, with a tick after each."""

    def __init__(self, source: ShardSource, tick: Tick) -> None:
        self._source, self._tick = source, tick

    def read_into(self, offset: int, out: memoryview) -> None:
        for start in range(0, len(out), PIECE_BYTES):
            self._source.read_into(offset + start, out[start : start + PIECE_BYTES])
            self._tick()

    def close(self) -> None:
        self._source.close()


class _LocalShard:
    """A payload mapped from this host's vault."""

    def __init__(self, cell: Cell, slot: int) -> None:
        self._cell, self._payload = cell, cell.payload(slot)

    def read_into(self, offset: int, out: memoryview) -> None:
        out[:] = self._payload[offset : offset + len(out)]

    def close(self) -> None:
        self._payload.release()
        self._cell.close()


class _RemoteShard:
    """A payload behind a connection; where that breaks off, the same one behind another: nodes also go while they are
    read."""

    def __init__(self, channel: Channel, where: str, others: Sequence[str], key: dict[str, int], token: str) -> None:
        """`others`: addresses of vaults that hold the same."""
        self._channel: Channel | None = channel
        self._where, self._others = where, list(others)
        self._key, self._token = key, token

    def read_into(self, offset: int, out: memoryview) -> None:
        while True:
            try:
                return self._read(offset, out)
            except OSError as error:
                self.close()
                if not self._others:
                    raise _lost(self._where, error) from error
                self._where = self._others.pop(0)

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()
        self._channel = None

    def _read(self, offset: int, out: memoryview) -> None:
        if self._channel is None:
            self._channel = Channel.connect(self._where, self._token, READ_TIMEOUT_S)
        _, count = self._channel.ask({"do": "read", **self._key, "offset": offset, "length": len(out)})
        if count != len(out):
            raise CheckpointError(f"the vault at {self._where} sent {count} bytes, expected {len(out)}")
        self._channel.take_into(out)


def _open(
    state: PeerState, place: ShardPlace, token: str, own_vault: str | None, vault_pid: int | None
) -> tuple[ShardSource, CellIndex, dict[str, Any]]:
    key = {"generation": state.generation, "rank": place.rank, "step": state.step}
    last: CheckpointError | None = None
    addresses = _nearest_first(place.vaults, own_vault)
    for number, address in enumerate(addresses, 1):
        try:
            channel = Channel.connect(address, token, READ_TIMEOUT_S)
        except OSError as error:
            last = _lost(address, error)
            continue
        try:
            answer, count = channel.ask({"do": "describe", **key})
            data = channel.take(count)
        except OSError as error:
            channel.close()
            last = _lost(address, error)
            continue
        small = json.loads(data[: answer["state_bytes"]])
        index = CellIndex.from_bytes(data[answer["state_bytes"] :], f"the vault at {address}")
        if address == own_vault and vault_pid is not None:
            channel.close()
            size = CellSize(answer["payload_bytes"], answer["slot_state_bytes"])
            path = descriptor_path(vault_pid, answer["descriptor"])
            return _LocalShard(Cell.attach(path, size), answer["slot"]), index, small
        return _RemoteShard(channel, address, addresses[number:], key, token), index, small
    raise last or CheckpointError(f"nobody holds the state of rank {place.rank}")


def descriptor_path(pid: int, descriptor: int) -> str:
    """Another process's open file, of the same user on the same host."""
    return f"/proc/{pid}/fd/{descriptor}"


def _nearest_first(vaults: Sequence[str], own: str | None) -> list[str]:
    return sorted(vaults, key=lambda address: address != own)


def _lost(address: str, error: OSError) -> CheckpointError:
    return CheckpointError(f"the vault at {address} cannot be reached: {error}")


def manifest_of_state(index: CellIndex, small: Sequence[dict[str, Any]]) -> Manifest:
    """The manifest, without shards, of a state: `index` of rank 0, and what is small of every rank, rank 0 first."""
    fields = {
        **small[0],
        "groups": tuple(GroupEntry(**group) for group in small[0]["groups"]),
        "moments": any(body["moments"] for body in small),  # a rank whose partition is all padding may have none
    }
    return Manifest(tensors=index.tensors, tied=index.tied, shards=(), **fields)
