"""The run that a person means: an id, the start of one, a name, or `last`."""

import difflib
import sqlite3

from orchestrator.control.queue_store.run_rows import RunRow
from orchestrator.control.queue_store.run_table import (
    near_names,
    newest_run,
    run_by_id,
    run_by_name,
    runs_by_prefix,
)
from orchestrator.domain.errors import ConflictError, NotFoundError

SHOWN_MATCHES = 5
LONGEST_QUERY = 200
"""Characters; ids are shorter."""


def find_run(connection: sqlite3.Connection, query: str) -> RunRow:
    """The run with this id, the newest with this name, or the one whose id begins so. Raises NotFoundError with near
    ones, ConflictError if several ids begin so."""
    exact = run_by_id(connection, query) or (newest_run(connection) if query == "last" else None)
    found = exact or run_by_name(connection, query)
    if found is not None:
        return found
    matching = runs_by_prefix(connection, query, SHOWN_MATCHES + 1) if 0 < len(query) <= LONGEST_QUERY else []
    if len(matching) == 1:
        return matching[0]
    if matching:
        shown = ", ".join(row.id for row in matching[:SHOWN_MATCHES])
        more = ", ..." if len(matching) > SHOWN_MATCHES else ""
        raise ConflictError(f"{query!r} is the start of several runs: {shown}{more}", hint="give more of the id")
    raise NotFoundError(f"there is no run {query[:LONGEST_QUERY]!r}", hint=_near(connection, query[:LONGEST_QUERY]))


def _near(connection: sqlite3.Connection, query: str) -> str:
    close = list(dict.fromkeys(difflib.get_close_matches(query, near_names(connection), n=3, cutoff=0.5)))
    lists = "`convoy ps --all` lists them"
    return f"did you mean {' or '.join(close)}? {lists}" if close else lists
