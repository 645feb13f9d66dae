"""Buffers through which restored numbers go: few, of a stated size, and not filled again before they have been sent."""

from typing import Any

import numpy as np
import pytest
import torch

from orchestrator.train.zero.uploads import HOST_BYTES, Uploads, uploads_to

pytestmark = pytest.mark.unit


class LateUploads(Uploads):
    """Sends as a device does: some time after it was asked to, and what the buffer holds then."""

    buffer_bytes = 64
    count = 2

    def __init__(self) -> None:
        super().__init__()
        self.allocated = 0
        self.waits = 0

    def _allocate(self) -> torch.Tensor:
        self.allocated += 1
        return super()._allocate()

    def _send(self, staged: torch.Tensor, target: torch.Tensor) -> Any:
        return staged, target

    def _await(self, sent: Any) -> None:
        self.waits += 1
        staged, target = sent
        target.copy_(staged)


def saved(first: int, last: int, out: "np.ndarray[Any, Any]") -> None:
    assert out.shape == (last - first,)
    out[:] = np.arange(first, last) % 100


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8])
def test_all_elements_arrive_through_two_buffers(dtype: torch.dtype) -> None:
    target = torch.zeros(1000, dtype=dtype)
    with LateUploads() as uploads:
        uploads.put(target, saved)
        uploads.put(target[:3], saved)
    assert torch.equal(target, (torch.arange(1000) % 100).to(dtype))
    assert uploads.allocated == 2
    assert uploads.waits == -(-1000 * max(dtype.itemsize, 4 if dtype.is_floating_point else 0) // 64) + 1


def test_the_host_has_one_buffer_and_sends_at_once() -> None:
    target = torch.zeros(HOST_BYTES // 4 + 7, dtype=torch.bfloat16)
    uploads = uploads_to(torch.device("cpu"))
    uploads.put(target, saved)
    assert torch.equal(target[-7:], ((torch.arange(target.numel()) % 100)[-7:]).to(torch.bfloat16))
    assert [buffer.nbytes for buffer in uploads._buffers] == [HOST_BYTES]
