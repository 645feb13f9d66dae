"""A run as the database has it."""

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache

from orchestrator.clusters.placement import Resources, WorkerRequest
from orchestrator.domain.queue.queue_states import FINAL, QueueState
from orchestrator.json_values import number_mapping, parse_object

NO_PLACES: Mapping[str, int] = {}
KEPT_TEXTS = 4096
"""JSON texts of bundles and places that are kept parsed: many runs have the same."""


@dataclass(frozen=True, slots=True)
class RunRow:
    """One run. The fields up to `submitted_s` never change."""

    seq: int
    """Order of submission."""
    id: str
    name: str
    group_name: str | None
    queue: str
    team: str
    user: str
    priority: int
    """Rank of its class."""
    spec_digest: str
    directory: str
    bundle: Resources
    """Of one worker."""
    placement: str
    shape: str
    """Runs of one shape take as long for a step."""
    limit_s: float | None
    """Seconds that it may be active."""
    retries: int
    """How often it is tried again after failures."""
    submitted_s: float
    state: QueueState
    reason: str | None = None
    settled: bool = False
    """It is final, holds nothing, and its files say so."""
    changes: int = 0
    """Number of its newest event among its own."""
    since_s: float = 0.0
    """When it came into its state: Unix seconds."""
    started_s: float | None = None
    """When its driver first had it; None: it has not begun."""
    ended_s: float | None = None
    active_s: float = 0.0
    """Seconds that it was active before `since_s`, or as of the last record."""
    min_workers: int = 1
    max_workers: int = 1
    grant_number: int = 0
    """Of the newest grant; 0: none yet."""
    granted: Mapping[str, int] = field(default_factory=dict)
    """Workers by node that it is to have."""
    booked: Mapping[str, int] = field(default_factory=dict)
    """Workers by node that it has or may still have."""
    launched: int = 0
    """Number of the grant that its driver was last started with."""
    granted_s: float | None = None
    """When its grant last changed: Unix seconds."""
    attempt: int = 1
    failures: int = 0
    """That count against `retries`."""
    retry_at_s: float | None = None
    lost_drivers: int = 0
    """Drivers that vanished since the last progress."""
    step: int = 0
    total_steps: int | None = None
    loss: float | None = None
    step_time_s: float | None = None

    @property
    def ask(self) -> WorkerRequest:
        """What it asks for."""
        return WorkerRequest(self.bundle, self.min_workers, self.max_workers, self.placement)

    @property
    def begun(self) -> bool:
        """A driver has had it: another one resumes it."""
        return self.started_s is not None

    @property
    def final(self) -> bool:
        return self.state in FINAL


COLUMNS = tuple(each.name for each in fields(RunRow))
MUTABLE = COLUMNS[COLUMNS.index("state") :]
SELECT = f"SELECT {', '.join(COLUMNS)} FROM runs"

_BUNDLE, _STATE, _SETTLED, _GRANTED, _BOOKED = (
    COLUMNS.index(name) for name in ("bundle", "state", "settled", "granted", "booked")
)
_STATES = {state.value: state for state in QueueState}


def decode_run(_: sqlite3.Cursor, values: tuple[str | int | float | None, ...]) -> RunRow:
    """A row of `SELECT`, for `Cursor.row_factory`."""
    found = list[object](values)
    found[_BUNDLE] = amounts(str(values[_BUNDLE]))
    found[_STATE] = _STATES[str(values[_STATE])]
    found[_SETTLED] = bool(values[_SETTLED])
    found[_GRANTED] = places(str(values[_GRANTED]))
    found[_BOOKED] = places(str(values[_BOOKED]))
    return RunRow(*found)  # type: ignore[arg-type]


def encode_run(row: RunRow, names: tuple[str, ...]) -> list[str | int | float | None]:
    """The values of these columns."""
    return [_plain(getattr(row, name)) for name in names]


def _plain(value: str | float | Mapping[str, float] | None) -> str | int | float | None:
    return json_text(value) if isinstance(value, Mapping) else value


def json_text(value: Mapping[str, float]) -> str:
    """Equal for equal mappings."""
    return json.dumps(dict(value), sort_keys=True, separators=(",", ":"))


@lru_cache(KEPT_TEXTS)
def amounts(text: str) -> Mapping[str, float]:
    """Amounts of resources from JSON. The caller must not change them."""
    value = parse_object(text)
    return number_mapping({"it": value}, "it")


@lru_cache(KEPT_TEXTS)
def places(text: str) -> Mapping[str, int]:
    """Workers by node from JSON. The caller must not change them."""
    return {node: int(count) for node, count in amounts(text).items()} if text != "{}" else NO_PLACES
