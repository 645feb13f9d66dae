"""The display of a run on a terminal: its stages, and the step bar with the figures that matter."""

import threading
import time
from collections.abc import Callable

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from orchestrator.cli.display import formatting, vault_text
from orchestrator.cli.display.run_view import STAGES, ShownRun, Stage
from orchestrator.domain.events import (
    ChangesAccepted,
    CheckpointFailed,
    CheckpointRejected,
    ClusterReady,
    DataReady,
    DataSkipped,
    DevicePlanned,
    Event,
    EventBody,
    GangResized,
    NodeDraining,
    RecoveryFinished,
    RecoveryStarted,
    RunState,
    ScaleAnswered,
    SnapshotsPlanned,
    TrainingPlanned,
    VaultsAdopted,
    VaultsKept,
    WarningIssued,
    WorkerFailed,
    WorkerSlow,
)
from orchestrator.domain.step_report import StepReport

_DATA_PHASES = {
    "scan": "reading the corpus",
    "tokenizer": "training the tokenizer",
    "tokenize": "tokenizing",
    "index": "indexing",
    "compare": "comparing the files with those that the run used",
}
_WORKER_PHASES = {
    "import": "importing the engine",
    "rendezvous": "rendezvous",
    "build": "building the model",
    "restore": "restoring the checkpoint",
}
_REFRESH_PER_S = 5
ANNOUNCED: dict[type[EventBody], str] = {
    WorkerFailed: "red",
    RecoveryStarted: "yellow",
    RecoveryFinished: "green",
    GangResized: "cyan",
    WorkerSlow: "yellow",
    CheckpointFailed: "yellow",
    CheckpointRejected: "yellow",
    DevicePlanned: "dim",
    SnapshotsPlanned: "dim",
}
"""Events whose line remains above the display, and its style: the state in the title changes a second later."""


class LiveDisplay:
    """Observer that redraws a few lines at the bottom of the terminal. Thread-safe: rich draws from a thread."""

    def __init__(
        self,
        console: Console,
        clock: Callable[[], float] = time.time,
        describe: Callable[[EventBody, ShownRun], str | None] = lambda body, view: None,
    ) -> None:
        """`describe` gives the line that is printed above the display for an event in `ANNOUNCED`."""
        self.view = ShownRun()
        self._clock = clock
        self._describe = describe
        self._lock = threading.Lock()
        self._spinner = Spinner("dots", style="cyan")
        self._started_s = clock()
        self._stopping_s: float | None = None
        self._live = Live(
            get_renderable=self._draw, console=console, refresh_per_second=_REFRESH_PER_S, redirect_stdout=False
        )

    def start(self) -> None:
        """Start drawing."""
        self._live.start(refresh=True)

    def stop(self) -> None:
        """Draw a last time and leave the lines on the terminal."""
        self._live.stop()

    def stopping(self) -> None:
        """Show that the run is being stopped."""
        self._stopping_s = self._clock()

    def on_event(self, event: Event) -> None:
        """Take an event; warnings are printed above the display and remain there."""
        with self._lock:
            self.view.on_event(event)
        match event.body:
            case WarningIssued(message):
                self._live.console.print(f"[yellow]warning:[/] {escape(message)}")
            case ChangesAccepted() as accepted:
                text = changes_text(accepted).removeprefix("warning: ")
                self._live.console.print(f"[yellow]warning:[/] {escape(text)}")
            case NodeDraining() | ScaleAnswered() as planned:
                self._live.console.print(f"[cyan]planned:[/] {escape(planned_text(planned))}")
            case VaultsAdopted() as adopted:
                self._live.console.print(f"adopted: {escape(vault_text.adopted(adopted))}")
            case VaultsKept() as kept:
                self._live.console.print(f"kept: {escape(vault_text.kept(kept))}")
            case DataSkipped() as records:
                self._live.console.print(f"[yellow]skipped:[/] {escape(skipped(records))}")
            case body if type(body) in ANNOUNCED:
                self._announce(body)

    def _announce(self, body: EventBody) -> None:
        with self._lock:
            text = self._describe(body, self.view)
        if text:
            self._live.console.print(Text(formatting.printable(text), style=ANNOUNCED[type(body)]))

    def on_step(self, report: StepReport) -> None:
        """Take a step."""
        with self._lock:
            self.view.on_step(report)

    def _draw(self) -> RenderableType:
        with self._lock:
            return draw(self.view, self._clock(), self._started_s, self._spinner, self._stopping_s)


