"""Compiling a model's blocks with torch's compiler, and the progress of that: it may take longer than a step may stand
still without being taken for a hang."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from orchestrator.domain.tick import Tick
from orchestrator.lasting_thread import LastingThread

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TICK_S = 1.0
LONGEST_S = 600.0
"""A compilation that takes longer counts as progress no more."""
JOIN_S = 5.0


def compile_blocks(model: "PreTrainedModel") -> int:
    """Have every repeated block of the model compiled when it is first called; how many there are.

    In place, so that the names of parameters stay. All blocks of a model share one compiled graph for each shape. The
    head and the embeddings stay as they are. What earlier engines of this process left compiled is dropped: their
    graphs would count against torch's limit of recompilations.
    """
    torch.compiler.reset()
    names = set(model._no_split_modules)
    blocks = [
        block
        for layers in model.modules()
        if isinstance(layers, nn.ModuleList)
        for block in layers
        if type(block).__name__ in names
    ]
    for block in blocks:
        block.compile()
    return len(blocks)


@contextmanager
def compilation_reported(progress: Tick, every_s: float = TICK_S) -> Iterator[None]:
    """Context in which torch's compiler reports progress while it is at work: in the first step, and in later ones that
    have inputs of another shape."""
    from torch._dynamo.callback import callback_handler

    began_s: float | None = None
    over = threading.Event()

    def begin(_: object) -> None:
        nonlocal began_s
        began_s = time.monotonic()

    def end(_: object) -> None:
        nonlocal began_s
        began_s = None

    def turn() -> bool:
        over.wait(every_s)
        since_s = began_s
        if since_s is not None and time.monotonic() - since_s < LONGEST_S:
            progress()
        return not over.is_set()

    callback_handler.register_start_callback(begin)
    callback_handler.register_end_callback(end)
    thread = LastingThread("convoy-compiling", turn)
    try:
        yield
    finally:
        callback_handler.remove_start_callback(begin)
        callback_handler.remove_end_callback(end)
        over.set()
        thread.join(JOIN_S)
