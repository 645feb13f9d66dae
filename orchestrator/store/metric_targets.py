"""Where the runs of this home serve their metrics: a file for each in `monitoring/targets`, as Prometheus' `file_sd`
reads it (https://prometheus.io/docs/prometheus/latest/configuration/configuration/#file_sd_config).

Prometheus watches the directory: a run appears when its file does, and its series end when the file is removed. The
format has room for targets and labels alone. What is there for Convoy, and for relabelling, is in labels that begin
with `__meta_convoy_`: Prometheus drops them before it scrapes. The target's only lasting label is `instance`, the run's
id: the series of a run that is resumed on another port continue, and no label is one that the endpoint sets too (such a
label would be renamed to `exported_...`). No file has a secret in it.
"""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestrator.atomic_files import locked, write_json
from orchestrator.domain.run_layout import RunLayout
from orchestrator.domain.run_states import FINAL_STATES
from orchestrator.host_identity import boot_id
from orchestrator.json_values import JsonValue, objects, parse_object, text_mapping, texts
from orchestrator.metrics.metrics_endpoint import refuses_connections
from orchestrator.store.driver_process import DriverProcess
from orchestrator.store.run_store import RunRecord, is_silent, read_record

MONITORING = "monitoring"
"""Folder of the home with all that monitoring writes."""
TARGETS = "targets"
_META = "__meta_convoy_"
MISSED_S = 3600.0
"""How long the file of a driver that was killed stays, from its last sign of life. Alerts look back as far."""
_STRAY_S = 3600.0
"""Age at which a file that a killed driver left half-written is removed."""


@dataclass(frozen=True)
class Announcement:
    """One run's endpoint."""

    run_id: str
    job: str
    directory: str
    """The run's directory."""
    target: str
    """`host:port`, as Prometheus scrapes it."""
    lease: int
    """Token of the driver that serves it."""
    driver: DriverProcess
    bearer: bool = False
    """Whether a scrape needs the token of `CONVOY_METRICS_TOKEN`."""
    everywhere: bool = False
    """Whether other machines reach the target; else only the machine that `driver` runs on."""

    @property
    def here(self) -> bool:
        """Whether this machine reaches the target."""
        return self.everywhere or self.driver.boot_id == boot_id()

    def to_json(self) -> JsonValue:
        """The content of its file."""
        meta = {
            "run": self.run_id,
            "job": self.job,
            "directory": self.directory,
            "auth": "bearer" if self.bearer else "none",
            "machine": "" if self.everywhere else self.driver.boot_id,
            "lease": str(self.lease),
            "driver": json.dumps(self.driver.to_json()),
        }
        labels = {"instance": self.run_id, **{f"{_META}{name}": value for name, value in meta.items()}}
        return [{"targets": [self.target], "labels": labels}]

    @classmethod
    def from_json(cls, value: JsonValue) -> "Announcement | None":
        """None if `value` is something else: people may put targets of their own there."""
        try:
            (group,) = objects({TARGETS: value}, TARGETS)
            (target,) = texts(group, "targets")
            meta = {name.removeprefix(_META): found for name, found in text_mapping(group, "labels").items()}
            driver = DriverProcess.from_json(parse_object(meta["driver"]))
            if driver is None:
                return None
            everywhere, bearer = not meta["machine"], meta["auth"] == "bearer"
            known = (meta["run"], meta["job"], meta["directory"], target, int(meta["lease"]))
            return cls(*known, driver, bearer, everywhere)
        except (ValueError, KeyError):
            return None


def targets_directory(home: Path) -> Path:
    """Where the files are."""
    return home.absolute() / MONITORING / TARGETS


def announce(home: Path, announcement: Announcement) -> Path:
    """Write the file of a run, unless a later driver has written it. Raises OSError."""
    directory = targets_directory(home)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{announcement.run_id}.json"
    with locked(directory):
        before = read_announcement(path)
        if before is None or before.lease <= announcement.lease:
            write_json(path, announcement.to_json(), durable=False)
    return path


def withdraw(path: Path, lease: int) -> None:
    """Remove the file of a run that ends, unless a later driver has replaced it. Raises OSError."""
    with contextlib.suppress(FileNotFoundError), locked(path.parent):
        found = read_announcement(path)
        if found is None or found.lease <= lease:
            path.unlink()


def read_announcement(path: Path) -> Announcement | None:
    """None if there is no such file, or it is not one of a run."""
    try:
        return Announcement.from_json(json.loads(path.read_bytes()))
    except (OSError, ValueError):
        return None


def announcements(home: Path) -> Iterator[tuple[Path, Announcement]]:
    """All there are, whether their runs live or not."""
    for path in sorted(targets_directory(home).glob("*.json")):
        found = read_announcement(path)
        if found is not None:
            yield path, found


@dataclass(frozen=True)
class Signs:
    """What can be known of the driver that announced an endpoint."""

    process_alive: bool | None
    """None: its process cannot be seen from here."""
    ended: bool
    """Its run has ended, has a later driver, or is not there any more."""
    silent: bool
    """It has not renewed its lease for long."""
    refused: bool
    """Nothing listens at the target."""
    missed: bool = False
    """Its run has not ended, and had a driver within the last hour: that it does not answer is news."""


def is_over(signs: Signs) -> bool:
    """Whether an endpoint is gone for good. One sign is not enough: a driver that is stopped does not renew its lease,
    and one that has just begun does not listen yet. A process that lives keeps its file; it removes it itself. The
    file of a driver that was killed stays for an hour: with it, Prometheus sees that the run does not answer, and
    alerts."""
    if signs.process_alive or signs.missed:
        return False
    return sum((signs.process_alive is False, signs.ended, signs.silent, signs.refused)) >= 2


def clean_targets(
    home: Path, refuses: Callable[[str], bool] = refuses_connections, now_s: float | None = None
) -> list[Path]:
    """Remove the files of drivers that are gone; which. `refuses`: whether nothing listens at a target. A directory
    that cannot be written is left as it is."""
    now_s = time.time() if now_s is None else now_s
    removed = []
    for path, found in list(announcements(home)):
        if is_over(_signs(found, refuses, now_s)):
            with contextlib.suppress(OSError):
                withdraw(path, found.lease)
                removed.append(path)
    for stray in targets_directory(home).glob(".*.tmp"):
        with contextlib.suppress(OSError):
            if now_s - stray.stat().st_mtime > _STRAY_S:
                stray.unlink()
    return removed


def _signs(found: Announcement, refuses: Callable[[str], bool], now_s: float) -> Signs:
    layout = RunLayout(Path(found.directory))
    record = read_record(layout)
    ended = _has_ended(found, record)
    return Signs(
        process_alive=found.driver.alive(),
        ended=ended,
        silent=record is not None and is_silent(layout, now_s),
        refused=found.here and refuses(found.target),
        missed=not ended and now_s - _last_sign_s(layout) <= MISSED_S,
    )


def _last_sign_s(layout: RunLayout) -> float:
    """Unix time of the last renewal of the run's lease, or of the last change of its state; 0 if there is neither."""
    signs = [layout.state, *(layout.leases.glob("*.json") if layout.leases.is_dir() else ())]
    seen_s = 0.0
    for path in signs:
        with contextlib.suppress(OSError):
            seen_s = max(seen_s, path.stat().st_mtime)
    return seen_s


def _has_ended(found: Announcement, record: RunRecord | None) -> bool:
    """By the run's record."""
    return record is None or record.state in FINAL_STATES or record.driver not in (None, found.driver)
