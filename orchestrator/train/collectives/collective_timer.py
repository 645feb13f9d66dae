"""Seconds the training thread spends in collectives: waiting for other ranks, and the transfer itself.

Every collective of torch ends in `Work.wait`, DeepSpeed's included, and is timed there. NCCL's returns at once and
makes the device wait, so nothing is measured with NCCL.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from torch.distributed import Work

from orchestrator.domain.tick import Tick


@contextmanager
def ticking_collectives(tick: Tick) -> Iterator[None]:
    """Context in which each collective that this thread completes is progress, for operations that consist of many of
    them: building an engine, sending weights. A collective that cannot complete gives none. Those of NCCL return at
    once; there each one that is begun counts."""
    wait, thread = Work.wait, threading.get_ident()

    def ticking(work: Work, *args: timedelta) -> bool:
        result = wait(work, *args)
        if threading.get_ident() == thread:
            tick()
        return result

    Work.wait = ticking  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        Work.wait = wait  # type: ignore[method-assign]


class CollectiveTimer:
    """Adds up while `running`; only for the thread that runs it."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Context in which collectives are timed."""
        wait, thread = Work.wait, threading.get_ident()

        def timed(work: Work, *args: timedelta) -> bool:
            if threading.get_ident() != thread:
                return wait(work, *args)
            started = time.perf_counter()
            try:
                return wait(work, *args)
            finally:
                self.seconds += time.perf_counter() - started

        Work.wait = timed  # type: ignore[method-assign,assignment]
        try:
            yield
        finally:
            Work.wait = wait  # type: ignore[method-assign]
