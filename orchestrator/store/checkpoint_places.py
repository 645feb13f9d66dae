"""The checkpoints of a run, wherever its spec puts them."""

from orchestrator.checkpoint.storage.checkpoint_catalog import FoundCheckpoint, list_checkpoints
from orchestrator.checkpoint.storage.storage import Storage, open_storage, require_writable
from orchestrator.domain.run_layout import RunLayout
from orchestrator.spec.loading.load import load_job


def checkpoint_storage(layout: RunLayout) -> Storage:
    """The storage of a run's checkpoints. Makes no connection. Raises UsageError if its spec cannot be read, or there
    are no credentials for its bucket."""
    storage = load_job(layout.spec).spec.checkpoint.storage if layout.spec.is_file() else None
    return open_storage(layout.checkpoint_place(storage))


def checkpoint_places(layout: RunLayout, storage: str | None) -> list[str]:
    """The places of a run's checkpoints, directories or URLs: that of its spec (`checkpoint.storage`), and the run's
    directory, which has the checkpoint of the last step if storage failed then."""
    place = layout.checkpoint_place(storage)
    aside = [str(layout.checkpoints)] if storage is not None and layout.checkpoints.is_dir() else []
    return [place, *aside]


def all_checkpoints(layout: RunLayout) -> list[FoundCheckpoint]:
    """The checkpoints of a run in every place, newest first. Raises UsageError, StorageError."""
    storage = load_job(layout.spec).spec.checkpoint.storage if layout.spec.is_file() else None
    found = [each for place in checkpoint_places(layout, storage) for each in list_checkpoints(open_storage(place))]
    return sorted(found, key=lambda each: -each.step)


def require_storage(layout: RunLayout, storage: str | None) -> None:
    """Find out before training whether `checkpoint.storage` can be written to. Raises UsageError or StorageError."""
    if storage is not None:
        require_writable(open_storage(layout.checkpoint_place(storage)))
