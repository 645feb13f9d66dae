"""The checkpoints of a run, wherever its spec puts them."""

from collections.abc import Callable
from typing import Any

from orchestrator.checkpoint.catalog import Found, newest_valid
from orchestrator.checkpoint.storage import Storage, open_storage, require_writable
from orchestrator.domain.errors import CheckpointError
from orchestrator.domain.events import EventKind
from orchestrator.domain.layout import RunLayout
from orchestrator.spec.load import load_job


def checkpoint_storage(layout: RunLayout) -> Storage:
    """The storage of a run's checkpoints. Contacts nobody. Raises UsageError where its spec cannot be read, or there
    are no credentials for its bucket."""
    storage = load_job(layout.spec).spec.checkpoint.storage if layout.spec.is_file() else None
    return open_storage(layout.checkpoint_place(storage))


def require_storage(layout: RunLayout, storage: str | None) -> None:
    """Find out before training whether `checkpoint.storage` can be written to. Raises UsageError or StorageError."""
    if storage is not None:
        require_writable(open_storage(layout.checkpoint_place(storage)))


def newest_checkpoint(
    layout: RunLayout, storage: str | None, emit: Callable[[EventKind, dict[str, Any]], None]
) -> Found | None:
    """The checkpoint to go on from; older ones where newer ones are damaged, with an event for each of those.

    Raises CheckpointError where there are some and none is whole, StorageError where storage does not answer: to
    begin anew is not what was asked for then.
    """
    rejected: list[str] = []

    def tell(place: str, reason: str) -> None:
        rejected.append(f"{place.rpartition('/')[2]}: {reason}")
        emit(EventKind.CHECKPOINT_REJECTED, {"path": place, "reason": reason})

    found = newest_valid(open_storage(layout.checkpoint_place(storage)), tell)
    if found is None and rejected:
        raise CheckpointError(
            f"run {layout.run_id} has no whole checkpoint: {'; '.join(rejected)}",
            hint="start it anew with `convoy run`, or put a copy of a checkpoint back",
        )
    return found