def draw(
    view: ShownRun, now_s: float, started_s: float, spinner: RenderableType, stopping_s: float | None = None
) -> RenderableType:
    """The whole display at `now_s`."""
    title = Text.assemble(("convoy", "bold cyan"), "  ", (view.run_id or "starting", "bold"), "  ")
    title.append(view.state or "", style=_state_style(view.state))
    title.append(f"  {formatting.clock(now_s - started_s)}", style="dim")
    if view.state is RunState.WAITING:
        title.append(f"  {view.reason}", style="bold yellow")
    if stopping_s is not None and view.state not in (RunState.SUCCEEDED, RunState.FAILED, RunState.STOPPED):
        title.append("  stopping (again to force)", style="bold yellow")
    stages = Table.grid(padding=(0, 1))
    # On a narrow terminal only the text column may shrink; it is cut.
    stages.add_column(no_wrap=True)
    stages.add_column(no_wrap=True, min_width=8)
    stages.add_column()
    stages.add_column(no_wrap=True, justify="right", style="dim")
    for name in STAGES:
        stage = view.stages[name]
        if stage.started_s is None:
            continue
        over = stage.ended_s is not None
        mark: RenderableType = Text("✓", style="green") if over else spinner
        end_s = stage.ended_s if stage.ended_s is not None else now_s
        stages.add_row(
            mark, Text(name), _stage_text(view, name, stage, now_s), formatting.duration(end_s - stage.started_s)
        )
    if all(stage.started_s is None for stage in view.stages.values()):
        stages.add_row(spinner, Text("cluster"), Text("starting", style="dim"), "")
    parts: list[RenderableType] = [title, stages]
    if view.last is not None:
        parts += [_step_bar(view), _figures(view)]
    return Group(*parts)


def _stage_text(view: ShownRun, name: str, stage: Stage, now_s: float) -> Text:
    over = stage.ended_s is not None
    match name:
        case "data":
            return Text(data_ready(view.ready) if view.ready else data_progress(view, now_s))
        case "cluster":
            return Text(cluster_ready(view.cluster))
        case "workers":
            doing = "" if over else _WORKER_PHASES.get(view.worker_phase, "starting")
            return Text(doing or (f"{view.plan.world_size} workers" if view.plan else ""))
        case "build":
            return Text(model_text(view.plan) if over and view.plan else _WORKER_PHASES.get(view.worker_phase, ""))
        case "train":
            parts = [f"checkpoint of step {view.checkpoints[-1].step}"] if view.checkpoints else []
            if view.kept_in_memory:
                parts.append(f"memory: {formatting.size(view.kept_in_memory.node_bytes)} of state on a node")
            return Text(", ".join(parts))
        case _:
            return Text(view.exported.path if view.exported else "")


def _step_bar(view: ShownRun) -> RenderableType:
    total = view.total_steps
    table = Table.grid(padding=(0, 1))
    done = view.step / total if total else 0.0
    left = "" if view.eta_s is None else f"{formatting.clock(view.eta_s)} left"
    table.add_row(
        Text("  step", style="bold"),
        Text(f"{view.step}/{total or '?'}"),
        ProgressBar(total=total or 1, completed=view.step if total else 0, width=40),
        Text(f"{done:.0%}"),
        Text(left, style="dim"),
    )
    return table


def _figures(view: ShownRun) -> RenderableType:
    table = Table.grid(padding=(0, 1))
    table.add_column(width=2)
    cells: list[RenderableType] = [Text("")]
    for name, value in figures(view):
        table.add_column(style="dim")
        table.add_column(min_width=len(value))
        cells += [Text(name), Text(value)]
    table.add_row(*cells)
    return table


