"""A device that does nothing until it is told to: streams, events and copies as CUDA orders them, in one process.

It stands for the hardware below `torch.cuda`, where there is none: what is queued on a stream is done in order, a wait
blocks its stream alone, and streams run in whatever order the test chooses. It proves nothing about speed or memory.
"""

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch


class Simulated:
    """`install` puts it into the place of `torch.cuda`'s parts that the code under test uses."""

    def __init__(self) -> None:
        self.clock_ms = 0.0
        self.compute = Stream(self)
        self.streams = [self.compute]
        self.current = self.compute
        self.registered: dict[int, int] = {}
        """Bytes of page-locked memory by address."""
        self.refuses = 0
        """What `cudaHostRegister` returns."""

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def new_stream(device: Any = None) -> Stream:
            self.streams.append(Stream(self))
            return self.streams[-1]

        @contextlib.contextmanager
        def on(stream: Stream) -> Iterator[None]:
            before, self.current = self.current, stream
            try:
                yield
            finally:
                self.current = before

        monkeypatch.setattr(torch.cuda, "Stream", new_stream)
        monkeypatch.setattr(torch.cuda, "Event", lambda enable_timing=False: Event(self))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: self.current)
        monkeypatch.setattr(torch.cuda, "stream", on)
        monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
        runtime = SimpleNamespace(cudaHostRegister=self._register, cudaHostUnregister=self._unregister)
        monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
        monkeypatch.setattr(DeviceTensor, "simulated", self)

    def _register(self, address: int, size_bytes: int, flags: int) -> int:
        if not self.refuses:
            self.registered[address] = size_bytes
        return self.refuses

    def _unregister(self, address: int) -> int:
        del self.registered[address]
        return 0


class Stream:
    """Work in order."""

    def __init__(self, device: Simulated) -> None:
        self._device = device
        self._work: deque[Callable[[], bool]] = deque()

    def queue(self, work: Callable[[], object]) -> None:
        """Something that is done when the stream comes to it."""

        def done() -> bool:
            work()
            return True

        self._work.append(done)

    def run(self) -> bool:
        """Do what is queued, up to a wait for what has not happened; whether all is done."""
        while self._work and self._work[0]():
            self._work.popleft()
        return not self._work

    def wait_event(self, event: "Event") -> None:
        self._work.append(lambda: event.happened)

    def wait_stream(self, stream: "Stream") -> None:
        event = Event(self._device)
        event.record(stream)
        self.wait_event(event)


class Event:
    """Happens when its stream comes to it."""

    def __init__(self, device: Simulated) -> None:
        self._device = device
        self._streams: list[Stream] = []
        self.happened = False
        self.at_ms = 0.0

    def record(self, stream: Stream | None = None) -> None:
        def happen() -> None:
            self.happened, self.at_ms = True, self._device.clock_ms

        where = stream or self._device.current
        self._streams.append(where)
        where.queue(happen)

    def query(self) -> bool:
        return self.happened

    def synchronize(self) -> None:
        """Runs its stream, as the real one waits for it."""
        for stream in self._streams:
            stream.run()
        assert self.happened, "it would never happen"

    def elapsed_time(self, end: "Event") -> float:
        return end.at_ms - self.at_ms


class DeviceTensor(torch.Tensor):
    """Lies on the device: a copy from or to it is queued on the current stream, and reads when its turn comes."""

    simulated: Simulated | None = None
    is_cuda = True

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.copy_:
            target, source = (each.as_subclass(torch.Tensor) for each in args[:2])
            assert kwargs == {"non_blocking": True}, "a copy that waits for the device"
            assert cls.simulated is not None
            cls.simulated.current.queue(lambda: target.copy_(source))
            return args[0]
        return super().__torch_function__(func, types, args, kwargs or {})


def on_device(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory as a tensor of the device."""
    return tensor.as_subclass(DeviceTensor)
