"""What a vault holds: cells of its own ranks, and copies of its peers' or a share in them."""

from dataclasses import dataclass

from orchestrator.checkpoint.cells import Cell


@dataclass(frozen=True)
class CellKey:
    """Whose state: a rank of one generation of the gang."""

    generation: int
    rank: int


@dataclass
class Held:
    """A cell and what is needed to read it."""

    cell: Cell
    world_size: int
    index: bytes
    """The `ShardIndex` of every slot's payload, as its file would be."""
    own: bool
    """Written by a worker of this node; else a peer's copy."""
    writer: int = 0
    """Pid of that worker."""
    shared: bool = False
    """Not a copy: the memory that the peer's own worker writes, on this very host."""
