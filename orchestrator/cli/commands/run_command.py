"""`convoy run`: train in the foreground."""

import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import click

from orchestrator.cli.display import end_summary
from orchestrator.cli.display.run_view import ShownRun
from orchestrator.cli.interrupt import Interrupt, end_now
from orchestrator.cli.options import complete_run, home_option, json_option
from orchestrator.clusters.ray.ray_settings import suppress_sigterm_warning
from orchestrator.domain.errors import ConvoyError, UsageError
from orchestrator.domain.events import Event, Observer, RunState
from orchestrator.domain.run_layout import RunLayout
from orchestrator.domain.step_report import StepReport

if TYPE_CHECKING:
    from orchestrator.run.launcher import RunOutcome
    from orchestrator.spec.loading.load import LoadedJob
    from orchestrator.store.run_store import RunRecord


class Display(Observer, Protocol):
    """An observer that displays events and steps."""

    view: ShownRun

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def stopping(self) -> None: ...


@click.command()
@click.argument("job", required=False, type=click.Path(path_type=Path))
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a field, e.g. train.lr=1e-3. Repeatable."
)
@click.option(
    "--resume",
    metavar="RUN",
    shell_complete=complete_run,
    help="Continue a run from its newest complete state. With checkpoints in a bucket, on any machine: "
    "s3://bucket/path/RUN.",
)
@click.option(
    "--take-over",
    is_flag=True,
    help="With --resume: do not wait until the lease of the last driver expires. A driver that still runs is ended.",
)
@click.option(
    "--accept-changes",
    is_flag=True,
    help="With --resume: continue although data, tokenizer, model or code have changed. It is recorded.",
)
@home_option
@json_option
@click.option("--plain", is_flag=True, help="Print lines instead of the live display, also on a terminal.")
@click.option("--no-progress", is_flag=True, help="Print only warnings and the result.")
def run(
    job: Path | None,
    overrides: tuple[str, ...],
    resume: str | None,
    take_over: bool,
    accept_changes: bool,
    home: Path,
    as_json: bool,
    plain: bool,
    no_progress: bool,
) -> None:
    """Train: run a job in the foreground.

    Progress goes to stderr, the result to stdout. Ctrl-C stops the run within 5 seconds; a second one kills it.
    With --json every event and every step is a line of JSON on stdout.

    \b
    Examples:
      convoy run jobs/quickstart.yaml
      convoy run job.yaml --set train.lr=1e-3 --set resources.workers=2
      convoy run --resume last
      convoy run --resume last --set cluster.address=10.0.0.6:6379
      convoy run --resume last --accept-changes
      convoy run --resume s3://bucket/runs/quickstart-20260101-120000-1a2b
      convoy run job.yaml --json > events.jsonl

    The run starts at once, without a queue: the job's `schedule` is ignored. A job with a `matrix` is refused.

    A run has one driver. If the last one may still run, for instance on another machine, a resume waits up to 20
    seconds until its lease expires.

    Exit codes: 0 the run reached its last step; 1 it failed; 2 the job file or the command is wrong, or the data,
    tokenizer, model or code of a resumed run has changed; 130 it was interrupted.
    """
    if accept_changes and resume is None:
        raise UsageError("--accept-changes needs --resume: a new run has nothing to compare with")
    if take_over and resume is None:
        raise UsageError("--take-over needs --resume: a new run has no other driver")
    interrupt = Interrupt()
    start = _what_to_start(job, overrides, resume, home, accept_changes, take_over, interrupt)
    display = _display(as_json, plain, no_progress)
    code = _drive(start, display, home, quiet=as_json, interrupt=interrupt)
    click.get_current_context().exit(code)


MAY_CHANGE = "cluster.address"
"""The field that a resume may change: it says where the run trains, not what."""
Start = Callable[[list[Observer], threading.Event], "RunOutcome"]


def _what_to_start(
    job: Path | None,
    overrides: tuple[str, ...],
    resume: str | None,
    home: Path,
    accept_changes: bool,
    take_over: bool,
    interrupt: Interrupt,
) -> Start:
    """Check all that can be checked before anything heavy is imported. Raises UsageError and SpecError."""
    from orchestrator.spec.loading.load import load_job
    from orchestrator.spec.loading.matrix import require_one_run

    if resume is not None:
        fixed = [override for override in overrides if override.partition("=")[0].strip() != MAY_CHANGE]
        if job is not None or fixed:
            given = "a job file" if job is not None else f"--set {fixed[0].partition('=')[0]}"
            raise UsageError(
                f"--resume and {given} exclude each other: a run continues with the spec it began with",
                hint=f"convoy run --resume {resume}; only {MAY_CHANGE} may be changed",
            )
        record = _to_resume(resume, home)
        if record.state is RunState.SUCCEEDED:
            raise UsageError(f"run {record.id} reached its last step: there is nothing to continue")
        if overrides:
            load_job(record.layout.spec, overrides)  # what does not fit is told before anything is begun

        def resumed(observers: list[Observer], stop: threading.Event) -> "RunOutcome":
            from orchestrator.run.driver_lease import LeaseChoice
            from orchestrator.run.launcher import resume_run

            choice = LeaseChoice(take_over, interrupt.lose)
            return resume_run(
                record.directory, home, observers, stop,
                overrides=overrides, accept_changes=accept_changes, choice=choice,
            )  # fmt: skip

        return resumed
    if job is None:
        raise UsageError(
            "which job? Give a job file, or --resume RUN", hint="convoy run job.yaml, or convoy run --resume last"
        )
    loaded = load_job(job, overrides)
    require_one_run(loaded)
    return lambda observers, stop: _run_job(loaded, home, observers, stop, interrupt)


