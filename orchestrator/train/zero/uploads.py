"""How restored numbers get into tensors that they cannot be read into in place: through buffers of a stated size."""

from collections.abc import Callable

import torch

from orchestrator.checkpoint.format.dtypes import Elements

HOST_BYTES = 16 << 20
"""The buffer for a target in host memory of another type."""
DEVICE_BYTES = 64 << 20
"""Each of the two page-locked buffers of a process that restores to a GPU; PyTorch keeps them for later use."""

Fill = Callable[[int, int, Elements], None]
"""Writes elements [first, last) into an array."""


class Uploads:
    """One buffer after the other is filled and sent into its target; a buffer is filled again when it has been sent.

    This one sends at once, with one buffer of HOST_BYTES.
    """

    buffer_bytes = HOST_BYTES
    count = 1

    def __init__(self) -> None:
        self._buffers: list[torch.Tensor] = []
        self._sent: list[torch.cuda.Event | None] = []
        self._next = 0

    def __enter__(self) -> "Uploads":
        return self

    def __exit__(self, *error: object) -> None:
        """Targets hold what was sent, and the buffers are free."""
        for number, sent in enumerate(self._sent):
            self._sent[number] = None
            if sent is not None:
                self._await(sent)
        self._buffers.clear()

    def put(self, target: torch.Tensor, fill: Fill) -> None:
        """Fill a 1-D tensor.

        Floating numbers travel as float32, which holds every bfloat16 and float16 exactly.
        """
        dtype = torch.float32 if target.is_floating_point() else target.dtype
        elements = self.buffer_bytes // dtype.itemsize
        for first in range(0, target.numel(), elements):
            piece = target[first : first + elements]
            number = self._free()
            staged = self._buffers[number][: piece.numel() * dtype.itemsize].view(dtype)
            fill(first, first + piece.numel(), staged.numpy())
            self._sent[number] = self._send(staged, piece)

    def _free(self) -> int:
        """Number of a buffer that may be filled; waits for it."""
        if not self._buffers:
            self._buffers = [self._allocate() for _ in range(self.count)]
            self._sent = [None] * self.count
        number, self._next = self._next, (self._next + 1) % self.count
        sent, self._sent[number] = self._sent[number], None
        if sent is not None:
            self._await(sent)
        return number

    def _allocate(self) -> torch.Tensor:
        return torch.empty(self.buffer_bytes, dtype=torch.uint8)

    def _send(self, staged: torch.Tensor, target: torch.Tensor) -> torch.cuda.Event | None:
        """Begin to copy; returns what `_await` waits for, or None if there is nothing to wait for."""
        target.copy_(staged)
        return None

    def _await(self, sent: torch.cuda.Event) -> None:
        """Wait until a buffer may be filled again."""


class CudaUploads(Uploads):
    """Into a GPU's memory: the device copies one page-locked buffer while the other one is filled.

    Never run on a GPU.
    """

    buffer_bytes = DEVICE_BYTES
    count = 2

    def _allocate(self) -> torch.Tensor:
        return torch.empty(self.buffer_bytes, dtype=torch.uint8, pin_memory=True)

    def _send(self, staged: torch.Tensor, target: torch.Tensor) -> torch.cuda.Event | None:
        target.copy_(staged, non_blocking=True)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        return event

    def _await(self, sent: torch.cuda.Event) -> None:
        sent.synchronize()


def uploads_to(device: torch.device) -> Uploads:
    """What suits the device of an engine."""
    return CudaUploads() if device.type == "cuda" else Uploads()