def figures(view: ShownRun) -> list[tuple[str, str]]:
    """Figures of the steps so far: (name, value)."""
    if view.last is None:
        return []
    shown = [("loss", formatting.loss(view.last.loss))]
    if view.validation_loss is not None:
        shown.append(("val", formatting.loss(view.validation_loss)))
    shown.append(("tok/s", formatting.count(view.tokens_per_s)))
    shown.append(("step", formatting.duration(view.step_time_s)))
    if view.memory is not None:
        shown.append((view.memory[1], formatting.size(view.memory[0])))
    if view.last.mfu is not None:
        shown.append(("MFU", f"{view.last.mfu:.1%}"))
    return shown


def data_progress(view: ShownRun, now_s: float) -> str:
    """`tokenizing 3.1 of 5.6 MiB, 55%, 2.3 MiB/s`."""
    data = view.data
    if data is None:
        return ""
    done, total = data.done_bytes, data.total_bytes
    text = f"{_DATA_PHASES.get(data.phase, data.phase)} {formatting.size(done)}"
    if total > 0:
        text += f" of {formatting.size(total)}, {min(1.0, done / total):.0%}"
    rate = view.data_rate(now_s)
    return text + (f", {formatting.size(rate)}/s" if rate else "")


def changes_text(accepted: ChangesAccepted) -> str:
    """`warning: going on after step 100 with what has changed: data: ...; code: ...`."""
    found = "; ".join(formatting.changes(accepted.changes))
    return f"warning: continuing after step {accepted.step} with changed inputs: {found}"


def data_ready(ready: DataReady) -> str:
    """`1.6 M tokens, 12,345 + 512 samples (cached)`."""
    text = f"{formatting.count(ready.tokens)} tokens, {formatting.count(ready.train_samples)} training"
    text += f" + {formatting.count(ready.validation_samples)} validation samples"
    if ready.bad_records:
        text += f", {ready.bad_records} bad records skipped"
    return text + (" (cached)" if ready.cached else "")


def cluster_ready(cluster: ClusterReady | None) -> str:
    """`4 nodes, 4 CPUs`."""
    if cluster is None:
        return "starting"
    text = f"{cluster.nodes} node{'' if cluster.nodes == 1 else 's'}, {cluster.cpus:g} CPUs"
    return text + (f", {cluster.gpus:g} GPUs" if cluster.gpus else "")


def model_text(plan: TrainingPlanned) -> str:
    """`3.2 M parameters, global batch 12 as 4 workers x micro batch 3 x 1`."""
    return (
        f"{formatting.count(plan.parameters)} parameters, global batch {sum(plan.shares)}: {plan.world_size} workers, "
        f"micro batch {plan.micro_batch}, accumulation {plan.accumulation}"
    )


def planned_text(event: NodeDraining | ScaleAnswered) -> str:
    """`node 1a2b3c4d goes in 30 s: workers 2, 3 there`, or what was said to who asked for another number of workers."""
    if isinstance(event, ScaleAnswered):
        return f"scale ({event.by}): {event.message}"
    notice_s, ranks = event.notice_s, event.ranks
    when = "is draining" + ("" if notice_s is None else f", deadline in {formatting.duration(max(0.0, notice_s))}")
    whose = f"worker{'s' if len(ranks) != 1 else ''} {', '.join(map(str, ranks))}" if ranks else None
    leaving = f"{whose} leave{'s' if len(ranks) == 1 else ''} it" if whose else "it has no workers of this run"
    return f"node {event.node[:8]} {when}: {leaving}"


def skipped(records: DataSkipped) -> str:
    """`corpus/a.jsonl: 3 records (broken JSON), the first at line 7`."""
    return f"{records.source}: {records.count} ({records.reason}), the first: {records.first}"


def _state_style(state: str | None) -> str:
    return {"succeeded": "green", "failed": "bold red", "stopped": "yellow", "waiting": "bold yellow"}.get(
        state or "", "cyan"
    )