def _to_resume(resume: str, home: Path) -> "RunRecord":
    """The run that is meant: by its name, its directory or, if its checkpoints are in a bucket, its URL there. Raises
    UsageError, StorageError."""
    from orchestrator.checkpoint.storage.storage import is_url
    from orchestrator.store.run_store import RunStore

    if not is_url(resume):
        return RunStore(home).read(resume)
    from orchestrator.store.lease.bucket_record import bring_run

    return RunStore(home).read(str(bring_run(resume, home).root))


def _run_job(
    loaded: "LoadedJob", home: Path, observers: list[Observer], stop: threading.Event, interrupt: Interrupt
) -> "RunOutcome":
    from orchestrator.run.driver_lease import LeaseChoice
    from orchestrator.run.launcher import run_job

    return run_job(loaded, home, observers, stop, choice=LeaseChoice(on_lost=interrupt.lose))


def _display(as_json: bool, plain: bool, no_progress: bool) -> Display:
    if as_json:
        from orchestrator.cli.display.plain_display import JsonDisplay

        return JsonDisplay(sys.stdout)
    if plain or no_progress or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        from orchestrator.cli.display.plain_display import PlainDisplay

        return PlainDisplay(sys.stderr, show_progress=not no_progress)
    from rich.console import Console

    from orchestrator.cli.display.live_display import LiveDisplay
    from orchestrator.cli.display.plain_display import describe

    return LiveDisplay(Console(stderr=True), describe=describe)


@dataclass
class _Ended:
    """How the driver's thread ended."""

    outcome: "RunOutcome | None" = None
    error: BaseException | None = None


class _Sheltered:
    """The display, as an observer: its first failure is printed, because it can no longer show it itself."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._failed = False

    def on_event(self, event: Event) -> None:
        self._call(lambda: self._observer.on_event(event))

    def on_step(self, report: StepReport) -> None:
        self._call(lambda: self._observer.on_step(report))

    def _call(self, show: Callable[[], None]) -> None:
        try:
            show()
        except Exception as error:
            if not self._failed:
                self._failed = True
                print(f"warning: the display failed and may be wrong: {error!r}", file=sys.stderr)
            raise  # the run goes on: its event bus isolates the display


def _drive(start: Start, display: Display, home: Path, quiet: bool, interrupt: Interrupt | None = None) -> int:
    """Run the driver in a thread, so that the main thread can always handle signals."""
    interrupt, ended = interrupt or Interrupt(), _Ended()

    def drive() -> None:
        try:
            ended.outcome = start([_Sheltered(display)], interrupt.stop)
        except BaseException as error:  # noqa: BLE001  # raised again in the main thread
            ended.error = error

    suppress_sigterm_warning()
    thread = threading.Thread(target=drive, name="driver", daemon=True)
    with interrupt.installed():
        display.start()
        try:
            thread.start()
            told = False
            while thread.is_alive():
                thread.join(timeout=0.1)
                if interrupt.lost is not None:
                    _end_lost(display, interrupt.lost)
                if interrupt.stop.is_set() and not told:
                    told = True
                    display.stopping()
                if interrupt.forced and thread.is_alive():
                    end_now(interrupt.exit_code, lambda: _last_words(display, home, interrupt.why_forced))
        finally:
            display.stop()
    if ended.error is not None:
        if interrupt.stop.is_set() and not isinstance(ended.error, ConvoyError):
            return interrupt.exit_code
        raise ended.error
    assert ended.outcome is not None
    failed = ended.outcome.state is RunState.FAILED
    if failed or not quiet:
        print(_summary(display.view, ended.outcome, home), file=sys.stderr if failed else sys.stdout)
    if ended.outcome.state is RunState.STOPPED and interrupt.first_signal is not None:
        return interrupt.exit_code
    return ended.outcome.exit_code


def _summary(view: ShownRun, outcome: "RunOutcome", home: Path) -> str:
    layout = RunLayout(outcome.run_dir)
    if outcome.state is RunState.SUCCEEDED:
        return end_summary.succeeded(view, layout, home)
    if outcome.state is RunState.STOPPED:
        return end_summary.stopped(view, layout, home, outcome.reason)
    return end_summary.failed(view, layout, home, outcome.reason)


def _end_lost(display: Display, error: ConvoyError) -> None:
    """Another driver has the run: end this process and all that it started, without a word in the run's files."""

    def last_words() -> None:
        display.stop()
        print(f"error: {error.message}\nhint: {error.hint}", file=sys.stderr, flush=True)

    end_now(error.exit_code, last_words)


def _last_words(display: Display, home: Path, why: str) -> None:
    """Before a forced end: restore the terminal and record what happened in the run's state."""
    display.stop()
    run_id = display.view.run_id
    print(f"killed: {why}", file=sys.stderr, flush=True)
    if run_id is None:
        return
    from orchestrator.store.driver_process import DriverProcess
    from orchestrator.store.run_store import RunStore, read_record

    layout = RunLayout(home.absolute() / run_id)
    record = read_record(layout)
    if record is not None and record.driver == DriverProcess.current():
        RunStore(home).set_state(layout, RunState.STOPPED, f"killed: {why}", now_s=time.time())
        print(end_summary.stopped(display.view, layout, home, f"killed: {why}"), flush=True)
