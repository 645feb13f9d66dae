"""Copies a snapshot's bytes from the engine's state into the vault's shared memory.

On a CPU the training thread copies them at the step boundary (`HostStaging`). On a GPU the copy runs beside the next
step's forward and backward pass (`CudaStaging`), because masters and moments do not change before the next update:
DeepSpeed's optimizers write them only in `step`, and gradients have their own buffers. `BackgroundStaging` is the part
of it that needs no GPU; it works by itself on a CPU, so that the protocol with the training loop runs in tests.

The protocol, of the training thread: `begin` after an update, `fence` before the next one, `wait` if the state must be
in the vault before training continues.
"""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from orchestrator.checkpoint.memory.cells import address_of
from orchestrator.checkpoint.memory.numa import node_of
from orchestrator.domain.tick import Tick, no_tick
from orchestrator.lasting_thread import LastingThread

COPY_LIMIT_S = 120.0
"""A copy that takes longer has failed. The largest state of one GPU (13 GB) takes 4 s even from pageable memory."""
BEGIN_LIMIT_S = 10.0
"""From the word that a copy is complete to the time when the next one can begin: a moment, usually."""
CLOSE_LIMIT_S = 2.0
"""How long `close` waits for a copy that is under way: survivors of a failure have little time to get ready."""
_QUERY_PAUSE_S = 0.002
"""Between two looks at whether the device has finished: no thread is ever blocked within the CUDA driver."""


@dataclass(frozen=True)
class Copy:
    """Two 1-D tensors of the same type and length; `target` lies in shared memory of the host."""

    source: torch.Tensor
    target: torch.Tensor


Done = Callable[[str | None], None]
"""Called once for each copy that was begun, by any thread: None, or why the copy failed."""


class Staging(Protocol):
    """One rank's copies, one at a time. `pin` is called by another thread, the rest by the training thread."""

    overlaps: bool
    """The copy may still run when `begin` returns: what changes before the next update has to be cloned first."""

    def numa_node(self) -> int | None:
        """NUMA node for the memory of the targets; None if it makes no difference. Called by the thread that calls
        `pin`."""

    def pin(self, memory: memoryview) -> str | None:
        """Prepare the memory that all targets lie in, before the first copy; may take seconds. Returns why copies will
        be slower than they could be, or None."""

    def begin(self, copies: Sequence[Copy], done: Done) -> None:
        """Copy each source as it is now, after all work that is queued on the device. Holds the tensors until `done`
        has been called."""

    def fence(self) -> None:
        """Let nothing that is queued or done after this change a source before it is copied."""

    def wait(self, limit_s: float) -> bool:
        """Wait for `done` of the last copy; False if that took longer than `limit_s`."""

    def stalled_s(self) -> float:
        """Seconds for which fences held up training since the last call."""

    def close(self) -> None:
        """Give up the memory of `pin`, after the copy that is under way; waits CLOSE_LIMIT_S at most, and leaves the
        rest to a thread."""


class HostStaging:
    """The training thread copies, and has copied when `begin` returns."""

    overlaps = False

    def __init__(self, tick: Tick = no_tick) -> None:
        """`tick`: called after each copy."""
        self._tick = tick

    def numa_node(self) -> int | None:
        return None

    def pin(self, memory: memoryview) -> str | None:
        return None

    def begin(self, copies: Sequence[Copy], done: Done) -> None:
        with torch.no_grad():
            for copy in copies:
                copy.target.copy_(copy.source)
                self._tick()
        done(None)

    def fence(self) -> None:
        pass

    def wait(self, limit_s: float) -> bool:
        return True

    def stalled_s(self) -> float:
        return 0.0

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class _Job:
    copies: tuple[Copy, ...]
    """What the thread copies itself."""
    held: tuple[Copy, ...]
    """What the device copies; kept until it has."""
    event: torch.cuda.Event | None
    """The device has copied `held`; None if there is nothing for it."""
    done: Done


class BackgroundStaging:
    """A thread copies what lies in host memory, and says when a copy is complete.

    A fence waits for the thread. Errors of a copy go to `done`: the snapshot is lost, training is not.
    """

    overlaps = True

    def __init__(self, tick: Tick = no_tick) -> None:
        """`tick`: called after each copy, by the thread."""
        self._tick = tick
        self._jobs: queue.Queue[_Job | None] = queue.Queue(maxsize=2)  # one at a time, and the end
        self._idle = threading.Event()
        self._idle.set()
        self._stalled_s = 0.0
        self._thread = LastingThread("snapshot-copy", self._turn)

    def numa_node(self) -> int | None:
        return None

    def pin(self, memory: memoryview) -> str | None:
        return None

    def begin(self, copies: Sequence[Copy], done: Done) -> None:
        """See `Staging`. Raises RuntimeError if another copy is under way: callers know that the last one is complete,
        but perhaps before the thread that reported it continues."""
        if not self.wait(BEGIN_LIMIT_S):
            raise RuntimeError("a snapshot was started while the previous one is still being copied")
        self._idle.clear()
        try:
            self._jobs.put_nowait(self._start(tuple(copies), done))
        except BaseException:
            self._idle.set()
            raise

    def fence(self) -> None:
        """Raises TimeoutError if a copy takes longer than COPY_LIMIT_S."""
        if self._idle.is_set():
            return
        started = time.perf_counter()
        if not self.wait(COPY_LIMIT_S):
            raise TimeoutError(f"the copy of a snapshot has taken longer than {COPY_LIMIT_S:.0f} s")
        self._stalled_s += time.perf_counter() - started

    def wait(self, limit_s: float) -> bool:
        return self._idle.wait(limit_s)

    def stalled_s(self) -> float:
        stalled_s, self._stalled_s = self._stalled_s, 0.0
        return stalled_s

    def close(self) -> None:
        self.wait(CLOSE_LIMIT_S)
        self._jobs.put_nowait(None)
        self._thread.join(CLOSE_LIMIT_S)

    def _start(self, copies: tuple[Copy, ...], done: Done) -> _Job:
        """Have the device begin its part; the rest is the thread's."""
        return _Job(copies, (), None, done)

    def _copied(self, event: torch.cuda.Event | None) -> bool:
        """Whether the device has done its part. Raises what it raises."""
        return True

    def _release(self) -> None:
        """After the last copy."""

    def _turn(self) -> bool:
        job = self._jobs.get()
        if job is None:
            self._release()
            return False
        try:
            job.done(self._complete(job))
        finally:
            self._idle.set()
        return True

    def _complete(self, job: _Job) -> str | None:
        """Do the thread's part and await the device's; why that failed, or None."""
        deadline_s = time.monotonic() + COPY_LIMIT_S
        try:
            with torch.no_grad():
                for copy in job.copies:
                    copy.target.copy_(copy.source)
                    self._tick()
            while not self._copied(job.event):
                if time.monotonic() > deadline_s:
                    return f"the device has not copied it within {COPY_LIMIT_S:.0f} s"
                time.sleep(_QUERY_PAUSE_S)
        except Exception as error:  # noqa: BLE001  # whatever it is, there is no snapshot
            return f"{type(error).__name__}: {error}"
        return None


