"""Weights & Biases, through the `wandb` package."""

import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.atomic_files import read_json, write_json
from orchestrator.json_values import JsonObject
from orchestrator.trackers.tracker_points import Point
from orchestrator.trackers.tracker_sink import MAX_MARKERS, TrackedRun

if TYPE_CHECKING:
    from wandb import Run

INIT_TIMEOUT_S = 20.0
"""After this long without an answer of the server the run is logged offline: less than the end of a run waits, so that
the curves of a short run are not lost."""
SAVE_EVERY = 100
"""Steps between two notes of how far a run is logged."""
STEP = "step"


class WandbSink:
    """One run of W&B, whose id is that of Convoy's run.

    W&B takes steps in rising order and never replaces one. Steps that come again are left out: what a recovery or a
    resume repeats is the same training. How far a run is logged is noted in its directory, for a resume that W&B's
    server does not tell it.
    """

    def __init__(self, run: TrackedRun, report: Callable[[str], None]) -> None:
        """Raises ImportError without the package, and whatever `wandb.init` raises offline."""
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # to the makers of the package
        import wandb

        self._wandb = wandb
        self._note = run.directory / "wandb-logged.json"
        self._run = self._init(run, report)
        offline = bool(self._run.settings.mode == "offline")
        self.place = str(Path(self._run.dir).parent) if offline else str(self._run.url or self._run.dir)
        noted = read_json(self._note) or {}
        before = noted.get(STEP)
        # W&B's own counter is the next step of a run that it has resumed.
        self._logged = max(before if isinstance(before, int) else -1, int(self._run.step) - 1)
        """The highest step that earlier drivers have logged; -1 if there were none."""
        self._row = self._logged
        """The step that values are added to now. W&B has not closed it yet if it is above `_logged`."""
        self._held: dict[str, float] = {}
        """Values of markers that no open row can take: they go with the next step."""
        self._markers: list[tuple[int, float, str, str]] = []

    def _init(self, run: TrackedRun, report: Callable[[str], None]) -> "Run":
        settings, wandb = run.settings, self._wandb
        mode = settings.get("mode") or os.environ.get("WANDB_MODE") or "online"
        arguments: dict[str, object] = {
            "project": settings.get("project") or os.environ.get("WANDB_PROJECT") or run.job,
            "entity": settings.get("entity"),
            "name": settings.get("name") or run.run_id,
            "group": settings.get("group"),
            "tags": settings.get("tags") or None,
            "notes": settings.get("notes"),
            "config": run.spec,
            "dir": str(run.directory),
            "id": run.run_id,
            "resume": "allow",
            # Neither this process's output, nor code, nor figures of this machine alone.
            "settings": wandb.Settings(
                console="off", init_timeout=INIT_TIMEOUT_S, x_disable_stats=True, save_code=False, silent=True
            ),
        }
        if mode != "online":
            return wandb.init(mode=mode, **arguments)
        try:
            return wandb.init(mode="online", **arguments)
        except Exception as error:  # noqa: BLE001  # whatever it is, the curves are kept
            report(f"{' '.join(str(error).split())[:300]}; logging offline, `wandb sync` uploads it later")
            wandb.teardown()
            return wandb.init(mode="offline", **{**arguments, "resume": None})

    def log(self, point: Point) -> None:
        """See `TrackerSink`."""
        if point.kind:
            self._mark(point)
            return
        if point.step <= self._logged or point.step < self._row:
            return  # repeated after a recovery or a resume
        self._add(point.step, {**self._held, **point.values})
        self._held = {}

    def _add(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)
        if step // SAVE_EVERY != self._row // SAVE_EVERY:
            self._save(step)
        self._row = step

    def _mark(self, point: Point) -> None:
        if len(self._markers) < MAX_MARKERS:
            self._markers.append((point.step, point.time_s, point.kind, point.text))
        if point.values and self._row > self._logged:
            self._run.log(dict(point.values), step=self._row)
        else:
            self._held.update(point.values)

    def close(self, exit_code: int) -> None:
        """See `TrackerSink`."""
        if self._markers and self._row > self._logged:
            table = self._wandb.Table(columns=["step", "time_s", "event", "what"], data=self._markers)
            self._run.log({"events/table": table, **self._held}, step=self._row)
        self._save(self._row)
        self._run.finish(exit_code=exit_code)
        self._wandb.teardown(exit_code=exit_code)

    def _save(self, step: int) -> None:
        value: JsonObject = {STEP: step}
        with contextlib.suppress(OSError):
            write_json(self._note, value, durable=False)


def open_wandb(run: TrackedRun, report: Callable[[str], None]) -> WandbSink:
    """See `OpenSink`."""
    return WandbSink(run, report)
