"""Records of runs that a server has, as the commands show those of local runs."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from orchestrator.cli.server_connection import connect, known_server
from orchestrator.domain.errors import ConvoyError, UsageError
from orchestrator.json_values import JsonFields, JsonShapeError
from orchestrator.store.run_store import RunRecord, RunStore

if TYPE_CHECKING:
    from orchestrator.cli.display.goodput_text import RunLedger
    from orchestrator.cli.display.survey_text import Survey

T = TypeVar("T")
ENDED = ("succeeded", "failed", "stopped", "lost", "cancelled")


def local_record(home: Path, run: str, server: str | None) -> RunRecord | None:
    """The run's record on this machine; None if a server has to be asked: it was named, or the run is not here. Raises
    UsageError if the run is not here and no server is known."""
    if server is not None:
        return None
    try:
        return RunStore(home).read(run)
    except UsageError:
        if known_server(home, None) is None:
            raise
        return None


def served_survey(home: Path, run: str, server: str | None) -> "Survey":
    """What a server knows of the copies of a run's state. Raises ApiError, UnreachableError, UsageError."""
    from orchestrator.checkpoint.survey.durability import Durability
    from orchestrator.cli.display.survey_text import STALE_S, Survey

    with connect(home, server) as client:
        found = client.durability(run)
    durability = _parsed(Durability.from_json, found.recorded)
    age_s = time.time() - durability.time_s
    stale = age_s > STALE_S or found.status in ENDED
    return Survey(found.run, found.status, age_s, stale, None, durability, dict(found.recorded))  # type: ignore[arg-type]


def served_ledger(home: Path, run: str, server: str | None) -> "RunLedger":
    """What a server knows of the use of a run's time. Raises ApiError, UnreachableError, UsageError."""
    from orchestrator.cli.display.goodput_text import RunLedger
    from orchestrator.goodput.ledger_result import LedgerResult

    with connect(home, server) as client:
        found = client.goodput(run)
    ledger = _parsed(LedgerResult.from_json, found.recorded)
    return RunLedger(found.run, found.status, found.status not in ENDED, ledger)


def print_served_logs(
    home: Path, run: str, server: str | None, rank: int | None, tail: int | None, follow: bool,
    echo: Callable[[str], None],
) -> None:  # fmt: skip
    """The output of a run's workers, as `print_logs` and `follow_logs` print it. Raises ApiError,
    UnreachableError."""
    with connect(home, server) as client:
        if follow:
            for page in client.follow_logs(run, rank, tail):
                for line in page.lines:
                    echo(line.text if rank is not None else f"[{line.rank}] {line.text}")
            return
        cursor: str | None = None
        while True:
            page = client.logs(run, rank, tail, cursor)
            for line in page.lines:
                echo(line.text if rank is not None else f"[{line.rank}] {line.text}")
            if page.complete or page.cursor == cursor:
                return
            cursor = page.cursor


def _parsed(parse: Callable[[JsonFields], T], recorded: Mapping[str, object]) -> T:
    """Raises ConvoyError if the server has another version."""
    try:
        return parse(recorded)  # type: ignore[arg-type]
    except JsonShapeError as error:
        hint = "install the Convoy version of the server here"
        raise ConvoyError(f"the server's record cannot be read: {error}", hint) from None
