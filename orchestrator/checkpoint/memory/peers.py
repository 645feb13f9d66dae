"""Read a state from vaults: from this host's through shared memory, from others over the network."""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import Self

from orchestrator.checkpoint.format.checkpoint_manifest import Manifest, TensorEntry
from orchestrator.checkpoint.format.reader import IntervalReader, ShardSource
from orchestrator.checkpoint.format.shard import ShardIndex
from orchestrator.checkpoint.memory.cells import Cell, CellSize
from orchestrator.checkpoint.memory.frames import DescribeAnswer, DescribeRequest, ReadRequest, StepFields, decode
from orchestrator.checkpoint.memory.wire import Channel
from orchestrator.domain.errors import CheckpointError, PeerStateError
from orchestrator.domain.session import PeerState, ShardPlace
from orchestrator.domain.tick import Tick, no_tick
from orchestrator.json_values import (
    JsonFields,
    JsonObject,
    JsonValue,
    array,
    flag,
    mapping,
    parse_object,
    text,
    text_mapping,
)

READ_TIMEOUT_S = 20.0
PIECE_BYTES = 16 << 20
"""Size of one copy, or of one request to a vault."""
STREAMS = 4
"""Connections over which a process reads a shard: one gives 1 to 2 GB/s, a node's network up to 50, and the workers of
a node read side by side."""


@dataclass(frozen=True)
class SmallState:
    """The part of a rank's state that is not in flats: the same on all ranks except for `rng`."""

    manifest: JsonObject
    """The fields of `Manifest` that change from step to step."""
    rng: dict[str, str]

    def to_bytes(self) -> bytes:
        """JSON."""
        return json.dumps({"manifest": self.manifest, "rng": self.rng}, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, data: bytes, source: str) -> "SmallState":
        """The reverse of `to_bytes`. Raises CheckpointError."""
        try:
            body = parse_object(data)
            return cls(mapping(body, "manifest"), text_mapping(body, "rng"))
        except ValueError as error:
            raise CheckpointError(f"{source} is no small state: {error}") from error


@dataclass(frozen=True)
class CellIndex:
    """The part of a rank's state that does not change within a generation."""

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
            body = parse_object(data)
            tensors = {name: _tensor(array(mapping(body, "tensors"), name)) for name in mapping(body, "tensors")}
            shard = ShardIndex.from_bytes(text(body, "shard").encode(), source)
            return cls(shard, tensors, text_mapping(body, "tied"))
        except ValueError as error:
            raise CheckpointError(f"{source} is no index of a state: {type(error).__name__}: {error}") from error


class PeerReader(IntervalReader):
    """The state of one step, read from the vaults that hold it. Raises CheckpointError if none that holds a shard can
    be reached; if a vault is lost meanwhile, reading continues from another.

    All shards are described when it is made, and opened when they are first read: a rank reads few of them, and a
    mapping of all shards costs page tables in every process. Memory: only the indexes; payloads are read into the
    caller's buffers.
    """

    def __init__(
        self, state: PeerState, token: str, own_vault: str | None, vault_pid: int | None, tick: Tick = no_tick
    ) -> None:
        """`own_vault`: address of this node's vault, whose process is `vault_pid`: read without the network. `tick`:
        called after each shard that is described and each piece that is read, by any thread."""
        described: list[_Described] = []
        with _Descriptions(state, token, own_vault, vault_pid, tick) as descriptions:
            for place in state.shards:
                described.append(descriptions.of(place))
                tick()
        self._rng = {place.rank: of.small.rng for place, of in zip(state.shards, described, strict=True)}
        super().__init__(
            manifest_of_state(described[0].index, [of.small.manifest for of in described]),
            [of.index.shard for of in described],
            lambda number: described[number].open(),
            f"the peers' state of step {state.step}",
        )

    def rng(self, rank: int) -> dict[str, str]:
        return self._rng.get(rank, {})


@dataclass(frozen=True)
class _LocalPlace:
    """Location of a payload in this host's vault."""

    path: str
    size: CellSize
    slot: int
    serial: int


@dataclass(frozen=True)
class _Described:
    """A shard that has not been opened."""

    index: CellIndex
    small: SmallState
    key: StepFields
    addresses: tuple[str, ...]
    """Vaults that hold it; the first has described it."""
    local: _LocalPlace | None
    """In the first of them, if that is this host's."""
    token: str
    tick: Tick

    def open(self) -> ShardSource:
        """Raises CheckpointError if the only vault that holds it does not any more."""
        if self.local is None:
            return _RemoteShard(self.addresses, self.key, self.token, self.tick)
        try:
            return _LocalShard(self.local, self.key["step"], self.tick)
        except (OSError, ValueError) as error:
            if len(self.addresses) == 1:
                raise _lost(self.addresses[0], error) from error
            return _RemoteShard(self.addresses[1:], self.key, self.token, self.tick)


class _LocalShard:
    """A payload mapped from this host's vault."""

    def __init__(self, place: _LocalPlace, step: int, tick: Tick) -> None:
        """Raises OSError or ValueError if the vault does not hold it any more."""
        self._cell = Cell.attach(place.path, place.size, writes=False)
        if self._cell.serial != place.serial or self._cell.step(place.slot) != step:
            self._cell.close()
            raise ValueError(f"step {step} is no longer available")
        self._payload, self._tick = self._cell.payload(place.slot), tick

    def read_into(self, offset: int, out: memoryview) -> None:
        for start in range(0, len(out), PIECE_BYTES):
            piece = out[start : start + PIECE_BYTES]
            piece[:] = self._payload[offset + start : offset + start + len(piece)]
            self._tick()

    def close(self) -> None:
        self._payload.release()
        self._cell.close()


