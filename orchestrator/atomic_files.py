"""Files and directories that others read while one writes: replaced whole, never seen in part. Under all layers."""

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from orchestrator.json_values import JsonObject, JsonValue

LOCK_LIMIT_S = 5.0
"""How long to wait for a lock: a process that was stopped may hold it for ever."""
LOCK_LOOK_S = 0.01


def read_json(path: Path) -> JsonObject | None:
    """The JSON object in a file; None if there is no file, or no object in it."""
    try:
        value: JsonValue = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def write_json(path: Path, value: JsonValue, durable: bool = True) -> None:
    """As `write_bytes`, of JSON."""
    write_text(path, json.dumps(value, indent=2) + "\n", durable)


def write_text(path: Path, text: str, durable: bool = True) -> None:
    """As `write_bytes`, of text in UTF-8."""
    write_bytes(path, text.encode(), durable)


def write_bytes(path: Path, data: bytes, durable: bool = True, mode: int = 0o644) -> None:
    """Replace a file: whoever reads it sees the old or the new one whole.

    `durable`: after a crash of the host too, at the price of waiting for the disk. `mode`: its permissions, from the
    first moment if they are 0o600. Raises OSError.
    """
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        Path(temporary).chmod(mode)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def create_file(path: Path, data: bytes, without_links: Callable[[], bool]) -> bool:
    """Create a file durably and with all its content at once; False if it exists. Of several processes that try the
    same at once, one succeeds. `without_links`: what to do instead on a file system without hard links. Raises OSError.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError:
            return temporary.stat().st_nlink > 1  # of NFS an answer may be lost, and the request repeated
        except FileNotFoundError:
            raise
        except OSError:
            return without_links()
        return True
    finally:
        temporary.unlink(missing_ok=True)


def replace_directory(work: Path, final: Path) -> None:
    """Let the directory `work` be `final`, a sibling, in place of a directory that may be there. Durable: its files are
    on disk before it has its name. A crash in between leaves no `final` at worst, never part of one. Raises OSError.
    """
    for directory, _, names in os.walk(work):
        for name in (*names, "."):
            sync_path(Path(directory) / name)
    aside = final.with_name(f".{final.name}.old")
    if aside.exists():
        shutil.rmtree(aside)
    if final.exists():
        final.rename(aside)
    work.rename(final)
    sync_path(final.parent)
    shutil.rmtree(aside, ignore_errors=True)


@contextlib.contextmanager
def locked(directory: Path, limit_s: float = LOCK_LIMIT_S) -> Iterator[None]:
    """Hold the directory's advisory lock, which the kernel drops if this process dies. If the lock is not to be had
    within the limit, or the file system has no locks, go on without it: it orders writers that live, no more."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    deadline = time.monotonic() + limit_s
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    break
                time.sleep(LOCK_LOOK_S)
            except OSError:
                break
        yield
    finally:
        os.close(descriptor)


def try_lock(path: Path, mode: int = 0o644) -> int | None:
    """Lock a file, which is made if it is missing: a descriptor that holds the lock until it is closed, or the process
    dies; None if another process holds it. Raises OSError."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, mode)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def sync_path(path: Path) -> None:
    """Have a file, or the entries of a directory, on the device. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
