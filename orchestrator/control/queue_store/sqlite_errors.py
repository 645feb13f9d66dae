"""SQLite's failures in Convoy's words: `UnavailableError` if it may pass, `UsageError` if the operator has to act."""

import sqlite3
from pathlib import Path

from orchestrator.base_error import ConvoyError
from orchestrator.domain.errors import UnavailableError, UsageError

LOCK_WAIT_S = 5.0
"""How long a statement waits for a lock that another process holds on the database."""

_LOCKED = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_PRIMARY = 0xFF
"""Extended result codes have the primary one in their lowest byte (https://www.sqlite.org/rescode.html)."""


def code_of(error: sqlite3.Error) -> int:
    """The primary result code; 0 if the error is of the Python module."""
    return getattr(error, "sqlite_errorcode", 0) & _PRIMARY


def in_words(error: sqlite3.Error, path: Path) -> ConvoyError | None:
    """The error to raise in its place; None if it is a bug (a wrong statement, a broken constraint)."""
    code = code_of(error)
    if code == sqlite3.SQLITE_FULL:
        return UnavailableError(
            f"the disk of the queue's database is full: {path}",
            hint=f"free some space in {path.parent}; nothing is lost, and the server continues by itself",
        )
    if code in _LOCKED:
        return UnavailableError(
            f"another process has locked the queue's database for more than {LOCK_WAIT_S:g} s: {path}",
            hint="end what has it open (`fuser -v FILE` lists such processes), then repeat the request",
        )
    if code in _DAMAGED:
        return UsageError(
            f"{path} is damaged, or is no SQLite database: {error}", hint="restore a backup, or name another file"
        )
    if code == sqlite3.SQLITE_READONLY:
        return UnavailableError(
            f"the queue's database cannot be written: {path}", hint="check its permissions and the mount of its disk"
        )
    if code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN):
        return UnavailableError(
            f"the queue's database cannot be accessed: {path}: {error}", hint="check the disk and the permissions there"
        )
    return None
