"""How much memory a GPU has, as a process that uses it sees it. Values only."""

from dataclasses import dataclass

CONTEXT_BYTES = 600 << 20
"""What a process that uses a GPU takes there before it has any tensor: the CUDA context and the kernels, which are
loaded when they are first used (300 to 500 MB since CUDA 11.7), and workspaces of cuBLAS, 32 MiB on Hopper for each
thread and stream that multiplies (https://docs.nvidia.com/cuda/cublas/#cublassetworkspace): forward and backward."""
FOREIGN_BYTES = 2 << 30
"""From this amount on, memory that this run does not use is reported; contexts differ by less."""


@dataclass(frozen=True)
class DeviceRoom:
    """What `torch.cuda.mem_get_info` says in a process that has a context and almost no tensors."""

    free_bytes: int
    total_bytes: int
    name: str = ""
    """As its driver calls it."""

    @property
    def foreign_bytes(self) -> int:
        """What other processes hold on it, or one that was killed and whose memory is not freed yet."""
        return max(0, self.total_bytes - self.free_bytes - CONTEXT_BYTES)

    @property
    def usable_bytes(self) -> int:
        """All that is not others', this process's own context included."""
        return self.total_bytes - self.foreign_bytes

    @property
    def is_shared(self) -> bool:
        """Whether other processes hold enough memory there to matter."""
        return self.foreign_bytes >= FOREIGN_BYTES

    @property
    def shared_text(self) -> str:
        """`other processes hold 3.1 of 79.1 GiB on the NVIDIA H100`; the caller adds whose GPU it is."""
        held, total = self.foreign_bytes / 2**30, self.total_bytes / 2**30
        return f"other processes hold {held:.1f} of {total:.1f} GiB on {f'the {self.name}' if self.name else 'the GPU'}"


def smallest(rooms: "list[DeviceRoom | None]") -> DeviceRoom | None:
    """The GPU with the least usable memory; None if no process knows its own."""
    return min((room for room in rooms if room is not None), key=lambda room: room.usable_bytes, default=None)
