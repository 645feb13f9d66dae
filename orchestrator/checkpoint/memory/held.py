"""What a vault holds: cells of its own ranks, and copies of its peers' or a share in them."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from orchestrator.checkpoint.memory.cells import Cell


class FreedError(OSError):
    """The memory has been given back meanwhile."""


@dataclass(frozen=True)
class CellKey:
    """Key of a state: a rank of one generation."""

    generation: int
    rank: int


@dataclass
class Held:
    """A cell and what is needed to read it. The cell may be freed by one thread while others use it: see `in_use`."""

    cell: Cell
    """For `in_use`."""
    world_size: int
    index: bytes
    """The `ShardIndex` of every slot's payload, as its file would be."""
    own: bool
    """Written by a worker of this node; else a peer's copy."""
    writer: int = 0
    """Pid of that worker."""
    shared: bool = False
    """Not a copy, but the memory that the peer's own worker writes, on this host."""
    _users: int = field(default=0, init=False)
    _freed: bool = field(default=False, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    @contextmanager
    def in_use(self) -> Iterator[Cell]:
        """Context with the cell, which is not freed inside. Raises FreedError if it was freed before."""
        with self._lock:
            if self._freed:
                raise FreedError("its memory has been freed")
            self._users += 1
        try:
            yield self.cell
        finally:
            with self._lock:
                self._users -= 1
                last = self._freed and not self._users
            if last:
                self.cell.close()

    def free(self) -> None:
        """Free the memory as soon as it is not in use. Idempotent."""
        with self._lock:
            now = not self._freed and not self._users
            self._freed = True
        if now:
            self.cell.close()
