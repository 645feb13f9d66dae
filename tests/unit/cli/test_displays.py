"""What the displays show of a recorded run."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from rich.text import Text

from orchestrator.cli.display import end_summary
from orchestrator.cli.display.live_display import LiveDisplay, draw
from orchestrator.cli.display.plain_display import JsonDisplay, PlainDisplay, describe
from orchestrator.cli.display.run_view import ShownRun
from orchestrator.cli.options import DEFAULT_HOME
from orchestrator.domain.events import (
    CheckpointFailed,
    DevicePlanned,
    Event,
    RecoveryFinished,
    RecoveryStarted,
    SnapshotsPlanned,
    WarningIssued,
    WorkerFailed,
)
from orchestrator.domain.run_layout import RunLayout
from orchestrator.domain.step_report import StepReport
from tests.events import body, event
from tests.unit.cli.conftest import STEPS, T0, feed, recording

pytestmark = pytest.mark.unit

LAYOUT = RunLayout(Path("/runs/tiny-1"))


class Watching:
    """A terminal that is looked at after each fact."""

    def __init__(self, width: int) -> None:
        self.view = ShownRun()
        self.frames: list[str] = []
        self._width = width

    def on_event(self, event: Event) -> None:
        self.view.on_event(event)
        self._look(event.time_s)

    def on_step(self, report: StepReport) -> None:
        self.view.on_step(report)
        self._look(report.time_s)

    def _look(self, now_s: float) -> None:
        console = Console(file=io.StringIO(), width=self._width, color_system=None)
        with console.capture() as capture:
            console.print(draw(self.view, now_s, T0, Text("*")))
        self.frames.append(capture.get())


def test_each_stage_shows_its_figures() -> None:
    watching = Watching(120)
    feed([watching], recording(LAYOUT))
    text = "\n".join(watching.frames)
    assert "tokenizing 2.0 MiB of 4.0 MiB, 50%, 1.0 MiB/s" in text
    assert "* workers  starting" in text
    assert "building the model" in text
    last = watching.frames[-1]
    assert "1.5 M tokens, 700 training + 32 validation samples, 1 bad records skipped" in last
    assert "4.2 M parameters, global batch 16: 2 workers, micro batch 8, accumulation 1" in last
    assert "loss 4.0000 val 4.5000 tok/s 2,000 step 1.0 s RSS 2.0 GiB" in last
    assert f"{STEPS}/{STEPS}" in last
    assert "*" not in last, "nothing is going on any more"


def test_time_left_follows_the_pace() -> None:
    watching = Watching(100)
    feed([watching], recording(LAYOUT))
    halfway = next(frame for frame in watching.frames if f"5/{STEPS}" in frame)
    assert "50%" in halfway
    assert "0:05 left" in halfway


def test_the_pace_is_that_of_the_run_that_is_shown() -> None:
    view = ShownRun()
    for begun_s in (0.0, 100.0):  # as in a drill
        for fact in recording(LAYOUT):
            if isinstance(fact, StepReport):
                view.on_step(replace(fact, time_s=fact.time_s + begun_s))
                assert view.step_time_s == pytest.approx(1.0)
            else:
                view.on_event(fact)


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    watching = Watching(width)
    feed([watching], recording(LAYOUT))
    assert all(len(line) <= width for frame in watching.frames for line in frame.splitlines())
    assert any("workers" in frame for frame in watching.frames), "the names of the stages stay readable"


def test_the_live_display_takes_whatever_a_run_tells() -> None:
    console = Console(file=io.StringIO(), width=100, force_terminal=True, no_color=True, highlight=False)
    display = LiveDisplay(console, clock=lambda: T0)
    display.start()
    try:
        feed([display], recording(LAYOUT, fails_at=3))
        display.on_event(event(WarningIssued, T0, message="[/red] is no markup"))
        display.stopping()
    finally:
        display.stop()
    assert "[/red] is no markup" in console.file.getvalue()  # type: ignore[attr-defined]
    assert display.view.state == "failed"


def test_the_live_display_tells_of_lost_workers_and_failed_checkpoints() -> None:
    console = Console(file=io.StringIO(), width=200, force_terminal=True, no_color=True, highlight=False)
    display = LiveDisplay(console, clock=lambda: T0, describe=describe)
    lost = {"rank": 2, "error": "its node is unreachable\x1b]0;evil\x07", "traceback": ""}
    going_on = {"rank": 2, "step": 20, "from_step": 20, "source": "vaults", "skipped": None}
    recovered = {"incident": 1, "step": 21, "world_size": 3, "seconds": 1.4, "steps_recomputed": 0}
    display.start()
    try:
        display.on_event(event(WorkerFailed, T0, **lost))
        display.on_event(event(RecoveryStarted, T0, **going_on))
        display.on_event(event(RecoveryFinished, T0, **recovered))
        display.on_event(event(CheckpointFailed, T0, reason="the disk is full"))
    finally:
        display.stop()
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "worker 2 failed: its node is unreachable" in shown
    assert "worker 2 was lost at step 20, continuing from step 20 (vaults)" in shown
    assert "recovered in 1.4 s with 3 workers, 0 steps recomputed" in shown
    assert "the disk is full" in shown
    assert "\x1b]0;evil" not in shown


def test_plain_lines_are_few_and_say_what_happened() -> None:
    now_s = [T0]
    stream = io.StringIO()
    display = PlainDisplay(stream, clock=lambda: now_s[0])
    for fact in recording(LAYOUT):
        now_s[0] = fact.time_s
        feed([display], iter([fact]))
    lines = stream.getvalue().splitlines()
    steps = [line for line in lines if " step " in line and "loss" in line and "validation" not in line]
    assert "step 1/10 (10%)" in steps[0]
    assert "step 10/10 (100%)" in steps[-1]
    assert len(steps) <= 4, "one every five seconds, not one a step"
    assert any("step 10: validation loss 4.5000" in line for line in lines)
    assert any("metrics at http://127.0.0.1:9464/metrics" in line for line in lines)
    assert not any("\x1b" in line for line in lines)


def test_without_progress_only_trouble_is_told() -> None:
    stream = io.StringIO()
    feed([PlainDisplay(stream, clock=lambda: T0, show_progress=False)], recording(LAYOUT, fails_at=3))
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    assert "worker 1 failed: ValueError: boom" in lines[0]


def test_json_is_an_object_a_line_and_nothing_else() -> None:
    stream = io.StringIO()
    feed([JsonDisplay(stream)], recording(LAYOUT))
    values = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [value["step"] for value in values if value["kind"] == "step"] == list(range(1, STEPS + 1))
    assert values[0]["kind"] == "run.created"
    assert {"data.progress", "worker.log"} <= {value["kind"] for value in values}


def test_a_reader_that_leaves_does_not_end_the_run() -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    feed([PlainDisplay(Gone(), clock=lambda: T0), JsonDisplay(Gone())], recording(LAYOUT))


def seen(fails_at: int | None = None) -> ShownRun:
    view = ShownRun()
    feed([view], recording(LAYOUT, fails_at))
    return view


def test_the_end_says_what_came_of_it_and_what_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONVOY_HOME", raising=False)
    text = end_summary.succeeded(seen(), LAYOUT, DEFAULT_HOME)
    assert "validation loss  8.0000 -> 4.5000  (-43.8%)" in text
    assert "/runs/tiny-1/export  (16.0 MiB)" in text
    assert "  def f(x):\n      [bold]" in text
    assert "\x1b" not in text
    assert "\n  convoy generate tiny-1 --prompt 'def '" in text
    assert "\n  CONVOY_HOME='/my runs' convoy show tiny-1" in end_summary.succeeded(seen(), LAYOUT, Path("/my runs"))
    monkeypatch.setenv("CONVOY_HOME", "/my runs")
    assert "\n  convoy show tiny-1" in end_summary.succeeded(seen(), LAYOUT, Path("/my runs"))


def test_a_failure_shows_the_first_workers_traceback_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CONVOY_HOME", raising=False)
    layout = RunLayout(tmp_path)
    layout.logs.mkdir()
    layout.log(1).write_text("x\n")
    text = end_summary.failed(seen(fails_at=8), layout, DEFAULT_HOME, "worker 1: ValueError: boom")
    assert "Worker 1 failed first; its traceback:" in text
    assert "    in rank 1\n  ValueError: boom" in text
    assert "peer gone" not in text
    assert "Failed after that: worker 0." in text
    assert str(layout.log(1)) in text
    assert f"convoy run --resume {layout.run_id}" in text


def test_a_worker_that_was_killed_has_no_traceback_to_show() -> None:
    view = seen()
    view.on_event(event(WorkerFailed, T0, rank=1, error="killed by SIGKILL", traceback=""))
    text = end_summary.failed(view, LAYOUT, DEFAULT_HOME, "x")
    assert "Worker 1 failed first: killed by SIGKILL" in text
    assert "traceback" not in text


def test_without_a_checkpoint_no_resume_is_promised() -> None:
    text = end_summary.failed(seen(fails_at=3), LAYOUT, DEFAULT_HOME, "x")
    assert "--resume" not in text
    assert "no checkpoint to continue from" in text


def test_what_training_takes_on_a_gpu_is_told_by_part() -> None:
    gib = 1 << 30
    parts = {"optimizer": 10 * gib, "weights": 13 * gib}
    fields = {"micro_batch": 4, "need_bytes": 23 * gib, "parts": parts, "free_bytes": 79 * gib, "total_bytes": 80 * gib}
    planned = body(DevicePlanned, **fields, device="NVIDIA H100")
    assert describe(planned, ShownRun()) == (
        "GPU memory: 23.0 GiB expected of 80.0 GiB of the smallest NVIDIA H100, 79.0 GiB free, at a micro batch of 4: "
        "weights 13.0 GiB, optimizer 10.0 GiB"
    )


def test_what_the_loss_of_a_node_costs_is_told_at_the_start() -> None:
    fields = {"state_bytes": 13 << 30, "interval_s": 164.0, "interval_steps": None, "sent_s": 42.0, "read_s": 48.0}
    text = describe(body(SnapshotsPlanned, **fields, repeated_s=206.0), ShownRun())
    assert text == (
        "node loss: repeats up to 3:26 of training, at least a step, and takes 48.0 s to read the state from peers; "
        "the 13.0 GiB of each worker are copied to memory about every 2:44, and sent to peers in 42.0 s"
    )
    fixed = {**fields, "interval_steps": 3, "repeated_s": None}
    text = describe(body(SnapshotsPlanned, **fixed), ShownRun()) or ""
    assert text.startswith("node loss: repeats the steps since the newest copy and takes 48.0 s")
    assert "every 3 steps" in text
    alone = {**fields, "read_s": None}
    text = describe(body(SnapshotsPlanned, **alone), ShownRun()) or ""
    assert text.startswith("node loss: repeats all steps since the last checkpoint: no copies are kept on other nodes")
