"""Progress of long operations: they call a `Tick` after each part, many times a minute."""

from collections.abc import Callable

Tick = Callable[[], None]
"""Called after a part of an operation is done: a chunk written or read, a file removed. Cheap, safe in any thread."""


def no_tick() -> None:
    """For callers without a watcher."""
