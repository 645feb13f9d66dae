"""What a driver on another machine, with an empty disk, needs of a run besides its checkpoints: a copy in the bucket.

The driver uploads small files of the run's directory when it begins and whenever they change. The records of steps and
events stay behind: they grow with the run, and training does not need them.
"""

import threading
from collections.abc import Callable
from pathlib import Path

from orchestrator.atomic_files import write_bytes
from orchestrator.checkpoint.storage.storage import Storage, open_storage
from orchestrator.domain.errors import UsageError
from orchestrator.domain.run_layout import RunLayout
from orchestrator.lasting_thread import LastingThread

RECORD, TOKENIZER = "record", "tokenizer"
"""Names below the prefix of the run's checkpoints."""
SYNC_S = 5.0
"""From one look at the files to the next."""
MAX_FILE_BYTES = 64 << 20
"""Larger ones stay behind: the list of the files of a corpus of millions of files. A resume cannot compare them
then."""
LAST_UPLOAD_S = 1.0

Stamp = tuple[int, int]
"""Size in bytes and modification time in ns."""


def recorded_files(layout: RunLayout) -> list[Path]:
    """The files that a resume elsewhere needs; of them those that exist count."""
    return [layout.spec, layout.state, layout.data, layout.fingerprints, layout.contents, layout.skips]


class BucketRecord:
    """Keeps the copy up to date until `close`, in the background. A bucket that fails is told of once, and tried
    again."""

    def __init__(self, layout: RunLayout, storage: Storage, may_write: Callable[[], bool]) -> None:
        """`may_write`: whether this driver still has the run."""
        self._layout, self._storage, self._may_write = layout, storage, may_write
        self._known: dict[Path, Stamp] = {}
        self._ending = threading.Event()
        self._thread = LastingThread(f"copy of the run's record in {storage.place(RECORD)}", self._turn)

    def close(self) -> None:
        """Upload what has changed last; waits `LAST_UPLOAD_S` at most. Idempotent."""
        self._ending.set()
        self._thread.join(LAST_UPLOAD_S)
        self._thread.stop()

    def _turn(self) -> bool:
        self._upload()
        if not self._ending.wait(SYNC_S):
            return True
        self._upload()
        return False

    def _upload(self) -> None:
        own = [(RECORD, path) for path in recorded_files(self._layout)]
        if self._layout.tokenizer.is_dir():
            own += [(TOKENIZER, path) for path in sorted(self._layout.tokenizer.iterdir())]
        for name, path in own:
            try:
                stat = path.stat()
                stamp = (stat.st_size, stat.st_mtime_ns)
                if self._known.get(path) == stamp:
                    continue
                data = path.read_bytes() if stat.st_size <= MAX_FILE_BYTES else None
            except FileNotFoundError:
                continue
            if data is not None and self._may_write():
                self._storage.put(name, path.name, [data], len(data))
            self._known[path] = stamp


def bring_run(url: str, home: Path) -> RunLayout:
    """The directory under `home` of the run whose checkpoints lie at `url` (`checkpoint.storage`/RUN), made from its
    record in the bucket if it is not there.

    Raises UsageError if there is no such run or no record of it, StorageError if the bucket does not answer.
    """
    place = url.rstrip("/")
    layout = RunLayout((home / place.rpartition("/")[2]).absolute())
    if layout.state.is_file():
        return layout
    storage = open_storage(place)
    names = storage.sizes(RECORD)
    missing = {path.name for path in (layout.spec, layout.state)} - set(names)
    if missing:
        raise UsageError(
            f"there is no record of a run at {place}: {storage.place(RECORD)} has no "
            + " and no ".join(sorted(missing)),
            hint="give checkpoint.storage of its job, a slash and the run's id: s3://bucket/path/RUN. Older versions "
            "of Convoy keep no record in the bucket",
        )
    try:
        layout.root.mkdir(parents=True, exist_ok=True)
        _download(storage, layout)
    except OSError as error:
        raise UsageError(
            f"cannot write into {layout.root}: {error.strerror or error}", hint="set CONVOY_HOME or --home"
        ) from error
    return layout


def refresh(layout: RunLayout, storage: Storage) -> None:
    """Replace the record in a run's directory by that in the bucket, which a later driver has written elsewhere. Raises
    StorageError, OSError."""
    _download(storage, layout)


def _download(storage: Storage, layout: RunLayout) -> None:
    """`run.json` comes last: until then the directory is no run."""
    names = storage.sizes(RECORD)
    for file in storage.sizes(TOKENIZER):
        layout.tokenizer.mkdir(exist_ok=True)
        write_bytes(layout.tokenizer / file, storage.read(TOKENIZER, file))
    for path in sorted(recorded_files(layout), key=lambda path: path == layout.state):
        if path.name in names:
            write_bytes(path, storage.read(RECORD, path.name))
