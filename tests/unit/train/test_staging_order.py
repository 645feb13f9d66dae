"""What a GPU would be asked to do, and in which order, seen on a device that is simulated: no GPU has run this code."""

import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from orchestrator.checkpoint.memory.cells import Cell, CellSize, address_of
from orchestrator.train.snapshot import staging
from orchestrator.train.snapshot.staging import Copy, CudaStaging
from orchestrator.train.zero import uploads
from orchestrator.train.zero.uploads import CudaUploads
from tests.unit.train.simulated_device import DeviceTensor, Simulated, on_device

pytestmark = pytest.mark.unit

SIZE = CellSize(payload_bytes=4096, state_bytes=100)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Simulated:
    simulated = Simulated()
    simulated.install(monkeypatch)
    return simulated


def test_the_update_waits_on_the_device_and_the_copy_for_the_step_before(device: Simulated) -> None:
    cuda = CudaStaging(torch.device("cuda"))
    side = device.streams[1]
    master, target = torch.zeros(8), torch.zeros(8)
    ended: list[str | None] = []
    device.compute.queue(lambda: master.fill_(1.0))  # the step before is still being computed
    cuda.begin([Copy(on_device(master), target)], ended.append)
    assert not side.run()
    device.compute.queue(lambda: None)  # forward and backward
    cuda.fence()
    device.compute.queue(lambda: master.fill_(2.0))  # the update
    device.clock_ms = 10.0
    assert not device.compute.run()
    assert (float(master[0]), float(target[0])) == (1.0, 0.0)
    assert cuda.stalled_s() == 0.0
    assert not cuda.wait(0.01)
    assert ended == []
    device.clock_ms = 35.0
    assert side.run()
    assert device.compute.run()
    assert cuda.wait(10.0)
    assert ended == [None]
    assert torch.equal(target, torch.ones(8))
    assert torch.equal(master, torch.full((8,), 2.0))
    assert cuda.stalled_s() == pytest.approx(0.025)
    assert cuda.stalled_s() == 0.0
    cuda.fence()  # nothing is under way
    assert device.compute.run()
    cuda.close()


def test_the_host_waits_for_what_its_own_thread_copies(device: Simulated) -> None:
    """The update of offloaded state is made by the host."""
    cuda = CudaStaging(torch.device("cuda"), tick=lambda: time.sleep(0.02))
    copies = [Copy(torch.ones(8), torch.zeros(8)) for _ in range(3)]
    cuda.begin(copies, lambda problem: None)
    cuda.fence()
    assert all(torch.equal(copy.target, torch.ones(8)) for copy in copies)
    assert cuda.stalled_s() > 0.01
    cuda.close()


def test_memory_is_locked_until_the_device_has_written_it(device: Simulated) -> None:
    cuda, cell = CudaStaging(torch.device("cuda")), Cell.create(SIZE, "test")
    assert cuda.pin(cell.memory) is None
    assert device.registered == {address_of(cell.memory): SIZE.total_bytes}
    target = torch.frombuffer(cell.payload(0), dtype=torch.float32, count=1024)
    cuda.begin([Copy(on_device(torch.ones(1024)), target)], lambda problem: None)
    device.compute.run()
    device.streams[1].run()
    assert cuda.wait(10.0)
    assert device.registered
    del target
    cuda.close()
    assert device.registered == {}
    cell.close()


def test_memory_is_wanted_on_the_node_of_the_device(device: Simulated, monkeypatch: pytest.MonkeyPatch) -> None:
    found = SimpleNamespace(pci_domain_id=0, pci_bus_id=0xDC, pci_device_id=1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: found)
    monkeypatch.setattr(staging, "node_of", {"0000:dc:01.0": 3}.__getitem__)
    cuda = CudaStaging(torch.device("cuda"))
    assert cuda.numa_node() == 3
    cuda.close()


def test_memory_that_cannot_be_locked_is_said_and_used(device: Simulated) -> None:
    device.refuses = 2
    cuda, cell = CudaStaging(torch.device("cuda")), Cell.create(SIZE, "test")
    problem = cuda.pin(cell.memory)
    assert problem is not None
    assert "cannot be page-locked (cudaHostRegister: error 2)" in problem
    cuda.close()  # and nothing is unlocked
    cell.close()


def test_a_buffer_is_filled_again_when_the_device_has_copied_it(
    device: Simulated, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CudaUploads, "buffer_bytes", 64)
    monkeypatch.setattr(CudaUploads, "_allocate", uploads.Uploads._allocate)  # no page-locked memory without a GPU
    filled: list[tuple[int, bool]] = []
    target = torch.zeros(100)

    def fill(first: int, last: int, out: "np.ndarray[tuple[int], np.dtype[np.float32]]") -> None:
        filled.append((first, device.compute.run() if first == 32 else True))
        out[:] = np.arange(first, last)

    with CudaUploads() as to_device:
        to_device.put(on_device(target), fill)
    assert [first for first, _ in filled] == list(range(0, 100, 16))
    assert torch.equal(target, torch.arange(100.0))
    assert isinstance(on_device(target), DeviceTensor)
