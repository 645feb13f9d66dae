"""The checkpoints of a run, wherever its spec puts them."""

from orchestrator.checkpoint.storage import Storage, open_storage, require_writable
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