class _RemoteShard:
    """A payload in vaults of other hosts, read over several connections at once. For one thread at a time."""

    def __init__(self, addresses: Sequence[str], key: StepFields, token: str, tick: Tick) -> None:
        """`addresses`: of vaults that hold it, in the order of use."""
        self._lines = [_Line(addresses, key, token) for _ in range(STREAMS)]
        self._pool: ThreadPoolExecutor | None = None
        self._tick = tick

    def read_into(self, offset: int, out: memoryview) -> None:
        pieces = [(offset + start, out[start : start + PIECE_BYTES]) for start in range(0, len(out), PIECE_BYTES)]
        if len(pieces) <= 1:
            self._read(self._lines[0], pieces)
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(STREAMS, thread_name_prefix="peer-read")
        shares = [(line, pieces[number::STREAMS]) for number, line in enumerate(self._lines)]
        reads = [self._pool.submit(self._read, line, share) for line, share in shares]
        wait(reads)  # nothing is written into `out` after an error has been raised
        for read in reads:
            read.result()

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()
        for line in self._lines:
            line.close()

    def _read(self, line: "_Line", pieces: Sequence[tuple[int, memoryview]]) -> None:
        for offset, piece in pieces:
            line.read_into(offset, piece)
            self._tick()


class _Line:
    """A connection to a vault that holds a payload; if it breaks off, one to another vault that does: nodes also go
    while they are read."""

    def __init__(self, addresses: Sequence[str], key: StepFields, token: str) -> None:
        self._where, *self._others = addresses
        self._key, self._token = key, token
        self._channel: Channel | None = None

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
        _, count = self._channel.ask(ReadRequest(**self._key, do="read", offset=offset, length=len(out)))
        if count != len(out):
            raise CheckpointError(f"the vault at {self._where} sent {count} bytes, expected {len(out)}")
        self._channel.take_into(out)


class _Descriptions:
    """Asks vaults what they hold of a state, each over one connection for as long as this is entered."""

    def __init__(self, state: PeerState, token: str, own_vault: str | None, vault_pid: int | None, tick: Tick) -> None:
        self._state, self._token, self._tick = state, token, tick
        self._own, self._pid = own_vault, vault_pid
        self._channels: dict[str, Channel] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for channel in self._channels.values():
            channel.close()

    def of(self, place: ShardPlace) -> _Described:
        """The shard of a rank, as the nearest vault that can be reached describes it. Raises CheckpointError."""
        key = StepFields(generation=self._state.generation, rank=place.rank, step=self._state.step)
        last: CheckpointError | None = None
        addresses = tuple(sorted(place.vaults, key=lambda address: address != self._own))
        for number, address in enumerate(addresses):
            try:
                return self._ask(address, key, addresses[number:])
            except OSError as error:
                channel = self._channels.pop(address, None)
                if channel is not None:
                    channel.close()
                last = _lost(address, error)
        raise last or PeerStateError(f"no vault holds the state of rank {place.rank}")

    def _ask(self, address: str, key: StepFields, addresses: tuple[str, ...]) -> _Described:
        channel = self._channels.get(address)
        if channel is None:
            channel = self._channels[address] = Channel.connect(address, self._token, READ_TIMEOUT_S)
        header, count = channel.ask(DescribeRequest(**key, do="describe"))
        data = channel.take(count)
        answer = decode(DescribeAnswer, header)
        small = SmallState.from_bytes(data[: answer["state_bytes"]], f"the vault at {address}")
        index = CellIndex.from_bytes(data[answer["state_bytes"] :], f"the vault at {address}")
        local: _LocalPlace | None = None
        if address == self._own and self._pid is not None:
            size = CellSize(answer["payload_bytes"], answer["slot_state_bytes"])
            path = descriptor_path(self._pid, answer["descriptor"])
            local = _LocalPlace(path, size, answer["slot"], answer["serial"])
        return _Described(index, small, key, addresses, local, self._token, self._tick)


def descriptor_path(pid: int, descriptor: int) -> str:
    """Another process's open file, of the same user on the same host."""
    return f"/proc/{pid}/fd/{descriptor}"


def _lost(address: str, error: Exception) -> PeerStateError:
    return PeerStateError(f"the vault at {address} cannot be reached: {error}")


def manifest_of_state(index: CellIndex, small: Sequence[JsonFields]) -> Manifest:
    """The manifest, without shards, of a state: `index` of rank 0, and what is small of every rank, rank 0 first.
    Raises CheckpointError."""
    try:
        moments = any(flag(body, "moments") for body in small)  # a rank whose partition is all padding may have none
        return replace(Manifest.of_state(small[0], index.tensors, index.tied), moments=moments)
    except ValueError as error:
        raise CheckpointError(f"the state in the vaults is damaged: {error}") from error


def _tensor(value: Sequence[JsonValue]) -> TensorEntry:
    """The reverse of what `CellIndex.to_bytes` writes. Raises ValueError."""
    shape, dtype, kind, group = value
    fields: JsonObject = {"shape": shape, "dtype": dtype, "kind": kind, "group": group}
    return TensorEntry.from_json(fields)
