"""What DeepSpeed imports when a process builds its first engine. A worker imports it before, while it waits.

DeepSpeed compiles the functions of its Muon optimizer when it imports them, and that imports torch's compiler: 0.9 s of
the 4.3 s that a worker's imports take. Convoy offers no Muon, so those functions are left as they are.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from deepspeed.runtime import compiler


@contextmanager
def _nothing_compiled() -> Iterator[None]:
    """Have DeepSpeed's own decorator compile nothing."""

    def decorator() -> Callable[[object], object]:
        return lambda function: function

    before = compiler.compile
    compiler.compile = decorator
    try:
        yield
    finally:
        compiler.compile = before


with _nothing_compiled():
    import deepspeed.comm.mori
    import deepspeed.module_inject.auto_ep_layer
    import deepspeed.runtime.superoffload.superoffload_stage3
    import deepspeed.runtime.zero.muon.muon_optimizer
    import deepspeed.runtime.zero.muon.original_muon
    import deepspeed.utils.pin_memory  # noqa: F401
