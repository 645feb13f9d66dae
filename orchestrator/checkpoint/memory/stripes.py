"""Sends a large slot to a peer in stripes, over several connections at once.

The sender announces the slot (`copy`, with `striped`) and gets a ticket; it sends stripes under that ticket and then
the end (`whole`). The receiver makes the slot hold the step when all bytes have arrived.
"""

import itertools
import queue
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from orchestrator.checkpoint.memory.frames import StripeRequest, TicketFields
from orchestrator.checkpoint.memory.held import CellKey, Held
from orchestrator.checkpoint.memory.wire import Channel
from orchestrator.lasting_thread import LastingThread

STRIPE_BYTES = 64 << 20
"""A payload of two stripes or more travels in stripes; for less the two further round trips are not worth it."""
STRIPE_STREAMS = 4
"""Connections for the stripes of one slot: see `replication.LANES`. A vault has at most LANES * STRIPE_STREAMS of them
to each peer, and uses them all if several large cells travel at once."""
ABORT_LIMIT_S = 5.0
"""From the hanging up on stripes of an attempt that has failed to the end of their reception."""


@dataclass(frozen=True)
class _Stripe:
    peer: str
    frame: Mapping[str, object]
    descriptor: int
    position: int
    """In the file."""
    length: int
    failed: threading.Event
    """Another stripe of the same slot has failed."""
    sent: "Future[None]"


class Stripes:
    """Sends stripes. `send` is for one thread at a time."""

    def __init__(self, connect: Callable[[str], Channel], count_cpu: Callable[[], Callable[[], None]]) -> None:
        """`connect` to a peer's vault. `count_cpu` is called in the thread that is going to send, and gives what is
        called when it has sent."""
        self._connect, self._count_cpu = connect, count_cpu
        self._work: queue.Queue[_Stripe | None] = queue.Queue()
        self._started = False

    def send(self, peer: str, frame: TicketFields, descriptor: int, position: int, size_bytes: int) -> None:
        """Send `size_bytes` of a file, from `position` on, each stripe with its `offset` and answered by the peer.
        Raises OSError if one of them failed; when it returns or raises, none is under way."""
        if not self._started:
            self._started = True
            for number in range(STRIPE_STREAMS):
                _StripeStream(self._work, self._connect, self._count_cpu, number)
        failed = threading.Event()
        stripes = []
        for offset in range(0, size_bytes, STRIPE_BYTES):
            length = min(STRIPE_BYTES, size_bytes - offset)
            header = StripeRequest(
                do="stripe",
                generation=frame["generation"],
                rank=frame["rank"],
                ticket=frame["ticket"],
                offset=offset,
            )
            stripes.append(_Stripe(peer, header, descriptor, position + offset, length, failed, Future()))
        for stripe in stripes:
            self._work.put(stripe)
        wait([stripe.sent for stripe in stripes])
        errors = [error for stripe in stripes if (error := stripe.sent.exception()) is not None]
        if errors:
            raise next((error for error in errors if not isinstance(error, _SkippedError)), errors[0])

    def close(self) -> None:
        """End the threads, after what they are sending."""
        if self._started:
            for _ in range(STRIPE_STREAMS):
                self._work.put(None)


class _SkippedError(OSError):
    """Not sent, because another stripe failed."""


class _StripeStream:
    """A thread with connections of its own."""

    def __init__(
        self,
        work: "queue.Queue[_Stripe | None]",
        connect: Callable[[str], Channel],
        count_cpu: Callable[[], Callable[[], None]],
        number: int,
    ) -> None:
        self._work, self._connect, self._count_cpu = work, connect, count_cpu
        self._channels: dict[str, Channel] = {}
        LastingThread(f"vault-stripe-{number}", self._turn)

    def _turn(self) -> bool:
        stripe = self._work.get()
        if stripe is None:
            for channel in self._channels.values():
                channel.close()
            return False
        self._take(stripe)
        return True

    def _take(self, stripe: _Stripe) -> None:
        counted = self._count_cpu()
        try:
            if stripe.failed.is_set():
                raise _SkippedError("another stripe failed")
            self._send(stripe)
        except Exception as error:  # noqa: BLE001  # raised by whoever waits for it
            stripe.failed.set()
            channel = self._channels.pop(stripe.peer, None)
            if channel is not None:
                channel.close()
            stripe.sent.set_exception(error)
        else:
            stripe.sent.set_result(None)
        finally:
            counted()

    def _send(self, stripe: _Stripe) -> None:
        channel = self._channels.get(stripe.peer)
        if channel is None:
            channel = self._channels[stripe.peer] = self._connect(stripe.peer)
        channel.send_file(stripe.frame, b"", stripe.descriptor, stripe.position, stripe.length)
        channel.answer()


@dataclass
class _Arrival:
    """A slot that arrives in stripes."""

    held: Held
    slot: int
    step: int
    state: bytes
    ticket: int
    receiving: set[Channel] = field(default_factory=set)
    arrived_bytes: int = 0


class Arrivals:
    """Receives stripes; one slot of a cell at a time. Every method may be called from any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._arrivals: dict[CellKey, _Arrival] = {}
        self._tickets = itertools.count(1)

    def begin(
        self, key: CellKey, held: Held, slot: int, step: int, state: bytes, changing: AbstractContextManager[None]
    ) -> int:
        """Clear the slot's step within `changing`, and return the ticket for its stripes. An earlier attempt for the
        cell is aborted. Raises OSError if that takes too long, and what `changing` raises."""
        with self._changed:
            before = self._arrivals.pop(key, None)
            if before is not None:
                for channel in before.receiving:
                    channel.abort()
                if not self._changed.wait_for(lambda: not before.receiving, ABORT_LIMIT_S):
                    raise OSError("an earlier copy is still being received")
            with held.in_use() as cell, changing:
                cell.begin(slot).release()
            arrival = self._arrivals[key] = _Arrival(held, slot, step, state, next(self._tickets))
        return arrival.ticket

    def receive(self, key: CellKey, ticket: int, channel: Channel, offset: int, length: int) -> None:
        """Take a stripe from a connection. Raises OSError: then the connection is of no use any more."""
        with self._changed:
            arrival = self._of(key, ticket)
            arrival.receiving.add(channel)
        try:
            with arrival.held.in_use() as cell:
                if not 0 <= offset <= offset + length <= cell.size.payload_bytes:
                    raise OSError("there is no such range")
                with cell.payload(arrival.slot) as payload, payload[offset : offset + length] as part:
                    channel.take_into(part)
            with self._changed:
                arrival.arrived_bytes += length
        finally:
            with self._changed:
                arrival.receiving.discard(channel)
                self._changed.notify_all()

    def finish(self, key: CellKey, ticket: int) -> None:
        """Make the slot hold its step. Raises OSError unless all of it has arrived."""
        with self._changed:
            arrival = self._of(key, ticket)
            with arrival.held.in_use() as cell:
                if arrival.receiving or arrival.arrived_bytes != cell.size.payload_bytes:
                    raise OSError(f"{arrival.arrived_bytes} of {cell.size.payload_bytes} bytes have arrived")
                cell.finish(arrival.slot, arrival.step, arrival.state)
            del self._arrivals[key]

    def forget(self, before: int) -> None:
        """Generations before one are over."""
        with self._changed:
            self._arrivals = {key: of for key, of in self._arrivals.items() if key.generation >= before}

    def _of(self, key: CellKey, ticket: int) -> _Arrival:
        arrival = self._arrivals.get(key)
        if arrival is None or arrival.ticket != ticket:
            raise OSError("that copy has ended: another one was started")
        return arrival
