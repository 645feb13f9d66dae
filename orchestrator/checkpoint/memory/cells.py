"""Shared memory for one rank's state: two slots, so that one is always complete while the other is written.

The memory is a memfd: it has no name in /dev/shm, is not limited by that mount's size (64 MiB in a container), and is
freed with the last process that holds it, however that ends. Another process of the same user maps it through
`/proc/<pid>/fd/<n>`.

Layout: a page with six int64 (magic, newest step whose replicas have arrived, step of slot 0, of slot 1, -1 if there is
none; a unique number; microseconds of CPU that its vault has spent on copies), then the slots. A slot: length of the
small state (int64), the small state (JSON), and, from a page boundary on, the payload. A slot's step is written last
and cleared first.
"""

import contextlib
import ctypes
import mmap
import os
import secrets
import struct
from dataclasses import dataclass
from typing import Self

from orchestrator.planner.state_size import SLOTS

PAGE = 4096
NONE = -1
_MAGIC = 0x434F4E564F59
_INT = struct.Struct("<q")
_REPLICATED, _STEPS, _SERIAL, _SPENT = 8, 16, 32, 40
_MADV_POPULATE_WRITE = 23
"""Linux 5.14 and later; the mmap module does not have the constant."""


@dataclass(frozen=True)
class CellSize:
    """Bytes of each slot: the payload, and the most that its small state may take."""

    payload_bytes: int
    state_bytes: int

    @property
    def payload_offset(self) -> int:
        """Of the payload within its slot."""
        return _pages(_INT.size + self.state_bytes)

    @property
    def slot_bytes(self) -> int:
        return self.payload_offset + _pages(self.payload_bytes)

    @property
    def total_bytes(self) -> int:
        return PAGE + SLOTS * self.slot_bytes


class Cell:
    """One rank's two slots. One process writes a slot at a time; any number read."""

    def __init__(self, descriptor: int, size: CellSize, writes: bool) -> None:
        """Map what `descriptor` holds, and own the descriptor.

        `writes`: the payload will be written through this mapping, so its page tables are filled now: a page fault in
        the training path costs more than the copy. A reader has no use for them (2 GB for 1 TB of payload), and
        faults in what it reads.
        """
        self.descriptor, self.size = descriptor, size
        self._map = mmap.mmap(descriptor, size.total_bytes, flags=mmap.MAP_SHARED)
        self._view = memoryview(self._map)
        if writes:
            _populate(self._view)

    @classmethod
    def create(cls, size: CellSize, name: str, writes: bool = True) -> Self:
        """Allocate new memory, all of it now. `writes`: see the constructor. Raises OSError if there is none."""
        descriptor = os.memfd_create(f"convoy-{name}", os.MFD_CLOEXEC)
        try:
            os.ftruncate(descriptor, size.total_bytes)
            os.posix_fallocate(descriptor, 0, size.total_bytes)
            cell = cls(descriptor, size, writes)
        except BaseException:
            os.close(descriptor)
            raise
        for offset in (_REPLICATED, _STEPS, _STEPS + _INT.size):
            cell._put(offset, NONE)
        cell._put(_SERIAL, secrets.randbits(62))
        cell._put(0, _MAGIC)
        return cell

    @classmethod
    def attach(cls, path: str, size: CellSize, writes: bool = True) -> Self:
        """Memory that another process made; `writes`: see the constructor. Raises OSError if it cannot be reached,
        ValueError if it is not this cell."""
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            if os.fstat(descriptor).st_size != size.total_bytes:
                raise ValueError(f"{path} has {os.fstat(descriptor).st_size} bytes, expected {size.total_bytes}")
            cell = cls(descriptor, size, writes)
        except BaseException:
            os.close(descriptor)
            raise
        if cell._get(0) != _MAGIC:
            cell.close()
            raise ValueError(f"{path} is not a cell")
        return cell

    @property
    def memory(self) -> memoryview:
        """All of the mapping. A view of it keeps the memory mapped after `close`."""
        return self._view[:]

    @property
    def serial(self) -> int:
        """A number that no other cell has."""
        return self._get(_SERIAL)

    @property
    def spent_us(self) -> int:
        """CPU time that the vault has spent on copies, its own and its peers', since it began; microseconds."""
        return self._get(_SPENT)

    @spent_us.setter
    def spent_us(self, microseconds: int) -> None:
        self._put(_SPENT, microseconds)

    @property
    def replicated_step(self) -> int:
        """The newest step whose replicas are in all vaults that should have them; -1 if there is none yet."""
        return self._get(_REPLICATED)

    @replicated_step.setter
    def replicated_step(self, step: int) -> None:
        self._put(_REPLICATED, step)

    def step(self, slot: int) -> int:
        """The step whose complete state is in the slot; -1 if there is none."""
        return self._get(_STEPS + slot * _INT.size)

    def slot_of(self, step: int) -> int | None:
        """The slot that holds `step`."""
        return next((slot for slot in range(SLOTS) if step != NONE and self.step(slot) == step), None)

    def older_slot(self) -> int:
        """The slot to write next."""
        return min(range(SLOTS), key=self.step)

    def begin(self, slot: int) -> memoryview:
        """Take the slot's step back and return its payload, to be written."""
        self._put(_STEPS + slot * _INT.size, NONE)
        return self.payload(slot)

    def finish(self, slot: int, step: int, state: bytes) -> None:
        """Mark that the slot contains the complete state of `step`. Raises ValueError if the small state is too
        large."""
        if len(state) > self.size.state_bytes:
            raise ValueError(f"the small state has {len(state)} bytes, {self.size.state_bytes} were reserved")
        start = self._start(slot)
        self._put(start, len(state))
        self._view[start + _INT.size : start + _INT.size + len(state)] = state
        self._put(_STEPS + slot * _INT.size, step)

    def payload(self, slot: int) -> memoryview:
        """The slot's payload."""
        first = self.payload_position(slot)
        return self._view[first : first + self.size.payload_bytes]

    def payload_position(self, slot: int) -> int:
        """Offset of the payload in the file of `descriptor`."""
        return self._start(slot) + self.size.payload_offset

    def state(self, slot: int) -> bytes:
        """The slot's small state."""
        start = self._start(slot)
        return bytes(self._view[start + _INT.size : start + _INT.size + self._get(start)])

    def close(self) -> None:
        """Unmap it and close the descriptor. What still looks at a payload keeps the memory until it is dropped."""
        try:
            self._view.release()
            self._map.close()
        except BufferError:  # a view of a payload lives; the mapping goes with it
            pass
        os.close(self.descriptor)

    def _start(self, slot: int) -> int:
        return PAGE + slot * self.size.slot_bytes

    def _get(self, offset: int) -> int:
        value: int = _INT.unpack_from(self._view, offset)[0]
        return value

    def _put(self, offset: int, value: int) -> None:
        _INT.pack_into(self._view, offset, value)


def address_of(memory: memoryview) -> int:
    """Address of writable memory in this process."""
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def _populate(memory: memoryview) -> None:
    """Fill the page tables. MAP_POPULATE would do the same, but Python 3.11 holds the interpreter lock meanwhile, for
    about 0.4 s a GiB, in which no heartbeat is sent. An older kernel leaves the pages to the first copy.
    """
    with contextlib.suppress(OSError, AttributeError):
        madvise = ctypes.CDLL(None, use_errno=True).madvise  # without the interpreter lock
        madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        madvise(address_of(memory), len(memory), _MADV_POPULATE_WRITE)


def _pages(size_bytes: int) -> int:
    return -(-size_bytes // PAGE) * PAGE
