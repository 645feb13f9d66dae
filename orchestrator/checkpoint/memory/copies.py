"""How a vault's states get to its peers: over the network, or on one machine by sharing the memory with them.

For one thread of a vault that replicates.
"""

import os
import threading
import time
from collections.abc import Callable

from orchestrator.checkpoint.memory import stripes
from orchestrator.checkpoint.memory.frames import (
    CopyRequest,
    ReportRequest,
    ShareRequest,
    TicketAnswer,
    TicketFields,
    WholeRequest,
    decode,
)
from orchestrator.checkpoint.memory.held import CellKey, Held
from orchestrator.checkpoint.memory.stripes import Stripes
from orchestrator.checkpoint.memory.wire import Channel, RefusedError, WireError

PEER_TIMEOUT_S = 30.0
"""How long a peer may take for one frame."""


class CpuTime:
    """Seconds of CPU that a vault has spent on copies, sent and received. Thread-safe."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._lock = threading.Lock()

    def add(self, since_s: float) -> None:
        """Count this thread's time since `time.thread_time()` was `since_s`."""
        with self._lock:
            self.seconds += time.thread_time() - since_s

    def counting(self) -> Callable[[], None]:
        """Count this thread's time from now until what is returned is called, in the same thread."""
        since_s = time.thread_time()
        return lambda: self.add(since_s)


class Copies:
    """Connections to peers, and what they have heard of already."""

    def __init__(self, address: str, token: str, shares: bool, spent: CpuTime) -> None:
        """`address`: of the vault itself. `shares`: see `Vault`. `spent`: counts what threads of this one's spend; what
        the caller's does is the caller's to count."""
        self._address, self._token, self._shares = address, token, shares
        self._stripes = Stripes(lambda peer: Channel.connect(peer, token, PEER_TIMEOUT_S), spent.counting)
        self._channels: dict[str, Channel] = {}
        self._told: set[tuple[str, CellKey]] = set()
        """Which peers have the index of which cell."""
        self._holders: dict[tuple[str, CellKey], int] = {}
        """Which peers hold which memory of this vault."""
        self._apart: set[str] = set()
        """Peers that could not map this vault's memory although their address is local."""
        self.last_problem = ""
        """Why a copy did not arrive, the last time one did not."""

    def forget(self, keys: list[CellKey]) -> None:
        """Forget cells that were freed. May be called from any thread."""
        self._told = {(peer, key) for peer, key in list(self._told) if key not in keys}
        self._holders = {each: serial for each, serial in list(self._holders.items()) if each[1] not in keys}

    def bring(self, peer: str, key: CellKey, held: Held, step: int) -> bool:
        """Make a peer hold a step and confirm it; return whether it has."""
        if self._shares and peer not in self._apart and _host(peer) == _host(self._address):
            shared = self._share(peer, key, held, step)
            if shared is not None:
                return shared
        return self._copy(peer, key, held, step)

    def _share(self, peer: str, key: CellKey, held: Held, step: int) -> bool | None:
        """Let a peer on this host share the memory; None if it cannot and needs a copy.

        The peer holds it as long as its process lives; the connection shows when it ends.
        """
        if self._holders.get((peer, key)) == held.cell.serial:
            gone = self._channel(peer).hung_up
            return self._failed(peer, key, step, WireError("it is no longer available")) if gone else True
        index = b"" if (peer, key) in self._told else held.index
        size = held.cell.size
        header: ShareRequest = {
            "do": "share", "generation": key.generation, "rank": key.rank, "world_size": held.world_size, "step": step,
            "payload_bytes": size.payload_bytes, "slot_state_bytes": size.state_bytes, "index_bytes": len(index),
            "pid": os.getpid(), "descriptor": held.cell.descriptor, "serial": held.cell.serial,
        }  # fmt: skip
        try:
            self._channel(peer).ask(header, index)
        except RefusedError:
            if index:  # not even the first time
                self._apart.add(peer)
            self._told.discard((peer, key))
            return None
        except OSError as error:
            return self._failed(peer, key, step, error)
        self._told.add((peer, key))
        self._holders[peer, key] = held.cell.serial
        return True

    def _copy(self, peer: str, key: CellKey, held: Held, step: int) -> bool:
        """Send a slot to a peer's vault and wait for its confirmation; False if that fails."""
        slot = held.cell.slot_of(step)
        if slot is None:
            return False
        try:
            channel = self._channel(peer)
            state, size = held.cell.state(slot), held.cell.size
            index = b"" if (peer, key) in self._told else held.index
            header: CopyRequest = {
                "do": "copy", "generation": key.generation, "rank": key.rank, "world_size": held.world_size,
                "slot": slot, "step": step, "payload_bytes": size.payload_bytes, "slot_state_bytes": size.state_bytes,
                "state_bytes": len(state), "index_bytes": len(index),
            }  # fmt: skip
            position = held.cell.payload_position(slot)
            if size.payload_bytes < 2 * stripes.STRIPE_BYTES:
                channel.send_file(header, index + state, held.cell.descriptor, position, size.payload_bytes)
                channel.answer()
            else:
                answer, _ = channel.ask({**header, "striped": True}, index + state)
                ticket = decode(TicketAnswer, answer)["ticket"]
                of = TicketFields(generation=key.generation, rank=key.rank, ticket=ticket)
                self._stripes.send(peer, of, held.cell.descriptor, position, size.payload_bytes)
                channel.ask(WholeRequest(**of, do="whole"))
        except OSError as error:
            return self._failed(peer, key, step, error)
        self._told.add((peer, key))
        return True

    def _failed(self, peer: str, key: CellKey, step: int, error: OSError) -> bool:
        self.last_problem = f"copy of rank {key.rank}, step {step}, to {peer}: {error}"
        self._hang_up(peer)
        self._told.discard((peer, key))
        return False

    def report(self, peer: str, key: CellKey, step: int, data: bytes) -> None:
        frame = ReportRequest(do="report", generation=key.generation, rank=key.rank, step=step, copy=True)
        try:
            self._channel(peer).send(frame, data)
        except OSError as error:
            self.last_problem = f"report of step {step}, to {peer}: {error}"
            self._hang_up(peer)

    def close(self) -> None:
        """Hang up on all peers."""
        self._stripes.close()
        for peer in list(self._channels):
            self._hang_up(peer)

    def _channel(self, peer: str) -> Channel:
        channel = self._channels.get(peer)
        if channel is None:
            channel = self._channels[peer] = Channel.connect(peer, self._token, PEER_TIMEOUT_S)
        return channel

    def _hang_up(self, peer: str) -> None:
        channel = self._channels.pop(peer, None)
        self._holders = {each: serial for each, serial in list(self._holders.items()) if each[0] != peer}
        if channel is not None:
            channel.close()


def _host(address: str) -> str:
    return address.rpartition(":")[0]
