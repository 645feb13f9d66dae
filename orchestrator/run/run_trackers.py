"""The experiment trackers of a run, from its beginning to its end."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from orchestrator.domain.events import Event, Observer, RunState, StateChanged, WarningIssued
from orchestrator.domain.run_states import FINAL_STATES
from orchestrator.domain.step_report import StepReport
from orchestrator.json_values import JsonObject
from orchestrator.run.driver_lease import WhileHeld
from orchestrator.run.run_context import RunContext
from orchestrator.spec.job import JobSpec
from orchestrator.trackers.tracker_needs import wanted_trackers
from orchestrator.trackers.tracker_observer import TrackerObserver
from orchestrator.trackers.tracker_process import TrackerProcess
from orchestrator.trackers.tracker_sink import TrackedRun


@dataclass(frozen=True)
class _Tracker:
    shown: str
    sink: str
    """`module:function` that opens it, in its own process."""


_TRACKERS = {
    "tensorboard": _Tracker("TensorBoard", "orchestrator.trackers.tensorboard_sink:open_tensorboard"),
    "wandb": _Tracker("W&B", "orchestrator.trackers.wandb_sink:open_wandb"),
}
"""By their key in `logging`, which is also the name of their package."""


class RunTrackers:
    """Starts the trackers that the job asks for. None of them is waited for before `close`."""

    def __init__(self, run: RunContext, env: Mapping[str, str]) -> None:
        """A tracker whose process cannot be started is left out, with a warning."""
        self._run = run
        self._outcome = _Outcome()
        self._trackers: list[TrackerObserver] = []
        for name in wanted_trackers(run.spec, env):
            tracker = _TRACKERS[name]
            hello: JsonObject = {"sink": tracker.sink, "run": tracked_run(run, name).to_json()}
            try:
                process = TrackerProcess(name, hello, run.layout.root, env)
            except (OSError, RuntimeError) as error:  # no process, or no thread
                run.emit(WarningIssued(f"{tracker.shown} failed, training continues without it: {error}"))
                continue
            self._trackers.append(TrackerObserver(tracker.shown, process, run.emit, run.spec.logging.interval_steps))

    @property
    def observers(self) -> list[tuple[str, Observer]]:
        """To be given all events and steps, each with its name."""
        if not self._trackers:
            return []
        found: list[tuple[str, Observer]] = [("the state for trackers", self._outcome)]
        found += [(each.name, WhileHeld(each, self._run.lease)) for each in self._trackers]
        return found

    def close(self) -> None:
        """Have each of them deliver what it has. Waits a bounded time, and almost none if the run was stopped."""
        for tracker in self._trackers:
            tracker.ask_to_end(self._outcome.exit_code)
        for tracker in self._trackers:
            tracker.close(self._run.stop.is_set)
        self._trackers = []


class _Outcome:
    """An observer that knows how the run has ended."""

    def __init__(self) -> None:
        self.exit_code = 1

    def on_event(self, event: Event) -> None:
        if isinstance(event.body, StateChanged) and event.body.state in FINAL_STATES:
            self.exit_code = 0 if event.body.state is RunState.SUCCEEDED else 1

    def on_step(self, report: StepReport) -> None:
        """Steps say nothing about the end."""


def tracked_run(run: RunContext, name: str) -> TrackedRun:
    """What the tracker `name` (its key in `logging`) is told of a run."""
    settings: JsonObject = getattr(run.spec.logging, name).model_dump(mode="json")
    if name == "tensorboard" and settings.get("dir"):
        settings["dir"] = str(run.job_dir / Path(str(settings["dir"])).expanduser())
    return TrackedRun(run.layout.run_id, run.spec.name, run.layout.root, settings, shown_spec(run.spec))


def shown_spec(spec: JobSpec) -> JsonObject:
    """The spec as a tracker shows it: without variables of the environment, which are for its workers alone."""
    return spec.model_dump(mode="json", exclude={"resources": {"env"}, "logging": True})