class CudaStaging(BackgroundStaging):
    """The device copies on a stream of its own into page-locked memory; fences are waits of the device.

    State that is offloaded lies in host memory: the thread copies it. Never run on a GPU.
    """

    def __init__(self, device: torch.device, tick: Tick = no_tick) -> None:
        super().__init__(tick)
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._event: torch.cuda.Event | None = None
        """Of the last copy by the device that no fence has followed."""
        self._by_thread = False
        """The thread copies a part of the copy that is under way."""
        self._stalls: tuple[torch.cuda.Event, torch.cuda.Event] | None = None
        """On the compute stream, before and after the last fence."""
        self._pinned: memoryview | None = None

    def numa_node(self) -> int | None:
        """The device's."""
        found = torch.cuda.get_device_properties(self._device)
        # As in torch/numa/binding.py; the attributes are missing in its type stubs.
        domain, bus, number = (
            int(getattr(found, name, -1)) for name in ("pci_domain_id", "pci_bus_id", "pci_device_id")
        )
        return node_of(f"{domain:04x}:{bus:02x}:{number:02x}.0")

    def pin(self, memory: memoryview) -> str | None:
        """Page-lock the memory with cudaHostRegister, which takes seconds for some GB. If that is refused, copies are
        right, but hold up the training thread for as long as they take."""
        try:
            with torch.cuda.device(self._device):
                # The binding returns the error and does not raise it: torch/csrc/cuda/shared/cudart.cpp.
                runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
                code = int(runtime.cudaHostRegister(address_of(memory), len(memory), 0))
            reason = f"cudaHostRegister: error {code}"
        except Exception as error:  # noqa: BLE001  # no snapshots at all would be worse
            code, reason = -1, f"{type(error).__name__}: {error}"
        if code == 0:
            self._pinned = memory  # also keeps it mapped for as long as it is registered
            return None
        return (
            f"{len(memory) >> 20} MiB of host memory cannot be page-locked ({reason}); snapshots stop training while "
            "they are copied"
        )

    def fence(self) -> None:
        event, self._event = self._event, None
        if event is not None:
            current = torch.cuda.current_stream(self._device)
            before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            before.record(current)
            current.wait_event(event)
            after.record(current)
            self._stalls = before, after
        if self._by_thread:  # the update of offloaded state does not go through the stream
            super().fence()

    def stalled_s(self) -> float:
        stalls, self._stalls = self._stalls, None
        seconds = super().stalled_s()
        if stalls is None:
            return seconds
        if not stalls[1].query():  # type: ignore[no-untyped-call]  # not there yet: the next call says it
            self._stalls = stalls
            return seconds
        return seconds + float(stalls[0].elapsed_time(stalls[1])) / 1000.0

    def _start(self, copies: tuple[Copy, ...], done: Done) -> _Job:
        by_device = tuple(copy for copy in copies if copy.source.is_cuda)
        by_thread = tuple(copy for copy in copies if not copy.source.is_cuda)
        self._by_thread = bool(by_thread)
        if not by_device:
            return _Job(by_thread, (), None, done)
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.no_grad(), torch.cuda.stream(self._stream):
            for copy in by_device:
                # cudaMemcpyAsync, whoever has allocated the target: aten/src/ATen/native/cuda/Copy.cu. From pageable
                # memory it returns when the bytes have been copied.
                copy.target.copy_(copy.source, non_blocking=True)
                self._tick()
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(self._stream)
        self._event = event
        return _Job(by_thread, by_device, event, done)

    def _copied(self, event: torch.cuda.Event | None) -> bool:
        return event is None or bool(event.query())  # type: ignore[no-untyped-call]

    def _release(self) -> None:
        memory, self._pinned = self._pinned, None
        if memory is None:
            return
        with torch.cuda.device(self._device):
            # After an error of the device this fails as well; the memory is unmapped all the same, with the process.
            runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
            runtime.cudaHostUnregister(address_of(memory))


def staging_for(device: torch.device, tick: Tick = no_tick) -> Staging:
    """What suits a device."""
    return CudaStaging(device, tick) if device.type == "cuda" else HostStaging(tick)
