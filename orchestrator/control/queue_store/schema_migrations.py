"""The database's schema: numbered SQL files, applied in order. `user_version` is the number of the last one."""

import sqlite3
from importlib import resources
from pathlib import Path

from orchestrator.domain.errors import UsageError

APPLICATION_ID = 0x434E5659
"""`CNVY`, in the file's header: tells a queue's database from any other."""


def statements_of(text: str) -> list[str]:
    """The single statements of an SQL text; a trigger with its body is one."""
    found, pending = [], ""
    for line in text.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            found.append(pending)
            pending = ""
    return found


def migrations() -> list[tuple[int, str]]:
    """Number and text of each migration, in order."""
    folder = resources.files("orchestrator.control.queue_store") / "migrations"
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".sql"))
    return [(int(name.partition("_")[0]), (folder / name).read_text(encoding="utf-8")) for name in names]


def migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Bring the schema to this version, all or nothing. Raises UsageError if it is of a newer version or of another
    program, sqlite3.Error."""
    known = migrations()
    connection.execute("BEGIN IMMEDIATE")
    try:
        version = _number(connection, "user_version")
        _require_own(connection, path, version, known[-1][0])
        for number, text in known:
            if number > version:
                for statement in statements_of(text):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {number}")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _require_own(connection: sqlite3.Connection, path: Path, version: int, newest: int) -> None:
    owner = _number(connection, "application_id")
    tables = int(connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0])
    if owner != APPLICATION_ID and (owner or tables):
        raise UsageError(f"{path} is the database of another program", hint="name another file for the queue")
    if version > newest:
        raise UsageError(
            f"{path} was written by a newer version of Convoy (schema {version}, this version knows {newest})",
            hint="start that version, or restore a backup that this version made",
        )


def _number(connection: sqlite3.Connection, pragma: str) -> int:
    return int(connection.execute(f"PRAGMA {pragma}").fetchone()[0])
